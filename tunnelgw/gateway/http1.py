"""A visitor's HTTP/1.1 (or 1.0) connection: one exchange at a time, so the connection is its own exchange.

Bytes come in, one bounded head at a time is parsed, the body is counted and pushed on, and only when the response has
left is the next head looked at: pipelined requests are answered in order, and a visitor who does not read gets nothing
more parsed. What goes out is collected and written once per response or loop turn.

Invariants: a byte of the visitor belongs to exactly one head or body; once framing is in doubt the connection closes
after the answer; after `connection_lost` nothing is written and no stream of this connection is left.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tunnelgw.errors import RemoteError
from tunnelgw.gateway.exchange1 import ANSWER, BYTES, CLOSED, DISCARD, READY, UPLOAD, Http1Exchange
from tunnelgw.gateway.pool import Pool
from tunnelgw.http.body import ChunkedBody, LengthBody
from tunnelgw.http.codec import find_request_end, parse_request_head
from tunnelgw.http.head import Framing
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from tunnelgw.gateway.opener import Visitor
    from tunnelgw.gateway.service import Gateway
    from tunnelgw.http.body import BodyReader
    from tunnelgw.http.head import RequestHead

# Pipelined input kept while an exchange is under way; more is left to the kernel.
_AHEAD_BYTES = 65536
# What a transport may hold before it pauses us: more only hides memory from the tunnel's windows.
_WRITE_HIGH, _WRITE_LOW = 65536, 16384
# After an answer that came before the request's end: how long, and how much of the rest, is read and thrown away, so
# that closing does not destroy the answer on its way (RFC 9112 section 9.6).
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 4 * 1024 * 1024
# Of what came instead of a head, enough to recognise it in the log.
_LINE_BYTES = 256
# How often an exchange under way is looked at.
_TICK = 1.0


class Http1Visitor(Http1Exchange, asyncio.Protocol):
    """One connection: the loop calls the protocol's methods, the upstream `Exchange`'s, the wheel `on_deadline`."""

    __slots__ = ("_kept", "_pumping", "_reader", "_resting", "_seen", "_served", "_since")

    def __init__(self, gateway: Gateway, visitor: Visitor) -> None:
        super().__init__(Pool(gateway, visitor))
        self._seen = 0  # of `_ahead`: searched for the head's end without finding it
        self._kept = False  # after a request: who finds such a connection closed asks again (RFC 9112, 9.3.1)
        self._served = False  # a whole head arrived: the first one's time runs from the connection's start
        self._reader: BodyReader | None = None
        self._since = 0.0  # when the state's absolute deadline began to run
        self._pumping = False
        self._resting = False  # may be asked to leave: no request is under way, and no byte of an answer is here

    # What the transport calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport  # uvloop's is no subclass of asyncio's: nothing to assert
        transport.set_write_buffer_limits(_WRITE_HIGH, _WRITE_LOW)
        gateway = self.pool.gateway
        gateway.connections.add(self)
        self._since = gateway.time()
        gateway.wheel.arm(self, self._since + gateway.settings.request_head_seconds)
        self._rest()

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state == READY:
            if not self._ahead:
                self._ahead = data
            elif isinstance(self._ahead, bytearray):
                self._ahead += data
            else:
                self._ahead = bytearray(self._ahead) + data
            self._pump()
        elif state == UPLOAD:
            self._upload(data)
        elif state == BYTES:
            self.bytes_in += len(data)
            if self.upstream is not None:
                self.upstream.send_body(data)
        elif state == ANSWER:
            self._ahead = bytearray(self._ahead) + data if self._ahead else data
            self.keep(len(self._ahead))
            if len(self._ahead) > _AHEAD_BYTES:
                self._pause_reading()
        elif state == DISCARD:
            self._discard(data)

    def eof_received(self) -> bool:
        transport = self._transport
        if transport is None or not transport.can_write_eof():
            return False  # TLS has no half-close: the visitor is gone
        self._eof = True
        if self._state == BYTES and self.upstream is not None:
            self.upstream.send_end([])
            return True
        if self._state == ANSWER:
            self._keep = False
            return True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        state, self._state = self._state, CLOSED
        self._transport = None
        self._out.clear()
        self._ahead = b""
        gateway = self.pool.gateway
        gateway.wheel.forget(self)
        gateway.connections.discard(self)
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            now = gateway.time()
            if state == BYTES and exc is None:
                upstream.send_end([])
                upstream.done(now)
            elif self.complete:
                upstream.done(now)
            else:
                upstream.abort(Reason.CANCELLED)
        if self.head is not None:
            self.account(gateway.time(), 0 if self.upgraded or self.complete else Reason.CANCELLED.status)
        self.pool.close()

    # What the wheel calls.

    def on_deadline(self, now: float) -> None:
        """Look at whatever state the connection is in now; deadlines of states that are over are not cleared."""
        gateway = self.pool.gateway
        settings = gateway.settings
        state = self._state
        if state == READY:
            in_head = not self._served or len(self._ahead) > 0
            due = self._since + (settings.request_head_seconds if in_head else settings.idle_seconds)
            if now < due:
                left = self.pool.rest(now)
                if not self._resting and self._sent():
                    self._rest()
                gateway.wheel.arm(self, min(due, now + _TICK) if left or not self._resting else due)
            elif self._ahead:
                self._refuse_head(Reason.HEAD_TIMEOUT, self._ahead)
            else:
                if not self._served:
                    gateway.refused(Reason.HEAD_TIMEOUT)  # it never said anything
                self._close()
        elif state == DISCARD:
            if now >= self._since + _LINGER_SECONDS:
                self._close()
            else:
                gateway.wheel.arm(self, self._since + _LINGER_SECONDS)
        elif state != CLOSED:
            self.pool.sweep(now)
            gateway.wheel.arm(self, now + _TICK)
            self.check(now)

    def wind_down(self) -> None:
        """The next response says that it is the last one."""

    def drain(self) -> None:
        """Serve no further request: close now if none is under way."""
        if self._state == READY and not self._ahead:
            self.pool.gateway.part(self, self._transport)
            self._close()

    def send_on(self) -> bool:
        if self._kept:
            self.account(self.pool.gateway.time(), Reason.EDGE_REPLACED.status)
            self._close()
        return self._kept

    def make_room(self) -> None:
        """Somebody else needs the place, and nothing is under way here."""
        transport = self._transport
        self._state = CLOSED
        self._transport = None
        if transport is not None:
            self.pool.gateway.dismiss(transport)

    # Inside: the place that it takes.

    def _rest(self) -> None:
        """Between requests, and no byte of an answer is left."""
        self._resting = True
        if self.pool.visitor.place is not None:
            self.pool.visitor.place.rest(self.make_room)

    def _sent(self) -> bool:
        """Whether all that was written went to the kernel."""
        return self._transport is None or not self._transport.get_write_buffer_size()

    def _work(self) -> bool:
        """A request begins: False if there is no place for one more of this address."""
        self._resting = False
        return self.pool.visitor.place is None or self.pool.visitor.place.work()

    # Inside: input.

    def _pump(self) -> None:
        """Begin every request that can be begun now; one after another, without recursion."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._state == READY and self._ahead and not self._write_paused:
                if not self._next_head():
                    break
        finally:
            self._pumping = False

    def _next_head(self) -> bool:
        """Begin the request at the front of `_ahead`; False if its head is not complete yet."""
        ahead = self._ahead
        try:
            memo = self.pool.memo
            head = memo.recall(ahead)
            if head is not None:
                self._ahead = b""
            else:
                block = self._take_head()
                if not block:
                    return False
                if self._ahead:  # other requests follow it
                    head = memo.recall(block)
            self._seen = 0
            self._served = True
            if self._resting and not self._work():
                raise RemoteError("too much is under way for its address", reason=Reason.CONNECTION_LIMIT)
            if head is None:
                head = parse_request_head(block, secure=self.pool.visitor.secure)
                memo.remember(block, head)
        except RemoteError as error:
            # More may follow. TLS reads it by itself while it says goodbye; else we do.
            transport = self._transport
            self.upload_done = transport is None or not transport.can_write_eof()
            self._refuse_head(error.reason, ahead)
            return False
        self._start(head)
        return True

    def _take_head(self) -> bytes:
        """The head at the front of `_ahead`, taken out of it; b"" if it is not complete yet."""
        gateway = self.pool.gateway
        settings = gateway.settings
        ahead = self._ahead
        if ahead[:1] == b"\r":  # RFC 9112 section 2.2: an empty line before a request means nothing
            if len(ahead) == 1:
                return b""
            if ahead[:2] == b"\r\n":
                ahead = self._ahead = ahead[2:]
        end = find_request_end(ahead, searched=self._seen, limit=settings.request_head_bytes)
        if end >= 0:
            self._ahead = ahead[end:]
            return bytes(ahead[:end])
        if self._served and not self._seen and ahead:  # the first bytes of a head: from now on its time runs
            self._since = gateway.time()
            due = self._since + settings.request_head_seconds
            if due < self.deadline:
                gateway.wheel.arm(self, due)
        self._seen = len(ahead)
        return b""

    def _refuse_head(self, reason: Reason, came: bytes | bytearray) -> None:
        """What came is no head: answer, and log its first line."""
        # To the first end of line of any kind: fields that follow a bare one may hold passwords.
        self._work()
        line = bytes(came[:_LINE_BYTES]).removeprefix(b"\r\n").partition(b"\n")[0].partition(b"\r")[0]
        self._ahead = b""
        since = self._since
        self.bytes_out = 0
        self.refuse(reason)
        self.log_refused(b"-", line, 11, since)

    def _start(self, head: RequestHead) -> None:
        gateway = self.pool.gateway
        now = gateway.time()
        if self.deadline > now + _TICK:
            gateway.wheel.arm(self, now + _TICK)
        if not head.length:
            self._state = ANSWER
            self.begin(head, now)
            if self._ahead:
                self.keep(len(self._ahead))
            return
        self._state = UPLOAD
        self._reader = LengthBody(head.length) if head.framing is Framing.LENGTH else ChunkedBody()
        self.begin(head, now)
        if self._state == UPLOAD:
            data, self._ahead = bytes(self._ahead), b""
            self._upload(data)
        elif self._ahead:
            self.keep(len(self._ahead))

    def _upload(self, data: bytes) -> None:
        upstream = self.upstream
        if upstream is None:
            return
        if not upstream.ready:  # parked: keep what came, and leave the rest to the kernel
            self._ahead = self._ahead + data if self._ahead else data
            self.keep(len(self._ahead))
            self._pause_reading()
            return
        reader = self._reader
        assert reader is not None
        try:
            payload, end = reader.feed(data, 0)
        except RemoteError as error:
            self._keep = False
            self.give_up(error.reason)
            return
        if payload:
            self.bytes_in += len(payload)
            upstream.send_body(payload)
        if reader.done:
            self._reader = None
            if end < len(data):
                self._ahead = data[end:]
                self.keep(len(self._ahead))
            self.upload_done = True
            self._state = ANSWER
            if self._reading_paused:
                self._resume_reading()
            upstream.send_end(reader.trailers)

    def _discard(self, data: bytes) -> None:
        self.bytes_in += len(data)
        if self.bytes_in > _LINGER_BYTES:
            self._close()

    # Inside: the end of an exchange, and of the connection.

    def _finish(self) -> None:
        """The response left as a whole."""
        gateway = self.pool.gateway
        now = gateway.time()
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.done(now)
        if self.head is not None:
            self.account(now)
        self.complete = False
        self._reader = None
        if not self._keep:
            self._end_connection(now)
            return
        self._state = READY
        self._kept = True
        self._since = now
        if self._reading_paused:
            self._resume_reading()
        if self._ahead:
            self._pump()

    def _end_connection(self, now: float) -> None:
        if self.upload_done or self._eof:
            self._close()
            return
        self._state = DISCARD
        self._ahead = b""
        self._since = now
        self.bytes_in = 0
        transport = self._transport
        if transport is not None and transport.can_write_eof():
            transport.write_eof()  # who waits for our end need not wait for the linger's
        self._resume_reading()
        self.pool.gateway.wheel.arm(self, now + _LINGER_SECONDS)
