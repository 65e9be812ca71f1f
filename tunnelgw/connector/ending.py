"""TLS that ends at home: services with `tls = "home"`, whose keys the VPS never sees.

The edge passes a visitor's bytes through, ClientHello first. It is parsed from the stream, and the name in it (never
the one that the edge says) picks the certificate, exactly one for each connection. TLS itself runs on one half of a
socket pair, whose other half is spliced to the stream: so the loop's TLS, the deadlines and the whole gateway are those
of the edge, and pauses and ends pass through as they do there. What the gateway asks for goes to the connector's own
services over a pair of stream ends.

Invariants: nothing but TLS reaches a service here; a visitor is who the edge says (an address, or refused), and nothing
else that the edge says is believed; each stream is counted out exactly once.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Protocol

from tunnelgw.access.addresses import address_key, parse_address
from tunnelgw.errors import RemoteError
from tunnelgw.gateway.farewell import say_farewell
from tunnelgw.gateway.opener import NoStream, Visitor
from tunnelgw.gateway.service import Gateway
from tunnelgw.net import tls
from tunnelgw.net.accept import KEPT_DESCRIPTORS, most_descriptors
from tunnelgw.net.handshake import shake_hands
from tunnelgw.net.ledger import Ledger, counted
from tunnelgw.net.loop import adopt
from tunnelgw.net.pair import stream_pair
from tunnelgw.net.splice import Splice
from tunnelgw.net.tasks import spawn
from tunnelgw.net.timers import INF, Wheel
from tunnelgw.obs.counters import ProcessCounters
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.clienthello import Alert, ClientHello, alert_record, hello_needs, parse_client_hello
from tunnelgw.routing.hostname import normalise_pattern
from tunnelgw.routing.table import Route, RouteTable
from tunnelgw.wire.control import Open

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable

    from tunnelgw.config.model import ServiceConfig
    from tunnelgw.gateway.opener import StreamWaiter
    from tunnelgw.wire.events import StreamEnd
    from tunnelgw.wire.flow import Budget
    from tunnelgw.wire.stream import Stream

log = logging.getLogger(__name__)

LEAVE_SECONDS = 2.0  # between our end and the visitor's: a browser needs a round trip, and nothing is left to say
HELLO_SECONDS = 10.0  # absolute: the edge passes a stream on once it has the whole ClientHello
CONNECTIONS_PER_ADDRESS = 1024  # as at the edge, which counts first
# A visitor costs two descriptors, and a browser keeps up to six requests to targets under way.
DESCRIPTORS_PER_VISITOR = 8
BEYOND = 16  # those that leave take a turn of the loop or two; nobody here may be a tunnel
LISTENER = "home"
_OWNER = "home"  # of all routes in this table: there is nobody else


class Contexts(Protocol):
    """Certificates of this connector."""

    async def context(self, host: str, name: str, *, http: bool) -> ssl.SSLContext | None:
        """The context for a visitor of `name`, whose route says `host`; None if there is none."""

    def challenge(self, name: str) -> ssl.SSLContext | None:
        """The answer to a running tls-alpn-01 challenge for this name."""


class Ending:
    """Inputs: `take` for each visitor, `replace` for the services.

    `join(stream, request)`: connects a stream of the inside to a declared service; why not, where that cannot be.
    """

    __slots__ = ("_contexts", "_join", "_loop", "counters", "gateway", "ledger", "table", "wheel")

    def __init__(
        self, *, join: Callable[[StreamEnd, Open], Reason | None], contexts: Contexts, wheel: Wheel, memory: Budget
    ) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self._join = join
        self._contexts = contexts
        self.wheel = wheel
        self.counters = ProcessCounters()
        self.table = RouteTable()
        self.gateway = Gateway(
            table=self.table, opener=self, wheel=self.wheel, loop=loop, counters=self.counters, memory=memory
        )
        room = max(64, (most_descriptors() - KEPT_DESCRIPTORS) // DESCRIPTORS_PER_VISITOR)
        self.ledger = Ledger(self.counters, limit=CONNECTIONS_PER_ADDRESS, open_limit=room, beyond=BEYOND)

    def replace(self, services: Iterable[ServiceConfig], domains: Iterable[str]) -> None:
        """Serve these from the next request on. `domains`: of the edges, for services without a host of their own."""
        domains = tuple(domains)
        routes: dict[tuple[str, str], Route] = {}
        for service in services:
            if service.tls == "home":
                for host in hosts_of(service, domains):
                    # The first one has it, as at the edge, which has told about the other one.
                    routes.setdefault((host, service.path.rstrip("/")), self._route(service, host))
        self.table.replace(_OWNER, routes.values())

    def _route(self, service: ServiceConfig, host: str) -> Route:
        label = host + service.path
        return Route(
            kind=service.target.kind,
            host=host,
            path=service.path,
            connector=_OWNER,
            service=service.name,
            counters=self.counters.route(label),
            strip_path=service.strip_path,
            response_seconds=service.response_seconds,
            allow_from=service.allow_from,
            users=service.users,
            label=label,
        )

    # TlsEnd.

    def take(self, stream: Stream, request: Open, ended: Callable[[], None]) -> None:
        """As `TlsEnd.take`."""
        try:
            address = str(parse_address(request.visitor))  # it will be a field of a request: nothing else may be in it
        except ValueError:
            stream.reset(Reason.PROTOCOL_ERROR)
            ended()
            return
        visitor = Visitor(
            address,
            request.visitor_port,
            edge_address=request.edge,
            edge_port=request.edge_port,
            secure=True,
            key=None if request.many else address_key(address),
        )
        _Arrival(self, stream, visitor, ended).start(self._loop.time() + HELLO_SECONDS)

    # StreamOpener, for the gateway.

    def open(self, route: Route, visitor: Visitor, waiter: StreamWaiter) -> StreamEnd:
        """A stream to a service of ours; its dial may still fail, which resets it."""
        near, far = stream_pair()
        near.sink = waiter
        request = Open(
            service=route.service,
            kind=route.kind,
            visitor=visitor.address,
            visitor_port=visitor.port,
            edge=visitor.edge_address,
            edge_port=visitor.edge_port,
            host=visitor.server_name,
            many=visitor.key is None,
        )
        refusal = self._join(far, request)
        if refusal is not None:
            raise NoStream(refusal)
        return near

    def cancel(self, waiter: StreamWaiter) -> None:
        """Nothing is ever parked here."""

    def since(self, route: Route) -> float:  # noqa: ARG002 - StreamOpener's interface
        """Nobody is away."""
        return 0.0

    # What an arrival asks for.

    def greeted(self, arrival: _Arrival, hello: ClientHello) -> None:
        """The decision, as at the edge's door: by name, then by ALPN."""
        name = hello.server_name
        entry = self.table.find_name(name) if name else None
        if entry is None:
            arrival.refuse(Alert.UNRECOGNIZED_NAME, Reason.NAME_UNKNOWN)
        elif tls.ACME_ALPN.encode() in hello.alpn:
            context = self._contexts.challenge(name)
            if context is None:
                arrival.refuse(Alert.NO_APPLICATION_PROTOCOL, Reason.ALPN_UNKNOWN)
            else:
                spawn(self._prove(arrival, context), name="acme")
        elif not tls.negotiated(hello.alpn):
            arrival.refuse(Alert.NO_APPLICATION_PROTOCOL, Reason.ALPN_UNKNOWN)
        else:
            visitor = arrival.visitor
            visitor.server_name = name
            visitor.alpn = tls.negotiated(hello.alpn)
            spawn(self._terminate(arrival, entry.host, offered=bool(hello.alpn)), name="handshake")

    async def _prove(self, arrival: _Arrival, context: ssl.SSLContext) -> None:
        """tls-alpn-01 (RFC 8737): the handshake itself is the answer."""
        transport = await self._shake(arrival, asyncio.Protocol(), context)
        if transport is not None:
            transport.close()

    async def _terminate(self, arrival: _Arrival, host: str, *, offered: bool) -> None:
        visitor = arrival.visitor
        context = await self._contexts.context(host, visitor.server_name, http=True)
        if context is None:
            arrival.refuse(Alert.INTERNAL_ERROR, Reason.NAME_UNKNOWN)
            return
        gateway = self.gateway
        protocol = gateway.http2(visitor) if visitor.alpn == "h2" else gateway.http1(visitor)
        transport = await self._shake(arrival, protocol, context)
        if transport is not None:
            # The hello that was parsed is the one that OpenSSL reads, so what it picks was known before.
            picked = transport.get_extra_info("ssl_object").selected_alpn_protocol()
            if picked != visitor.alpn and (picked or offered):
                log.error("TLS picked %r where %r was expected", picked, visitor.alpn)
                transport.abort()

    async def _shake(
        self, arrival: _Arrival, protocol: asyncio.Protocol, context: ssl.SSLContext
    ) -> asyncio.Transport | None:
        """TLS over one half of a socket pair, the stream at the other."""
        if arrival.over:
            return None
        visitor = arrival.visitor
        key = visitor.key
        refusal = self.ledger.admit(key, listener=LISTENER, handshake=True, visitor=True)
        if refusal is not None:
            arrival.turn_away(refusal)
            return None
        peer = (visitor.address, visitor.port)
        try:
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            log.error("a visitor was turned away: %s", error)
            self.ledger.take_back(key, LISTENER)
            arrival.turn_away(Reason.DESCRIPTORS)
            return None
        near.setblocking(False)
        sock = counted(far, self.ledger, key=key, peer=peer, listener=LISTENER, handshake=True)
        visitor.place = sock
        self.ledger.shake(sock)
        splice = arrival.splice()
        await adopt(near, splice)
        return await shake_hands(sock, protocol, context, failed=self.counters.refuse)


class _Inside(Splice):
    """A splice whose transport ends as a whole: TLS has no half-close, so nobody reads on after its end."""

    __slots__ = ("_arrival",)

    def __init__(self, stream: Stream, arrival: _Arrival) -> None:
        super().__init__(stream, on_end=arrival.spliced)
        self._arrival = arrival

    def eof_received(self) -> bool:
        """Everything that the visitor gets is in the stream."""
        super().eof_received()
        self._arrival.leave()
        return False


class _Arrival:
    """A stream before and after its splice: its sink until the visitor is known, or refused, and while it leaves.

    What comes in before waits uncredited; what comes in after is thrown away.
    """

    __slots__ = (
        "_data", "_ended", "_ending", "_leaving", "_needs", "_stream", "armed_until", "deadline", "over", "visitor",
    )  # fmt: skip

    def __init__(self, ending: Ending, stream: Stream, visitor: Visitor, ended: Callable[[], None]) -> None:
        self.visitor = visitor
        self.deadline = INF
        self.armed_until = INF
        self._ending = ending
        self._stream = stream
        self._ended = ended
        self._data = bytearray()  # bounded by the stream's window, since nothing is credited
        self._leaving = False
        self._needs = 1  # bytes that are worth a look; -1 once the hello was read
        self.over = False

    def start(self, until: float) -> None:
        """Wait for the hello."""
        self._stream.sink = self
        self._ending.wheel.arm(self, until)

    def splice(self) -> Splice:
        """Hand the stream over, with all that came in."""
        splice = _Inside(self._stream, self)
        if self.over:
            return splice  # which finds its stream closed
        self._stream.sink = splice
        splice.stream_data(bytes(self._data))
        self._data.clear()
        return splice

    def refuse(self, code: Alert, reason: Reason) -> None:
        """Say why in TLS, and end."""
        if self.over:
            return
        self._stream.consumed(len(self._data))
        self._out()
        self._ending.counters.refuse(reason)
        self._stream.write(alert_record(code))
        say_farewell(self._stream, self._ending.gateway)

    def turn_away(self, reason: Reason) -> None:
        """No word in TLS: there may be no room for it."""
        if not self.over:
            self._ending.counters.refuse(reason)
            self._stream.reset(reason)
            self._out()

    def leave(self) -> None:
        """Our side said all it had, and the end of it."""
        self._leaving = True
        self._stream.sink = self
        self._ending.wheel.arm(self, self._ending.gateway.time() + LEAVE_SECONDS)

    def spliced(self, sent: int, received: int) -> None:  # noqa: ARG002 - the splice's signature
        """The splice is over."""
        if not self._leaving:
            self._out()

    # The stream's sink.

    def stream_data(self, data: bytes) -> None:
        """More of the hello, or what the visitor says while its certificate is being looked for, or too late."""
        if self._leaving:
            self._stream.consumed(len(data))
        if self._leaving or self.over:
            return
        self._data += data
        if self._needs < 0 or len(self._data) < self._needs:
            return
        seen = bytes(self._data)
        try:
            hello = parse_client_hello(seen)
        except RemoteError as error:
            self.refuse(Alert.ILLEGAL_PARAMETER, error.reason)
            return
        if hello is None:
            self._needs = max(hello_needs(seen), len(seen) + 1)
            return
        self._needs = -1
        self.deadline = INF
        self._ending.greeted(self, hello)

    def stream_finished(self) -> None:
        """The visitor left, after us or before it was served."""
        if self._leaving:
            self._out()
        else:
            self.turn_away(Reason.HANDSHAKE_FAILED)

    def stream_reset(self, reason: Reason) -> None:  # noqa: ARG002 - nobody is left to be told
        """It is gone."""
        self._out()

    def pause_sending(self) -> None:
        """Nothing is sent yet."""

    def resume_sending(self) -> None:
        """Nothing is sent yet."""

    def on_deadline(self, now: float) -> None:
        """Too slow; one that leaves is given time until its last byte is on the way."""
        if not self._leaving:
            self.turn_away(Reason.HELLO_TIMEOUT)
        elif self._stream.queued and not self._stream.closed:
            self._ending.wheel.arm(self, now + LEAVE_SECONDS)
        else:
            self._stream.reset(Reason.CANCELLED)
            self._out()

    def _out(self) -> None:
        self.deadline = INF
        if not self.over:
            self.over = True
            self._data.clear()
            self._ended()


def hosts_of(service: ServiceConfig, domains: Iterable[str]) -> list[str]:
    """The public hosts of a service: its own, or its name under each edge's domain (which is what that edge says)."""
    if service.host:
        return list(service.host)
    hosts = []
    for domain in filter(None, domains):
        try:
            hosts.append(normalise_pattern(f"{service.name}.{domain}"))
        except ValueError:
            continue
    return hosts
