"""A lab under load, and how tests judge what a fault did to visitors.

    loaded.begin()
    fault(loaded.lab)
    loaded.survived("reset", within=5.0)

Each judgement waits until every kind of load got something through that was begun after the fault, and prints one line:
what happened, the longest wait of a small request or message, resumes, what failed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.lab.programs import now
from tests.lab.verdict import Event, explanation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.lab.faults import Fault
    from tests.lab.lab import Lab, Load

ROOM = 5.0  # beside what is promised: machines are busy
NOTICED_BUSY, NOTICED_IDLE = 3.0, 10.0  # until a dead link is noticed
SMALL = ("h1", "h2", "websocket", "ticks", "ssh")  # whose waits are a fault's


@dataclass
class Loaded:
    """Inputs: `begin` before a fault, then one of the judgements after it."""

    lab: Lab
    load: Load
    since: float = 0.0
    resumes: int = 0
    parked: int = 0
    retried: int = 0

    def begin(self) -> None:
        self.resumes = self.lab.resumes()
        self.parked = self._parked()
        self.retried = self._retried(self.load.report())
        self.since = self.load.mark()

    def survived(self, what: str, *, within: float, resumed: bool = True, retried: bool = False) -> float:
        """Nobody noticed a fault that is over, but for waiting: how long, in seconds.

        retried: the server may have said of requests that it never looked at them.
        """
        if resumed:
            self.lab.wait_resumed(self.resumes)
        report, failures, resumes = self._outcome(what)
        assert failures == [], f"{failures}\n{self.load.table(report)}\n{self.lab.logs()}"
        assert (resumes > 0) == resumed, f"{resumes} resumes\n{self.lab.logs()}"
        assert retried or self._retried(report) == self.retried, self.load.table(report)
        return self._longest(report, within)

    def explained(
        self, what: str, fault: Fault, *, over: float, kinds: Iterable[str], within: float
    ) -> list[dict[str, Any]]:
        """Only what this fault may break, which was over at that time, and only of these kinds: what failed."""
        report, failures, _ = self._outcome(what)
        event = Event(fault, self.since, over)
        wrong = [one for one in failures if one["kind"] not in kinds or not explanation(one, [event])]
        assert not wrong, f"{wrong}\n{self.load.table(report)}\n{self.lab.logs()}"
        self._longest(report, within)
        return failures

    def _outcome(self, what: str) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
        """Wait until all goes on, and say what became of it: the report, the failures since then, the resumes."""
        self.load.wait_flowing(now())
        report = self.load.report()
        failures = [one for one in report["failures"] if one["ended"] >= self.since]
        resumes, parked = self._more(self.lab.resumes(), self.resumes), self._more(self._parked(), self.parked)
        longest = max(report["kinds"][kind]["longest"] for kind in SMALL)
        line = f"{what}: longest wait {longest:.2f} s, {resumes} resumes, {len(failures)} failed"
        causes = Counter(f"{one['kind']}: {one['cause']}" for one in failures)
        details = [f"{count} {cause}" for cause, count in sorted(causes.items())] + [f"{parked} parked"] * (parked > 0)
        print(f"{line} ({'; '.join(details)})" if details else line)
        return report, failures, resumes

    def _parked(self) -> int:
        return int(self.lab.metric("tunnelgw_parked_requests_total"))

    def _longest(self, report: dict[str, Any], within: float) -> float:
        waited = {kind: report["kinds"][kind]["longest"] for kind in SMALL}
        assert max(waited.values()) < within, waited
        return max(waited.values())

    @staticmethod
    def _retried(report: dict[str, Any]) -> int:
        return sum(facts["retried"] for facts in report["kinds"].values())

    @staticmethod
    def _more(count: int, before: int) -> int:
        """Counters begin anew with each process of the edge."""
        return count - before if count >= before else count
