"""Requests that wait for a connector which is away for a moment.

A parked request is a waiter with its route and visitor; nothing of it was sent anywhere. It is answered exactly once:
by a stream when the connector is back, by its deadline, or by the connector's end; or it is cancelled by its visitor.

Invariant: a waiter is in the lot exactly as long as somebody still owes it an answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.access.addresses import address_key
from tunnelgw.edge.joint import Caller
from tunnelgw.net.timers import INF
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire.control import Open

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tunnelgw.gateway.opener import StreamWaiter, Visitor
    from tunnelgw.net.timers import Wheel
    from tunnelgw.obs.counters import ProcessCounters
    from tunnelgw.routing.table import Route
    from tunnelgw.wire.stream import Stream

# Requests parked in one process: each holds a visitor connection and its head, about 40 KB; 1,024 are 40 MB at worst.
PARKED_MAX = 1024
# Of them for one connector, so that another one's visitors may wait too; and of one address (IPv6: /64).
PARKED_PER_CONNECTOR, PARKED_PER_ADDRESS = 512, 128


class Parked:
    """One request that waits; an item of the wheel."""

    __slots__ = ("armed_until", "deadline", "lane", "route", "visitor", "waiter")

    def __init__(self, lane: Lane, route: Route, visitor: Visitor, waiter: StreamWaiter) -> None:
        self.lane = lane
        self.route = route
        self.visitor = visitor
        self.waiter = waiter
        self.deadline = INF
        self.armed_until = INF

    def on_deadline(self, now: float) -> None:  # noqa: ARG002 - the wheel's interface
        """It waited long enough."""
        self.lane.refuse(self, Reason.PARK_TIMEOUT)


class ParkingLot:
    """All parked requests of a process, by waiter."""

    __slots__ = ("_addresses", "_by_waiter", "_counters", "wheel")

    def __init__(self, wheel: Wheel, counters: ProcessCounters) -> None:
        self._by_waiter: dict[StreamWaiter, Parked] = {}
        self._addresses: dict[str, int] = {}
        self._counters = counters
        self.wheel = wheel

    def __len__(self) -> int:
        return len(self._by_waiter)

    def room_for(self, visitor: Visitor, lane: Lane) -> bool:
        """Whether a further request may wait."""
        if len(self._by_waiter) >= PARKED_MAX or len(lane) >= PARKED_PER_CONNECTOR:
            return False
        return self._addresses.get(address_key(visitor.address), 0) < PARKED_PER_ADDRESS

    def add(self, parked: Parked) -> None:
        """It waits from now on."""
        key = address_key(parked.visitor.address)
        self._addresses[key] = self._addresses.get(key, 0) + 1
        self._by_waiter[parked.waiter] = parked
        self._counters.park()

    def remove(self, parked: Parked) -> bool:
        """It no longer waits; False if it did not any more."""
        parked.deadline = INF
        if self._by_waiter.pop(parked.waiter, None) is None:
            return False
        key = address_key(parked.visitor.address)
        self._addresses[key] -= 1
        if not self._addresses[key]:
            del self._addresses[key]
        self._counters.unpark()
        return True

    def cancel(self, waiter: StreamWaiter) -> None:
        """The visitor left. Idempotent."""
        parked = self._by_waiter.get(waiter)
        if parked is not None:
            parked.lane.drop(parked)


class Lane:
    """The requests that wait for one connector, in order. `since()`: since when it is away (Unix seconds)."""

    __slots__ = ("_lot", "_parked", "_since")

    def __init__(self, lot: ParkingLot, since: Callable[[], float]) -> None:
        self._lot = lot
        self._parked: dict[Parked, None] = {}
        self._since = since

    def __len__(self) -> int:
        return len(self._parked)

    def park(self, route: Route, visitor: Visitor, waiter: StreamWaiter, *, until: float) -> None:
        """Wait until then (loop time) at most."""
        parked = Parked(self, route, visitor, waiter)
        self._parked[parked] = None
        self._lot.add(parked)
        self._lot.wheel.arm(parked, until)

    def drop(self, parked: Parked) -> None:
        """Nobody waits for the answer any more."""
        self._parked.pop(parked, None)
        self._lot.remove(parked)

    def refuse(self, parked: Parked, reason: Reason) -> None:
        """Answer one with no."""
        self._parked.pop(parked, None)
        if self._lot.remove(parked):
            parked.waiter.stream_refused(reason, self._since())

    def refuse_all(self, reason: Reason, *, who: Callable[[Parked], bool] = lambda _: True) -> None:
        """Answer all with no, or some."""
        for parked in tuple(self._parked):
            if who(parked):
                self.refuse(parked, reason)

    def leave(self, open_stream: Callable[[Parked], Stream | Reason]) -> None:
        """The connector is back: give each its stream, in order, or the reason why there is none."""
        for parked in self._drain():
            answer = open_stream(parked)
            if isinstance(answer, Reason):
                parked.waiter.stream_refused(answer, self._since())
            else:
                parked.waiter.stream_ready(answer)

    def _drain(self) -> Iterator[Parked]:
        waiting, self._parked = self._parked, {}
        for parked in waiting:
            if self._lot.remove(parked):
                yield parked


def request_for(route: Route, visitor: Visitor) -> Open:
    """What a stream's OPEN says for this visitor of this route."""
    if isinstance(visitor, Caller):
        return visitor.request
    return Open(
        service=route.service,
        kind="tls" if route.kind == "home" else route.kind,
        visitor=visitor.address,
        visitor_port=visitor.port,
        edge=visitor.edge_address,
        edge_port=visitor.edge_port,
        host=visitor.server_name,
        many=visitor.key is None,
    )
