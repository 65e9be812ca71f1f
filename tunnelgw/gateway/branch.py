"""One exchange on a trunk: the `Upstream` of a service that speaks HTTP/2.

Invariant: a branch ends once; payload is acknowledged to the service when the visitor's side took it, and the rest when
the stream closes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.errors import OriginError
from tunnelgw.gateway.holding import Holding
from tunnelgw.gateway.pages import PHRASES
from tunnelgw.gateway.upstream import INTERIM_LIMIT
from tunnelgw.http import pseudo
from tunnelgw.http.h2 import ErrorCode
from tunnelgw.http.head import Framing
from tunnelgw.http.serialise import request_fields_h2
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.table import target_path

if TYPE_CHECKING:
    from tunnelgw.gateway.exchange import Exchange
    from tunnelgw.gateway.upstream2 import Trunk
    from tunnelgw.http.head import Fields
    from tunnelgw.routing.table import Route

# An upload that the engine holds because the service's windows are closed: beyond this the visitor is paused.
_UPLOAD_HIGH = 128 * 1024


class Branch(Holding):
    """One exchange on a trunk."""

    __slots__ = ("_ended", "_heard", "_interim", "_owed", "_paused", "_trunk", "exchange", "number", "ready", "reused")

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
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

    @property
    def linked(self) -> bool:
        """As `Upstream.linked`."""
        stream = self._trunk.stream
        return stream is None or stream.linked

    @property
    def route(self) -> Route:
        """As `Upstream.route`."""
        return self._trunk.route

    @property
    def heard(self) -> bool:
        """As `Upstream.heard`."""
        return self._heard

    @property
    def unsent(self) -> bool:
        """As `Upstream.unsent`: what the trunk's stream holds would leave all the same, whoever else waits on it."""
        return self._trunk.stream is None

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
        self._weigh()

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
            self._weigh()

    def done(self, now: float) -> None:
        """The response was passed on as a whole."""
        self.release()
        self.exchange = None
        self._weigh()
        if not self._ended:
            self._trunk.engine.reset(self.number, ErrorCode.CANCEL)
        self._trunk.leave(self, now)

    def abort(self, reason: Reason) -> None:  # noqa: ARG002 - HTTP/2 has one code for it
        """The exchange is over before its time."""
        self.exchange = None
        self._weigh()
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
        self._weigh()

    def trailers(self, fields: Fields) -> None:
        """The response ended with trailers."""
        if self.exchange is not None:
            try:
                self.exchange.respond_end(pseudo.trailers(fields))
            except ValueError:
                raise OriginError("the trailers are malformed") from None

    def closed(self) -> None:
        """The stream is over on the engine's side: the response too, even if it was reset with NO_ERROR."""
        self._trunk.engine.pay(self.number)
        self._owed = 0
        self.failed(Reason.TARGET_RESET)

    def failed(self, reason: Reason, since: float = 0.0) -> None:
        """No response, or no more of it, will come."""
        exchange, self.exchange = self.exchange, None
        self._weigh()
        if exchange is not None and not exchange.complete:
            exchange.upstream_failed(reason, heard=self._heard, reused=self.reused, since=since)

    def upload_settled(self) -> None:
        """The trunk wrote: let the visitor go on if there is room."""
        trunk = self._trunk
        if self._paused and not trunk.paused and trunk.engine.queued(self.number) <= _UPLOAD_HIGH // 2:
            self._paused = False
            if self.exchange is not None:
                self.exchange.resume_upload()
        self._weigh()

    def pause(self) -> None:
        """The tunnel takes nothing at the moment."""
        if not self._paused:
            self._paused = True
            if self.exchange is not None:
                self.exchange.pause_upload()

    # Inside.

    def shed(self) -> None:
        if self.exchange is not None:
            self.exchange.give_up(Reason.BUFFER_LIMIT)

    def _weigh(self) -> None:
        """What the engine holds of an upload, and the visitor's side of a response, is in no window of the tunnel."""
        trunk = self._trunk
        held = self._owed + trunk.engine.queued(self.number) if self.exchange is not None else 0
        self.hold(held, trunk.pool.gateway)
