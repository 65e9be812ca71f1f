"""An edge and a connector with few descriptors, all of which somebody would like to have."""

from __future__ import annotations

import contextlib
import re
import resource
import socket
import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.hostile.frames import Visitor2, request
from tests.system.harness import World, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.system

DESCRIPTORS = 1024
PLACES = DESCRIPTORS - 128  # for visitors, and what tunnels hold
NAME = "web.example.com"
GET = f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode()
WEBSOCKET = (
    f"GET /ws HTTP/1.1\r\nHost: {NAME}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
).encode()
ANSWER = b"hello from web\n"
HALF = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # of a ClientHello


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[1], 8192), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Crowd:
    """Connections that are held, from addresses of 127.0.0.0/8."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.held: list[socket.socket] = []
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.tls.check_hostname = False
        self.tls.verify_mode = ssl.CERT_NONE
        self.tls.set_alpn_protocols(["http/1.1"])

    def plain(self, address: str) -> socket.socket:
        """Port 80, silent."""
        return self._connect(address, self.world.http_port)

    def half(self, address: str) -> socket.socket:
        """Half a ClientHello."""
        sock = self._connect(address, self.world.port)
        return spoken(sock, lambda: sock.send(HALF))

    def idle(self, address: str) -> socket.socket:
        """One request over TLS, then nothing."""
        sock = self.visit(address)
        return spoken(sock, lambda: ask(sock))

    def shaken(self, address: str) -> socket.socket:
        """A TLS handshake, and no request."""
        return self.visit(address)

    def visit(self, address: str) -> ssl.SSLSocket:
        return self.tls.wrap_socket(self._connect(address, self.world.port), server_hostname=NAME)

    def hold(self, kind: str, *, addresses: int, each: int) -> int:
        """How many got in."""
        before = len(self.held)
        for _ in range(each):
            for number in range(addresses):
                with contextlib.suppress(OSError):
                    self.held.append(getattr(self, kind)(f"127.50.{number // 250}.{number % 250 + 1}"))
        return len(self.held) - before

    def _connect(self, address: str, port: int) -> socket.socket:
        sock = socket.socket()
        sock.settimeout(20)
        try:
            sock.bind((address, 0))
            sock.connect(("127.0.0.1", port))
        except OSError:
            sock.close()
            raise
        return sock

    def leave(self) -> None:
        for sock in self.held:
            sock.close()


def spoken(sock: socket.socket, speak: Callable[[], object]) -> socket.socket:
    """The connection, after what is to be said on it; closed if that cannot be said."""
    try:
        speak()
    except OSError:
        sock.close()
        raise
    return sock


def ask(sock: socket.socket) -> None:
    """One request and its whole answer."""
    sock.sendall(GET)
    data = b""
    while not data.endswith(ANSWER):
        part = sock.recv(65536)
        if not part:
            raise ConnectionError(f"closed after {data!r}")
        data += part


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("full"), tables="[limits]\nrequest_head_seconds = 60\n") as world:
        world.start_edge(descriptors=DESCRIPTORS)
        world.connector("home", f"[services.web]\ntarget = {world.service('web')}\n")
        wait_until(lambda: world.code(f"https://{NAME}/") == 200, what="the service is there")
        yield world


def refused(world: World) -> dict[str, int]:
    found = re.findall(r'^tunnelgw_refused_total\{reason="(\w+)"\} (\S+)$', world.metrics(), re.MULTILINE)
    return {reason: int(float(count)) for reason, count in found}


@pytest.mark.parametrize(
    ("kinds", "addresses", "each"),
    [
        (("plain",), 256, 4),
        (("idle",), 256, 4),
        (("idle", "half"), 256, 3),
        (("plain", "half"), 256, 8),
        (("idle",), 600, 2),
        (("shaken",), 600, 2),
        (("plain",), 1000, 2),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else str(value),
)
def test_newcomers_get_in_while_others_hold_all_places(
    world: World, kinds: tuple[str, ...], addresses: int, each: int
) -> None:
    """With one address, whose connections before were kept, beside those that hold whatever they get."""
    edge, home = world.edge, world.connectors["home"]
    assert edge is not None
    before = refused(world)
    crowd = Crowd(world)
    talk = crowd.visit("127.0.0.8")
    kept = crowd.visit("127.0.0.9")
    try:
        talk.sendall(WEBSOCKET)
        assert talk.recv(65536).startswith(b"HTTP/1.1 101 ")
        ask(kept)
        for kind in kinds:
            assert crowd.hold(kind, addresses=addresses, each=each) > addresses
        wait_until(lambda: edge.descriptors() > PLACES - 32, what="the house is full")
        for number in range(10):
            if addresses > 256 and not number:
                kept.close()
                kept = crowd.visit("127.0.0.9")  # it was as idle as they, with as much: it may have had to go
            ask(kept)
            with crowd.visit("127.0.0.10") as newcomer:
                ask(newcomer)
            with crowd._connect("127.0.0.11", world.http_port) as newcomer:
                newcomer.sendall(GET)
                assert newcomer.recv(65536).startswith(b"HTTP/1.1 301 "), f"visit {number}"
        talk.sendall(b"\x81\x82\0\0\0\0hi")
        assert talk.recv(65536) == b"\x81\x07echo hi", "what was under way stayed"
        assert world.status()["connectors"][0]["state"] == "up"
        assert home.process is not None
        home.process.kill()
        home.start()
        with crowd.visit("127.0.0.10") as newcomer:
            ask(newcomer)
        assert edge.descriptors() <= DESCRIPTORS - 32, "what is kept for the store, commands and certificates is there"
        after = refused(world)
        assert after.get("descriptors", 0) == before.get("descriptors", 0)
        if addresses * each > PLACES and addresses > 256:
            assert after["made_room"] > before.get("made_room", 0)
        assert "Too many open files" not in edge.text()
    finally:
        for sock in (talk, kept):
            sock.close()
        crowd.leave()
        wait_until(lambda: edge.descriptors() < 100, seconds=40, what="all of them left")


@pytest.mark.parametrize("tls", ["home", "edge"])
def test_one_address_leaves_a_connectors_descriptors_to_the_others(tmp_path: Path, tls: str) -> None:
    """Hundreds of slow requests over a few HTTP/2 connections, to a target that accepts and never answers."""
    name = "photos.example.com"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "9", "-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem"), "-subj",
            f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]  # fmt: skip
    subprocess.run(make, check=True, capture_output=True)
    (tmp_path / "key.pem").chmod(0o600)
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as silent, World(tmp_path) as world:
        world.start_edge()
        home = world.connector(
            "home",
            f"""
[tls]
certificates = [{{ cert = "{tmp_path}/cert.pem", key = "{tmp_path}/key.pem" }}]
[services.photos]
target = {silent.getsockname()[1]}
{'tls = "home"' if tls == "home" else ""}
[services.web]
target = {world.service("web")}
""",
            start=False,
        )
        process = home.start(descriptors=512)
        wait_until(lambda: world.code(f"https://{NAME}/") == 200, what="the service is there")
        fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", name.encode()), (b":path", b"/")]
        visitors = []
        try:
            for _ in range(6):
                try:
                    visitors.append(Visitor2(world, name=name))
                except ConnectionResetError:  # not even a connection, where that is a stream too
                    assert tls == "home"
                    assert visitors
                    break
                for number in range(100):
                    visitors[-1].send(request(fields, stream=2 * number + 1))
            assert visitors[0].outcome(199) == ("status", 503), "beyond its share"
            assert process.descriptors() < 200, "a fifth of 384, and its own"
            for _ in range(10):
                assert world.code(f"https://{NAME}/", "--interface", "127.0.0.77") == 200
        finally:
            for visitor in visitors:
                visitor.sock.close()
        wait_until(lambda: process.descriptors() < 60, what="they are free again")
