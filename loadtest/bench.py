"""`make bench`: tunnelgw beside all others that are installed, in turn, in one run, as ratios.

    python -m loadtest.bench [--quick|--full] [--only "h1, 32"]... [--contender NAME]... [--seconds 2] [--rounds 3]

Half an hour: scenarios that need long runs have one round and the best known contenders only. --full has everybody in
everything and --rounds for all, and takes hours; so do --only and --contender for what they name. Writes
loadtest/results/<date>-<commit>.md, .json and .png. --list says what there is. As root it runs in a network namespace
of its own, where one scenario makes the loopback narrow.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest import picture, report
from loadtest.contenders import CONTENDERS
from loadtest.contenders.base import which
from loadtest.figures import OURS
from loadtest.report import Outcome
from loadtest.scenes import everything
from loadtest.scenes.uplink import alone
from loadtest.stage import Stage, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadtest.scenario import Scenario

NEEDED = ("nginx", "h2load", "openssl", "curl")
# Who is in scenarios of long runs where the command line does not say who.
BEST_KNOWN = (OURS, "haproxy", "frp", "rathole")
LONG = 4.0  # seconds of one run
# Whatever a contender or a load generator does wrong must not cost the other figures.
TROUBLE = (RuntimeError, OSError, subprocess.SubprocessError, AssertionError, ValueError)


class Bench:
    """Takes the turns: every round has every contender once, and every second round in reversed order."""

    def __init__(
        self, outcome: Outcome, *, seconds: float, rounds: int, say: Callable[[str], None], spare: bool = False
    ) -> None:
        """spare: long runs once, and for BEST_KNOWN only."""
        self.outcome = outcome
        self.seconds = seconds
        self.rounds = rounds
        self.say = say
        self.spare = spare
        self.plan = [(scenario, self.able(scenario)) for scenario in outcome.scenarios]
        self.total = sum(self.turns(scenario) * len(able) for scenario, able in self.plan)
        self.done = 0
        self.began = time.monotonic()

    def turns(self, scenario: Scenario) -> int:
        """How many rounds a scenario has."""
        if self.spare and scenario.seconds > LONG:
            return 1
        return min(self.rounds, scenario.rounds or self.rounds)

    def able(self, scenario: Scenario) -> list[str]:
        """The contenders that have a figure in it; why the others have none is noted."""
        able = []
        for name in self.outcome.contenders:
            why = refusal(scenario, name)
            if not why and self.spare and scenario.seconds > LONG and name not in BEST_KNOWN:
                why = "a long scenario, measured where --full or --only asks for it"
            if why:
                self.outcome.absent[scenario.name, name] = why
            else:
                able.append(name)
        return able

    def run(self, stage: Stage) -> None:
        """All scenarios."""
        for scenario, able in self.plan:
            stage.keep_only(scenario.setup)
            for turn in range(self.turns(scenario)):
                for name in able if turn % 2 == 0 else reversed(able):
                    self.one(stage, scenario, name, turn)

    def one(self, stage: Stage, scenario: Scenario, name: str, turn: int) -> None:
        """One run of one contender; trouble is noted, and what caused it started anew the next time."""
        place = f"{scenario.name}, round {turn + 1} of {self.turns(scenario)}: {name}"
        try:
            target = stage.target(CONTENDERS[name], scenario.setup, fresh=scenario.fresh)
            run = measure(scenario, target, scenario.seconds or self.seconds, turn)
        except TROUBLE as error:
            text = str(error).strip().splitlines()
            why = text[0] if text else type(error).__name__
            self.outcome.absent[scenario.name, name] = why
            stage.drop(CONTENDERS[name], scenario.setup)
            said = f"failed, {why}"
        else:
            self.outcome.runs.append(run)
            said = f"{report.number(run.value)} {scenario.unit}"
        self.done += 1
        self.say(f"[{self.done}/{self.total}, {self.left()} left] {place} {said}")

    def left(self) -> str:
        """How long the rest will take, if it goes on like this."""
        seconds = (time.monotonic() - self.began) / self.done * (self.total - self.done)
        return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def refusal(scenario: Scenario, name: str) -> str:
    """Why a contender has no figure in a scenario; "" if it has."""
    contender = CONTENDERS[name]
    why = contender.refuses(scenario.setup) or scenario.refuses(name)
    return why or ("no HTTP/2 to visitors" if scenario.http2 and not contender.http2 else "")


def chosen(options: argparse.Namespace, scenarios: Sequence[Scenario]) -> list[Scenario]:
    """The scenarios that the command line asks for."""
    if options.only:
        return [scenario for scenario in scenarios if any(part in scenario.name for part in options.only)]
    return [scenario for scenario in scenarios if _in_time(scenario, options)]


def _in_time(scenario: Scenario, options: argparse.Namespace) -> bool:
    return options.full or (not scenario.long and (scenario.quick or not options.quick))


def parse(arguments: Sequence[str] | None, scenarios: Sequence[Scenario]) -> argparse.Namespace:
    """The command line; exits with 2 and the known names where one is unknown."""
    parser = argparse.ArgumentParser(
        prog="loadtest.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", metavar="PART", help="scenarios with this in their name")
    parser.add_argument("--contender", action="append", choices=list(CONTENDERS), help="beside tunnelgw: only this one")
    parser.add_argument("--quick", action="store_true", help="a few scenarios, one second and two rounds each")
    parser.add_argument("--full", action="store_true", help="everybody in everything, all rounds: hours")
    parser.add_argument("--seconds", type=float, help="of one run (2)")
    parser.add_argument("--rounds", type=int, help="of each contender (3)")
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument("--list", action="store_true", help="print scenarios and contenders")
    options = parser.parse_args(arguments)
    options.spare = not (options.full or options.only or options.contender or options.rounds)
    options.seconds = options.seconds or (1.0 if options.quick else 2.0)
    options.rounds = options.rounds or (2 if options.quick else 3)
    if options.seconds < 0.5 or options.rounds < 1:
        parser.error("a run takes half a second at least, and there is one round at least")
    for part in options.only or []:
        if not any(part in scenario.name for scenario in scenarios):
            known = "".join(f"\n  {scenario.name}" for scenario in scenarios)
            parser.error(f"no scenario has {part!r} in its name; there are:{known}")
    return options


def prepare(options: argparse.Namespace, scenarios: Sequence[Scenario]) -> Outcome:
    """Who and what takes part, and why the others do not."""
    outcome = Outcome([], [])
    names = [OURS, *(options.contender or CONTENDERS)]
    for name in dict.fromkeys(names):
        if why := CONTENDERS[name].missing():
            outcome.skipped[name] = why
    outcome.contenders = [name for name in CONTENDERS if name in names and name not in outcome.skipped]
    wanted = chosen(options, scenarios)
    for scenario in wanted:
        if why := scenario.needs():
            outcome.skipped[scenario.name] = why
    outcome.scenarios = [scenario for scenario in wanted if scenario.name not in outcome.skipped]
    return outcome


def setups(outcome: Outcome) -> list[str]:
    """How the contenders were set up, for the kinds of job that were done."""
    kinds = dict.fromkeys(scenario.setup.kind for scenario in outcome.done())
    return [
        f"{name}: " + "; ".join(f"{kind}: {how}" for kind, how in CONTENDERS[name].kinds.items() if kind in kinds)
        for name in outcome.contenders
    ]


def say(text: str) -> None:
    """Progress, beside the result."""
    print(text, file=sys.stderr, flush=True)


def lacking() -> list[str]:
    """Programs without which nothing can be measured, and that are not there."""
    return [program for program in NEEDED if which(program) is None]


def finish(outcome: Outcome, options: argparse.Namespace) -> None:
    """Print the page; write it, the figures and the picture."""
    about = report.environment(**report.VERSIONS)
    how = (
        f"Up to {options.rounds} rounds of {options.seconds:g} s, contenders in turn, every second round in reversed "
        "order. All run on the same cores, with one ECDSA P-256 certificate, and one worker or thread where that is a "
        "setting; Go and Rust programs use as many threads as they choose (GOMAXPROCS is left alone)."
    )
    text = report.markdown(outcome, about, how, setups(outcome))
    print(text)
    if options.no_write:
        return
    page = report.write(outcome, about, text)
    say(f"written: {page} and {page.with_suffix('.json').name}")
    if why := picture.missing():
        say(f"no picture: {why}")
    else:
        picture.draw(outcome, page.with_suffix(".png"), f"tunnelgw {about['commit']}, {about['cpu']}, {about['date']}")
        say(f"written: {page.with_suffix('.png')}")


def on_own_loopback(arguments: Sequence[str]) -> None:
    """As root: go on in a network namespace with nothing but a loopback, which a scenario may make narrow."""
    if os.geteuid() == 0 and not alone() and which("unshare"):
        inside = 'ip link set lo up && exec "$@"'
        again = [sys.executable, "-m", "loadtest.bench", *arguments]
        os.execvp("unshare", ["unshare", "--net", "--", "sh", "-c", inside, "sh", *again])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the scenarios. 1 where a needed program is missing, or nobody has a figure."""
    scenarios = everything()
    options = parse(arguments, scenarios)
    if options.list:
        print("\n".join(["scenarios:", *(f"  {scenario.name}" for scenario in scenarios)]))
        print("\n".join(["contenders:", *(f"  {name}: {one.missing() or 'here'}" for name, one in CONTENDERS.items())]))
        return 0
    if missing := lacking():
        say(f"bench: not on PATH: {' '.join(missing)} (Debian: nginx nghttp2-client openssl curl)")
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    outcome = prepare(options, scenarios)
    for name, why in outcome.skipped.items():
        say(f"{name}: skipped, {why}")
    bench = Bench(outcome, seconds=options.seconds, rounds=options.rounds, say=say, spare=options.spare)
    say(f"{len(outcome.scenarios)} scenarios, {len(outcome.contenders)} contenders, {bench.total} runs")
    with tempfile.TemporaryDirectory(prefix="tunnelgw-bench-") as folder:
        stage = Stage(Path(folder))
        stopped = False
        try:
            bench.run(stage)
        except KeyboardInterrupt:
            say("stopped: what was measured until now follows, and is not written")
            stopped = options.no_write = True
        finally:
            stage.close()
    if not outcome.runs:
        say("bench: nobody has a figure")
        return 1
    finish(outcome, options)
    return 130 if stopped else 0


if __name__ == "__main__":
    on_own_loopback(sys.argv[1:])
    sys.exit(main())
