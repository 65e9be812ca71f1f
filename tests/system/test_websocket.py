"""WebSocket through the whole way: by a client library, over HTTP/2 (RFC 8441), and from a page in a browser."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import struct
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.system.harness import Process, World
from tests.system.service import pattern
from tests.system.targets import RawTarget, read_all, read_head

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.system
CHROMIUM = shutil.which("chromium")


def unwilling(sock: socket.socket) -> None:
    """A service that answers an upgrade with 200 and goes on reading requests."""
    while read_head(sock):
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("websocket")) as world, RawTarget(unwilling) as raw:
        world.start_edge()
        web = world.service("web")
        world.connector(
            "home",
            f"""
            [services.web]
            target = "http://127.0.0.1:{web}"
            [services.other]
            target = "http://127.0.0.1:{web}"
            [services.unwilling]
            target = "http://127.0.0.1:{raw.port}"
            """,
        )
        yield world


def open_socket(world: World, path: str, *, name: str = "web.example.com") -> connect:
    """A connection of the client library over HTTP/1.1.

    Not the threaded client: before Python 3.13 a TLS object does not bear two threads.
    """
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    url = f"wss://{name}:{world.port}{path}"
    return connect(url, host="127.0.0.1", port=world.port, ssl=context, max_size=None, open_timeout=30, proxy=None)


def test_text_and_binary(world: World) -> None:
    large = pattern(5_000_000)

    async def talk() -> None:
        async with open_socket(world, "/ws") as connection:
            await connection.send("grüße")
            assert await connection.recv() == "echo grüße"
            await connection.send(large)
            assert await connection.recv() == large
            await connection.send(b"")
            assert await connection.recv() == b""
            await (await connection.ping())

    asyncio.run(asyncio.wait_for(talk(), 60))


def test_the_services_close_code(world: World) -> None:
    async def talk() -> ConnectionClosed:
        async with open_socket(world, "/ws?close=4007") as connection:
            await connection.send("bye")
            with pytest.raises(ConnectionClosed) as closed:
                await connection.recv()
            return closed.value

    closed = asyncio.run(asyncio.wait_for(talk(), 60))
    assert closed.rcvd is not None
    assert (closed.rcvd.code, closed.rcvd.reason) == (4007, "as asked")


def test_the_visitors_close_code(world: World) -> None:
    async def talk() -> None:
        async with open_socket(world, "/ws?told=1") as connection:
            await connection.close(4008, "enough")

    asyncio.run(asyncio.wait_for(talk(), 60))
    assert world.curl("https://web.example.com/closed").stdout == b"4008"


def test_many_at_once(world: World) -> None:
    async def one(number: int, everybody: asyncio.Barrier) -> None:
        async with open_socket(world, "/ws") as connection:
            await everybody.wait()
            await connection.send(str(number))
            assert await connection.recv() == f"echo {number}"
            await everybody.wait()

    async def all_of_them() -> None:
        everybody = asyncio.Barrier(50)
        await asyncio.gather(*(one(number, everybody) for number in range(50)))

    asyncio.run(asyncio.wait_for(all_of_them(), 60))


def test_a_path_without_websocket(world: World) -> None:
    async def talk() -> None:
        async with open_socket(world, "/status/403"):
            pass

    with pytest.raises(InvalidStatus) as refused:
        asyncio.run(asyncio.wait_for(talk(), 60))
    assert refused.value.response.status_code == 403


def test_an_upgrade_that_is_declined_opens_no_raw_tunnel(world: World) -> None:
    upgrade = (
        b"GET / HTTP/1.1\r\nHost: unwilling.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    smuggled = b"GET /x HTTP/1.1\r\nHost: other.example.com\r\nConnection: close\r\n\r\n"
    with world.tls("unwilling.example.com") as connection:
        connection.sendall(upgrade + smuggled)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 421 " in answer or answer.count(b"HTTP/1.1") == 1


class Http2WebSocket:
    """One WebSocket inside an HTTP/2 connection, by the h2 library; messages below 64 KiB."""

    def __init__(self, world: World, path: str, *, protocol: str = "websocket") -> None:
        self.sock = world.tls("web.example.com", alpn=["h2"])
        assert self.sock.selected_alpn_protocol() == "h2"
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.data = b""
        self.fields: dict[str, str] = {}
        self.done = False
        self._flush()
        self._until(lambda: self.h2.remote_settings.enable_connect_protocol == 1)
        self.h2.send_headers(1, [
            (":method", "CONNECT"), (":protocol", protocol), (":scheme", "https"), (":path", path),
            (":authority", f"web.example.com:{world.port}"), ("sec-websocket-version", "13"),
        ])  # fmt: skip
        self._flush()
        self._until(lambda: self.fields or self.done)

    def _flush(self) -> None:
        self.sock.sendall(self.h2.data_to_send())

    def _until(self, condition) -> None:
        while not condition():
            data = self.sock.recv(65536)
            assert data, "the edge closed the connection"
            for event in self.h2.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    self.fields = dict(event.headers)
                elif isinstance(event, h2.events.DataReceived):
                    self.data += event.data
                    self.h2.acknowledge_received_data(event.flow_controlled_length, 1)
                elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                    self.done = True
            self._flush()

    def send(self, opcode: int, payload: bytes) -> None:
        """One masked frame (the mask is zero, which is a mask too)."""
        assert len(payload) < 65536
        size = bytes([0x80 | len(payload)]) if len(payload) < 126 else bytes([0xFE]) + struct.pack("!H", len(payload))
        frame = bytes([0x80 | opcode]) + size + bytes(4) + payload
        for start in range(0, len(frame), 16384):
            part = frame[start : start + 16384]
            self._until(lambda part=part: self.h2.local_flow_control_window(1) >= len(part))
            self.h2.send_data(1, part)
            self._flush()

    def receive(self) -> tuple[int, bytes]:
        self._until(lambda: len(self.data) >= 2)
        head, size = 2, self.data[1]
        if size == 126:
            self._until(lambda: len(self.data) >= 4)
            head, size = 4, struct.unpack("!H", self.data[2:4])[0]
        self._until(lambda: len(self.data) >= head + size)
        opcode, payload = self.data[0] & 15, self.data[head : head + size]
        self.data = self.data[head + size :]
        return opcode, payload


def test_over_http2(world: World) -> None:
    inside = Http2WebSocket(world, "/ws")
    with inside.sock:
        assert inside.fields[":status"] == "200"
        assert "sec-websocket-accept" not in inside.fields
        inside.send(1, b"over h2")
        assert inside.receive() == (1, b"echo over h2")
        body = pattern(60_000)
        inside.send(2, body)
        assert inside.receive() == (2, body)
        inside.send(8, struct.pack("!H", 1000))
        assert inside.receive() == (8, struct.pack("!H", 1000))
        inside._until(lambda: inside.done)


def test_over_http2_to_a_path_without_websocket(world: World) -> None:
    inside = Http2WebSocket(world, "/status/403")
    inside.sock.close()
    assert inside.fields[":status"] == "403"


def test_other_protocols_over_http2_are_refused(world: World) -> None:
    inside = Http2WebSocket(world, "/ws", protocol="connect-udp")
    inside.sock.close()
    assert inside.fields[":status"] == "501"


def idle_connection_ends(world: World) -> None:
    with world.tls("web.example.com") as idle:
        idle.sendall(b"GET /status/201 HTTP/1.1\r\nHost: web.example.com\r\n\r\n")
        assert b" 201 " in read_all(idle), "and then it was closed"


def test_a_websocket_outlives_the_idle_limit(tmp_path: Path) -> None:
    """`idle_seconds` is for the time between requests: a quiet WebSocket is not cut, a quiet connection is."""
    with World(tmp_path, tables="[limits]\nidle_seconds = 1") as world:
        world.start_edge()
        world.connector("home", f'[services.web]\ntarget = "http://127.0.0.1:{world.service("web")}"')

        async def talk() -> None:
            async with open_socket(world, "/ws") as connection:
                await asyncio.to_thread(idle_connection_ends, world)
                await connection.send("still here")
                assert await connection.recv() == "echo still here"

        asyncio.run(asyncio.wait_for(talk(), 60))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_page_in_chromium(world: World, tmp_path: Path) -> None:
    """The page itself says what it got, so that no clock of the browser's decides when to look."""
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
        "--ignore-certificate-errors", "--host-resolver-rules=MAP * 127.0.0.1", "--remote-debugging-port=0",
        f"--user-data-dir={tmp_path / 'profile'}", f"https://web.example.com:{world.port}/page.html",
    ]  # fmt: skip
    browser = Process("chromium", command, tmp_path, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"})
    try:
        assert world.curl("https://web.example.com/said", seconds=100).stdout == b"echo from chromium"
    except AssertionError:
        raise AssertionError(browser.text()[-3000:] + world.logs()) from None
    finally:
        browser.stop()
