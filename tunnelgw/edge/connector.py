"""One connector as the edge sees it: its session, the links that come and go, and the requests parked for it.

It is `up` while a link carries its tunnel, `detached` while the tunnel waits for a link (at most `resume_seconds`,
streams keep), and `away` without a tunnel. Requests that find it detached, or away for less than `resume_seconds`, are
parked for up to `park_seconds` and opened when it is back.

Who owns what: this file owns sessions; a link belongs to the tunnel port until its hello is accepted and to its
connector after that. When a link dies the connector keeps its session; when the session dies every stream is reset with
CONNECTOR_AWAY.

Invariant: at most one session and one link per connector.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from tunnelgw.edge.greeting import welcome
from tunnelgw.edge.parking import Lane, request_for
from tunnelgw.edge.tunnel import Tunnel
from tunnelgw.errors import Refused
from tunnelgw.gateway.opener import NoStream
from tunnelgw.net.timers import INF
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire.control import PRIVATE_KINDS, Control, Health, Hello, Open, Services
from tunnelgw.wire.datagrams import FLOWS_BEFORE
from tunnelgw.wire.flow import SessionLimits, TokenBucket

if TYPE_CHECKING:
    from tunnelgw.edge.connectors import Connectors
    from tunnelgw.edge.parking import Parked
    from tunnelgw.gateway.opener import StreamWaiter, Visitor
    from tunnelgw.net.link import Link
    from tunnelgw.routing.table import Route
    from tunnelgw.wire.stream import Stream

log = logging.getLogger(__name__)

# Nothing may be opened from home yet: who tries is refused, and cut when it does not stop.
LIMITS = SessionLimits(accepted=64, opens_per_second=1.0)
# Messages of one connector: its services each time a file is saved or a command run; a script may run a hundred.
MESSAGES_BURST, MESSAGES_PER_SECOND = 256, 5.0


class Connector(Tunnel):
    """One connector as this process sees it: session handler, owner of its link, and its parked requests."""

    __slots__ = ("_services", "away_until", "lane", "reconnects", "resumes", "software", "unhealthy")

    role = "connector"
    limits = LIMITS

    def __init__(self, name: str, connectors: Connectors, *, away_until: float) -> None:
        messages = TokenBucket(rate=MESSAGES_PER_SECOND, burst=MESSAGES_BURST, now=connectors.loop.time())
        super().__init__(name, connectors, messages)
        self.software = ""
        self.unhealthy: frozenset[str] = frozenset()  # services whose targets do not work, as it says
        self.away_until = away_until  # loop time until which requests are still parked
        self.reconnects = 0
        self.resumes = 0
        self.lane = Lane(connectors.lot, lambda: self.since)
        self._services: set[str] | None = None  # public ones; None: not decided yet

    @property
    def state(self) -> str:
        """ "up", "detached" or "away"."""
        if self.session is None:
            return "away"
        return "up" if self.link is not None else "detached"

    @property
    def peer(self) -> str:
        """Address of the link's other end; "" without one."""
        return self.link.peer if self.link is not None else ""

    # Streams.

    def open(self, route: Route, visitor: Visitor, waiter: StreamWaiter) -> Stream | None:
        """As `StreamOpener.open`."""
        if not self._offers(route):  # the route was looked up a while ago
            raise NoStream(Reason.WITHDRAWN, self.since)
        session, now = self.session, self.all.loop.time()
        if session is not None and self.link is not None and not self.draining:
            try:
                return session.open(request_for(route, visitor), waiter, now, visitor=visitor.key)
            except Refused as refusal:
                raise NoStream(refusal.reason) from None
        if not self.awaited(now):
            raise NoStream(self.all.reason_without, self.since)
        if not self.all.lot.room_for(visitor, self.lane):
            raise NoStream(Reason.PARK_LIMIT, self.since)
        self.lane.park(route, visitor, waiter, until=now + self.all.park_seconds)
        return None

    def serves(self, services: set[str]) -> None:
        """As `Connectors.serves`."""
        self._services = services
        self.lane.refuse_all(Reason.WITHDRAWN, who=lambda parked: not self._offers(parked.route))

    def _offers(self, route: Route) -> bool:
        """Private services are judged by `Visits`."""
        return self._services is None or route.service in self._services or route.kind in PRIVATE_KINDS

    def awaited(self, now: float) -> bool:
        """Whether it is worth waiting for it here: after an upgrade, whoever left or lost its link dials elsewhere."""
        if self.all.farewell is not None:
            return self.link is not None and not self.draining
        return self.session is not None or now < self.away_until

    def open_parked(self, parked: Parked, route: Route | None = None) -> Stream | Reason:
        """A stream for who waited, or why there is none. `route`: this member's own, where a group was waited for."""
        session = self.session
        if session is None:
            return Reason.CONNECTOR_AWAY
        visitor, now = parked.visitor, self.all.loop.time()
        try:
            return session.open(request_for(route or parked.route, visitor), parked.waiter, now, visitor=visitor.key)
        except Refused as refusal:
            return refusal.reason

    # Links.

    def accept(self, link: Link, hello: Hello, *, version: int, serial: str) -> None:
        """An authenticated hello: resume the session or begin a new one, and answer Welcome.

        Raises `Refused` (SUPERSEDED) for a dial that is older than the one we have, or that yields to another instance.
        """
        if hello.instance == self.instance and hello.dial <= self.dial:
            raise Refused("a later dial of this connector was accepted already", reason=Reason.SUPERSEDED)
        if hello.yields and hello.instance != self.instance and self.link is not None:
            text = f"another process with the identity of {self.name} is connected, from {self.peer}"
            raise Refused(f"{text}: use that one, or join with another invitation", reason=Reason.SUPERSEDED)
        if self.instance and hello.instance != self.instance and self.link is not None:
            log.warning("connector %s: another instance took over from %s", self.name, self.peer)
            self._say_goodbye(Reason.SUPERSEDED)
        first_time = not self.instance
        self.instance, self.dial, self.software, self.serial = hello.instance, hello.dial, hello.software, serial
        self._release()
        resumed = self._resume(link, hello)
        replaced = None
        if not resumed:
            self.all.groups.begun(self)
            replaced = self._begin(link, self)
        self.reconnects += not (first_time or resumed)
        self.resumes += resumed
        self.deadline = INF
        self.draining = False
        try:
            if self.session is not None:  # or what came with the hello broke the protocol: it is over already
                link.greet(welcome(self, version=version, resumed=resumed, received=self.session.received))
                self.trust = hello.trust
                self.learn()
                log.info("connector %s: %s from %s", self.name, "resumed" if resumed else "connected", link.peer)
                self.lane.leave(self.open_parked)
                self.all.groups.serve(self.name)
                if self.all.farewell is not None:
                    self.announce(self.all.farewell)
        finally:
            if replaced is not None:  # now that what can be asked again has where to go
                replaced.close(Reason.CONNECTOR_AWAY)
        self.since = time.time()

    def _detached(self) -> None:
        self.all.unlinked(self.name)

    def give_up(self, reason: Reason) -> None:
        """End the session, and the streams that are not complete. Parked requests stay until their own deadline."""
        session, self.session = self.session, None
        link, self.link = self.link, None
        self.deadline = INF
        now = self.all.loop.time()
        # A restart is an absence that just began; one that lasted `resume_seconds` already is answered at once.
        self.away_until = now + self.all.resume_seconds if reason is not Reason.CONNECTOR_AWAY else now
        if link is not None:
            self.since = time.time()
        if session is not None:
            session.close(reason)
        if link is not None:
            link.close()
        self.all.gone(self)
        self._moved()

    def cut(self, reason: Reason) -> None:
        """Revoked, or the edge stops: say why, then end it."""
        self._say_goodbye(reason)
        self._cut_streams(reason)
        self.lane.refuse_all(reason)
        self.give_up(reason)
        self.away_until = 0.0

    def send_away(self, reason: Reason) -> None:
        """Another process accepts from now on: what is in progress goes on, on the link that it has, or never will."""
        if self.link is not None:
            self.announce(reason)
            self._moved()
        else:
            self.give_up(Reason.CONNECTOR_STOPPING)

    def _moved(self) -> None:
        """After an upgrade: if nothing can begin here any more, whoever waits and whoever rests is to go elsewhere."""
        if self.all.farewell is not None and not self.awaited(self.all.loop.time()):
            self.lane.refuse_all(self.all.reason_without)
            self.all.groups.refuse_forlorn()
            self.all.moved(self.name)

    # The session's handler.

    def stream_opened(self, stream: Stream, request: Open) -> None:
        self.all.counters.refuse(Reason.SERVICE_UNKNOWN)
        text = "connector %s opened a stream for %r: nothing here may be opened from home"
        self.all.say(f"{self.name} opened", text, self.name, request.service)
        stream.reset(Reason.SERVICE_UNKNOWN)

    def control_received(self, message: Control) -> None:
        if self._heard(message):
            return
        if isinstance(message, Services):
            self.all.on_services(self, message)
            self.all.groups.heard(self)
        elif isinstance(message, Health):
            self.all.groups.note_health(self, frozenset(message.unhealthy))

    def datagram_received(self, flow: int, data: bytes) -> None:
        """Of a private stream, or of a flow of a UDP port: the number says which."""
        if flow < FLOWS_BEFORE:
            self.all.on_datagram(self, flow, data)
        else:
            self.all.visits.inwards(self.name, flow, data)

    def going_away(self, reason: Reason) -> None:
        self.draining = True
        self.all.leaving(self.name)
        log.info("connector %s is leaving: %s", self.name, reason.text)
        self._moved()
