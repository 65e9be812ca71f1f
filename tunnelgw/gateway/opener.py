"""The seam between the HTTP proxy and the tunnels: who asks for a stream, and for whom.

The gateway knows no tunnel. It asks a `StreamOpener` for a stream towards a route's service; at the edge that is the
table of connectors, at home it is the connector's own list of targets.

Invariant: for every `open` that returned None exactly one of `stream_ready` and `stream_refused` is called later,
unless `cancel` was called first; neither is ever called from within `open` itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tunnelgw.wire.events import StreamSink

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.obs.reasons import Reason
    from tunnelgw.routing.table import Route
    from tunnelgw.wire.events import StreamEnd


class Place(Protocol):
    """What a connection takes up among all of its process; given up for a newcomer where there is no other room."""

    def rest(self, leave: Callable[[], None]) -> None:
        """Nothing is under way on it: `leave` may be called, once, to make room for somebody else."""

    def work(self) -> bool:
        """Something is under way again; False if there is too much of that for its address already."""


class Visitor:
    """One visitor connection: where it comes from and what was agreed on before the first byte of HTTP."""

    __slots__ = ("address", "alpn", "edge_address", "edge_port", "key", "place", "port", "secure", "server_name")

    def __init__(
        self,
        address: str,
        port: int,
        *,
        edge_address: str = "",
        edge_port: int = 0,
        secure: bool = True,
        server_name: str = "",
        alpn: str = "",
        key: str | None = None,
        place: Place | None = None,
    ) -> None:
        self.address = address  # textual, as the peer is known (after a trusted PROXY header)
        self.port = port
        self.edge_address = edge_address  # the address it connected to
        self.edge_port = edge_port
        self.secure = secure  # TLS ended here
        self.server_name = server_name  # SNI, normalised; "" for none or for plain HTTP
        self.alpn = alpn
        self.key = key  # of its address, for what one may have at once; None: nobody is held responsible
        self.place = place  # None: it is not asked to leave


class StreamWaiter(StreamSink, Protocol):
    """The sink of a stream that may come later.

    route: what was asked for; where that is a group's, the opener puts the member's own there before `stream_ready`.
    """

    route: Route

    def stream_ready(self, stream: StreamEnd) -> None:
        """The stream that was waited for; its sink is this object already."""

    def stream_refused(self, reason: Reason, since: float) -> None:
        """No stream will come. `since`: Unix time at which the connector went away, 0.0 where unknown."""


class NoStream(Exception):  # noqa: N818 - an answer, not a failure of the opener
    """Raised by `StreamOpener.open`: no stream can be had, and waiting would not help."""

    def __init__(self, reason: Reason, since: float = 0.0) -> None:
        super().__init__(reason.text)
        self.reason = reason
        self.since = since


class StreamOpener(Protocol):
    """Makes streams towards services. A route of a group is opened only if no member could be chosen: it is parked."""

    def open(self, route: Route, visitor: Visitor, waiter: StreamWaiter) -> StreamEnd | None:
        """A stream at once, with `waiter` as its sink; or None: parked, and `waiter` hears of it later.

        Raises `NoStream` (and nothing else) when the answer is known to be no.
        """

    def cancel(self, waiter: StreamWaiter) -> None:
        """The visitor left, or answered otherwise: forget a parked `waiter`. Idempotent."""

    def since(self, route: Route) -> float:
        """Whose stream is being reset: since when its connector is away, or was until now (Unix time; 0.0 unknown)."""
