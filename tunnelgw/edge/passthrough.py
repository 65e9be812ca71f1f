"""One connection of a visitor whose bytes go to a service as they are: TLS passed through, TCP ports, TCP inside TLS.

The stream comes first and the transport second: while a request for a stream is parked nothing is read, so the bytes
wait in the visitor's own kernel, and a refused visitor costs no transport.

Who owns what: `RawPassage` owns the socket until it gives it to the loop, after that the `Splice` owns transport and
stream. `TlsPassage` owns its transport until the stream is there, then the `Splice` does.
Invariant: each passage ends as exactly one of: spliced, refused (`refused` called with the reason), or left.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, cast

from tunnelgw.gateway.opener import NoStream
from tunnelgw.net import tls
from tunnelgw.net.splice import Splice
from tunnelgw.net.tasks import spawn
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.members import NOT_DIALLED

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.gateway.opener import StreamOpener, Visitor
    from tunnelgw.net.ledger import CountedSocket
    from tunnelgw.routing.table import Route
    from tunnelgw.wire.events import StreamEnd

log = logging.getLogger(__name__)


class Live:
    """The open streams of raw routes, so that withdrawing a service can cut them: (connector, service) → passages.

    `refused` counts those that are reset, by reason.
    """

    __slots__ = ("_passages", "refused")

    def __init__(self, refused: Callable[[Reason], object]) -> None:
        self.refused = refused
        self._passages: dict[tuple[str, str], set[_Passage]] = {}

    def add(self, passage: _Passage) -> None:
        """A passage has its stream."""
        self._passages.setdefault(passage.service, set()).add(passage)

    def remove(self, passage: _Passage) -> None:
        """It ended. Idempotent."""
        passages = self._passages.get(passage.service)
        if passages is not None:
            passages.discard(passage)
            if not passages:
                del self._passages[passage.service]

    def account(self) -> None:
        """Bring the routes' numbers up to date: a connection may last for days."""
        for passages in self._passages.values():
            for passage in passages:
                passage.account()

    def __bool__(self) -> bool:
        return bool(self._passages)

    def __len__(self) -> int:
        """How many are open in all."""
        return sum(len(passages) for passages in self._passages.values())

    def count(self, connector: str, service: str) -> int:
        """How many are open."""
        return len(self._passages.get((connector, service), ()))

    def cut(self, connector: str, service: str) -> int:
        """The service was withdrawn: end its streams now. How many there were."""
        passages = self._passages.pop((connector, service), set())
        for passage in passages:
            passage.cut(Reason.WITHDRAWN)
        return len(passages)


class _Passage:
    """What both kinds share: a waiter that becomes a splice."""

    __slots__ = (
        "_counted_in", "_counted_out", "_live", "_members", "_opener", "_splice", "_stream", "_visitor", "route",
    )  # fmt: skip

    def __init__(self, opener: StreamOpener, live: Live, route: Route, visitor: Visitor) -> None:
        self._opener = opener
        self._live = live
        self.route = route  # of a group: the member's own, once there is one
        self._members = route.members
        self._visitor = visitor
        self._stream: StreamEnd | None = None
        self._splice: Splice | None = None
        self._counted_in = 0
        self._counted_out = 0

    @property
    def service(self) -> tuple[str, str]:
        """(connector, service): under this key the passage can be cut."""
        return self.route.connector, self.route.service

    def cut(self, reason: Reason) -> None:
        """End stream and transport now."""
        stream, splice = self._stream, self._splice
        if stream is not None:
            stream.reset(reason)
        if splice is not None:
            splice.stream_reset(reason)  # a reset from our side does not call our own sink

    def _ask(self) -> None:
        if self._members is not None:
            now = asyncio.get_running_loop().time()
            self.route = self._members.choose(now, address=self._visitor.address) or self.route
        try:
            stream = self._opener.open(self.route, self._visitor, self)
        except NoStream as answer:
            self.stream_refused(answer.reason, answer.since)
            return
        if stream is not None:
            self.stream_ready(stream)

    def _join(self, stream: StreamEnd) -> Splice:
        self._stream = stream
        splice = self._splice = Splice(stream, on_reset=self._reset, on_end=self._ended)
        stream.sink = splice
        self._live.add(self)
        return splice

    def account(self) -> None:
        """Add what passed since the last time to the route's numbers."""
        if self._splice is not None:
            self._count(self._splice.sent, self._splice.received)

    def _count(self, sent: int, received: int) -> None:
        counters = self.route.counters
        counters.bytes_out += sent - self._counted_out
        counters.bytes_in += received - self._counted_in
        self._counted_out, self._counted_in = sent, received

    def _ended(self, sent: int, received: int) -> None:
        self._count(sent, received)
        self._live.remove(self)
        if self._members is not None and sent:
            self._members.served(self.route.connector)

    def _reset(self, reason: Reason) -> None:
        self._live.refused(reason)
        splice = self._splice
        # A target that ends a connection without a byte may mean it so: what it speaks is not known here.
        if self._members is not None and splice is not None and not splice.sent and reason in NOT_DIALLED:
            self._members.failed(self.route, reason, asyncio.get_running_loop().time())

    # StreamWaiter; the stream's own events go to the splice from `_join` on, and none can come before it.

    def stream_ready(self, stream: StreamEnd) -> None:
        """The stream is there."""
        raise NotImplementedError

    def stream_refused(self, reason: Reason, since: float) -> None:
        """There will be none."""
        raise NotImplementedError

    def stream_data(self, data: bytes) -> None:  # noqa: ARG002 - the sink's interface
        """Never: see above."""
        raise AssertionError("a stream without a splice")

    def stream_finished(self) -> None:
        """Never: see above."""
        raise AssertionError("a stream without a splice")

    def stream_reset(self, reason: Reason) -> None:
        """The session ended between opening and joining."""
        self.stream_refused(reason, 0.0)

    def pause_sending(self) -> None:
        """Nothing is sent yet."""

    def resume_sending(self) -> None:
        """Nothing is sent yet."""


class RawPassage(_Passage):
    """A raw socket towards a stream. `refused(sock, reason)` gets the socket back when there is no stream."""

    __slots__ = ("_refused", "_sock")

    def __init__(
        self,
        opener: StreamOpener,
        live: Live,
        route: Route,
        visitor: Visitor,
        *,
        sock: CountedSocket,
        refused: Callable[[CountedSocket, Reason], None],
    ) -> None:
        super().__init__(opener, live, route, visitor)
        self._sock = sock
        self._refused = refused

    def start(self) -> None:
        """Ask for the stream."""
        self._ask()

    def stream_ready(self, stream: StreamEnd) -> None:
        splice = self._join(stream)
        spawn(self._connect(splice, stream), name="passage")

    def stream_refused(self, reason: Reason, since: float) -> None:  # noqa: ARG002 - the waiter's interface
        self._refused(self._sock, reason)

    async def _connect(self, splice: Splice, stream: StreamEnd) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(lambda: splice, self._sock)
        except OSError as error:
            log.debug("a visitor's connection broke before it was used: %s", error)
            stream.reset(Reason.CANCELLED)
            self._live.remove(self)
            self._sock.close()


class TlsPassage(_Passage, asyncio.Protocol):
    """Protocol of a TLS connection whose inside goes to a TCP service; a splice takes over once the stream is there."""

    __slots__ = ("_refused", "_tell", "_transport")

    def __init__(
        self,
        opener: StreamOpener,
        live: Live,
        route: Route,
        visitor: Visitor,
        *,
        refused: Callable[[Reason], None],
        tell: Callable[[Reason], bytes] | None = None,
    ) -> None:
        """`tell`: why there is no stream, in the words of what is spoken inside."""
        super().__init__(opener, live, route, visitor)
        self._tell = tell
        self._refused = refused
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = made = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        tls.limit_buffers(made)
        made.pause_reading()  # honoured here on TLS transports
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's interface
        self._transport = None
        self._opener.cancel(self)

    def stream_ready(self, stream: StreamEnd) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            stream.reset(Reason.CANCELLED)
            return
        splice = self._join(stream)
        transport.set_protocol(splice)
        splice.connection_made(transport)
        if not transport.is_closing():
            transport.resume_reading()

    def stream_refused(self, reason: Reason, since: float) -> None:  # noqa: ARG002 - the waiter's interface
        self._refused(reason)
        if self._transport is not None:
            if self._tell is not None:
                self._transport.write(self._tell(reason))
            self._transport.close()
