"""Figures out of samples: nothing here knows clocks or sockets."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of them (0 to 1) do not exceed. ValueError without values."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def milliseconds(values: Sequence[float]) -> dict[str, float]:
    """p50, p99, p99.9 and the largest of seconds, in milliseconds."""
    ordered = sorted(values)
    shares = {"p50_ms": 0.5, "p99_ms": 0.99, "p99.9_ms": 0.999, "max_ms": 1.0}
    return {name: round(percentile(ordered, share) * 1000, 3) for name, share in shares.items()}


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """What the value gains per unit of time, by least squares. ValueError for fewer than two moments."""
    times = [time for time, _ in samples]
    if len(set(times)) < 2:
        raise ValueError("a slope needs two moments")
    middle = sum(times) / len(samples)
    mean = sum(value for _, value in samples) / len(samples)
    above = sum((time - middle) * (value - mean) for time, value in samples)
    return above / sum((time - middle) ** 2 for time in times)


class Schedule:
    """When the requests of an open loop are to be sent: number N at `begin + N / rate`, whatever others became."""

    def __init__(self, *, rate: float, begin: float) -> None:
        self.rate = rate
        self.begin = begin
        self.taken = 0  # whose time had come

    def planned(self, number: int) -> float:
        """When a request is to be sent."""
        return self.begin + number / self.rate

    def due(self, now: float, *, until: float) -> list[float]:
        """The planned times that came since the last call, in order; none from `until` on."""
        times = []
        while (at := self.planned(self.taken)) <= now and at < until:
            times.append(at)
            self.taken += 1
        return times
