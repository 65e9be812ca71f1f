"""A visitor's HTTP/1.1 (or 1.0) connection: one exchange at a time, so the connection is its own exchange.

Bytes come in, one bounded head at a time is parsed, the body is counted and pushed on, and only when the response has
left is the next head looked at: pipelined requests are answered in order, and a visitor who does not read gets nothing
more parsed. What goes out is collected and written once per response or loop turn.

Invariants: a byte of the visitor belongs to exactly one head or body; once framing is in doubt the connection closes
after the answer; after `connection_lost` nothing is written and no stream of this connection is left.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from tunnelgw.errors import RemoteError
from tunnelgw.gateway.exchange import Exchange
from tunnelgw.gateway.pool import Pool
from tunnelgw.http.body import LAST_CHUNK, ChunkedBody, LengthBody, encode_trailers
from tunnelgw.http.codec import find_request_end, parse_request_head
from tunnelgw.http.head import Framing
from tunnelgw.http.serialise import serialise_response
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from tunnelgw.gateway.opener import Visitor
    from tunnelgw.gateway.service import Gateway
    from tunnelgw.http.body import BodyReader
    from tunnelgw.http.head import Fields, ResponseHead

# What the connection is waiting for.
_READY, _UPLOAD, _ANSWER, _BYTES, _DISCARD, _CLOSED = range(6)

# Pipelined input kept while an exchange is under way; more is left to the kernel.
_AHEAD_BYTES = 65536
# What a transport may hold before it pauses us: more only hides memory from the tunnel's windows.
_WRITE_HIGH, _WRITE_LOW = 65536, 16384
# After an answer that came before the request's end: how long, and how much of the rest, is read and thrown away, so
# that closing does not destroy the answer on its way (RFC 9112 section 9.6).
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 4 * 1024 * 1024
# A loop turn may bring more than a megabyte for one visitor: written in parts that the processor's cache still holds.
_GATHER_BYTES = 128 * 1024
# How often an exchange under way is looked at.
_TICK = 1.0


class Http1Visitor(Exchange, asyncio.Protocol):
    """One connection: the loop calls the protocol's methods, the upstream `Exchange`'s, the wheel `on_deadline`."""

    __slots__ = (
        "_ahead", "_chunked", "_eof", "_gathered", "_keep", "_out", "_pumping", "_reader", "_reading_paused", "_seen",
        "_served", "_since", "_state", "_stuck_at", "_transport", "_write_paused", "armed_until", "deadline",
        "scheduled",
    )  # fmt: skip

    def __init__(self, gateway: Gateway, visitor: Visitor) -> None:
        super().__init__(Pool(gateway, visitor))
        self._transport: asyncio.Transport | None = None
        self._ahead: bytes | bytearray = b""  # input not looked at yet
        self._seen = 0  # of it: searched for the head's end without finding it
        self._served = False  # a whole head arrived: the first one's time runs from the connection's start
        self._out: list[bytes] = []
        self._gathered = 0  # payload in `_out`
        self._reader: BodyReader | None = None
        self._state = _READY
        self._since = 0.0  # when the state's absolute deadline began to run
        self._stuck_at = 0  # the kernel's unsent bytes when we last looked
        self._chunked = False  # the response goes out in chunks
        self._keep = True  # the connection may serve another request
        self._eof = False
        self._pumping = False
        self._reading_paused = False
        self._write_paused = False
        self.scheduled = False  # waits in the gateway's flush of this loop turn
        self.deadline = math.inf
        self.armed_until = math.inf

    # What the transport calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport  # uvloop's is no subclass of asyncio's: nothing to assert
        transport.set_write_buffer_limits(_WRITE_HIGH, _WRITE_LOW)
        gateway = self.pool.gateway
        gateway.connections.add(self)
        self._since = gateway.time()
        gateway.wheel.arm(self, self._since + gateway.settings.request_head_seconds)

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state == _READY:
            if not self._ahead:
                self._ahead = data
            elif isinstance(self._ahead, bytearray):
                self._ahead += data
            else:
                self._ahead = bytearray(self._ahead) + data
            self._pump()
        elif state == _UPLOAD:
            self._upload(data)
        elif state == _BYTES:
            self.bytes_in += len(data)
            if self.upstream is not None:
                self.upstream.send_body(data)
        elif state == _ANSWER:
            self._ahead = bytearray(self._ahead) + data if self._ahead else data
            if len(self._ahead) > _AHEAD_BYTES:
                self._pause_reading()
        elif state == _DISCARD:
            self._discard(data)

    def eof_received(self) -> bool:
        transport = self._transport
        if transport is None or not transport.can_write_eof():
            return False  # TLS has no half-close: the visitor is gone
        self._eof = True
        if self._state == _BYTES and self.upstream is not None:
            self.upstream.send_end([])
            return True
        if self._state == _ANSWER:
            self._keep = False
            return True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        state, self._state = self._state, _CLOSED
        self._transport = None
        self.deadline = math.inf
        self._out.clear()
        self._ahead = b""
        gateway = self.pool.gateway
        gateway.connections.discard(self)
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            now = gateway.time()
            if state == _BYTES and exc is None:
                upstream.send_end([])
                upstream.done(now)
            elif self.complete:
                upstream.done(now)
            else:
                upstream.abort(Reason.CANCELLED)
        if self.head is not None:
            self.account(gateway.time(), 0 if self.upgraded or self.complete else Reason.CANCELLED.status)
        self.pool.close()

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        if self.complete:
            self._finish()
        elif self.upstream is not None:
            self.upstream.release()

    # What the wheel calls.

    def on_deadline(self, now: float) -> None:
        """Look at whatever state the connection is in now; deadlines of states that are over are not cleared."""
        gateway = self.pool.gateway
        settings = gateway.settings
        state = self._state
        if state == _READY:
            in_head = not self._served or len(self._ahead) > 0
            due = self._since + (settings.request_head_seconds if in_head else settings.idle_seconds)
            if now < due:
                due = min(due, now + _TICK) if self.pool.rest(now) else due
                gateway.wheel.arm(self, due)
            elif self._ahead:
                self.refuse(Reason.HEAD_TIMEOUT)
            else:
                self._close()
        elif state == _DISCARD:
            if now >= self._since + _LINGER_SECONDS:
                self._close()
            else:
                gateway.wheel.arm(self, self._since + _LINGER_SECONDS)
        elif state != _CLOSED:
            self.pool.sweep(now)
            gateway.wheel.arm(self, now + _TICK)
            self.check(now)

    def flush(self) -> None:
        """Write what was responded in this loop turn."""
        self.scheduled = False
        out = self._out
        transport = self._transport
        if transport is None or transport.is_closing():
            out.clear()  # what is lost with the connection is told by `connection_lost`
            return
        if out:
            data = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            self._gathered = 0
            self.bytes_out += len(data)
            transport.write(data)
        if not self._write_paused:
            if self.complete:
                self._finish()
            elif self.upstream is not None:
                self.upstream.release()

    def drain(self) -> None:
        """Serve no further request: close now if none is under way."""
        if self._state == _READY and not self._ahead:
            self._close()

    # What the upstream calls.

    def respond_interim(self, head: ResponseHead) -> None:
        request = self.head
        assert request is not None
        if request.version == 11 and (head.status != 100 or request.expect_continue):
            self._out.append(serialise_response(head, version=11, keep_alive=True))

    def respond(self, head: ResponseHead) -> None:
        request = self.head
        assert request is not None
        version = request.version
        # An upload that is still under way when the answer comes may never end: do not bet the connection on it.
        keep = request.keep_alive and self.upload_done and not self._eof and not self.pool.gateway.draining
        self._chunked = False
        framing = head.framing
        if framing is Framing.CLOSE or framing is Framing.CHUNKED:
            if version == 11:
                self._chunked = True
            else:
                keep = False
        self._keep = keep
        self.responded = True
        self.status = head.status
        self._out.append(self.pool.heads().response_bytes(head, version, keep_alive=keep))

    def respond_upgrade(self, head: ResponseHead) -> None:
        self.responded = self.upgraded = True
        self.status = 101
        self._keep = self._chunked = False
        self._out.append(serialise_response(head, version=11, keep_alive=True))
        self._state = _BYTES
        ahead, self._ahead = self._ahead, b""
        if ahead and self.upstream is not None:
            self.bytes_in += len(ahead)
            self.upstream.send_body(bytes(ahead))
        self._resume_reading()

    def respond_data(self, data: bytes) -> None:
        if self._chunked:
            self._out += (b"%x\r\n" % len(data), data, b"\r\n")
        else:
            self._out.append(data)
        self._gathered += len(data)
        if self._gathered >= _GATHER_BYTES:
            self.flush()

    def respond_end(self, trailers: Fields) -> None:
        if self._chunked:
            self._out.append(encode_trailers(trailers) if trailers else LAST_CHUNK)
        if self._state == _BYTES:
            self._end_bytes()
            return
        self.complete = True
        self.flush()

    def respond_cut(self, reason: Reason) -> None:  # noqa: ARG002 - HTTP/1.1 cannot say why
        self.account(self.pool.gateway.time())
        transport, self._transport = self._transport, None
        self._state = _CLOSED
        if transport is None:
            return
        if self._out and not transport.is_closing():
            transport.write(b"".join(self._out))
            self._out.clear()
        if self._chunked or self.upgraded or self._keep:
            transport.close()  # the missing rest shows: no last chunk, or fewer bytes than were promised
        else:
            transport.abort()  # an orderly end could be the end of the body

    def settle(self) -> None:
        if not self.scheduled:
            self.scheduled = True
            self.pool.gateway.flush_soon(self)

    def answer(self, head: ResponseHead, body: bytes) -> None:
        request = self.head  # None: it could not be parsed, and where the next one begins is anybody's guess
        keep = request is not None and request.keep_alive and self.upload_done
        self._keep = keep and not self._eof and not self.pool.gateway.draining
        self._chunked = False
        version = 11 if request is None else request.version
        self._out.append(serialise_response(head, version=version, keep_alive=self._keep))
        if body:
            self._out.append(body)
        self.complete = True
        self.flush()

    def pause_upload(self) -> None:
        self.upload_paused = True
        if self._state in (_UPLOAD, _BYTES):
            self._pause_reading()

    def resume_upload(self) -> None:
        self.upload_paused = False
        if self._state == _UPLOAD and self._ahead:
            data, self._ahead = bytes(self._ahead), b""
            self._upload(data)
        if self._state in (_UPLOAD, _BYTES) and not self.upload_paused:
            self._resume_reading()

    def visitor_stuck(self) -> bool:
        if not self._write_paused or self._transport is None:
            return False
        waiting = self.pool.gateway.unsent_bytes(self._transport)
        moved = waiting != self._stuck_at
        self._stuck_at = waiting
        return not moved

    # Inside: input.

    def _pump(self) -> None:
        """Begin every request that can be begun now; one after another, without recursion."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._state == _READY and self._ahead and not self._write_paused:
                if not self._next_head():
                    break
        finally:
            self._pumping = False

    def _next_head(self) -> bool:
        """Begin the request at the front of `_ahead`; False if its head is not complete yet."""
        gateway = self.pool.gateway
        ahead = self._ahead
        settings = gateway.settings
        try:
            if ahead[:1] == b"\r":  # RFC 9112 section 2.2: an empty line before a request means nothing
                if len(ahead) == 1:
                    return False
                if ahead[:2] == b"\r\n":
                    ahead = self._ahead = ahead[2:]
            end = find_request_end(ahead, searched=self._seen, limit=settings.request_head_bytes)
            if end < 0:
                if self._served and not self._seen:  # the first bytes of a head: from now on its time runs
                    self._since = gateway.time()
                    due = self._since + settings.request_head_seconds
                    if due < self.deadline:
                        gateway.wheel.arm(self, due)
                self._seen = len(ahead)
                return False
            if end == len(ahead):
                block, self._ahead = bytes(ahead), b""
            else:
                block, self._ahead = bytes(ahead[:end]), ahead[end:]
            self._seen = 0
            self._served = True
            memo = self.pool.heads()
            head = memo.recall(block)
            if head is None:
                head = parse_request_head(block, secure=self.pool.visitor.secure)
                memo.remember(block, head)
        except RemoteError as error:
            self._ahead = b""
            self.upload_done = True
            self.refuse(error.reason)
            return False
        now = gateway.time()
        if self.deadline > now + _TICK:
            gateway.wheel.arm(self, now + _TICK)
        self.complete = False
        framing = head.framing
        if framing is Framing.NONE or not head.length:
            self._state = _ANSWER
        else:
            self._state = _UPLOAD
            self._reader = LengthBody(head.length) if framing is Framing.LENGTH else ChunkedBody()
        self.begin(head, now)
        if self._state == _UPLOAD:
            data, self._ahead = bytes(self._ahead), b""
            self._upload(data)
        return True

    def _upload(self, data: bytes) -> None:
        upstream = self.upstream
        if upstream is None:
            return
        if not upstream.ready:  # parked: keep what came, and leave the rest to the kernel
            self._ahead = self._ahead + data if self._ahead else data
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
            self.upload_done = True
            self._state = _ANSWER
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
        self._state = _READY
        self._since = now
        if self._reading_paused:
            self._resume_reading()
        if self._ahead:
            self._pump()

    def _end_connection(self, now: float) -> None:
        if self.upload_done or self._eof:
            self._close()
            return
        self._state = _DISCARD
        self._since = now
        self.bytes_in = 0
        self._resume_reading()
        self.pool.gateway.wheel.arm(self, now + _LINGER_SECONDS)

    def _end_bytes(self) -> None:
        self.flush()
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._eof or not transport.can_write_eof():
            self._transport = None
            transport.close()
        else:
            transport.write_eof()

    def _close(self) -> None:
        self._state = _CLOSED
        self._ahead = b""
        transport, self._transport = self._transport, None  # uvloop raises if a closed one is touched again
        if transport is not None:
            transport.close()

    def _pause_reading(self) -> None:
        transport = self._transport
        if not self._reading_paused and transport is not None and not transport.is_closing():
            self._reading_paused = True
            transport.pause_reading()

    def _resume_reading(self) -> None:
        transport = self._transport
        if self._reading_paused and transport is not None and not transport.is_closing():
            self._reading_paused = False
            transport.resume_reading()
