"""A collapse is noticed: tunnelgw beside two chained HAProxy processes on four scenarios, in under two minutes.

    python -m loadtest.check

Prints the ratios. Machines are busy, so only what is below 0.6 in every round, and again in every round when measured a
second time, is an error.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest import figures, report
from loadtest.bench import Bench, lacking, say
from loadtest.contenders import CONTENDERS
from loadtest.figures import OURS
from loadtest.report import Outcome
from loadtest.scenes.requests import SCENARIOS
from loadtest.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadtest.figures import Median
    from loadtest.scenario import Scenario

THEIRS = "haproxy"
LEAST = 0.6
SECONDS, ROUNDS = 2.0, 2
CHECKED = [scenario for scenario in SCENARIOS if scenario.quick]


def measured(stage: Stage, scenarios: Sequence[Scenario]) -> dict[str, Median | None]:
    """The ratio of each scenario; None where one of the two has no figure at all, which is a collapse too."""
    outcome = Outcome(scenarios, [OURS, THEIRS])
    Bench(outcome, seconds=SECONDS, rounds=ROUNDS, say=say).run(stage)
    found = {}
    for scenario in scenarios:
        ours, theirs = (outcome.of(scenario.name, name) for name in outcome.contenders)
        found[scenario.name] = figures.ratio(ours, theirs, higher_is_better=scenario.higher_is_better)
    return found


def collapsed(found: dict[str, Median | None]) -> list[str]:
    """The names of those below LEAST in their best round."""
    return [name for name, ratio in found.items() if ratio is None or ratio.most < LEAST]


def table(found: dict[str, Median | None]) -> str:
    """The ratios, for people."""
    lines = [[name, report.shown(ratio) if ratio else "no figure"] for name, ratio in found.items()]
    return report.rows(["requests per second", f"{OURS} / {THEIRS}"], lines)


def main() -> int:
    """1 where a ratio is below LEAST twice, or a program is missing."""
    missing = [*lacking(), *filter(None, [CONTENDERS[THEIRS].missing()])]
    if missing:
        say(f"check: {', '.join(missing)} (Debian: haproxy nginx nghttp2-client openssl curl)")
        return 1
    with tempfile.TemporaryDirectory(prefix="tunnelgw-check-") as folder:
        stage = Stage(Path(folder))
        try:
            found = measured(stage, CHECKED)
            if again := collapsed(found):
                say(f"below {LEAST}, measured again: {'; '.join(again)}")
                found |= measured(stage, [scenario for scenario in CHECKED if scenario.name in again])
        finally:
            stage.close()
    print(table(found), flush=True)
    if bad := collapsed(found):
        say(f"check: twice below {LEAST} of {THEIRS}: {'; '.join(bad)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
