"""Steady mixed load for ten minutes: does memory stay where it is?

Small requests at a fixed rate, new connections, downloads and uploads' worth of bytes at a fixed pace, each in a
process of its own; memory of each part every ten seconds.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time

from loadtest.scenario import Measurement, RunError, Scenario, Setup, Target
from loadtest.scenes.children import visits
from loadtest.scenes.idle import memory
from loadtest.scenes.samples import slope

EVERY = 10.0  # seconds between two looks
WARM = 0.2  # of the time: what is filled once, such as pools and heaps, is filled by then
RATE = 200.0  # small requests a second
PACE = 5_000_000  # bytes a second of each download
DOWNLOADS = 2
KIB = 1024


def steady(samples: list[tuple[float, float]], seconds: float) -> list[tuple[float, float]]:
    """Those after the warming."""
    return [sample for sample in samples if sample[0] >= WARM * seconds]


class Soak(Scenario):
    """KiB that the front gains a minute, by least squares; those of the other parts beside it."""

    name = "memory under ten minutes of mixed load"
    long = True
    unit = "KiB/min"
    higher_is_better = False
    setup = Setup()
    fresh = True
    rounds = 1
    seconds = float(os.environ.get("SOAK_SECONDS", "600"))

    def refuses(self, contender: str) -> str:
        """A promise of ours, and ten minutes."""
        return "" if contender == "tunnelgw" else "tunnelgw's own promise"

    def run(self, target: Target, seconds: float) -> Measurement:
        """All loads at once; a wrong answer of any ends it."""
        samples: dict[str, list[tuple[float, float]]] = {part: [] for part in target.parts}
        with contextlib.ExitStack() as stack:
            loads = [
                stack.enter_context(visits(target, module, *arguments, seconds=seconds))
                for module, arguments in (
                    ("latency", ("--rate", RATE, "--channels", 16)),
                    ("handshakes", ("--width", 1, "--pause", 0.05)),
                    *[("download", ("--rate", PACE, "--again"))] * DOWNLOADS,
                )
            ]
            begin = time.monotonic()
            while (since := time.monotonic() - begin) < seconds:
                for part, size in memory(target).items():
                    samples[part].append((since / 60, size / KIB))
                print(f"soak: {target.contender} {since:.0f} s, " + shown(samples), file=sys.stderr, flush=True)
                if not all(load.running for load in loads) and since < seconds - EVERY:
                    break  # one failed: its answer says why
                time.sleep(min(EVERY, max(0.0, begin + seconds - time.monotonic())))
            small, fresh, *bulk = [load.answer(seconds=30) for load in loads]
        gains = {part: slope(steady(found, seconds / 60)) for part, found in samples.items()}
        front, *others = target.parts
        extra = {f"{part} KiB/min": round(gains[part], 1) for part in others}
        extra |= {f"{part} MiB at the end": round(found[-1][1] / KIB, 1) for part, found in samples.items()}
        extra |= {"p99 ms": small["p99_ms"], "new connections": fresh["connections"]}
        if any(not load["bytes"] for load in bulk):
            raise RunError("a download brought nothing")
        volume = sum(load["bytes"] for load in bulk)
        return Measurement(value=round(gains[front], 1), requests=small["requests"], bytes=volume, extra=extra)


def shown(samples: dict[str, list[tuple[float, float]]]) -> str:
    """The last of each part."""
    return ", ".join(f"{part} {found[-1][1] / KIB:.1f} MiB" for part, found in samples.items())


SCENARIOS = [Soak()]
