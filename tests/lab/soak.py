"""Faults at random times on a lab under load, for as long as one likes.

`make soak` (SOAK_SECONDS, SOAK_SEED, SOAK_WORKERS). The same seed gives the same faults after the same pauses, but for
those that there is no time for. At the end everything is accounted for: each failure needs a fault that explains it
(verdict.py), nothing may be under way, and edge and connectors may hold no more memory and descriptors than before, as
idle as they were then. The exit code says whether all of that is so.
"""

from __future__ import annotations

import argparse
import random
import secrets
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.lab import network
from tests.lab.faults import FAULTS, LATE_SECONDS, Fault, choose, clocks_jump, pause
from tests.lab.lab import Lab
from tests.lab.programs import Load, Program, now
from tests.lab.verdict import Event, explanation
from tests.system.clock import AVAILABLE, Clock
from tests.system.harness import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WARM_SECONDS = 1.0  # of load before memory is measured, and of a clock that jumps
PAUSES = (0.5, 6.0)  # seconds between the end of a fault and the next one
LAST_SECONDS = 6.0  # for the last fault, which is always the same
SETTLE_SECONDS = 60.0  # until everything flows again after the last fault
GROWTH_BYTES, GROWTH = 8 * 1024 * 1024, 1.1  # of memory: caches fill; a leak under this load is more
GROWTH_DESCRIPTORS = 4


@dataclass(slots=True)
class Outcome:
    """What a soak found; `problems` is empty if all is well."""

    seed: int
    events: list[Event] = field(default_factory=list)
    explained: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)  # of the edge's metrics, over all of its processes
    held: dict[str, list[tuple[float, int]]] = field(default_factory=dict)  # MB and descriptors, before and after
    report: dict[str, Any] = field(default_factory=dict)


def soaking(folder: Path, *, workers: int = 1) -> Lab:
    """A lab in which every fault can happen."""
    (folder / "clock").mkdir()
    return Lab(
        folder, workers=workers, web=f"response_seconds = {LATE_SECONDS:g}", state_mb=8,
        clock=Clock(folder / "clock") if AVAILABLE else None, group=True,
    )  # fmt: skip


def unavailable() -> str:
    """Why there can be no soak here; empty if there can."""
    return network.unavailable() or ("" if AVAILABLE else "needs faketime, for clocks that jump")


def plan(seed: int, left: Callable[[], float]) -> Iterator[tuple[float, Fault]]:
    """Pauses and faults, as long as there is time for one; those that take too long are left out."""
    dice = random.Random(seed)
    shortest = PAUSES[0] + min(fault.seconds for fault in FAULTS.values())
    while left() >= shortest:
        quiet, fault = dice.uniform(*PAUSES), choose(dice)
        if quiet + fault.seconds <= left():
            yield quiet, fault


class Soak:
    """One run on a lab."""

    def __init__(self, lab: Lab, *, seed: int, say: Callable[[str], None]) -> None:
        self.lab = lab
        self.say = say
        self.outcome = Outcome(seed)
        self._seen: Counter[str] = Counter()

    def run(self, seconds: float) -> Outcome:
        outcome, lab = self.outcome, self.lab
        began = now()
        self._warm()
        load = lab.load("--more")
        for quiet, fault in plan(outcome.seed, lambda: seconds - LAST_SECONDS - (now() - began)):
            pause(quiet)
            self._happen(fault, load, began)
        # Further on than ever: certificates are renewed once more, by connectors that were started since then too.
        self._happen(FAULTS["clocks_jump"], load, began, days=2 * 365)
        self._settle(load)
        outcome.report = load.finish(seconds=120)
        self._count()
        self._rest()
        load.process.stop()
        self._judge()
        return outcome

    def _warm(self) -> None:
        """What memory is compared with has had the load once, and is idle again, as at the end.

        Certificates are renewed as the clock jumps: the library for that stays, some 14 MB in each connector.
        """
        load = self.lab.load("--more")
        clocks_jump(self.lab)
        pause(WARM_SECONDS)
        load.finish()
        self._rest()
        load.process.stop()

    def _happen(self, fault: Fault, load: Load, began: float, **options: Any) -> None:
        self._count()
        waits = {kind: facts["longest"] for kind, facts in load.report()["kinds"].items()}
        kind = max(waits, key=lambda kind: waits[kind])
        self.say(f"           longest wait since then {waits[kind]:.1f} s ({kind})")
        start = load.mark()
        try:
            fault.happen(self.lab, **options)
        except (AssertionError, OSError, subprocess.TimeoutExpired) as error:
            self.outcome.problems.append(f"{fault.name}: {error!r}")
        self.outcome.events.append(Event(fault, start, now()))
        self.say(f"{start - began:7.1f} s  {fault.name}, {now() - start:.1f} s")

    def _settle(self, load: Load) -> None:
        self.lab.name_edge()
        try:
            load.wait_flowing(now(), seconds=SETTLE_SECONDS)
        except AssertionError as error:
            self.outcome.problems.append(f"after the last fault: {error}")

    def _rest(self) -> None:
        """Nobody asks for anything any more: nothing is held. Measures what is."""
        lab = self.lab
        old = [child for child in lab.children if child.name == "edge" and child is not lab.edge.process]
        for name, what in (
            ("tunnelgw_streams", lambda: lab.metric("tunnelgw_streams") == 0),
            ("tunnelgw_parked_requests", lambda: lab.metric("tunnelgw_parked_requests") == 0),
            ("tunnelgw_buffered_bytes", lambda: lab.metric("tunnelgw_buffered_bytes") == 0),
            ("processes of the edge that were replaced", lambda: all(one.popen.poll() is not None for one in old)),
            ("processes that sign", lambda: not any("identity.child" in line for line in lab.edge.lines())),
        ):
            try:
                wait_until(what, seconds=30, what=f"the end of all {name}")
            except AssertionError as error:
                self.outcome.problems.append(str(error))
        programs: dict[str, Program] = {"edge": lab.edge, "connector": lab.connector, "other connector": lab.other}
        for name, program in programs.items():
            self.outcome.held.setdefault(name, []).append((program.memory() / 1e6, program.descriptors()))

    def _count(self) -> None:
        """Counters go on from zero in each process of the edge."""
        for name in ("tunnel_resumes", "tunnel_reconnects", "parked_requests"):
            value = int(self.lab.metric(f"tunnelgw_{name}_total"))
            self.outcome.counted[name] += value - self._seen[name] if value >= self._seen[name] else value
            self._seen[name] = value

    def _judge(self) -> None:
        outcome = self.outcome
        for failure in outcome.report["failures"]:
            why = explanation(failure, outcome.events)
            if why:
                outcome.explained[f"{failure['kind']}: {failure['cause']} ({why})"] += 1
            else:
                outcome.problems.append(f"unexplained: {failure}")
        for kind, facts in outcome.report["kinds"].items():
            if facts["begun"] != facts["finished"] + sum(facts["failed"].values()):
                outcome.problems.append(f"not accounted for: {kind} {facts}")
            if not facts["finished"]:
                outcome.problems.append(f"nothing got through: {kind}")
        for name, ((memory, descriptors), (memory_after, descriptors_after)) in outcome.held.items():
            if memory_after > memory * GROWTH + GROWTH_BYTES / 1e6:
                outcome.problems.append(f"{name} grew from {memory:.1f} to {memory_after:.1f} MB")
            if descriptors_after > descriptors + GROWTH_DESCRIPTORS:
                outcome.problems.append(f"{name} held {descriptors} descriptors, and {descriptors_after} at the end")


def summary(outcome: Outcome, table: str) -> str:
    """For people."""
    happened = Counter(event.fault.name for event in outcome.events)
    lines = [
        table, "",
        f"faults ({len(outcome.events)}, seed {outcome.seed}): "
        + ", ".join(f"{name} {count}" for name, count in happened.most_common()),
        (f"resumes: {outcome.counted['tunnel_resumes']}, sessions begun anew: {outcome.counted['tunnel_reconnects']}, "
        f"requests parked: {outcome.counted['parked_requests']}"),
    ]  # fmt: skip
    for name, ((memory, descriptors), (memory_after, descriptors_after)) in outcome.held.items():
        lines.append(
            f"{name}, idle: {memory:.1f} MB and {descriptors} descriptors before, "
            f"{memory_after:.1f} MB and {descriptors_after} after"
        )
    lines += [f"explained, {count} times: {what}" for what, count in sorted(outcome.explained.items())]
    unexplained = len(outcome.problems)
    lines += outcome.problems[:50]
    lines.append("nothing unexplained, no growth" if not unexplained else f"PROBLEMS: {unexplained}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    missing = unavailable()
    if missing:
        sys.exit(f"the soak {missing}")
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    say: Callable[[str], None] = lambda line: print(line, flush=True)  # noqa: E731
    say(f"soak of {options.seconds:g} s; again with SOAK_SEED={seed}")
    with (
        tempfile.TemporaryDirectory(prefix=f"{network.PREFIX}-") as folder,
        soaking(Path(folder), workers=options.workers) as lab,
    ):
        outcome = Soak(lab, seed=seed, say=say).run(options.seconds)
        say(summary(outcome, lab.loads[-1].table(outcome.report)))
        if outcome.problems:
            say(lab.logs())
    sys.exit(1 if outcome.problems else 0)


if __name__ == "__main__":
    main()
