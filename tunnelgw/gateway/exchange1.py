"""The visitor's side of an HTTP/1.1 exchange: what goes out, and when the visitor's bytes are read.

What is responded is collected and written once per response or loop turn; what the transport took is credited to the
service, what it took while full is credited when it drains.

Invariants: a response whose end is missing never looks complete (no last chunk, too few bytes, or a reset); a transport
that was closed is never touched again; pausing and resuming are idempotent.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tunnelgw.gateway.exchange import Exchange
from tunnelgw.http.body import LAST_CHUNK, encode_trailers
from tunnelgw.http.head import Framing
from tunnelgw.http.serialise import serialise_response
from tunnelgw.net.sockets import cut

if TYPE_CHECKING:
    import asyncio

    from tunnelgw.gateway.pool import Pool
    from tunnelgw.http.head import Fields, ResponseHead
    from tunnelgw.obs.reasons import Reason

# What the connection is waiting for: a head, the rest of a body, the response's end, bytes of an upgraded connection,
# the rest of a body that nobody wants, nothing.
READY, UPLOAD, ANSWER, BYTES, DISCARD, CLOSED = range(6)

_LENGTH = Framing.LENGTH
# A loop turn may bring more than a megabyte for one visitor: written in parts that the processor's cache still holds.
_GATHER_BYTES = 128 * 1024
# Parts of this average size are written one by one: at most half of a TLS record is wasted.
_LARGE_PART = 8 * 1024


class Http1Exchange(Exchange):
    """An exchange that is written to a transport of its own. `Http1Visitor` adds the reading."""

    __slots__ = (
        "_ahead", "_chunked", "_eof", "_gathered", "_keep", "_out", "_reading_paused", "_state", "_stuck_at",
        "_transport", "_write_paused", "armed_until", "deadline", "scheduled",
    )  # fmt: skip

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self._transport: asyncio.Transport | None = None
        self._state = READY
        self._ahead: bytes | bytearray = b""  # input not looked at yet
        self._out: list[bytes] = []
        self._gathered = 0  # payload in `_out`
        self._stuck_at = 0  # the kernel's unsent bytes when we last looked
        self._chunked = False  # the response goes out in chunks
        self._keep = True  # the connection may serve another request
        self._eof = False
        self._reading_paused = False
        self._write_paused = False
        self.scheduled = False  # waits in the gateway's flush of this loop turn
        self.deadline = math.inf
        self.armed_until = math.inf

    # What `Http1Visitor` does.

    def under_way(self) -> tuple[Exchange, ...]:
        """The exchanges of this connection."""
        return (self,)

    def _upload(self, data: bytes) -> None:
        """Pass on what belongs to the request's body."""
        raise NotImplementedError

    def _finish(self) -> None:
        """The response left as a whole."""
        raise NotImplementedError

    # What the transport and the gateway call.

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        if self.complete:
            self._finish()
        elif self.upstream is not None:
            self.upstream.release()

    def flush(self) -> None:
        """Write what was responded in this loop turn."""
        self.scheduled = False
        out = self._out
        transport = self._transport
        if transport is None or transport.is_closing():
            out.clear()  # what is lost with the connection is told by `connection_lost`
            return
        if out:
            if self._gathered >= _LARGE_PART * len(out):
                transport.writelines(out)  # each part fills its own TLS record: joining them would only copy
            else:
                transport.write(b"".join(out))
            out.clear()
            self.bytes_out += self._gathered
            self._gathered = 0
        if not self._write_paused:
            if self.complete:
                self._finish()
            elif self.upstream is not None:
                self.upstream.release()

    # What the upstream calls.

    def respond_interim(self, head: ResponseHead) -> None:
        request = self.head
        assert request is not None
        if request.version == 11 and (head.status != 100 or request.expect_continue):
            self._out.append(serialise_response(head, version=11, keep_alive=True))
            if head.status == 100:
                request.expect_continue = False  # it was met: from now on the body is waited for

    def respond(self, head: ResponseHead) -> None:
        self._out.append(self._begin_response(head))

    def respond_whole(self, head: ResponseHead, body: bytes) -> None:
        data = self._begin_response(head)
        self.complete = True
        size = len(body)
        transport = self._transport
        if self._out or size >= 2 * _LARGE_PART or transport is None or transport.is_closing():
            self._out += (data, body)
            self._gathered += size
            self.flush()
            return
        transport.write(data + body)
        self.bytes_out += size
        if not self._write_paused:
            self._finish()

    def _begin_response(self, head: ResponseHead) -> bytes:
        """The final response's head, to be sent; decides how the response ends, and whether the connection does."""
        request, route = self.head, self.route
        assert request is not None
        if route is not None and route.members is not None:
            head = self.from_member(head)
        version, pool = request.version, self.pool
        # An upload that is still under way when the answer comes may never end: do not bet the connection on it.
        keep = request.keep_alive and self.upload_done and not self._eof and not pool.gateway.draining
        self._chunked = False
        if head.framing > _LENGTH:  # its end must be said, or shown
            if version == 11:
                self._chunked = True
            else:
                keep = False
        self._keep = keep
        self.responded = True
        self.status = head.status
        data = pool.memo.response_bytes(head, version, keep_alive=keep)
        if not head.dated:
            data = b"%bdate: %b\r\n\r\n" % (data[:-2], pool.gateway.date())
        return data

    def respond_upgrade(self, head: ResponseHead) -> None:
        if self.route is not None and self.route.members is not None:
            head = self.from_member(head)
        self.responded = self.upgraded = True
        self.status = 101
        self._keep = self._chunked = False
        self._out.append(serialise_response(head, version=11, keep_alive=True))
        self._state = BYTES
        ahead, self._ahead = self._ahead, b""
        self.keep(0)
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
        if self._state == BYTES:
            self._end_bytes()
            return
        self.complete = True
        self.flush()

    def respond_cut(self, reason: Reason) -> None:  # noqa: ARG002 - HTTP/1.1 cannot say why
        self.bytes_out += self._gathered
        self.account(self.pool.gateway.time())
        transport, self._transport = self._transport, None
        self._state = CLOSED
        self._ahead = b""
        if transport is None:
            return
        if self._out and not transport.is_closing():
            transport.write(b"".join(self._out))
            self._out.clear()
        if self._write_paused:
            transport.abort()  # who does not read would keep an orderly end waiting for ever
        elif self._chunked or self.upgraded or self._keep:
            transport.close()  # the missing rest shows: no last chunk, or fewer bytes than were promised
        else:
            cut(transport)  # an orderly end could be the end of the body

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
            self._gathered += len(body)
        self.complete = True
        self.flush()

    def pause_upload(self) -> None:
        self.upload_paused = True
        if self._state in (UPLOAD, BYTES):
            self._pause_reading()

    def resume_upload(self) -> None:
        self.upload_paused = False
        if self._state == UPLOAD and self._ahead:
            data, self._ahead = bytes(self._ahead), b""
            self.keep(0)
            self._upload(data)
        if self._state in (UPLOAD, BYTES) and not self.upload_paused:
            self._resume_reading()

    def visitor_stuck(self) -> bool:
        if not self._write_paused or self._transport is None:
            return False
        waiting = self.pool.gateway.unsent_bytes(self._transport)
        moved = waiting != self._stuck_at
        self._stuck_at = waiting
        return not moved

    # Inside.

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
        self._state = CLOSED
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
