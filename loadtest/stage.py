"""What is running during a benchmark: the home, started contenders, and what one run of one of them took."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest.home import start_nginx
from loadtest.processes import Group, cpu_seconds, forget_peak, peak_bytes
from loadtest.scenario import Kind, Scenario, Setup, Target
from tests.ports import free_port

if TYPE_CHECKING:
    from loadtest.contenders.base import Contender
    from loadtest.scenario import Home


@dataclass(frozen=True)
class Run:
    """One run: its figure, and what the contender's parts took for it."""

    scenario: str
    contender: str
    turn: int
    value: float
    requests: float
    bytes: float
    elapsed: float
    extra: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)  # seconds of each part
    peak: dict[str, int] = field(default_factory=dict)  # resident bytes of each part at its most

    def plain(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


class Stage:
    """One nginx at home for all, and the contenders that the present scenario needs; `close` ends everything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = Group(folder / "home")
        self.home.folder.mkdir()
        self.secure = free_port()
        self.plain = start_nginx(self.home, secure=self.secure)
        self.targets: dict[tuple[str, Setup], Target] = {}
        self._homes: dict[Home, int] = {}
        self._started = 0

    def service(self, setup: Setup) -> int:
        """The port at home that a setup leads to."""
        if setup.home is None:
            return self.secure if setup.kind is Kind.PASS else self.plain
        if setup.home not in self._homes:
            self._homes[setup.home] = setup.home.start(self.home)
        return self._homes[setup.home]

    def target(self, contender: Contender, setup: Setup, *, fresh: bool = False) -> Target:
        """A started contender. One whose process has died, or that must be fresh, is started anew.

        There is one wire at a time: whoever has another one is ended.
        """
        key = (contender.name, setup)
        if setup.wire is not None:
            for other in [other for other in self.targets if other != key]:
                self.targets.pop(other).group.stop()
        target = self.targets.get(key)
        if target is not None and (fresh or target.died()):
            self.drop(contender, setup)
            target = None
        if target is None:
            self._started += 1
            folder = self.folder / f"{self._started}-{contender.name}"
            target = self.targets[key] = contender.start(folder, setup, self.service(setup))
        return target

    def drop(self, contender: Contender, setup: Setup) -> None:
        """End a contender, if it runs."""
        target = self.targets.pop((contender.name, setup), None)
        if target is not None:
            target.group.stop()

    def keep_only(self, setup: Setup) -> None:
        """End the contenders of other setups: what stands idle would still cost memory and wake-ups."""
        for key in [key for key in self.targets if key[1] != setup]:
            self.targets.pop(key).group.stop()

    def close(self) -> None:
        """End everything."""
        for target in self.targets.values():
            target.group.stop()
        self.targets.clear()
        self.home.stop()


def measure(scenario: Scenario, target: Target, seconds: float, turn: int) -> Run:
    """One run, with CPU time and peak memory of every part around it. Raises what `Scenario.run` raises."""
    before = {pid: cpu_seconds(pid) for pids in target.pids().values() for pid in pids}
    for pid in before:
        forget_peak(pid)
    start = time.monotonic()
    seen = scenario.run(target, seconds)
    elapsed = time.monotonic() - start
    after = target.pids()
    return Run(
        scenario=scenario.name,
        contender=target.contender,
        turn=turn,
        value=seen.value,
        requests=seen.requests,
        bytes=seen.bytes,
        elapsed=elapsed,
        extra=seen.extra,
        cpu={part: sum(cpu_seconds(pid) - before.get(pid, 0.0) for pid in pids) for part, pids in after.items()},
        peak={part: sum(map(peak_bytes, pids)) for part, pids in after.items()},
    )
