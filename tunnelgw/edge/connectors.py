"""The edge's connectors, by the names of their identities: whoever wants a stream asks here.

When the edge dies, all of it is gone but the store. Invariant: a parked waiter is answered exactly once or cancelled.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tunnelgw.edge.connector import Connector
from tunnelgw.edge.groups import Groups
from tunnelgw.edge.parking import ParkingLot
from tunnelgw.edge.visits import Visits
from tunnelgw.gateway.opener import NoStream
from tunnelgw.obs.reasons import Reason
from tunnelgw.obs.sparing import Interval, Sparing
from tunnelgw.wire.control import Notice
from tunnelgw.wire.flow import Budget

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from tunnelgw.edge.tunnel import Tunnel
    from tunnelgw.gateway.opener import StreamWaiter, Visitor
    from tunnelgw.net.timers import Wheel
    from tunnelgw.obs.counters import ProcessCounters
    from tunnelgw.routing.table import Route
    from tunnelgw.wire.control import RenewRequest, Services
    from tunnelgw.wire.stream import Stream

log = logging.getLogger(__name__)


class Connectors:
    """All connectors of this process; the `StreamOpener` of the edge."""

    def __init__(
        self, *, loop: asyncio.AbstractEventLoop, wheel: Wheel, counters: ProcessCounters, resume_seconds: float,
        park_seconds: float, worker: int = 0, workers: int = 1, domain: str = "",
    ) -> None:  # fmt: skip
        self.loop = loop
        self.wheel = wheel
        self.counters = counters
        self.budget = Budget(later=loop.call_soon)
        self.resume_seconds = resume_seconds
        self.park_seconds = park_seconds
        self.worker = worker
        self.workers = workers
        self.domain = domain
        self.authority = ""  # PEM of the authorities that tunnels trust
        self.trust = ""  # its digest
        self.farewell: Reason | None = None  # every connector is asked to go on elsewhere
        self.by_name: dict[str, Connector] = {}
        self.lot = ParkingLot(wheel, counters)
        self.groups = Groups(self)
        self.visits = Visits(self)
        self._sparing = Sparing(log)
        self._notices = Interval()
        # Set by the composition root before the first hello.
        self.on_services: Callable[[Connector, Services], None] = _nobody
        self.on_renew: Callable[[Tunnel, RenewRequest], None] = _nobody
        self.on_datagram: Callable[[Connector, int, bytes], None] = _nobody
        self.gone: Callable[[Connector], None] = _nobody
        self.leaving: Callable[[str], None] = _nobody
        self.unlinked: Callable[[str], None] = _nobody
        self.serving: Callable[[str], None] = _nobody
        self.moved: Callable[[str], None] = _nobody

    # StreamOpener.

    def open(self, route: Route, visitor: Visitor, waiter: StreamWaiter) -> Stream | None:
        if route.members is not None:  # none of them was up when it was asked for
            self.groups.park(route, visitor, waiter)
            return None
        connector = self.by_name.get(route.connector)
        if connector is None:
            raise NoStream(Reason.CONNECTOR_AWAY)
        return connector.open(route, visitor, waiter)

    def cancel(self, waiter: StreamWaiter) -> None:
        self.lot.cancel(waiter)

    def since(self, route: Route) -> float:
        connector = self.by_name.get(route.connector)
        return 0.0 if connector is None else connector.since

    @property
    def reason_without(self) -> Reason:
        """Why there is no stream to who is not waited for."""
        return Reason.CONNECTOR_AWAY if self.farewell is None else Reason.EDGE_REPLACED

    # Connectors.

    def known(self, name: str) -> Connector:
        """The connector of that name; made, away since now and still worth waiting for, if it was never seen here."""
        connector = self.by_name.get(name)
        if connector is None:
            connector = self.by_name[name] = Connector(name, self, away_until=self.loop.time() + self.resume_seconds)
        return connector

    def teach(self, authority: str, trust: str) -> None:
        """Tunnels trust these authorities (PEM, and its digest) from now on: every connector learns it."""
        self.authority, self.trust = authority, trust
        for connector in self.by_name.values():
            connector.learn()
        for visit in self.visits:
            visit.learn()

    def serves(self, name: str, services: set[str]) -> None:
        """The public services of a connector from now on: whoever waits for another one of it waits for nothing."""
        connector = self.by_name.get(name)
        if connector is not None:
            connector.serves(services)
        self.groups.refuse_deserted()

    def say(self, key: str, text: str, *values: object) -> None:
        """Log what connectors make us say, sparingly."""
        self._sparing.warning(key, self.loop.time(), text, *values)

    def notify_holder(self, holder: str, *, claimant: str, what: str) -> None:
        """Tell the holder of a host or port that somebody else wanted it: once per interval, or it could not read."""
        connector = self.by_name.get(holder)
        if connector is not None and self._notices.take(f"{holder} {claimant} {what}", self.loop.time()):
            notice = f"connector {claimant} claimed {what}, which is ours; it was refused"
            connector.tell(Notice(reason=Reason.CLAIM_HELD.label, message=notice))

    def remove(self, name: str, reason: Reason) -> None:
        """Cut the live tunnels of an identity and forget it, whatever its role."""
        self.dismiss(name, reason)
        self.visits.remove(name, reason)

    def dismiss(self, name: str, reason: Reason) -> None:
        """As `remove`, of what it was as a connector."""
        connector = self.by_name.pop(name, None)
        if connector is not None:
            connector.cut(reason)
        self.visits.offered(name, frozenset())

    def send_away(self, reason: Reason) -> None:
        """Ask every connector, and who still comes, to go on elsewhere; streams, new ones too, go on here meanwhile."""
        self.farewell = reason
        for connector in tuple(self.by_name.values()):
            connector.send_away(reason)
        for visit in self.visits:
            visit.announce(reason)

    def renew_worn(self) -> None:
        """Ask those for another session whose present one has opened all streams that it can; called every second."""
        for connector in self.by_name.values():
            session = connector.session
            if session is not None and session.table.worn and session.out.leaving is None:
                log.info("connector %s: its session is used up; it is asked for another one", connector.name)
                connector.announce(Reason.STREAM_LIMIT)

    def waiting(self) -> int:
        """What waits for a link here: requests that are parked, and streams, or their ends, that had another one."""
        detached = [one.session for one in self.by_name.values() if one.session is not None and one.link is None]
        streams = sum(session.stream_count or not session.settled for session in detached)
        return len(self.lot) + streams + self.visits.waiting()

    @property
    def ending(self) -> bool:
        """Whether what was said to its end here, by either side, is still on its way to the other one."""
        sessions = self.budget.sessions
        return any(session.attached and not session.settled for session in sessions) or any(
            stream.closed for session in sessions for stream in session.streams.values()
        )

    def cut_all(self, reason: Reason) -> None:
        """The edge stops."""
        self.groups.refuse_all(reason)
        for visit in self.visits:
            visit.cut(reason)
        for connector in tuple(self.by_name.values()):
            connector.cut(reason)

    def __iter__(self) -> Iterator[Connector]:
        return iter(self.by_name.values())


def _nobody(*_arguments: object) -> None:
    """Stands where the composition root has not put its own function yet."""
