"""A home that is far away: 50 and 200 ms of round trip on the link, one download and small requests.

The relay is one of user space and ends TCP on both of its sides: what is measured is each contender's own flow control
and round trips, not the kernel's windows over that distance.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from loadtest.scenario import Measurement, Scenario, Setup, Target
from loadtest.scenes.children import ROOT, latency, visits
from tests.ports import free_port

if TYPE_CHECKING:
    from loadtest.processes import Group

RELAY = ROOT / "tests" / "system" / "relay.py"
SMALL_SECONDS = 5.0
SMALL_RATE = 20.0


@dataclass(frozen=True)
class Delay:
    """A relay that passes on every byte after half the round trip (seconds), and takes commands."""

    round_trip: float

    def lay(self, group: Group, port: int, *, dialled_by: Literal["home", "edge"]) -> int:
        """Start it."""
        listen = free_port()
        command = [sys.executable, str(RELAY), str(listen), str(port), "--delay", str(self.round_trip / 2)]
        group.start("wire", [*command, "--control", str(group.folder / "wire.sock")], ready="ready")
        return listen


class FarDownload(Scenario):
    """Bytes per second of one download that began with nothing known of the path."""

    unit = "MB/s"
    seconds = 15

    def __init__(self, round_trip: float) -> None:
        self.name = f"{round_trip * 1000:.0f} ms round trip, one download"
        self.setup = Setup(wire=Delay(round_trip))

    def run(self, target: Target, seconds: float) -> Measurement:
        """One download for so long."""
        with visits(target, "download", "--path", "/1g", seconds=seconds) as child:
            found = child.answer(seconds=seconds)
        return Measurement(value=found["megabytes_per_second"], bytes=found["bytes"])


class FarRequests(Scenario):
    """Small requests on connections that are there."""

    unit = "ms"
    higher_is_better = False
    seconds = SMALL_SECONDS

    def __init__(self, round_trip: float) -> None:
        self.name = f"{round_trip * 1000:.0f} ms round trip, small requests"
        self.setup = Setup(wire=Delay(round_trip))

    def run(self, target: Target, seconds: float) -> Measurement:
        """At a rate that nobody is busy with."""
        found = latency(target, rate=SMALL_RATE, seconds=seconds, channels=16)
        return Measurement(value=found["p50_ms"], requests=found["requests"], extra={"p99 ms": found["p99_ms"]})


SCENARIOS: list[Scenario] = [kind(round_trip) for round_trip in (0.05, 0.2) for kind in (FarDownload, FarRequests)]
