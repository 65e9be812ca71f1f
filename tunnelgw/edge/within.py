"""What the edge itself offers visiting machines: its metrics, as the private service `edge-metrics`, and a way out.

The private stream ends here, with the edge's own certificate, which the visitor checks against the authority that it
pinned when it joined. What is wanted is dialled on loopback and spliced.

Invariant: for a service nothing but the metrics address of the edge's own configuration is dialled; who leaves through
the edge was granted that.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from tunnelgw.edge.exit import ExitHere
from tunnelgw.errors import Refused
from tunnelgw.net.tasks import spawn
from tunnelgw.obs.reasons import Reason
from tunnelgw.private.messages import WantService
from tunnelgw.private.opening import Inside, refuse_inside
from tunnelgw.private.spki import key_fingerprint
from tunnelgw.private.splice import ReadySplice
from tunnelgw.wire.control import EDGE_ITSELF, EDGE_METRICS

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from tunnelgw.access.grants import Grant
    from tunnelgw.config.model import Endpoint
    from tunnelgw.errors import TunnelgwError
    from tunnelgw.private.messages import Want
    from tunnelgw.private.sealed import Sealed
    from tunnelgw.wire.control import Open
    from tunnelgw.wire.stream import Stream

log = logging.getLogger(__name__)

DIAL_SECONDS = 5.0


class EdgeServices:
    """Implements `visits.Within`. `context`: of the private end; `metrics`: where they are served, None: nowhere.

    refused: counts a reason.
    """

    def __init__(
        self,
        *,
        context: Callable[[], ssl.SSLContext],
        metrics: Callable[[], Endpoint | None],
        refused: Callable[[Reason], None],
    ) -> None:
        self._context = context
        self._metrics = metrics
        self._exit = ExitHere(refused)

    def names(self) -> tuple[str, ...]:
        """As `Within.names`."""
        return (EDGE_METRICS,) if self._metrics() is not None else ()

    def review(self, name: str, grant: Grant) -> None:
        """As `Within.review`."""
        if EDGE_ITSELF not in grant.exits:
            self._exit.cut(name)

    def open(self, stream: Stream, request: Open) -> None:
        """As `Within.open`."""

        def met(certificate: bytes) -> None:
            if key_fingerprint(certificate) != request.key:
                raise Refused("another key than that of the visitor's link", reason=Reason.UNAUTHENTICATED)

        def over(error: TunnelgwError) -> None:
            log.debug("a private stream of %s ended before it began: %s", request.by, error.text)

        Inside(
            stream, self._context(), met=met, serve=lambda sealed, want: self._serve(sealed, want, request), over=over
        )

    def _serve(self, stream: Sealed, want: Want, request: Open) -> None:
        listen = self._metrics()
        if request.kind == "exit":
            self._exit.take(stream, request, want)
        elif request.kind != "private" or not isinstance(want, WantService) or want.name != EDGE_METRICS:
            refuse_inside(stream, Reason.NOT_IMPLEMENTED)
        elif listen is None:
            refuse_inside(stream, Reason.SERVICE_UNKNOWN)
        else:
            splice = ReadySplice(stream)
            stream.sink = splice
            spawn(self._connect(stream, splice, listen), name="edge metrics")

    async def _connect(self, stream: Sealed, splice: ReadySplice, listen: Endpoint) -> None:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                await asyncio.get_running_loop().create_connection(lambda: splice, host, listen.port)
        except OSError as error:
            log.warning("the metrics of this edge cannot be reached: %s", error)
            refuse_inside(stream, Reason.TARGET_REFUSED)
