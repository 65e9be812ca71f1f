"""A front door on loopback with stand-ins for everything behind it, and visitors that talk to it byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

from tests.loops import runner
from tests.net.certs import Authority
from tunnelgw.edge.flows import Flows
from tunnelgw.edge.passthrough import Live
from tunnelgw.edge.ports import LocalPorts, Ports
from tunnelgw.edge.public import DoorRules, FrontDoor
from tunnelgw.edge.workers import Alone
from tunnelgw.gateway.opener import NoStream, Visitor
from tunnelgw.net.accept import listen_on
from tunnelgw.net.certificates import Certificates
from tunnelgw.net.issuers import FilesIssuer, Pair
from tunnelgw.net.loop import loop_factory
from tunnelgw.net.sockets import dismiss
from tunnelgw.net.timers import Wheel
from tunnelgw.obs.counters import ProcessCounters, RouteCounters
from tunnelgw.routing.table import NameEntry, Route

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tunnelgw.obs.reasons import Reason

ADDRESS = "127.0.0.1"


def run(main: Callable[[], Awaitable[None]], *, seconds: float = 30) -> None:
    """Run a test on uvloop; what reaches the loop's exception handler fails it."""
    noise: list[dict[str, Any]] = []

    async def guarded() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: noise.append(context))
        try:
            await asyncio.wait_for(main(), seconds)
        finally:
            for _ in range(10):  # transports that were closed or aborted say so in a later turn
                await asyncio.sleep(0)

    with runner(loop_factory(require_uvloop=True)) as opened:
        opened.run(guarded())
    assert not noise, noise


async def until(condition: Callable[[], object], *, seconds: float = 10) -> None:
    """Wait for a condition that the loop's other work brings about."""
    end = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < end, "it never came true"
        await asyncio.sleep(0.002)


async def ended(reader: asyncio.StreamReader) -> None:
    """The connection ends without a byte, or with one TLS alert; by FIN or RST is not the point."""
    with contextlib.suppress(ConnectionResetError, ssl.SSLError):
        said = await asyncio.wait_for(reader.read(), 5)
        assert said == b"" or (said[0] == 21 and len(said) == 7), said


class EchoStream:
    """A stream to a service that sends back what it gets, in upper case, and greets first if it is told to."""

    def __init__(self, sink: Any, greeting: bytes = b"") -> None:
        self.sink = sink
        self.received = b""
        self.finished = False
        self.closed = False
        self.reason: Reason | None = None
        self.queued = 0
        if greeting:
            asyncio.get_running_loop().call_soon(self._say, greeting)

    def _say(self, data: bytes) -> None:
        if not self.closed:
            self.sink.stream_data(data)

    def write(self, data: bytes) -> None:
        self.received += data
        asyncio.get_running_loop().call_soon(self._say, bytes(data).upper())

    def hurry(self) -> None:
        pass

    def lend(self, data: memoryview) -> None:
        self.write(bytes(data))

    def finish(self) -> None:
        self.finished = True
        asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        if not self.closed:
            self.sink.stream_finished()
            self.closed = True

    def reset(self, reason: Reason) -> None:
        self.closed = True
        self.reason = self.reason or reason

    def die(self, reason: Reason) -> None:
        """The other side resets it."""
        self.closed = True
        self.sink.stream_reset(reason)

    def consumed(self, count: int) -> None:
        pass


class Opener:
    """Streams at once, parked, or refused."""

    def __init__(self) -> None:
        self.streams: list[EchoStream] = []
        self.opened: list[tuple[Route, Visitor]] = []
        self.parked: list[Any] = []
        self.park = False
        self.refuse: Reason | None = None
        self.greeting = b""

    def open(self, route: Route, visitor: Visitor, waiter: Any) -> EchoStream | None:
        self.opened.append((route, visitor))
        if self.refuse is not None:
            raise NoStream(self.refuse)
        if self.park:
            self.parked.append(waiter)
            return None
        return self.make(waiter)

    def make(self, waiter: Any) -> EchoStream:
        stream = EchoStream(waiter, self.greeting)
        self.streams.append(stream)
        return stream

    def cancel(self, waiter: Any) -> None:
        if waiter in self.parked:
            self.parked.remove(waiter)

    def since(self, route: Route) -> float:
        return 0.0


class Answering(asyncio.Protocol):
    """Stands for the gateway: says who it thinks the visitor is."""

    def __init__(self, version: str, visitor: Visitor) -> None:
        self.version = version
        self.visitor = visitor

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        assert self.visitor.place is not None
        self.visitor.place.rest(lambda: dismiss(self.transport, asyncio.get_running_loop()))

    def data_received(self, data: bytes) -> None:
        visitor = self.visitor
        assert visitor.place is not None
        visitor.place.work()
        self.transport.write(
            f"{self.version} {visitor.address}:{visitor.port} {visitor.server_name} {visitor.secure} ".encode() + data
        )


class Proxy:
    def http1(self, visitor: Visitor) -> asyncio.Protocol:
        return Answering("http1", visitor)

    def http2(self, visitor: Visitor) -> asyncio.Protocol:
        return Answering("http2", visitor)


class Table:
    """Names and ports by dict; the wildcard rule is the real table's business."""

    def __init__(self) -> None:
        self.names: dict[str, NameEntry] = {}
        self.ports: dict[int, Route] = {}
        self.protocols: dict[int, str] = {}
        self.named: dict[tuple[int, str], Route] = {}
        self.udp: dict[int, Route] = {}

    def find_name(self, host: str) -> NameEntry | None:
        return self.names.get(host)

    def find_port(self, port: int) -> Route | None:
        return self.ports.get(port)

    def protocol(self, port: int) -> str:
        return self.protocols.get(port, "")

    def find_named(self, port: int, host: str) -> Route | None:
        return self.named.get((port, host))

    def find_alone(self, port: int) -> Route | None:
        here = [route for (at, _), route in self.named.items() if at == port]
        return here[0] if len(here) == 1 else None

    def find_udp(self, port: int) -> Route | None:
        return self.udp.get(port)


def route(kind: str, host: str = "", **more: Any) -> Route:
    return Route(kind=kind, host=host, connector="home", service="s", counters=RouteCounters("x"), **more)


class Front:
    """The door and all its stand-ins, as an async context."""

    def __init__(self, folder: Path, **rules: Any) -> None:
        self.folder = folder
        self.descriptors = rules.pop("descriptors", 1024)
        self.rules = DoorRules(
            trusted=rules.pop("trusted", lambda address: False),
            allowed=rules.pop("allowed", lambda networks, address: address in networks),
            **rules,
        )
        self.authority = Authority()
        self.table = Table()
        self.opener = Opener()
        self.connectors: Any = SimpleNamespace(by_name={})
        self.counters = ProcessCounters()
        self.live = Live(self.counters.refuse)
        self.tunnels: list[tuple[Any, Any]] = []

    async def __aenter__(self) -> Self:
        loop = self.connectors.loop = asyncio.get_running_loop()
        self.wheel = Wheel(loop, granularity=0.05)
        pairs = [Pair(*self.authority.write(self.folder, name)) for name in ("a.example.com", "shell.example.com")]
        self.certificates = Certificates(loop, self.wheel, FilesIssuer(pairs))
        self.certificates.start()
        self.table.names = {
            "a.example.com": NameEntry("http", "a.example.com", None),
            "bare.example.com": NameEntry("http", "bare.example.com", None),
            "shell.example.com": NameEntry("tcp", "shell.example.com", route("tcp", "shell.example.com")),
            "pass.example.com": NameEntry("tls", "pass.example.com", route("tls", "pass.example.com")),
            "home.example.com": NameEntry("home", "home.example.com", route("home", allow_from=("192.0.2.9",))),
            "closed.example.com": NameEntry("tls", "closed.example.com", route("tls", allow_from=("192.0.2.9",))),
        }
        self.peers = Alone("127.0.0.1", dict)
        self.door = FrontDoor(
            loop,
            wheel=self.wheel,
            table=self.table,  # type: ignore[arg-type]
            certificates=self.certificates,
            gateway=Proxy(),
            opener=self.opener,
            tunnel=lambda sock, hello: self.tunnels.append((sock, hello)),
            peers=self.peers,
            counters=self.counters,
            rules=self.rules,
            live=self.live,
            descriptors=self.descriptors,
        )
        self.ports = Ports(
            loop,
            opener=LocalPorts(ADDRESS),
            table=self.table,  # type: ignore[arg-type]
            streams=self.opener,
            live=self.live,
            ledger=self.door.ledger,
            reserve=self.door.reserve,
            counters=self.counters,
            rules=self.rules,
            wheel=self.wheel,
            certificates=self.certificates,
            flows=Flows(
                wheel=self.wheel,
                table=self.table,  # type: ignore[arg-type]
                connectors=self.connectors,  # type: ignore[arg-type]
                counters=self.counters,
                rules=self.rules,
            ),
        )
        self.listener = listen_on(ADDRESS, 0, defer=True)
        self.plain = listen_on(ADDRESS, 0, defer=False)
        self.port = self.listener.getsockname()[1]
        self.door.serve([self.listener])
        self.door.serve_plain([self.plain])
        return self

    async def __aexit__(self, *_: object) -> None:
        self.door.close()
        self.ports.close_all()
        self.certificates.close()
        self.wheel.close()
        self.listener.close()
        self.plain.close()
        for sock, _ in self.tunnels:
            sock.close()

    def visitor_context(self, *alpn: str) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=self.authority.pem)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context

    async def visit(self, name: str, *alpn: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            ADDRESS, self.port, ssl=self.visitor_context(*alpn), server_hostname=name, ssl_handshake_timeout=5
        )

    async def knock(self, source: str = ADDRESS) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(ADDRESS, self.port, local_addr=(source, 0))


def hello(name: str, *alpn: str) -> bytes:
    """A real ClientHello, as openssl writes it."""
    context = ssl.create_default_context()
    if alpn:
        context.set_alpn_protocols(list(alpn))
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    visitor = context.wrap_bio(back, there, server_hostname=name or None) if name else _nameless(context, back, there)
    with contextlib.suppress(ssl.SSLWantReadError):
        visitor.do_handshake()
    return there.read()


def _nameless(context: ssl.SSLContext, back: ssl.MemoryBIO, there: ssl.MemoryBIO) -> ssl.SSLObject:
    context.check_hostname = False
    return context.wrap_bio(back, there)


def in_records(data: bytes, size: int) -> bytes:
    """The same handshake bytes in TLS records of `size` bytes."""
    inside = data[5:]
    return b"".join(
        b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part
        for part in (inside[at : at + size] for at in range(0, len(inside), size))
    )


def padded(data: bytes, size: int) -> bytes:
    """The same ClientHello with one more extension (GREASE, RFC 8701), about `size` bytes long in one record."""
    body = data[9:]
    at = 34
    at += 1 + body[at]
    at += 2 + int.from_bytes(body[at : at + 2], "big")
    at += 1 + body[at]
    extensions = body[at + 2 :]
    fill = size - len(data) + 5 - 4
    extensions += b"\x5a\x5a" + fill.to_bytes(2, "big") + bytes(fill)
    message = body[:at] + len(extensions).to_bytes(2, "big") + extensions
    message = b"\x01" + len(message).to_bytes(3, "big") + message
    return b"\x16\x03\x01" + min(len(message), 65535).to_bytes(2, "big") + message
