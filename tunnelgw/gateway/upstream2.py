"""HTTP/2 towards a service: one tunnel stream per visitor connection and route, many exchanges on it.

The trunk is the tunnel stream with its engine; a branch is one exchange on it, an `Upstream`. Bytes from the tunnel are
credited when the engine has read them, since from there on HTTP/2's own windows bound what may be waiting: payload is
acknowledged to the service when the visitor's side took it.

Invariants: a branch ends exactly once; when the trunk fails, every branch hears of it; while the tunnel stream's send
queue is full nothing is pulled from the engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.errors import OriginError, RemoteError, TunnelgwError
from tunnelgw.gateway.farewell import say_farewell
from tunnelgw.gateway.pages import PHRASES
from tunnelgw.gateway.upstream import INTERIM_LIMIT
from tunnelgw.http import pseudo
from tunnelgw.http.h2 import (
    ConnectionClosed,
    DataReceived,
    ErrorCode,
    GoAwayReceived,
    Http2,
    InformationalResponseReceived,
    ResponseReceived,
    StreamClosed,
    TrailersReceived,
)
from tunnelgw.http.head import Framing
from tunnelgw.http.serialise import request_fields_h2
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.table import target_path

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunnelgw.gateway.exchange import Exchange
    from tunnelgw.gateway.pool import Pool
    from tunnelgw.http.h2 import Event
    from tunnelgw.http.head import Fields
    from tunnelgw.routing.table import Route
    from tunnelgw.wire.stream import Stream

_StreamEvent = DataReceived | ResponseReceived | TrailersReceived | InformationalResponseReceived | StreamClosed
_OF_STREAMS = (DataReceived, ResponseReceived, TrailersReceived, InformationalResponseReceived, StreamClosed)
_PULL_BYTES = 128 * 1024
# An upload that the engine holds because the service's windows are closed: beyond this the visitor is paused.
_UPLOAD_HIGH = 128 * 1024


class Branch:
    """One exchange on a trunk."""

    __slots__ = ("_ended", "_heard", "_interim", "_owed", "_paused", "_trunk", "exchange", "number", "ready", "reused")

    def __init__(self, trunk: Trunk) -> None:
        self._trunk = trunk
        self.exchange: Exchange | None = None
        self.number = 0
        self.ready = False
        self.reused = False
        self._heard = False
        self._interim = 0
        self._owed = 0
        self._ended = False  # our direction
        self._paused = False  # the exchange was told to pause its upload

    # What the exchange calls.

    def start(self, exchange: Exchange) -> None:
        """Send the request's head, now or when the trunk's stream is there."""
        self.exchange = exchange
        self._trunk.start(self)

    def send_body(self, data: bytes) -> None:
        """Payload of the request."""
        trunk = self._trunk
        trunk.engine.send(self.number, data)
        if not self._paused and (trunk.paused or trunk.engine.queued(self.number) > _UPLOAD_HIGH):
            self._paused = True
            if self.exchange is not None:
                self.exchange.pause_upload()
        trunk.settle_soon()

    def send_end(self, trailers: Fields) -> None:
        """The request is complete."""
        if not self._ended:
            self._ended = True
            self._trunk.engine.end(self.number, trailers)
            self._trunk.settle_soon()

    def release(self, held: int = 0) -> None:
        """The visitor's side took everything but `held` bytes."""
        count = self._owed - held
        if count > 0:
            self._owed = held
            self._trunk.engine.pay(self.number, count)
            self._trunk.settle_soon()

    def done(self, now: float) -> None:
        """The response was passed on as a whole."""
        self.release()
        self.exchange = None
        if not self._ended:
            self._trunk.engine.reset(self.number, ErrorCode.CANCEL)
        self._trunk.leave(self, now)

    def abort(self, reason: Reason) -> None:  # noqa: ARG002 - HTTP/2 has one code for it
        """The exchange is over before its time."""
        self.exchange = None
        trunk = self._trunk
        if self.number:
            self._owed = 0
            trunk.engine.pay(self.number)
            trunk.engine.reset(self.number, ErrorCode.CANCEL)
        trunk.leave(self, trunk.pool.gateway.time())

    # What the trunk calls.

    def open(self) -> None:
        """The trunk is there: send the head."""
        exchange = self.exchange
        if exchange is None or exchange.head is None:
            return
        trunk, head, route = self._trunk, exchange.head, self._trunk.route
        self._ended = head.framing is Framing.NONE or head.length == 0
        fields = request_fields_h2(
            head,
            path=target_path(route, head.path),
            scheme=b"http",
            forwarding=trunk.pool.forwarding.fields(head),
            request_id=head.request_id,
        )
        self.number = trunk.engine.request(fields, end=self._ended)
        trunk.branches[self.number] = self
        self.ready = True
        if trunk.paused:
            self._paused = True
            exchange.pause_upload()

    def interim(self, fields: Fields) -> None:
        """A 1xx response."""
        self._heard = True
        self._interim += 1
        exchange = self.exchange
        if exchange is None or exchange.head is None:
            return
        if self._interim > INTERIM_LIMIT:
            raise OriginError("too many interim responses")
        head = pseudo.response_head(fields, method=exchange.head.method, end_stream=False)
        head.reason = PHRASES.get(head.status, b"")
        exchange.respond_interim(head)
        exchange.settle()

    def response(self, fields: Fields, *, end: bool) -> None:
        """The final response's head."""
        self._heard = True
        exchange = self.exchange
        if exchange is None or exchange.head is None:
            return
        head = pseudo.response_head(fields, method=exchange.head.method, end_stream=end)
        head.reason = PHRASES.get(head.status, b"")
        exchange.respond(head)
        if end:
            exchange.respond_end([])
        else:
            exchange.settle()

    def data(self, payload: bytes, *, end: bool) -> None:
        """Payload of the response."""
        exchange = self.exchange
        if exchange is None:
            self._trunk.engine.pay(self.number)
            return
        self._owed += len(payload)
        if payload:
            exchange.respond_data(payload)
        if end:
            exchange.respond_end([])
        else:
            exchange.settle()

    def trailers(self, fields: Fields) -> None:
        """The response ended with trailers."""
        if self.exchange is not None:
            try:
                self.exchange.respond_end(pseudo.trailers(fields))
            except ValueError:
                raise OriginError("the trailers are malformed") from None

    def closed(self, code: int) -> None:
        """The stream is over on the engine's side."""
        self._trunk.engine.pay(self.number)
        self._owed = 0
        if code:
            self.failed(Reason.TARGET_RESET)

    def failed(self, reason: Reason, since: float = 0.0) -> None:
        """No response, or no more of it, will come."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None and not exchange.complete:
            exchange.upstream_failed(reason, heard=self._heard, reused=self.reused, since=since)

    def upload_settled(self) -> None:
        """The trunk wrote: let the visitor go on if there is room."""
        trunk = self._trunk
        if self._paused and not trunk.paused and trunk.engine.queued(self.number) <= _UPLOAD_HIGH // 2:
            self._paused = False
            if self.exchange is not None:
                self.exchange.resume_upload()

    def pause(self) -> None:
        """The tunnel takes nothing at the moment."""
        if not self._paused:
            self._paused = True
            if self.exchange is not None:
                self.exchange.pause_upload()


class Trunk:
    """One tunnel stream that speaks HTTP/2 with a service; its sink."""

    __slots__ = (
        "_scheduled", "_served", "_started", "_waiting", "branches", "engine", "idle_since", "open", "paused", "pool",
        "route", "stream",
    )  # fmt: skip

    def __init__(self, pool: Pool, route: Route) -> None:
        self.pool = pool
        self.route = route
        self.stream: Stream | None = None
        self.engine = Http2(serving=False)
        self.branches: dict[int, Branch] = {}
        self.open = True  # takes further exchanges
        self.paused = False
        self.idle_since = float("inf")  # never while something is under way
        self._waiting: list[Branch] = []  # for the stream
        self._started = False
        self._served = False  # a response came: the service speaks HTTP/2
        self._scheduled = False

    def start(self, branch: Branch) -> None:
        """Begin an exchange. Raises `NoStream`."""
        self.idle_since = float("inf")
        branch.reused = self._served
        if self.stream is None:
            self._waiting.append(branch)
            if self._started:
                return
            gateway = self.pool.gateway
            try:
                stream = gateway.opener.open(self.route, self.pool.visitor, self)
            except BaseException:
                self._waiting.clear()
                self._shut()
                raise
            self._started = True
            if stream is None:
                return
            self.stream = stream
            self._waiting.clear()
        self._open(branch)

    def leave(self, branch: Branch, now: float) -> None:
        """An exchange is over."""
        self.branches.pop(branch.number, None)
        if branch in self._waiting:
            self._waiting.remove(branch)
        if not self.branches and not self._waiting:
            self.idle_since = now
            if not self.open or self.stream is None:
                self.close()
        self.settle_soon()

    def close(self) -> None:
        """End the trunk; nothing is under way any more."""
        stream, self.stream = self.stream, None
        if stream is not None:
            self.engine.terminate()
            data = self._pull()
            if data:
                stream.write(data)
            say_farewell(stream, self.pool.gateway)
        elif self._started and self.open:
            self.pool.gateway.opener.cancel(self)
        self._shut()

    def settle_soon(self) -> None:
        """See that `flush` is called later in this loop turn."""
        if not self._scheduled and self.stream is not None:
            self._scheduled = True
            self.pool.gateway.flush_soon(self)

    def flush(self) -> None:
        """Write what the engine has, as far as the tunnel takes it."""
        self._scheduled = False
        stream = self.stream
        while stream is not None and not self.paused:
            data = self._pull()
            if data:
                stream.write(data)
            self._handle(self.engine.events())
            if not data:
                break
            stream = self.stream
        for branch in list(self.branches.values()):
            branch.upload_settled()

    # What the opener calls.

    def stream_ready(self, stream: Stream) -> None:
        """The stream that was waited for."""
        self.stream = stream
        waiting, self._waiting = self._waiting, []
        if not self.open:
            self.stream = None
            stream.reset(Reason.CANCELLED)
            return
        now = self.pool.gateway.time()
        for branch in waiting:
            exchange = branch.exchange
            if exchange is not None:
                exchange.quiet_since = now
                self._open(branch)
                exchange.resume_upload()

    def stream_refused(self, reason: Reason, since: float) -> None:
        """No stream will come."""
        self._fail(reason, since)

    # What the stream calls.

    def stream_data(self, data: bytes) -> None:
        """Frames from the service."""
        stream = self.stream
        if stream is None:
            return
        stream.consumed(len(data))
        try:
            events = self.engine.receive(data)
        except RemoteError:
            self._break(Reason.UPSTREAM_INVALID)
            return
        self._handle(events)
        self.settle_soon()

    def stream_finished(self) -> None:
        """The service closed the connection."""
        self._break(Reason.TARGET_RESET)

    def stream_reset(self, reason: Reason) -> None:
        """The tunnel's stream is gone."""
        self.stream = None
        self._fail(reason)

    def pause_sending(self) -> None:
        """The stream's send queue is full."""
        self.paused = True
        for branch in list(self.branches.values()):
            branch.pause()

    def resume_sending(self) -> None:
        """It drained."""
        self.paused = False
        self.settle_soon()

    # Inside.

    def _open(self, branch: Branch) -> None:
        try:
            branch.open()
        except RemoteError as error:
            self.open = False
            branch.failed(error.reason)
        self.settle_soon()

    def _handle(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, GoAwayReceived):
                self.open = False
            elif isinstance(event, ConnectionClosed):
                self._break(Reason.TARGET_RESET)
                return
            elif isinstance(event, _OF_STREAMS):
                self._dispatch(event)

    def _dispatch(self, event: _StreamEvent) -> None:
        number = event.stream_id
        branch = self.branches.get(number)
        if isinstance(event, DataReceived) and event.data:
            self.engine.owe(number, len(event.data))
        if branch is None:
            self.engine.pay(number)
            return
        try:
            if isinstance(event, DataReceived):
                branch.data(event.data, end=event.end_stream)
            elif isinstance(event, ResponseReceived):
                self._served = True
                branch.response(list(event.headers), end=event.end_stream)
            elif isinstance(event, TrailersReceived):
                branch.trailers(list(event.headers))
            elif isinstance(event, InformationalResponseReceived):
                branch.interim(list(event.headers))
            else:
                branch.closed(event.error_code)
        except TunnelgwError as error:
            self.engine.reset(number, ErrorCode.PROTOCOL_ERROR)
            self.branches.pop(number, None)
            branch.failed(error.reason)

    def _pull(self) -> bytes:
        try:
            return self.engine.pull(_PULL_BYTES)
        except RemoteError:
            return b""

    def _break(self, reason: Reason) -> None:
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.reset(Reason.CANCELLED if reason is Reason.TARGET_RESET else reason)
        self._fail(reason)

    def _fail(self, reason: Reason, since: float = 0.0) -> None:
        self._shut()
        branches = [*self._waiting, *self.branches.values()]
        self._waiting.clear()
        self.branches.clear()
        for branch in branches:
            branch.failed(reason, since)

    def _shut(self) -> None:
        self.open = False
        self.pool.drop_trunk(self)
