"""Routes that several connectors serve: how each of them stands, and who waits while all of them are away.

`Groups` is the table's `Roster`, so that a choice never needs to know what a tunnel is; and it holds the requests that
found no member, one lane for each shared place. The first member that is back serves them.

Invariant: a request waits in a lane only while no member of its route could take it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tunnelgw.edge.parking import Lane
from tunnelgw.gateway.opener import NoStream
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.members import ABSENT, DOUBTFUL, OUT_SECONDS, READY

if TYPE_CHECKING:
    from tunnelgw.edge.connector import Connector
    from tunnelgw.edge.connectors import Connectors
    from tunnelgw.edge.parking import Parked
    from tunnelgw.gateway.opener import StreamWaiter, Visitor
    from tunnelgw.routing.members import Members
    from tunnelgw.routing.table import Route
    from tunnelgw.wire.stream import Stream

log = logging.getLogger(__name__)

# A living peer acknowledges within 100 ms and the round trip. The link is given up after three seconds of silence; for
# as long, new streams go to others.
SILENT_SECONDS = 1.0
SILENT_ROUNDS = 4.0  # but a far one has its time


class Groups:
    """Implements `Roster`. Inputs: `park` (nobody is up) and `serve` (somebody is)."""

    __slots__ = ("_all", "_lanes", "_unheard")

    def __init__(self, connectors: Connectors) -> None:
        self._all = connectors
        self._lanes: dict[Members, Lane] = {}  # those in which somebody waits, or did a moment ago
        self._unheard: set[str] = set()  # whose session has not said yet what it serves, and what of it works

    # Roster.

    def standing(self, connector: str, service: str, now: float) -> int:
        """As `Roster.standing`."""
        found = self._all.by_name.get(connector)
        if found is None or found.session is None or found.link is None or found.draining:
            return ABSENT
        liveness = found.session.liveness
        if connector in self._unheard or service in found.unhealthy:
            return DOUBTFUL
        if liveness.silence(now) > max(SILENT_SECONDS, SILENT_ROUNDS * liveness.rtt):
            return DOUBTFUL
        return READY

    def load(self, connector: str) -> int:
        """As `Roster.load`."""
        found = self._all.by_name.get(connector)
        return 0 if found is None or found.session is None else found.session.stream_count

    def left_out(self, route: Route, reason: Reason) -> None:
        """As `Roster.left_out`."""
        self._all.counters.leave_out(reason)
        text = "connector %s, service %s: left out for %g s where others serve it too (%s)"
        self._all.say(
            f"{route.label} {route.connector}", text, route.connector, route.service, OUT_SECONDS, reason.text
        )

    def begun(self, connector: Connector) -> None:
        """A new session: nothing is known of its targets until it speaks."""
        connector.unhealthy = frozenset()
        self._unheard = {name for name in self._unheard if name in self._all.by_name} | {connector.name}

    def heard(self, connector: Connector) -> None:
        """It said what it serves, and before that what does not work."""
        if connector.name in self._unheard:
            self._unheard.discard(connector.name)
            self.serve(connector.name)

    def note_health(self, connector: Connector, unhealthy: frozenset[str]) -> None:
        """A connector says whose targets do not work; all others do."""
        for service in sorted(unhealthy ^ connector.unhealthy):
            what = "does not work" if service in unhealthy else "works again"
            key = f"{connector.name} {service} {what}"
            self._all.say(key, "connector %s: service %s %s", connector.name, service, what)
        connector.unhealthy = unhealthy

    # Waiting.

    def park(self, route: Route, visitor: Visitor, waiter: StreamWaiter) -> None:
        """Wait for any member of this route. Raises `NoStream`."""
        members = route.members
        assert members is not None
        if not members.routes:
            raise NoStream(Reason.WITHDRAWN)
        known = self._known(members)
        now = self._all.loop.time()
        if not any(one.awaited(now) for one in known):
            raise NoStream(self._all.reason_without, max((one.since for one in known), default=0.0))
        lane = self._lanes.get(members)
        if lane is None:
            self._lanes = {kept: old for kept, old in self._lanes.items() if len(old)}
            lane = self._lanes[members] = Lane(self._all.lot, lambda: self._since(members))
        if not self._all.lot.room_for(visitor, lane):
            raise NoStream(Reason.PARK_LIMIT, self._since(members))
        lane.park(route, visitor, waiter, until=now + self._all.park_seconds)

    def serve(self, connector: str) -> None:
        """This connector can take streams, or is a member only now: give it what waits for any of its groups."""
        if connector in self._unheard:
            return  # a moment more: its target may not work
        for members, lane in tuple(self._lanes.items()):
            member = members.of(connector)
            if member is not None and self.standing(connector, member.service, self._all.loop.time()) != ABSENT:
                del self._lanes[members]
                lane.leave(lambda parked, member=member: self._open(parked, member))  # type: ignore[misc]
        if any(one.link is None and one.session is not None and one.session.stream_count for one in self._all):
            self._all.serving(connector)

    def refuse_forlorn(self) -> None:
        """After an upgrade: who waits where no member comes back to goes elsewhere."""
        now = self._all.loop.time()
        for members, lane in self._lanes.items():
            known = self._known(members)
            if not any(one.awaited(now) for one in known):
                lane.refuse_all(self._all.reason_without)

    def refuse_deserted(self) -> None:
        """Who waits for a group that no connector belongs to any more is told so."""
        for members, lane in self._lanes.items():
            if not members.routes:
                lane.refuse_all(Reason.WITHDRAWN)

    def refuse_all(self, reason: Reason) -> None:
        """The edge stops."""
        for lane in self._lanes.values():
            lane.refuse_all(reason)

    def _open(self, parked: Parked, member: Route) -> Stream | Reason:
        parked.waiter.route = member
        return self._all.by_name[member.connector].open_parked(parked, member)

    def _since(self, members: Members) -> float:
        """Since when all are away."""
        known = self._known(members)
        return max((one.since for one in known), default=0.0)

    def _known(self, members: Members) -> list[Connector]:
        by_name = self._all.by_name
        return [by_name[route.connector] for route in members.routes if route.connector in by_name]
