"""How many requests may wait: in all, for one connector, of one address."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.edge.front import route, run
from tunnelgw.edge.parking import PARKED_MAX, PARKED_PER_ADDRESS, PARKED_PER_CONNECTOR, Lane, ParkingLot
from tunnelgw.gateway.opener import Visitor
from tunnelgw.net.timers import Wheel
from tunnelgw.obs.counters import ProcessCounters
from tunnelgw.obs.reasons import Reason


class Waiter:
    def __init__(self) -> None:
        self.reasons: list[Reason] = []

    def stream_refused(self, reason: Reason, since: float) -> None:
        self.reasons.append(reason)


def test_room_is_shared(tmp_path: Any) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        wheel = Wheel(loop)
        counters = ProcessCounters()
        lot = ParkingLot(wheel, counters)
        lanes = [Lane(lot, lambda: 0.0) for _ in range(3)]
        waiters: list[Waiter] = []

        def park(lane: Lane, address: str) -> bool:
            visitor = Visitor(address, 1)
            if not lot.room_for(visitor, lane):
                return False
            waiters.append(Waiter())
            lane.park(route("http"), visitor, waiters[-1], until=loop.time() + 60)  # type: ignore[arg-type]
            return True

        tries = PARKED_PER_ADDRESS + 5
        assert sum(park(lanes[0], f"2001:db8::{number:x}") for number in range(tries)) == PARKED_PER_ADDRESS
        assert park(lanes[0], "::ffff:192.0.2.1")
        waiting = [park(lanes[0], f"10.0.{number // 100}.{number % 100}") for number in range(PARKED_PER_CONNECTOR)]
        assert sum(waiting) == PARKED_PER_CONNECTOR - PARKED_PER_ADDRESS - 1
        assert park(lanes[1], "192.0.2.1")
        others = [park(lanes[1 + number % 2], f"10.1.{number // 100}.{number % 100}") for number in range(PARKED_MAX)]
        assert sum(others) == PARKED_MAX - PARKED_PER_CONNECTOR - 1
        assert counters.parked == PARKED_MAX
        for lane in lanes:
            lane.refuse_all(Reason.CONNECTOR_AWAY)
        assert all(waiter.reasons == [Reason.CONNECTOR_AWAY] for waiter in waiters)
        assert counters.parked == 0
        assert lot._addresses == {}
        assert park(lanes[0], "2001:db8::1")
        lanes[0].refuse_all(Reason.CONNECTOR_AWAY)
        wheel.close()

    run(main)
