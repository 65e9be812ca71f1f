"""One stream of a visitor's HTTP/2 connection.

Invariant: what the service sent and the visitor's engine still holds is owed to the service; what the visitor sent and
the service's side has not taken is owed to the visitor. Both debts are settled at the latest when the stream closes.
"""

from __future__ import annotations

import base64
import hashlib
import os
from typing import TYPE_CHECKING

from tunnelgw.errors import OriginError
from tunnelgw.gateway.exchange import Exchange
from tunnelgw.http import pseudo
from tunnelgw.http.h2 import ErrorCode
from tunnelgw.http.head import Framing
from tunnelgw.http.serialise import response_fields_h2
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from tunnelgw.gateway.http2 import Http2Visitor
    from tunnelgw.http.head import Fields, RequestHead, ResponseHead

# An upload of this size is worth a larger window.
_WIDEN_BYTES = 1024 * 1024
_WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3


def websocket_key() -> bytes:
    """A fresh Sec-WebSocket-Key."""
    return base64.b64encode(os.urandom(16))


def websocket_accept(key: bytes) -> bytes:
    """What a service must answer to `key` (RFC 6455 section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + _WEBSOCKET_GUID, usedforsecurity=False).digest())


class Http2Exchange(Exchange):
    """An exchange on one HTTP/2 stream."""

    __slots__ = ("_connection", "_ended", "_held", "_key", "_looked_at", "_number", "_trailers", "_wide")

    def __init__(self, connection: Http2Visitor, number: int) -> None:
        super().__init__(connection.pool)
        self._connection = connection
        self._number = number
        self._ended = False  # END_STREAM goes with what is in the engine already
        self._held: bytearray | None = None  # body that no stream takes yet; at most one window
        self._trailers: Fields | None = None  # the request's end, held likewise
        self._key = b""
        self._looked_at = 0
        self._wide = False  # the upload has a larger window

    # What the connection calls.

    def accept(self, head: RequestHead, now: float, *, end: bool) -> None:
        """A request arrived."""
        if head.protocol:
            # RFC 8441 section 5: the same WebSocket as a GET with Upgrade, whose key is of no use to anybody.
            self._key = websocket_key()
            head.method, head.upgrade, head.framing, head.length = b"GET", head.protocol, Framing.NONE, 0
            head.fields.append((b"sec-websocket-key", self._key))
        self.begin(head, now)
        self.upload_done = end
        if end and not self.responded and self.upstream is not None and head.framing is not Framing.NONE:
            self._end_upload([])

    def upload(self, data: bytes, *, end: bool) -> None:
        """Payload from the visitor (owed to it already), and perhaps its end."""
        upstream = self.upstream
        if upstream is None:
            if data:
                self._connection.engine.pay(self._number)
            self.upload_done = self.upload_done or end
            return
        if data:
            self.bytes_in += len(data)
            if self.bytes_in > _WIDEN_BYTES and not self._wide and not self.upload_paused:
                self._wide = True
                self._connection.engine.widen(self._number)
            if not upstream.ready or (self._key and not self.upgraded):
                if self._held is None:
                    self._held = bytearray()
                self._held += data
                self.keep(len(self._held))
            else:
                upstream.send_body(data)
                if not self.upload_paused:
                    self._connection.engine.pay(self._number)
        if end:
            self._end_upload([])

    def upload_trailers(self, fields: Fields) -> None:
        """The request ended with trailers."""
        try:
            trailers = pseudo.trailers(fields)
        except ValueError:
            self._connection.engine.reset(self._number, ErrorCode.PROTOCOL_ERROR)
            self.visitor_reset()
            return
        self._end_upload(trailers)

    def visitor_reset(self) -> None:
        """The visitor gave the stream up."""
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.abort(Reason.CANCELLED)

    def closed(self, *, complete: bool) -> None:
        """The stream is over, or the connection is."""
        now = self.pool.gateway.time()
        upstream, self.upstream = self.upstream, None
        complete = complete and self.complete
        if upstream is not None:
            if complete:
                upstream.done(now)
            else:
                upstream.abort(Reason.CANCELLED)
        if self.head is not None:
            self.account(now, 0 if complete or self.upgraded else Reason.CANCELLED.status)

    def settle_credit(self) -> None:
        """Output was pulled: credit what moved; end the stream if only the visitor's half is open."""
        queued = self._connection.engine.queued(self._number)
        if self.upstream is not None:
            self.upstream.release(queued)
        if queued:
            return
        if not self.complete:
            self._connection.unsettled.pop(self._number, None)
        elif not self.upload_done and self._connection.engine.window(self._number) > 0:
            # RFC 9113 section 8.1: the response is complete without the rest of the request. NO_ERROR says so.
            self._connection.unsettled.pop(self._number, None)
            self._connection.engine.reset(self._number, ErrorCode.NO_ERROR)
            self._connection.settle_soon()

    # What the upstream calls.

    def respond_interim(self, head: ResponseHead) -> None:
        request = self.head
        if request is not None and (head.status != 100 or request.expect_continue):
            self._connection.engine.interim(self._number, response_fields_h2(head))
            if head.status == 100:
                request.expect_continue = False  # it was met: from now on the body is waited for

    def respond(self, head: ResponseHead) -> None:
        if self.route is not None and self.route.members is not None:
            head = self.from_member(head)
        self.responded = True
        self.status = head.status
        self._ended = head.framing is Framing.NONE or head.length == 0
        fields = self.pool.memo.response_fields(head)
        if not head.dated:
            fields = [*fields, (b"date", self.pool.gateway.date())]
        self._connection.engine.respond(self._number, fields, end=self._ended)

    def respond_whole(self, head: ResponseHead, body: bytes) -> None:
        self.respond(head)
        self.complete = True
        if not self._ended:
            self._ended = True
            self.bytes_out += len(body)
            self._connection.engine.send(self._number, body, end=True)
        self.settle()

    def respond_upgrade(self, head: ResponseHead) -> None:
        given = [value for name, value in head.fields if name == b"sec-websocket-accept"]
        if given != [websocket_accept(self._key)]:
            raise OriginError("the service accepted a WebSocket that was not asked for")
        if self.route is not None and self.route.members is not None:
            head = self.from_member(head)
        self.responded = self.upgraded = True
        self.status = head.status = 200
        head.fields = [field for field in head.fields if field[0] != b"sec-websocket-accept"]
        self._connection.engine.respond(self._number, response_fields_h2(head), end=False)
        self._send_held()

    def respond_data(self, data: bytes) -> None:
        self.bytes_out += len(data)
        self._connection.engine.send(self._number, data)

    def respond_end(self, trailers: Fields) -> None:
        self.complete = True
        if not self._ended:
            self._ended = True
            self._connection.engine.end(self._number, trailers)
        self.settle()

    def respond_cut(self, reason: Reason) -> None:
        self.account(self.pool.gateway.time())
        code = ErrorCode.CANCEL if reason is Reason.CANCELLED else ErrorCode.INTERNAL_ERROR
        self._connection.engine.reset(self._number, code)
        self._connection.settle_soon()

    def settle(self) -> None:
        connection = self._connection
        connection.unsettled[self._number] = self
        if not connection.scheduled:
            connection.settle_soon()

    def answer(self, head: ResponseHead, body: bytes) -> None:
        engine = self._connection.engine
        self.complete = self._ended = True
        engine.respond(self._number, response_fields_h2(head), end=not body)
        if body:
            self.bytes_out += len(body)
            engine.send(self._number, body, end=True)
        self._forget_held()
        self.settle()

    def send_on(self) -> bool:
        self.account(self.pool.gateway.time(), Reason.EDGE_REPLACED.status)
        self._connection.engine.reset(self._number, ErrorCode.REFUSED_STREAM)  # RFC 9113, 8.7: may be sent again
        self._connection.drain()
        return True

    def pause_upload(self) -> None:
        self.upload_paused = True

    def resume_upload(self) -> None:
        self.upload_paused = False
        if not self._key or self.upgraded:
            self._send_held()

    def visitor_stuck(self) -> bool:
        connection = self._connection
        queued = connection.engine.queued(self._number)
        if not queued:
            return False
        waiting = queued + (connection.stuck_bytes() if connection.write_paused else 0)
        moved = waiting != self._looked_at
        self._looked_at = waiting
        return not moved

    # Inside.

    def _end_upload(self, trailers: Fields) -> None:
        self.upload_done = True
        upstream = self.upstream
        if upstream is None:
            return
        if self._held is not None or not upstream.ready or (self._key and not self.upgraded):
            self._trailers = trailers
        else:
            upstream.send_end(trailers)

    def _send_held(self) -> None:
        """The service's side takes bytes again, or for the first time: pass on what was held, let more come."""
        upstream = self.upstream
        held, self._held = self._held, None
        if upstream is None:
            return
        if held:
            self.keep(0)
            upstream.send_body(bytes(held))
        if not self.upload_paused:
            self._connection.engine.pay(self._number)
            self._connection.settle_soon()
        if self._trailers is not None:
            trailers, self._trailers = self._trailers, None
            upstream.send_end(trailers)

    def _forget_held(self) -> None:
        if self._held is not None:
            self._held = None
            self.keep(0)
            self._connection.engine.pay(self._number)
