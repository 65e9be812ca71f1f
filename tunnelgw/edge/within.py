"""What the edge itself offers visiting machines: its metrics, as the private service `edge-metrics`, and a way out.

The private stream ends here, with the edge's own certificate, which the visitor checks against the authority that it
pinned when it joined. What is wanted is dialled on loopback and spliced.

Invariants: for a service nothing but the metrics address of the edge's own configuration is dialled; who leaves through
the edge was granted that; a stream counts for its visitor until it is over, and ends with the grant that it came by.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from tunnelgw.access.grants import may_visit
from tunnelgw.access.shares import Shares
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
# Of each, one visitor gets a quarter of what is left.
OPENING_MAX = 512  # handshakes under way, at about 50 KB each: a browser's burst fits
STREAMS_MAX = 32  # of the metrics: a descriptor each; a scraper has one


class EdgeServices:
    """Implements `visits.Within`. `context`: of the private end; `metrics`: where they are served, None: nowhere.

    refused: counts a reason; alone: there are no other workers.
    """

    def __init__(
        self,
        *,
        context: Callable[[], ssl.SSLContext],
        metrics: Callable[[], Endpoint | None],
        refused: Callable[[Reason], None],
        alone: bool = True,
    ) -> None:
        self._context = context
        self._metrics = metrics
        self._refused = refused
        self._exit = ExitHere(refused, alone=alone)
        self.opening = Shares(OPENING_MAX)
        self.streams = Shares(STREAMS_MAX)
        self._guests: dict[str, set[_Guest]] = {}  # by visitor: all but those that left

    def names(self) -> tuple[str, ...]:
        """As `Within.names`."""
        return (EDGE_METRICS,) if self._metrics() is not None else ()

    def review(self, name: str, grant: Grant) -> None:
        """As `Within.review`."""
        leaves = EDGE_ITSELF in grant.exits
        if not leaves:
            self._exit.cut(name)
        scrapes = may_visit(grant, connector=EDGE_ITSELF, service=EDGE_METRICS)
        for guest in tuple(self._guests.get(name, ())):
            if not (leaves if guest.request.kind == "exit" else scrapes):
                guest.cut(Reason.VISIT_NOT_GRANTED)

    def open(self, stream: Stream, request: Open) -> None:
        """As `Within.open`."""
        if not self.opening.room_for(request.by):
            self._refused(Reason.HANDSHAKE_LIMIT)
            stream.reset(Reason.HANDSHAKE_LIMIT)
            return
        guest = _Guest(self, request)
        self._guests.setdefault(request.by, set()).add(guest)
        guest.begin(stream, self._context())

    def drain(self) -> None:
        """The edge is stopping, or another process takes over: what never ends by itself ends now."""
        self._exit.drain()

    async def close(self) -> None:
        """Return when nothing of this is left on the machine."""
        await self._exit.close()

    def forget(self, guest: _Guest) -> None:
        """It is over, or left."""
        mine = self._guests.get(guest.request.by, set())
        mine.discard(guest)
        if not mine:
            self._guests.pop(guest.request.by, None)

    def serve(self, guest: _Guest, stream: Sealed, want: Want) -> None:
        """What a visitor wants whose key was checked."""
        request, listen = guest.request, self._metrics()
        if request.kind == "exit":
            self.forget(guest)
            self._exit.take(stream, request, want)
        elif request.kind != "private" or not isinstance(want, WantService) or want.name != EDGE_METRICS:
            guest.refuse(stream, Reason.NOT_IMPLEMENTED)
        elif listen is None:
            guest.refuse(stream, Reason.SERVICE_UNKNOWN)
        elif not self.streams.room_for(request.by):
            self._refused(Reason.STREAM_LIMIT)
            guest.refuse(stream, Reason.STREAM_LIMIT)
        else:
            guest.join(stream, listen)


class _Guest:
    """One stream that ends here, until it is over or leaves by the exit. Each count is given back once."""

    __slots__ = ("_counted", "_inside", "_joined", "_within", "request")

    def __init__(self, within: EdgeServices, request: Open) -> None:
        self._within = within
        self.request = request
        self._counted: Shares | None = None  # where it counts now
        self._inside: Inside | None = None  # until its first message
        self._joined: tuple[Sealed, ReadySplice] | None = None

    def begin(self, stream: Stream, context: ssl.SSLContext) -> None:
        """Until the visitor has proved its key and said what it wants."""
        self._count(self._within.opening)
        self._inside = Inside(stream, context, met=self._met, serve=self._wanted, over=self._lost)

    def refuse(self, stream: Sealed, reason: Reason) -> None:
        """Say no."""
        refuse_inside(stream, reason, ended=self._over)

    def join(self, stream: Sealed, listen: Endpoint) -> None:
        """Splice it with the metrics."""
        self._count(self._within.streams)
        splice = ReadySplice(stream, on_end=lambda _sent, _received: self._over())
        stream.sink = splice
        self._joined = stream, splice
        spawn(self._connect(stream, splice, listen), name="edge metrics")

    def cut(self, reason: Reason) -> None:
        """Its grant is gone."""
        inside, joined = self._inside, self._joined
        if inside is not None:
            inside.cut(reason)
        elif joined is not None:
            stream, splice = joined
            stream.reset(reason)
            splice.stream_reset(reason)

    def _count(self, where: Shares | None) -> None:
        before, self._counted = self._counted, where
        if before is not None:
            before.give_back(self.request.by)
        if where is not None:
            where.take(self.request.by)

    def _over(self) -> None:
        self._count(None)
        self._within.forget(self)

    def _met(self, certificate: bytes) -> None:
        if key_fingerprint(certificate) != self.request.key:
            raise Refused("another key than that of the visitor's link", reason=Reason.UNAUTHENTICATED)

    def _wanted(self, stream: Sealed, want: Want) -> None:
        self._inside = None
        self._count(None)
        self._within.serve(self, stream, want)

    def _lost(self, error: TunnelgwError) -> None:
        self._inside = None
        self._over()
        log.debug("a private stream of %s ended before it began: %s", self.request.by, error.text)

    async def _connect(self, stream: Sealed, splice: ReadySplice, listen: Endpoint) -> None:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                await asyncio.get_running_loop().create_connection(lambda: splice, host, listen.port)
        except OSError as error:
            log.warning("the metrics of this edge cannot be reached: %s", error)
            splice.let_go()
            self.refuse(stream, Reason.TARGET_REFUSED)
