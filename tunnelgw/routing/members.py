"""Which of several connectors serves the next stream of a route that they share (a `group`).

Each connector has a route of its own for the place; `Members` holds those of one place as they are now, and what was
learnt of each by trying. How a connector is right now (its tunnel, what it says of its target, how busy it is) is the
`Roster`'s knowledge. The order: who can serve, then the lowest priority number, then whoever the visitor belongs to
(affinity), then the fewest open streams, then in turn.

Invariants: a choice is a member of this moment, or None where nobody's tunnel is up; who is left out is tried again
after `OUT_SECONDS` at the latest; with nobody better, who is left out is chosen all the same.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Protocol

from tunnelgw.access.addresses import address_key
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunnelgw.routing.table import Route

# Failures of a member's target in a row, after which it is left out, and for how long: a browser that opens a page asks
# for six things at once, and a service that restarts is back within seconds.
FAILURES_MOST = 3
# Requests in a row that were taken and never answered: one that makes a service crash, or ask for an hour, must not be
# enough to send everybody elsewhere.
UNANSWERED_MOST = 6
OUT_SECONDS = 10.0
# A stream was reset for these because the target could not be dialled: it is the target's fault.
NOT_DIALLED = frozenset(
    {
        Reason.TARGET_REFUSED,
        Reason.TARGET_TIMEOUT,
        Reason.TARGET_UNRESOLVED,
        Reason.TARGET_UNREACHABLE,
        Reason.TARGET_TLS,
        Reason.SERVICE_UNKNOWN,
    }
)
# Or it ended or was given up for these before a byte came back. It may be the request's fault.
NOT_ANSWERED = frozenset({Reason.TARGET_RESET, Reason.RESPONSE_TIMEOUT})
# A stream was reset for these before anything reached the target: safe to try elsewhere, whatever was asked.
NOT_REACHED = NOT_DIALLED | {Reason.STREAM_LIMIT}
# How a connector stands, best first.
READY = 0  # its tunnel is up and its target works, as far as it says
DOUBTFUL = 1  # up, but its target does not work, or it has not answered for a moment
ABSENT = 2  # no link, or it takes no new streams


class Roster(Protocol):
    """What is known of connectors at this moment."""

    def standing(self, connector: str, service: str, now: float) -> int:
        """READY, DOUBTFUL or ABSENT."""

    def load(self, connector: str) -> int:
        """Its open streams."""

    def left_out(self, route: Route, reason: Reason) -> None:
        """A member failed too often: say and count it."""


class Members:
    """The members of one place. Inputs: `replace`, `failed` and `served`; `choose` for every new stream."""

    __slots__ = ("_failures", "_out_until", "_roster", "_turn", "routes")

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self.routes: tuple[Route, ...] = ()  # each member's own, the preferred ones first
        self._failures: dict[str, int] = {}  # by connector, in a row
        self._out_until: dict[str, float] = {}
        self._turn = 0

    def replace(self, routes: Iterable[Route]) -> None:
        """These from now on; what was learnt of those that stay is kept."""
        self.routes = tuple(sorted(routes, key=lambda route: (route.priority, route.connector)))
        names = {route.connector for route in self.routes}
        self._failures = {name: count for name, count in self._failures.items() if name in names}
        self._out_until = {name: until for name, until in self._out_until.items() if name in names}

    def of(self, connector: str) -> Route | None:
        """That connector's own route."""
        return next((route for route in self.routes if route.connector == connector), None)

    def choose(self, now: float, *, address: str = "", tokens: Iterable[str] = ()) -> Route | None:
        """Who serves the next stream; None: nobody's tunnel is up.

        address: the visitor's, for affinity "address". tokens: that it showed, for affinity "cookie".
        """
        best = self._standing(now)
        ready = [route for route, standing in best if standing == READY]
        if not ready:
            ready = [route for route, standing in best if standing == DOUBTFUL]
        return self._pick(ready, address, tokens) if ready else None

    def instead_of(self, failed: Route, now: float, *, address: str = "") -> Route | None:
        """Another member that surely can serve what `failed` could not; None: there is none."""
        standings = self._standing(now)
        others = [one for one, standing in standings if standing == READY and one.connector != failed.connector]
        return self._pick(others, address, ()) if others else None

    def failing(self, connector: str, now: float) -> bool:
        """Whether it is left out, because its target failed too often."""
        return self._out_until.get(connector, 0.0) > now

    def failed(self, route: Route, reason: Reason, now: float) -> None:
        """A stream to this member ended with `reason` before anything came back."""
        name = route.connector
        most = FAILURES_MOST if reason in NOT_DIALLED else UNANSWERED_MOST
        if reason not in NOT_DIALLED | NOT_ANSWERED or self.of(name) is None:
            return
        count = self._failures[name] = self._failures.get(name, 0) + 1
        if count >= most and not self.failing(name, now):
            self._out_until[name] = now + OUT_SECONDS
            self._roster.left_out(route, reason)

    def served(self, connector: str) -> None:
        """A target answered: what failed before is forgotten."""
        if self._failures.pop(connector, 0):
            self._out_until.pop(connector, None)

    def _standing(self, now: float) -> list[tuple[Route, int]]:
        roster = self._roster
        found = []
        for route in self.routes:
            standing = roster.standing(route.connector, route.service, now)
            if standing == READY and self._out_until and self.failing(route.connector, now):
                standing = DOUBTFUL
            found.append((route, standing))
        return found

    def _pick(self, able: list[Route], address: str, tokens: Iterable[str]) -> Route:
        """`able`: in the order of `routes`, not empty."""
        for token in tokens:
            for route in able:
                if route.token and route.token == token:
                    return route
        first = able[0]
        if able[-1].priority != first.priority:
            able = [route for route in able if route.priority == first.priority]
        if len(able) == 1:
            return first
        if first.affinity == "address":
            key = address_key(address)
            return max(able, key=lambda route: _weight(key, route.connector))
        load = self._roster.load
        self._turn = turn = (self._turn + 1) % len(able)
        return min(able[turn:] + able[:turn], key=lambda route: load(route.connector))


def _weight(key: str, connector: str) -> bytes:
    """Rendezvous hashing: who has the highest weight for a key keeps it whoever else comes and goes."""
    return hashlib.blake2b(f"{connector} {key}".encode(), digest_size=8).digest()
