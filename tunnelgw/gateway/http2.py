"""A visitor's HTTP/2 connection: many exchanges, one engine, one write per loop turn.

Memory is bounded by credit: what the engine holds for a slow visitor is not credited to the service, what a service
does not take is not acknowledged to the visitor. So a stream holds at most one window of each, and nothing is pulled
from the engine while the transport is full.

Invariants: each exchange ends once, at its stream's close or at the connection's; when a stream closes early its
upstream is reset in the same loop turn; a response that was cut ends with RST_STREAM, never with END_STREAM.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from tunnelgw.errors import RemoteError
from tunnelgw.gateway.exchange2 import Http2Exchange
from tunnelgw.gateway.pool import Pool
from tunnelgw.http import pseudo
from tunnelgw.http.h2 import (
    ConnectionClosed,
    DataReceived,
    ErrorCode,
    FrameError,
    Http2,
    PingAcknowledged,
    RequestReceived,
    StreamClosed,
    StreamReset,
    TrailersReceived,
)
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunnelgw.gateway.exchange import Exchange
    from tunnelgw.gateway.opener import Visitor
    from tunnelgw.gateway.service import Gateway
    from tunnelgw.http.h2 import Event

# One write: enough for a turn's responses to be encrypted together.
_PULL_BYTES = 256 * 1024
_WRITE_HIGH, _WRITE_LOW = 65536, 16384
_TICK = 1.0
# A visitor that does not answer the last call's PING gets the final GOAWAY after this: several long round trips.
_LAST_CALL_SECONDS = 5.0
_LONG_PATH = 1024


class Http2Visitor(asyncio.Protocol):
    """One connection. The loop calls the protocol's methods, exchanges call `settle_soon`, the wheel `on_deadline`."""

    __slots__ = (
        "_inside_since", "_last_call", "_over", "_since", "_transport", "_whole", "armed_until", "closing", "deadline",
        "engine", "exchanges", "gateway", "guard", "pool", "resting", "scheduled", "unsettled", "write_paused",
    )  # fmt: skip

    def __init__(self, gateway: Gateway, visitor: Visitor) -> None:
        self.gateway = gateway
        self.pool = Pool(gateway, visitor)
        self.engine = Http2(serving=True, head_bytes=gateway.settings.request_head_bytes)
        self.exchanges: dict[int, Http2Exchange] = {}
        self.unsettled: dict[int, Http2Exchange] = {}  # with bytes on their way to the visitor
        self._transport: asyncio.Transport | None = None
        guard = self.engine.guard
        assert guard is not None  # an engine that serves has one
        self.guard = guard
        self._whole = False  # the visitor said something whole; until then its time for a head runs
        self._inside_since = math.inf  # when it began a head, or another frame but DATA, that is not whole yet
        self._since = 0.0  # when the connection became idle
        self._last_call = math.inf  # when a visitor that was told to go on elsewhere must have heard it
        self.closing = False  # takes no further requests
        self._over = False  # the engine is at its end
        self.write_paused = False
        self.resting = False  # may be asked to leave: no request is under way, and no byte of an answer is here
        self.scheduled = False  # waits in the gateway's flush of this loop turn
        self.deadline = math.inf
        self.armed_until = math.inf

    # What the transport calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        transport.set_write_buffer_limits(_WRITE_HIGH, _WRITE_LOW)
        gateway = self.gateway
        gateway.connections.add(self)
        self._since = gateway.time()
        gateway.wheel.arm(self, self._since + gateway.settings.request_head_seconds)
        self._rest()
        if gateway.draining:
            self.wind_down()
        self.settle_soon()

    def data_received(self, data: bytes) -> None:
        if self.closing and not self.exchanges:
            return
        try:
            now = self.gateway.time()
            events = self.engine.receive(data, now)
        except FrameError as error:
            self._fail(error)
            return
        if self.guard.inside:
            if self._inside_since == math.inf:
                self._head_begins(now)
        else:
            self._inside_since = math.inf
            self._whole = True
        if events:
            self._handle(events)
        if not self.scheduled:
            self.settle_soon()

    def eof_received(self) -> bool:
        return False  # a half-closed HTTP/2 connection cannot even acknowledge settings

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - it is gone either way
        self._transport = None
        self.closing = True
        self.gateway.wheel.forget(self)
        self.gateway.connections.discard(self)
        self._abandon()

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        self.flush()

    # What the wheel calls.

    def on_deadline(self, now: float) -> None:
        """Once a second while something is under way or kept; else when the connection was idle for too long."""
        gateway = self.gateway
        if self._transport is None:
            return
        settings = gateway.settings
        late = self._inside_since + settings.request_head_seconds
        if now >= late:
            self._fail(FrameError("a head that is too slow", ErrorCode.ENHANCE_YOUR_CALM, reason=Reason.HEAD_TIMEOUT))
            return
        if now >= self._last_call and not self.closing:
            self.drain()
        if self.exchanges:
            self.pool.sweep(now)
            for exchange in list(self.exchanges.values()):
                exchange.check(now)
            gateway.wheel.arm(self, now + _TICK)
            return
        left = self.pool.rest(now)
        due = self._since + (settings.idle_seconds if self._whole else settings.request_head_seconds)
        if now >= due:
            if not self._whole:
                gateway.refused(Reason.HEAD_TIMEOUT)  # it never said anything
            self._end()
            return
        if not self.resting and self._sent():
            self._rest()
        soon = now + _TICK if left or not self.resting else math.inf
        gateway.wheel.arm(self, min(due, late, soon, math.inf if self.closing else self._last_call))

    # What exchanges and the gateway call.

    def settle_soon(self) -> None:
        """See that `flush` is called later in this loop turn."""
        if not self.scheduled:
            self.scheduled = True
            self.gateway.flush_soon(self)

    def flush(self) -> None:
        """Write what the engine has, credit what that moved, and see to streams that ended by it."""
        self.scheduled = False
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        engine = self.engine
        try:
            while not self.write_paused:
                data = engine.pull(_PULL_BYTES)
                if data:
                    transport.write(data)
                events = engine.events()
                if events:
                    self._handle(events)
                if self.unsettled:
                    for exchange in list(self.unsettled.values()):
                        exchange.settle_credit()
                if not data:
                    break
        except RemoteError:
            self._close()
            return
        if self._over or (self.closing and not self.exchanges and not self.write_paused):
            self._close()

    def wind_down(self) -> None:
        """The first of two steps; the second, `drain`, comes when the visitor knows that there are to be no more."""
        if self.closing or self._last_call < math.inf:
            return
        self._last_call = self.gateway.time() + _LAST_CALL_SECONDS
        if self._last_call < self.deadline:
            self.gateway.wheel.arm(self, self._last_call)
        self.engine.last_call()
        self.settle_soon()

    def drain(self) -> None:
        """Serve what is under way and nothing more."""
        if not self.exchanges:
            self.gateway.part(self, self._transport)
        self.engine.refuse_more()
        self.closing = True
        self.settle_soon()

    def under_way(self) -> tuple[Exchange, ...]:
        """The exchanges of this connection."""
        return tuple(self.exchanges.values())

    def make_room(self) -> None:
        """Somebody else needs the place, and nothing is under way here."""
        transport = self._transport
        self.closing = True
        self.engine.terminate()
        self.flush()
        self._transport = None
        if transport is not None:
            self.gateway.dismiss(transport)

    def stuck_bytes(self) -> int:
        """What the kernel holds unsent for this visitor; changes as long as it reads anything."""
        return self.gateway.unsent_bytes(self._transport)

    # Inside.

    def _handle(self, events: Iterable[Event]) -> None:
        exchanges = self.exchanges
        for event in events:
            if isinstance(event, RequestReceived):
                self._request(event)
            elif isinstance(event, DataReceived):
                exchange = exchanges.get(event.stream_id)
                if event.data:
                    self.engine.owe(event.stream_id, len(event.data))
                if exchange is not None:
                    exchange.upload(event.data, end=event.end_stream)
                elif event.data:
                    self.engine.pay(event.stream_id)
            elif isinstance(event, StreamClosed):
                exchange = exchanges.pop(event.stream_id, None)
                self.unsettled.pop(event.stream_id, None)
                if exchange is not None:
                    exchange.closed(complete=not event.error_code)
                    if not exchanges:
                        self._since = self.gateway.time()
                self.engine.pay(event.stream_id)
            elif isinstance(event, TrailersReceived):
                exchange = exchanges.get(event.stream_id)
                if exchange is not None:
                    exchange.upload_trailers(list(event.headers))
            elif isinstance(event, PingAcknowledged):
                if self._last_call < math.inf and not self.closing:
                    self.drain()
            elif isinstance(event, ConnectionClosed):
                self.closing = self._over = True  # GOAWAY of either side, and nothing left to say
            elif isinstance(event, StreamReset):
                exchange = exchanges.get(event.stream_id)
                if exchange is not None:
                    exchange.visitor_reset()

    def _rest(self) -> None:
        """No request is under way, and no byte of an answer is left."""
        self.resting = True
        if self.pool.visitor.place is not None:
            self.pool.visitor.place.rest(self.make_room)

    def _sent(self) -> bool:
        """Whether all that was written went to the kernel."""
        return self._transport is None or not self._transport.get_write_buffer_size()

    def _work(self) -> bool:
        """A request begins: False if there is no place for one more of this address."""
        self.resting = False
        return self.pool.visitor.place is None or self.pool.visitor.place.work()

    def _head_begins(self, now: float) -> None:
        """Part of a head, which must be whole in time, whatever else is under way."""
        self._inside_since = now
        due = now + self.gateway.settings.request_head_seconds
        if due < self.deadline:
            self.gateway.wheel.arm(self, due)

    def _request(self, event: RequestReceived) -> None:
        gateway = self.gateway
        number = event.stream_id
        if self.closing:
            self.engine.reset(number, ErrorCode.REFUSED_STREAM)
            return
        now = gateway.time()
        crowded = self.resting and not self._work()
        if self.deadline > now + _TICK:
            gateway.wheel.arm(self, now + _TICK)
        exchange = Http2Exchange(self, number)
        self.exchanges[number] = exchange
        end = event.end_stream
        if crowded:
            exchange.upload_done = end
            exchange.refuse(Reason.CONNECTION_LIMIT)
            self.drain()
            return
        try:
            memo = self.pool.memo
            head, key = memo.recall_h2(event.headers) if end else (None, ())
            # What is recalled was counted before, all but its path.
            if head is None or len(head.path) > _LONG_PATH:
                self._count(event)
            if head is None:
                head = pseudo.request_head(list(event.headers), end_stream=end, secure=self.pool.visitor.secure)
                memo.remember_h2(key, head)
        except RemoteError as error:
            exchange.upload_done = end
            if error.reason is Reason.BAD_REQUEST:
                gateway.refused(error.reason)
                exchange.status = error.reason.status
                self.engine.reset(number, ErrorCode.PROTOCOL_ERROR)
            else:
                exchange.refuse(error.reason)
            sent = dict(event.headers)
            exchange.log_refused(sent.get(b":method", b"-"), sent.get(b":path", b""), 20, now)
            return
        exchange.accept(head, now, end=end)

    def _count(self, event: RequestReceived) -> None:
        if pseudo.head_size(event.headers) > self.gateway.settings.request_head_bytes:
            raise RemoteError("the head is too large", reason=Reason.HEAD_TOO_LARGE)

    def _fail(self, error: FrameError) -> None:
        """The visitor broke the protocol: say so if the engine still can, and close."""
        self.gateway.refused(error.reason)
        self.closing = True
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        data = b""
        if not self.write_paused:
            data = self.engine.last_words(error.code)
        if data:
            transport.write(data)
        self._close()

    def _close(self) -> None:
        transport, self._transport = self._transport, None  # uvloop raises if a closed one is touched again
        if transport is not None:
            if self.write_paused:
                transport.abort()  # who does not read would keep an orderly end waiting for ever
            else:
                transport.close()
        self._abandon()

    def _abandon(self) -> None:
        """Nothing goes to the visitor any more: reset what is under way."""
        exchanges, self.exchanges = self.exchanges, {}
        self.unsettled.clear()
        for exchange in exchanges.values():
            exchange.closed(complete=False)
        self.pool.close()

    def _end(self) -> None:
        self.closing = True
        self.engine.terminate()
        self.flush()
        self._close()
