"""What the connector serves: the declared services, and each stream's way to its target.

Strategy: the edge names a service, never an address; `Served` looks it up in our own configuration, dials the target in
one task per stream, and a splice joins the two. Early data waits in the splice, uncredited, so it is bounded by the
stream's window. A service with `tls = "home"` gets its streams by way of `ending`, which ends TLS and asks for a stream
of the inside with `join`, bounded as all others. A reload swaps the table; streams in progress keep their target.

Invariant: a stream for a service that is not declared, or of another kind than it must be, is reset and nothing is
dialled; a service with `tls = "home"` is never reached without TLS; every opened stream is counted out exactly once.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

from tunnelgw.access.addresses import address_key
from tunnelgw.access.shares import Shares
from tunnelgw.connector.flows import HomeFlows
from tunnelgw.connector.origins import Origin
from tunnelgw.errors import OriginError
from tunnelgw.net.accept import KEPT_DESCRIPTORS, most_descriptors
from tunnelgw.net.splice import Splice
from tunnelgw.net.tasks import spawn
from tunnelgw.obs.reasons import Reason
from tunnelgw.obs.sparing import Sparing
from tunnelgw.private.messages import WantService
from tunnelgw.private.opening import refuse_inside
from tunnelgw.private.splice import ReadySplice
from tunnelgw.wire.control import Health, Offer, Open, Services

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.config.model import ConnectorConfig, ServiceConfig
    from tunnelgw.private.messages import Want
    from tunnelgw.private.sealed import Sealed
    from tunnelgw.wire.events import StreamEnd
    from tunnelgw.wire.stream import Stream

log = logging.getLogger(__name__)

STREAMS_LEAST = 64
ARRIVAL_DESCRIPTORS = 2  # of a visitor whose TLS ends here: a pair of sockets
NAME_SHOWN = 80  # characters of a service name that the edge sent


class TlsEnd(Protocol):
    """Where TLS of services with `tls = "home"` ends."""

    def take(self, stream: Stream, request: Open, ended: Callable[[], None]) -> None:
        """A visitor's TLS connection, from its first byte on; `ended` is called once when the stream is over."""


class Outside(Protocol):
    """Where visitors get beyond this connector's services: its networks, or out through it."""

    def replace(self, config: ConnectorConfig) -> None:
        """What the file offers from now on."""

    def take(self, stream: Sealed, request: Open, want: Want, ended: Callable[[], None]) -> None:
        """A visitor whose key was checked; `request` says what its grant covers. `ended` is called once."""

    def drain(self) -> None:
        """End what would never end by itself."""

    async def close(self) -> None:
        """Remove what was made for visitors."""


class Watcher(Protocol):
    """Who wants to know of the streams of one service."""

    def began(self, request: Open) -> None:
        """A visitor's stream is there."""

    def ended(self, request: Open, sent: int, received: int, seconds: float) -> None:
        """It is over: bytes to the target and from it."""

    def failed(self, text: str) -> None:
        """The target could not be dialled."""


class Served:
    """The services of one connector, shared by its tunnels. Inputs: `replace`, `open`; state for `status`.

    `ending` must be set before a service with `tls = "home"` is served. `watchers`, by service, hear of its streams.
    """

    __slots__ = (
        "_origins", "_places", "_sparing", "active", "ending", "flows", "health", "health_revision", "offers",
        "outside", "places", "revision", "total", "watchers",
    )  # fmt: skip

    def __init__(self) -> None:
        self._origins: dict[str, Origin] = {}
        self._sparing = Sparing(log)
        # Each stream has a descriptor; without some left for links and files, one edge could cut off the others. And no
        # visitor may have them all, or one who opens streams by the hundred would shut every service here.
        self.places = max(STREAMS_LEAST, most_descriptors() - KEPT_DESCRIPTORS)
        self._places = Shares(self.places)
        self.ending: TlsEnd | None = None
        self.outside: Outside | None = None  # None: nothing but services
        self.offers: list[Offer] = []
        self.revision = 0
        self.health = Health(unhealthy=[])  # what edges are told of targets
        self.health_revision = 0  # 0: nothing is checked, and nothing is told
        self.active = 0  # streams open now
        self.total = 0  # streams ever opened
        self.watchers: dict[str, Watcher] = {}
        self.flows = HomeFlows(self)

    def replace(self, config: ConnectorConfig) -> bool:
        """Serve what `config` declares from now on; True if that changes anything. Open streams are not touched."""
        if self.outside is None and (config.networks or config.exit):
            from tunnelgw.connector.outside import Beyond  # for who needs it

            self.outside = Beyond()
        if self.outside is not None:
            self.outside.replace(config)
        before = self._origins
        after: dict[str, Origin] = {}
        for service in config.services:
            kept = before.get(service.name)
            after[service.name] = kept if kept is not None and kept.service == service else Origin(service)
        if self.revision and list(after.values()) == list(before.values()):
            return False
        self._origins = after  # withdrawn origins live on in their open streams
        self.flows.review()
        self.revision += 1
        self.offers = [offer(service) for service in config.services]
        return True

    def declaration(self) -> Services:
        """What the edge is told."""
        return Services(self.revision, self.offers)

    def note_health(self, unhealthy: list[str]) -> None:
        """The targets of these services do not work, all others do."""
        self.health = Health(unhealthy=unhealthy)
        self.health_revision += 1

    def services(self) -> list[ServiceConfig]:
        """The declared services, in the file's order."""
        return [origin.service for origin in self._origins.values()]

    def open(self, stream: Stream, request: Open) -> None:
        """A tunnel's stream was opened by the edge: join it to its target, or reset it."""
        origin = self._origins.get(request.service)
        if origin is None or origin.service.private:
            self._warn("unknown", request, "the edge asked for service %r, which is not declared here")
            stream.reset(Reason.SERVICE_UNKNOWN)
            return
        at_home = origin.service.tls == "home"
        if request.kind != ("tls" if at_home else origin.service.target.kind):
            self._warn("kind", request, "the edge asked for service %r as another kind than its target's")
            stream.reset(Reason.SERVICE_UNKNOWN)
            return
        if not self._room_for(request):
            stream.reset(Reason.STREAM_LIMIT)
        elif at_home:
            assert self.ending is not None
            key = self.count(request, ARRIVAL_DESCRIPTORS)
            self.ending.take(stream, request, lambda: self.ended(key, ARRIVAL_DESCRIPTORS))
        else:
            _Serving(self, origin, stream, request)

    def join(self, stream: StreamEnd, request: Open) -> Reason | None:
        """From the inside of a TLS connection that ended here to the target; why not, where it cannot be."""
        origin = self._origins.get(request.service)
        if origin is None or origin.service.tls != "home" or origin.service.target.kind != request.kind:
            return Reason.WITHDRAWN
        if not self._room_for(request):
            return Reason.STREAM_LIMIT
        _Serving(self, origin, stream, request)
        return None

    def serve_inside(self, stream: Sealed, request: Open, want: Want) -> None:
        """What a visitor wants in a private stream, once its key was checked."""
        outside = self.outside
        if not self._room_for(request):
            refuse_inside(stream, Reason.STREAM_LIMIT)
        elif request.kind == "private" and isinstance(want, WantService):
            origin = self._origins.get(want.name)
            # The edge checked a grant for one name: another one inside would have none.
            if origin is None or not origin.service.private or want.name != request.service:
                self._warn("private", request, "a visitor asked for %r, which is not a private service here")
                refuse_inside(stream, Reason.SERVICE_UNKNOWN)
            else:
                _Serving(self, origin, stream, request, inside=True)
        elif outside is None or request.kind == "private" or isinstance(want, WantService):
            refuse_inside(stream, Reason.NOT_IMPLEMENTED)
        else:
            key = self.count(request, 1)
            outside.take(stream, request, want, lambda: self.ended(key, 1))

    def failed(self, origin: Origin, error: OriginError, now: float) -> None:
        """A target could not be dialled."""
        name = origin.service.name
        if (watcher := self.watchers.get(name)) is not None:
            watcher.failed(error.text)
        self._sparing.warning(f"target {name}", now, "service %s: %s", name, error.text)

    def count(self, request: Open, descriptors: int) -> str | None:
        """One more stream; for whom it counts."""
        key = _key_of(request)
        self._places.take(key, descriptors)
        self.active += 1
        self.total += 1
        return key

    def ended(self, key: str | None, descriptors: int) -> None:
        """One stream is over."""
        self._places.give_back(key, descriptors)
        self.active -= 1

    def drain(self) -> None:
        """We are stopping: end what would never end by itself."""
        if self.outside is not None:
            self.outside.drain()

    def origin(self, name: str) -> Origin | None:
        """The declared service of that name."""
        return self._origins.get(name)

    def take_place(self, key: str | None) -> bool:
        """A descriptor for a flow of this visitor, if there is one; to be given back."""
        if not self._places.room_for(key):
            return False
        self._places.take(key)
        return True

    def give_place(self, key: str | None) -> None:
        """A flow is over."""
        self._places.give_back(key)

    async def close(self) -> None:
        """End what the origins keep, and what was made for visitors."""
        self.flows.close()
        if self.outside is not None:
            await self.outside.close()
        for origin in self._origins.values():
            await origin.close()

    def _room_for(self, request: Open) -> bool:
        if self._places.room_for(_key_of(request)):
            return True
        self._warn("many", request, "more streams are open than this visitor, or this machine, may have; last for %r")
        return False

    def _warn(self, kind: str, request: Open, text: str) -> None:
        now = asyncio.get_running_loop().time()
        self._sparing.warning(f"{kind} {request.service}", now, text, request.service[:NAME_SHOWN])


class _Serving:
    """One stream: its dial, then its splice. Referenced by the task and by the splice's `on_end`."""

    __slots__ = (
        "_begun", "_dial", "_inside", "_key", "_origin", "_request", "_served", "_splice", "_stream", "_watcher",
    )  # fmt: skip

    def __init__(
        self, served: Served, origin: Origin, stream: StreamEnd, request: Open, *, inside: bool = False
    ) -> None:
        """`inside`: of a private stream, where the visitor is told what came of it."""
        self._served: Served | None = served  # None once counted out
        self._key = served.count(request, 1)
        self._origin = origin
        self._stream = stream
        self._request = request
        self._inside = inside
        self._watcher = served.watchers.get(request.service)
        if self._watcher is not None:
            self._begun = asyncio.get_running_loop().time()
            self._watcher.began(request)
        kind = ReadySplice if inside else Splice
        self._splice = kind(stream, first=origin.header(request), lost=Reason.TARGET_RESET, on_end=self._ended)
        stream.sink = self._splice
        self._dial: asyncio.Task[None] | None = spawn(self._connect(), name="origin")

    async def _connect(self) -> None:
        try:
            await self._origin.connect(self._protocol, self._request)
        except OriginError as error:
            if self._served is not None and not self._stream.closed:
                self._served.failed(self._origin, error, asyncio.get_running_loop().time())
                if self._inside:
                    self._splice.let_go()
                    refuse_inside(self._stream, error.reason, ended=self._out)
                else:
                    self._stream.reset(error.reason)
                    self._out()
        finally:
            self._dial = None

    def _protocol(self) -> Splice:
        return self._splice

    def _ended(self, sent: int, received: int) -> None:
        if self._watcher is not None:
            self._watcher.ended(self._request, sent, received, asyncio.get_running_loop().time() - self._begun)
        if self._dial is not None:  # reset while we dial: nobody waits for the target any more
            self._dial.cancel()
        self._out()

    def _out(self) -> None:
        served, self._served = self._served, None
        if served is not None:
            served.ended(self._key, 1)


def _key_of(request: Open) -> str | None:
    if request.by:
        return f"visitor {request.by}"
    return None if request.many else address_key(request.visitor)


def offer(service: ServiceConfig) -> Offer:
    """A service as the edge sees it: its public side, never its target."""
    return Offer(
        name=service.name,
        kind=service.target.kind,
        hosts=list(service.host),
        path=service.path,
        strip_path=service.strip_path,
        ports=[(ports.first, ports.last) for ports in service.port],
        plain_http=service.plain_http,
        private=service.private,
        response_seconds=service.response_seconds,
        allow_from=list(service.allow_from),
        users=[] if service.tls == "home" else list(service.users),  # who is asked at home is nobody else's business
        group=service.group,
        priority=service.priority,
        affinity="" if service.affinity == "none" else service.affinity,
        protocol=service.protocol,
        tls=service.tls,
    )
