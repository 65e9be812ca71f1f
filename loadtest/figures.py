"""Runs, condensed: medians with their spread, ratios of ours to theirs, CPU and memory. Nothing here measures."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loadtest.stage import Run

OURS = "tunnelgw"


@dataclass(frozen=True)
class Median:
    """The middle of several values, the smallest and the largest."""

    middle: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Median | None:
        """None where there are none."""
        numbers = list(values)
        return cls(statistics.median(numbers), min(numbers), max(numbers)) if numbers else None

    @property
    def spread(self) -> float:
        """Half of what lies between smallest and largest, as a part of the middle."""
        return (self.most - self.least) / 2 / self.middle if self.middle else 0.0


def of(runs: Sequence[Run], scenario: str, contender: str) -> list[Run]:
    """The runs of one contender in one scenario, by turn."""
    found = [run for run in runs if run.scenario == scenario and run.contender == contender]
    return sorted(found, key=lambda run: run.turn)


def ratio(ours: Sequence[Run], theirs: Sequence[Run], *, higher_is_better: bool = True) -> Median | None:
    """How many times better ours is, turn by turn, so that what slowed a whole turn counts for both."""
    other = {run.turn: run.value for run in theirs}
    pairs = [(run.value, other[run.turn]) for run in ours if run.turn in other]
    if not higher_is_better:
        pairs = [(theirs, ours) for ours, theirs in pairs]
    return Median.of(above / below for above, below in pairs if below)


def further(runs: Sequence[Run], label: str) -> list[Run]:
    """The same runs, with one of their further figures for a value; without those that lack it."""
    return [replace(run, value=run.extra[label]) for run in runs if label in run.extra]


@dataclass(frozen=True)
class Cost:
    """CPU time of each part for one unit of work, and of all together."""

    parts: dict[str, float]
    unit: str  # "µs/request" or "s/GB"

    @property
    def total(self) -> float:
        """Of all parts."""
        return sum(self.parts.values())


def cost(runs: Sequence[Run]) -> Cost | None:
    """Median CPU time: per request where bodies are small, per 10^9 bytes otherwise; None without either."""
    runs = [run for run in runs if run.requests or run.bytes]
    if not runs:
        return None
    bulky = not runs[0].requests or runs[0].bytes / runs[0].requests > 100_000
    scale, unit = (1e9, "s/GB") if bulky else (1e6, "µs/request")
    work = [run.bytes if bulky else run.requests for run in runs]
    parts = {
        part: statistics.median(run.cpu.get(part, 0.0) / done * scale for run, done in zip(runs, work, strict=True))
        for part in runs[0].cpu
    }
    return Cost(parts, unit)


def peaks(runs: Sequence[Run]) -> dict[str, int]:
    """The most that each part held in any run, in bytes."""
    parts = dict.fromkeys(part for run in runs for part in run.peak)
    return {part: max(run.peak.get(part, 0) for run in runs) for part in parts}
