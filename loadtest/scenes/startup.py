"""How long a start takes: from exec until the front serves and the other end has its tunnel; and `--help`.

What "serves" means is the contender's own: what it prints, or that its port is listened on (looked at every 20 ms).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from loadtest.scenario import Measurement, RunError, Scenario, Setup, Target
from loadtest.scenes.children import latency

HELPS = 5


class StartUp(Scenario):
    """Seconds of the front; those of the other parts beside it."""

    name = "start of the front"
    unit = "s"
    higher_is_better = False
    setup = Setup()
    fresh = True
    seconds = 1

    def run(self, target: Target, seconds: float) -> Measurement:
        """All are stopped, then started one after the other as the contender wants it."""
        target.stop()
        took = {}
        for part in order(target):
            begin = time.monotonic()
            target.start(part)
            took[part] = round(time.monotonic() - begin, 3)
        found = latency(target, rate=50, seconds=seconds, channels=1)  # it does serve
        front, *others = target.parts
        extra = {f"{part} s": took[part] for part in others}
        if target.contender == "tunnelgw":
            extra["--help s"] = round(statistics.median(helped() for _ in range(HELPS)), 3)
        return Measurement(value=took[front], requests=found["requests"], extra=extra)


def order(target: Target) -> list[str]:
    """Edge first, as `Target.start` has it."""
    return list(target.parts)


def helped() -> float:
    """Seconds of `tunnelgw --help`."""
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "tunnelgw", "--help"], capture_output=True, check=False)
    if done.returncode or b"usage" not in done.stdout.lower():
        raise RunError("tunnelgw --help failed")
    return time.monotonic() - begin


SCENARIOS = [StartUp()]
