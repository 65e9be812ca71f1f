"""The SOCKS server with a far side on this machine."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from tests.connector.athome import LOOPS, LocalService, run, until
from tests.visitor.fakes import FakeReach
from tunnelgw.config.model import Endpoint
from tunnelgw.errors import LocalError, OriginError, Refused
from tunnelgw.obs.reasons import Reason
from tunnelgw.visitor.local import LocalServer, check_listen
from tunnelgw.visitor.socks import socks_server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tunnelgw.errors import TunnelgwError

NO_LOGIN = b"\x05\x01\x00"


def name_request(name: bytes, port: int = 80, command: int = 1) -> bytes:
    return b"\x05%c\x00\x03%c" % (command, len(name)) + name + port.to_bytes(2, "big")


Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def with_server(
    test: Callable[[FakeReach, LocalServer, LocalService, Callable[[], Awaitable[Peer]]], Awaitable[None]],
    *,
    loop: str = "uvloop",
    users: dict[bytes, bytes] | None = None,
    most: int = 0,
    echo: bool = True,
) -> None:
    async def main() -> None:
        target = await LocalService(echo=echo).listen()
        reach = FakeReach(nas=("127.0.0.1", target.port))
        server = socks_server(reach, users=users, most=most)
        port = await server.listen(Endpoint("127.0.0.1", 0), "--socks")

        async def dial() -> Peer:
            return await asyncio.open_connection("127.0.0.1", port)

        try:
            await test(reach, server, target, dial)
        finally:
            server.close()
            target.close()
            await until(lambda: not server.clients)

    run(main, loop=loop)


@pytest.mark.parametrize("loop", sorted(LOOPS))
@pytest.mark.parametrize("step", [1, 1000])
def test_connect_by_name_however_the_bytes_come(loop: str, step: int) -> None:
    async def test(
        reach: FakeReach, server: LocalServer, target: LocalService, dial: Callable[[], Awaitable[Peer]]
    ) -> None:
        reader, writer = await dial()
        sent = NO_LOGIN + name_request(b"nas.lan") + b"early"
        for start in range(0, len(sent), step):
            writer.write(sent[start : start + step])
            await writer.drain()
            await asyncio.sleep(0)
        assert await reader.readexactly(2 + 10) == b"\x05\x00\x05\x00\x00\x01" + bytes(6)
        assert await reader.readexactly(5) == b"early"
        writer.write(b"more")
        assert await reader.readexactly(4) == b"more"
        writer.write_eof()
        assert await reader.read() == b""
        await until(lambda: not server.clients)
        assert reach.asked == [("nas.lan", 80)]
        writer.close()

    with_server(test, loop=loop)


@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_the_target_may_speak_first_and_half_close(loop: str) -> None:
    async def test(
        reach: FakeReach, _server: LocalServer, _t: LocalService, dial: Callable[[], Awaitable[Peer]]
    ) -> None:
        heard = bytearray()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"SSH-2.0-x\r\n")
            writer.write_eof()
            heard.extend(await reader.read())
            writer.close()

        ssh = await asyncio.start_server(serve, "127.0.0.1", 0)
        reach.names["ssh"] = ("127.0.0.1", ssh.sockets[0].getsockname()[1])
        reader, writer = await dial()
        writer.write(NO_LOGIN + name_request(b"ssh", 22))
        assert (await reader.read())[12:] == b"SSH-2.0-x\r\n"
        writer.write(b"x" * 100_000)  # our half is still open
        writer.write_eof()
        await until(lambda: len(heard) == 100_000)
        writer.close()
        ssh.close()

    with_server(test, loop=loop)


@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_who_does_not_read_holds_the_other_up(loop: str) -> None:
    async def test(
        reach: FakeReach, server: LocalServer, _t: LocalService, dial: Callable[[], Awaitable[Peer]]
    ) -> None:
        written = 0

        async def pour(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal written
            try:
                while written < 256 << 20:
                    writer.write(bytes(65536))
                    written += 65536
                    await writer.drain()
            except ConnectionError:
                pass
            writer.close()

        source = await asyncio.start_server(pour, "127.0.0.1", 0)
        reach.names["source"] = ("127.0.0.1", source.sockets[0].getsockname()[1])
        reader, writer = await dial()
        writer.write(NO_LOGIN + name_request(b"source"))
        await reader.readexactly(12)
        before = -1
        while before != written:  # the kernel's buffers are full, and ours
            before = written
            await asyncio.sleep(0.3)
        assert written < 64 << 20
        writer.transport.abort()
        await until(lambda: not server.clients)
        source.close()

    with_server(test, loop=loop)


def test_a_break_is_passed_on_as_a_break() -> None:
    async def test(
        _r: FakeReach, server: LocalServer, target: LocalService, dial: Callable[[], Awaitable[Peer]]
    ) -> None:
        reader, writer = await dial()
        writer.write(NO_LOGIN + name_request(b"nas"))
        await reader.readexactly(12)
        await until(lambda: target.connections == 1)
        sock = target._writers[0].get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        target.cut()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await until(lambda: not server.clients)
        writer.close()

    with_server(test)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Refused("no", reason=Reason.ADDRESS_REFUSED), 2),
        (OriginError("away", reason=Reason.CONNECTOR_AWAY), 3),
        (OriginError("unknown", reason=Reason.TARGET_UNRESOLVED), 4),
        (OriginError("refused", reason=Reason.TARGET_REFUSED), 5),
        (OriginError("late", reason=Reason.TARGET_TIMEOUT), 6),
        (OriginError("odd", reason=Reason.INTERNAL), 1),
    ],
)
def test_failures_are_answered_with_their_code(error: TunnelgwError, code: int) -> None:
    async def test(reach: FakeReach, _s: LocalServer, _t: LocalService, dial: Callable[[], Awaitable[Peer]]) -> None:
        reach.error = error
        for request in (name_request(b"nas"), b"\x05\x03\x00\x01" + bytes(6)):
            reader, writer = await dial()
            writer.write(NO_LOGIN + request)
            assert await reader.read() == b"\x05\x00\x05%c\x00\x01" % code + bytes(6)
            writer.close()
        reader, writer = await dial()
        writer.write(b"\x04\x01\x00\x50\x00\x00\x00\x01\x00nas\x00")
        assert await reader.read() == b"\x00\x5b" + bytes(6)
        writer.close()

    with_server(test)


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (NO_LOGIN + name_request(b"nas", command=2), b"\x05\x00\x05\x07\x00\x01" + bytes(6)),  # BIND
        (NO_LOGIN + name_request(b"nas", command=9), b"\x05\x00\x05\x07\x00\x01" + bytes(6)),
        (NO_LOGIN + name_request(b"nas", port=0), b"\x05\x00\x05\x02\x00\x01" + bytes(6)),
        (NO_LOGIN + b"\x05\x01\x00\x09", b"\x05\x00\x05\x08\x00\x01" + bytes(6)),
        (b"\x05\x01\x02", b"\x05\xff"),  # wants to log in, and nobody is asked
        (b"\x04\x02\x00\x50\x0a\x00\x00\x01\x00", b"\x00\x5b" + bytes(6)),  # BIND of version 4
    ],
)
def test_what_is_not_served_is_answered_and_closed(sent: bytes, answer: bytes) -> None:
    async def test(
        reach: FakeReach, server: LocalServer, _t: LocalService, dial: Callable[[], Awaitable[Peer]]
    ) -> None:
        reader, writer = await dial()
        writer.write(sent)
        assert await reader.read() == answer
        await until(lambda: not server.clients)
        assert not reach.asked
        writer.close()

    with_server(test)


@pytest.mark.parametrize(
    "sent", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", b"\x05\x01\x00\x04", b"\x04" + b"x" * 600]
)
def test_what_is_not_socks_is_cut(sent: bytes) -> None:
    async def test(
        reach: FakeReach, server: LocalServer, _t: LocalService, dial: Callable[[], Awaitable[Peer]]
    ) -> None:
        reader, writer = await dial()
        writer.write(sent)
        with pytest.raises(ConnectionResetError):
            assert await reader.read() in (b"", b"\x05\x00")
            await reader.readexactly(1)
        await until(lambda: not server.clients)
        writer.close()

    with_server(test)


def test_version_4a() -> None:
    async def test(reach: FakeReach, _s: LocalServer, _t: LocalService, dial: Callable[[], Awaitable[Peer]]) -> None:
        reader, writer = await dial()
        writer.write(b"\x04\x01\x00\x50\x00\x00\x00\x01\x00nas.lan\x00hello")
        assert await reader.readexactly(13) == b"\x00\x5a" + bytes(6) + b"hello"
        assert reach.asked == [("nas.lan", 80)]
        writer.close()

    with_server(test)


def test_a_password_where_one_is_asked_for() -> None:
    async def test(reach: FakeReach, _s: LocalServer, _t: LocalService, dial: Callable[[], Awaitable[Peer]]) -> None:
        for password, answer in ((b"secret", b"\x00"), (b"guess", b"\x01"), (b"", b"\x01")):
            reader, writer = await dial()
            writer.write(b"\x05\x02\x00\x02\x01\x04anna%c" % len(password) + password + name_request(b"nas"))
            assert (await reader.readexactly(4)) == b"\x05\x02\x01" + answer
            if answer == b"\x00":
                assert (await reader.readexactly(2)) == b"\x05\x00"
            else:
                assert await reader.read() == b""
            writer.close()
        reader, writer = await dial()
        writer.write(NO_LOGIN)
        assert await reader.read() == b"\x05\xff"
        writer.close()
        reader, writer = await dial()
        writer.write(b"\x04\x01\x00\x50\x00\x00\x00\x01\x00nas.lan\x00")
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        assert len(reach.asked) == 1
        writer.close()

    with_server(test, users={b"anna": b"secret"})


def test_a_head_has_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnelgw.visitor.local.HEAD_SECONDS", 0.1)

    async def test(_r: FakeReach, server: LocalServer, _t: LocalService, dial: Callable[[], Awaitable[Peer]]) -> None:
        reader, writer = await dial()
        writer.write(b"\x05")
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        await until(lambda: not server.clients)
        writer.close()

    with_server(test)


def test_there_is_room_for_so_many() -> None:
    async def test(_r: FakeReach, server: LocalServer, _t: LocalService, dial: Callable[[], Awaitable[Peer]]) -> None:
        kept = [await dial() for _ in range(2)]
        await until(lambda: len(server.clients) == 2)
        reader, writer = await dial()
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        assert server.refused == 1
        writer.close()
        for _, other in kept:
            other.close()

    with_server(test, most=2)


def test_a_stop_cuts_what_is_under_way() -> None:
    async def test(
        reach: FakeReach, server: LocalServer, _t: LocalService, dial: Callable[[], Awaitable[Peer]]
    ) -> None:
        reader, writer = await dial()
        writer.write(NO_LOGIN + name_request(b"nas"))
        await reader.readexactly(12)
        reach.gate = asyncio.Event()
        _, waiting = await dial()
        waiting.write(NO_LOGIN + name_request(b"nas"))
        await until(lambda: len(reach.asked) == 2)
        server.close()
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        await until(lambda: reach.cancelled == 1 and not server.clients)
        for each in (writer, waiting):
            each.close()

    with_server(test)


class Client(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.received: list[bytes] = []

    def datagram_received(self, data: bytes, _address: object) -> None:
        self.received.append(data)


@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_udp_associate(loop: str) -> None:
    async def test(
        reach: FakeReach, server: LocalServer, _t: LocalService, dial: Callable[[], Awaitable[Peer]]
    ) -> None:
        reader, writer = await dial()
        writer.write(NO_LOGIN + b"\x05\x03\x00\x01" + bytes(6))
        answer = await reader.readexactly(12)
        assert answer[2:10] == b"\x05\x00\x00\x01\x7f\x00\x00\x01"
        port = int.from_bytes(answer[10:], "big")
        running = asyncio.get_running_loop()
        mine, me = await running.create_datagram_endpoint(Client, remote_addr=("127.0.0.1", port))
        theirs, stranger = await running.create_datagram_endpoint(Client, remote_addr=("127.0.0.1", port))
        question = b"\0\0\0\x03\x07dns.lan\x00\x35query"
        mine.sendto(question)
        await until(lambda: me.received)
        assert me.received == [b"\0\0\0\x01\x0a\x01\x02\x03\x00\x35QUERY"]
        theirs.sendto(question)  # another port is another program
        mine.sendto(b"\0\0\1" + question[3:])  # a fragment
        mine.sendto(b"junk")
        mine.sendto(b"\0\0\0\x01\x0a\x00\x00\x01\x00\x00to port 0")
        mine.sendto(question[:-5] + b"again")
        await until(lambda: len(me.received) == 2)
        assert [sent[0] for sent in reach.flows[0].sent] == [b"query", b"again"]
        assert not stranger.received
        writer.write(b"noise")  # means nothing, and ends nothing
        mine.sendto(question)
        await until(lambda: len(me.received) == 3)
        writer.close()
        await until(lambda: reach.flows[0].closed and not server.clients)
        for transport in (mine, theirs):
            transport.close()

    with_server(test, loop=loop)


def test_an_association_ends_with_its_far_side() -> None:
    async def test(
        reach: FakeReach, server: LocalServer, _t: LocalService, dial: Callable[[], Awaitable[Peer]]
    ) -> None:
        reader, writer = await dial()
        writer.write(NO_LOGIN + b"\x05\x03\x00\x01" + bytes(6))
        await reader.readexactly(12)
        ended = reach.flows[0].ended
        assert ended is not None
        ended()
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        await until(lambda: reach.flows[0].closed and not server.clients)
        writer.close()

    with_server(test)


def test_an_association_may_name_its_port() -> None:
    async def test(reach: FakeReach, _s: LocalServer, _t: LocalService, dial: Callable[[], Awaitable[Peer]]) -> None:
        running = asyncio.get_running_loop()
        mine, me = await running.create_datagram_endpoint(Client, local_addr=("127.0.0.1", 0))
        theirs, _ = await running.create_datagram_endpoint(Client, local_addr=("127.0.0.1", 0))
        reader, writer = await dial()
        named = mine.get_extra_info("sockname")[1]
        writer.write(NO_LOGIN + b"\x05\x03\x00\x01\0\0\0\0" + named.to_bytes(2, "big"))
        port = int.from_bytes((await reader.readexactly(12))[10:], "big")
        question = b"\0\0\0\x01\x0a\x00\x00\x01\x00\x35"
        theirs.sendto(question + b"theirs", ("127.0.0.1", port))
        mine.sendto(question + b"mine", ("127.0.0.1", port))
        await until(lambda: me.received)
        assert [sent[0] for sent in reach.flows[0].sent] == [b"mine"]
        writer.close()
        for transport in (mine, theirs):
            transport.close()

    with_server(test)


def test_others_are_served_only_where_that_was_said(caplog: pytest.LogCaptureFixture) -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.0.0.2"):
        check_listen(Endpoint(host, 1080), "--socks", allow_lan=False)
    for host in ("0.0.0.0", "::", "192.168.1.2", "nas.lan"):
        with pytest.raises(LocalError, match="--allow-lan") as caught:
            check_listen(Endpoint(host, 1080), "--socks", allow_lan=False)
        assert caught.value.exit_code == 2
        caplog.clear()
        check_listen(Endpoint(host, 1080), "--socks", allow_lan=True)
        assert "without a password" in caplog.text


def test_a_port_that_is_taken_is_said() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            server = socks_server(FakeReach())
            with pytest.raises(LocalError, match=r"--socks 127\.0\.0\.1:"):
                await server.listen(Endpoint("127.0.0.1", taken.getsockname()[1]), "--socks")
            server.close()

    run(main)
