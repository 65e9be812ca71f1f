"""HTTP/1.1 towards a service, over one stream.

The request's head is written from its parsed form; the response's head is parsed, checked and handed on as an object;
bodies are counted here, so that the stream's next response begins exactly where this one ends.

Invariant: a stream is used again only if both messages of its last exchange ended by their own framing, nothing came
after the response, and the service did not say that it closes. Anything else is reset, or ended and forgotten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.errors import OriginError, TunnelgwError
from tunnelgw.gateway.farewell import say_farewell
from tunnelgw.gateway.upstream import INTERIM_LIMIT
from tunnelgw.http.body import LAST_CHUNK, ChunkedBody, CloseBody, LengthBody, encode_trailers
from tunnelgw.http.codec import find_response_end, parse_response_head
from tunnelgw.http.head import Framing
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.table import target_path

if TYPE_CHECKING:
    from tunnelgw.gateway.exchange import Exchange
    from tunnelgw.gateway.pool import Pool
    from tunnelgw.http.body import BodyReader
    from tunnelgw.http.head import Fields, ResponseHead
    from tunnelgw.routing.table import Route
    from tunnelgw.wire.events import StreamEnd

_LENGTH, _CHUNKED, _CLOSE = Framing.LENGTH, Framing.CHUNKED, Framing.CLOSE  # an enum's members are slow to look up
# Phases of a stream, from the response's point of view.
_IDLE, _HEAD, _BODY, _BYTES, _DONE = range(5)


class Upstream1:
    """One stream that speaks HTTP/1.1 with a service; its sink, and an `Upstream` for one exchange after another."""

    __slots__ = (
        "_buffer", "_chunked", "_clean", "_ended", "_heard", "_interim", "_owed", "_phase", "_pool", "_reader",
        "_sent_all", "exchange", "idle_since", "ready", "reused", "route", "stream",
    )  # fmt: skip

    def __init__(self, pool: Pool, route: Route) -> None:
        self._pool = pool
        self.route = route
        self.stream: StreamEnd | None = None
        self.exchange: Exchange | None = None
        self.ready = False
        self.reused = False
        self.idle_since = 0.0
        self._phase = _IDLE
        self._buffer = bytearray()  # of a response head that did not arrive in one piece
        self._reader: BodyReader | None = None
        self._owed = 0  # arrived, not credited yet
        self._interim = 0
        self._heard = False  # a byte of a response to this request arrived
        self._ended = False  # the service's half ended
        self._chunked = False  # the request's body goes out in chunks
        self._sent_all = True  # the request is complete
        self._clean = False  # the response ended as its framing says, and nothing follows

    @property
    def linked(self) -> bool:
        """As `Upstream.linked`."""
        return self.stream is None or self.stream.linked

    @property
    def heard(self) -> bool:
        """As `Upstream.heard`."""
        return self._heard

    @property
    def unsent(self) -> bool:
        """As `Upstream.unsent`."""
        return self.stream is None or not self.stream.sent_anything

    # What the exchange calls.

    def start(self, exchange: Exchange) -> None:
        """Send the request's head, on the stream that is there or on a new one."""
        self.exchange = exchange
        self._phase = _HEAD
        self._interim = 0
        self._heard = self._clean = False
        pool, route, stream = self._pool, self.route, self.stream
        if stream is None:
            stream = self.stream = pool.gateway.opener.open(route, pool.visitor, self)
            if stream is None:
                return  # parked
        head = exchange.head
        assert head is not None
        self.ready = True
        self._chunked = head.framing is _CHUNKED
        self._sent_all = not (head.length or head.upgrade)
        path = target_path(route, head.path) if route.strip_path else head.path
        stream.write(pool.memo.request_bytes(head, path, pool.forwarding))
        stream.hurry()

    def send_body(self, data: bytes) -> None:
        """Payload of the request."""
        stream = self.stream
        if stream is not None:
            if self._chunked:
                stream.write(b"%x\r\n%b\r\n" % (len(data), data))
            else:
                stream.write(data)

    def send_end(self, trailers: Fields) -> None:
        """The request is complete; or the visitor's half of an upgraded connection ended."""
        if self._sent_all:
            return
        self._sent_all = True
        stream = self.stream
        if stream is None:
            return
        if self._phase is _BYTES:
            stream.finish()
        elif self._chunked:
            stream.write(encode_trailers(trailers) if trailers else LAST_CHUNK)

    def release(self, held: int = 0) -> None:
        """Credit what the visitor's side took."""
        count = self._owed - held
        if count > 0 and self.stream is not None:
            self._owed = held
            self.stream.consumed(count)

    def done(self, now: float) -> None:
        """The response was passed on as a whole."""
        self.exchange = self._reader = None
        stream = self.stream
        if stream is None:
            return
        owed = self._owed
        if owed:
            self._owed = 0
            stream.consumed(owed)
        if self._clean and self._sent_all and not (self._ended or stream.leaving):
            self._phase = _IDLE
            self.idle_since = now
            self._pool.keep(self)
        else:
            self._phase = _DONE
            self.retire()

    def abort(self, reason: Reason) -> None:
        """The exchange is over before its time."""
        self.exchange = None
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.reset(reason)
        elif self._phase is _HEAD and not self.ready:
            self._pool.gateway.opener.cancel(self)
        self._phase = _DONE

    def retire(self) -> None:
        """No exchange needs this stream any more: end it in an orderly way, or reset it if its request is half sent."""
        stream, self.stream = self.stream, None
        if stream is None:
            return
        if self._sent_all:
            say_farewell(stream, self._pool.gateway)
        else:
            stream.reset(Reason.CANCELLED)

    # What the opener calls.

    def stream_ready(self, stream: StreamEnd) -> None:
        """The stream that was waited for."""
        exchange = self.exchange
        if exchange is None:
            stream.reset(Reason.CANCELLED)
            return
        self.stream = stream
        exchange.quiet_since = self._pool.gateway.time()  # the service's time begins now
        self.start(exchange)
        exchange.resume_upload()

    def stream_refused(self, reason: Reason, since: float) -> None:
        """No stream will come."""
        exchange, self.exchange = self.exchange, None
        self._phase = _DONE
        if exchange is not None:
            exchange.upstream_failed(reason, heard=False, reused=False, since=since)

    # What the stream calls.

    def stream_data(self, data: bytes) -> None:
        """Bytes of a response, or bytes that nobody asked for."""
        self._owed += len(data)
        exchange = self.exchange
        phase = self._phase
        if exchange is None or phase is _DONE:
            self._surplus()
            return
        try:
            if phase is _HEAD:
                self._heard = True
                self._read_head(exchange, data)
            elif phase is _BODY:
                self._read_body(exchange, data, 0)
            else:
                exchange.respond_data(data)
        except TunnelgwError as error:
            self._broken(error.reason)
            return
        if self.exchange is exchange:
            exchange.settle()

    def stream_finished(self) -> None:
        """The service's half ended."""
        self._ended = True
        exchange = self.exchange
        phase = self._phase
        if exchange is None:
            self._pool.drop(self)
            self.retire()
        elif phase is _HEAD:
            self._broken(Reason.UPSTREAM_INVALID if self._buffer else Reason.TARGET_RESET)
        elif phase is _BODY:
            reader = self._reader
            assert reader is not None
            try:
                reader.eof()
            except TunnelgwError:
                self._broken(Reason.TARGET_RESET)
            else:
                self._phase = _DONE
                exchange.respond_end([])
        elif phase is _BYTES:
            exchange.respond_end([])

    def stream_reset(self, reason: Reason) -> None:
        """The stream is gone."""
        self.stream = None
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            self._pool.drop(self)
        elif self._phase is not _DONE:
            self._phase = _DONE
            exchange.upstream_failed(reason, heard=self._heard, reused=self.reused)
        else:
            self.exchange = exchange  # its response is complete and still on the way to the visitor

    def pause_sending(self) -> None:
        """The stream's send queue is full."""
        if self.exchange is not None:
            self.exchange.pause_upload()

    def resume_sending(self) -> None:
        """It drained."""
        if self.exchange is not None:
            self.exchange.resume_upload()

    # Inside.

    def _read_head(self, exchange: Exchange, data: bytes) -> None:
        buffer = self._buffer
        if buffer:
            searched = len(buffer)
            buffer += data  # grows in place: a head that drips in costs no copy per byte
            if find_response_end(buffer, searched=searched) < 0:
                return
            data = bytes(buffer)
            self._buffer = bytearray()
        request = exchange.head
        assert request is not None
        memo = self._pool.memo
        head = memo.recall_response(data, request.method)
        if head is not None:
            start = memo.response_size
        else:
            head, start = self._parse_heads(exchange, data, request.method)
            if head is None:
                return
            if head.status == 101:
                self._switch(exchange, head)
                if start < len(data):
                    exchange.respond_data(data[start:])
                return
        if request.upgrade:
            self._sent_all = True  # not switched: the request was complete with its head
        self._clean = head.keep_alive
        if head.framing is _LENGTH and (surplus := len(data) - start - head.length) >= 0:
            self._phase = _DONE
            if surplus:
                self._clean = False
            exchange.respond_whole(head, data[start : start + head.length])
            return
        exchange.respond(head)
        if self.exchange is exchange:  # still: the visitor may have gone
            self._begin_body(exchange, head, data, start)

    def _parse_heads(self, exchange: Exchange, data: bytes, method: bytes) -> tuple[ResponseHead | None, int]:
        """The final head in `data` and where it ends; None if it is not complete yet, and its beginning is kept.

        Interim ones before it are passed on; the memo learns the final one.
        """
        start = 0
        while start < len(data):
            end = find_response_end(data, start)
            if end < 0:
                self._buffer = bytearray(data[start:])
                break
            block = data[start:end]
            start = end
            memo = self._pool.memo
            head = memo.recall_response(block, method)  # as the last one, but after an interim one
            if head is None:
                head = parse_response_head(block, method=method)
            if head.status >= 200:
                memo.remember_response(block, method, head)
                return head, start
            if head.status == 101:
                return head, start  # never the same twice, and the visitor's side rewrites it
            self._interim += 1
            if self._interim > INTERIM_LIMIT:
                raise OriginError("too many interim responses")
            exchange.respond_interim(head)
        return None, start

    def _begin_body(self, exchange: Exchange, head: ResponseHead, data: bytes, start: int) -> None:
        framing = head.framing
        if framing is _LENGTH:
            self._reader = LengthBody(head.length, origin=True)
        elif framing is _CHUNKED:
            self._reader = ChunkedBody(origin=True)
        elif framing is _CLOSE:
            self._clean = False
            self._reader = CloseBody()
        else:
            self._complete(exchange, [], len(data) - start)
            return
        self._phase = _BODY
        if start < len(data):
            self._read_body(exchange, data, start)
        elif self._ended:
            self.stream_finished()

    def _read_body(self, exchange: Exchange, data: bytes, start: int) -> None:
        reader = self._reader
        assert reader is not None
        payload, end = reader.feed(data, start)
        if payload:
            exchange.respond_data(payload)
        if reader.done and self.exchange is exchange:
            self._complete(exchange, reader.trailers, len(data) - end)

    def _complete(self, exchange: Exchange, trailers: Fields, surplus: int) -> None:
        self._phase = _DONE
        if surplus:
            self._clean = False
        exchange.respond_end(trailers)

    def _switch(self, exchange: Exchange, head: ResponseHead) -> None:
        request = exchange.head
        assert request is not None
        if not request.upgrade or head.upgrade != request.upgrade:
            raise OriginError("switched protocols without being asked")
        exchange.respond_upgrade(head)
        self._phase = _BYTES

    def _surplus(self) -> None:
        # Bytes that no request asked for: whatever they are, they must never answer the next one.
        self._clean = False
        self._pool.drop(self)
        if self.exchange is None:
            stream, self.stream = self.stream, None
            if stream is not None:
                stream.reset(Reason.PROTOCOL_ERROR)

    def _broken(self, reason: Reason) -> None:
        exchange, self.exchange = self.exchange, None
        self._phase = _DONE
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.reset(reason)
        if exchange is not None:
            exchange.upstream_failed(reason, heard=self._heard, reused=self.reused)
