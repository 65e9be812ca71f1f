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
    from tunnelgw.obs.reasons import Reason
    from tunnelgw.routing.table import Route
    from tunnelgw.wire.events import StreamEnd


class Visitor:
    """One visitor connection: where it comes from and what was agreed on before the first byte of HTTP."""

    __slots__ = ("address", "alpn", "edge_address", "edge_port", "port", "secure", "server_name")

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
    ) -> None:
        self.address = address  # textual, as the peer is known (after a trusted PROXY header)
        self.port = port
        self.edge_address = edge_address  # the address it connected to
        self.edge_port = edge_port
        self.secure = secure  # TLS ended here
        self.server_name = server_name  # SNI, normalised; "" for none or for plain HTTP
        self.alpn = alpn


class StreamWaiter(StreamSink, Protocol):
    """The sink of a stream that may come later."""

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
    """Makes streams towards services."""

    def open(self, route: Route, visitor: Visitor, waiter: StreamWaiter) -> StreamEnd | None:
        """A stream at once, with `waiter` as its sink; or None: parked, and `waiter` hears of it later.

        Raises `NoStream` (and nothing else) when the answer is known to be no.
        """

    def cancel(self, waiter: StreamWaiter) -> None:
        """The visitor left, or answered otherwise: forget a parked `waiter`. Idempotent."""
