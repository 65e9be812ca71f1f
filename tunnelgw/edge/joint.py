"""One private stream on its way through the edge: a visitor's stream, joined to one of the connector's.

What passes is TLS between the two, which nobody here can read. The connector's stream may come later: while its
request is parked the visitor's bytes wait in the window of its own stream. Datagrams that belong to the stream carry
its id with `PRIVATE_FLOW` on either side, so a flow lives exactly as long as its stream.

Invariant: a joint is in its visit's table, and its far id in the connector's, exactly until either stream is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.gateway.opener import NoStream, Visitor
from tunnelgw.wire.relay import Relay

if TYPE_CHECKING:
    from tunnelgw.edge.visits import Visits
    from tunnelgw.obs.reasons import Reason
    from tunnelgw.routing.table import Route
    from tunnelgw.wire.control import Open
    from tunnelgw.wire.events import StreamEnd
    from tunnelgw.wire.stream import Stream


class Caller(Visitor):
    """A joined machine as who wants a stream; `request` is what the connector is told."""

    __slots__ = ("request",)

    def __init__(self, request: Open) -> None:
        super().__init__(request.visitor, request.visitor_port, key=f"visitor {request.by}")
        self.request = request


class Joint:
    """See the module's text. A `StreamWaiter` for the connector's stream; `over` is called once at the end."""

    __slots__ = ("_relay", "_visits", "asked", "caller", "far", "near", "route", "visit_streams")

    def __init__(
        self, visits: Visits, visit_streams: dict[int, Joint], near: Stream, asked: Open, route: Route, caller: Caller
    ) -> None:
        self._visits = visits
        self.visit_streams = visit_streams
        self.near = near
        self.asked = asked  # by the visitor: judged again when a grant changes
        self.route = route
        self.caller = caller
        self.far: Stream | None = None
        self._relay = Relay(self._over)
        visit_streams[near.id] = self

    def open(self) -> None:
        """Ask for the connector's stream."""
        self._relay.join(self._relay.near, self.near)
        try:
            stream = self._visits.all.open(self.route, self.caller, self)
        except NoStream as answer:
            self._visits.all.counters.refuse(answer.reason)
            self.cut(answer.reason)
            return
        if stream is not None:
            self.stream_ready(stream)

    def cut(self, reason: Reason) -> None:
        """End both streams."""
        self._relay.cut(reason)

    # StreamWaiter.

    def stream_ready(self, stream: StreamEnd) -> None:
        """The connector's stream."""
        self.far = stream  # type: ignore[assignment]
        if self.near.gone:
            stream.reset(self._visits.all.reason_without)
            return
        self._visits.flows[self.route.connector, self.far.id] = self  # type: ignore[union-attr]
        self._relay.join(self._relay.far, stream)

    def stream_refused(self, reason: Reason, since: float) -> None:  # noqa: ARG002 - StreamWaiter's interface
        """There will be none."""
        self._visits.all.counters.refuse(reason)
        self.cut(reason)

    # Until the stream is joined, its sink is this waiter.

    def stream_data(self, data: bytes) -> None:
        self._relay.far.stream_data(data)

    def stream_finished(self) -> None:
        self._relay.far.stream_finished()

    def stream_reset(self, reason: Reason) -> None:
        self._relay.far.stream_reset(reason)

    def pause_sending(self) -> None:
        self._relay.far.pause_sending()

    def resume_sending(self) -> None:
        self._relay.far.resume_sending()

    def _over(self) -> None:
        self.visit_streams.pop(self.near.id, None)
        if self.far is not None:
            key = self.route.connector, self.far.id
            if self._visits.flows.get(key) is self:  # a successor's session counts from the beginning
                del self._visits.flows[key]
        else:
            self._visits.all.cancel(self)
