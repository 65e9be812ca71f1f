"""A minute of the soak, and the rules by which it judges."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab import faults
from tests.lab.faults import FAULTS
from tests.lab.soak import Event, Soak, explanation, plan, summary

if TYPE_CHECKING:
    from tests.lab.lab import Lab

pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.slow]
SEED = 16469  # within a minute: an upgrade, links, NATs, a killed connector and a killed edge


def failure(
    kind: str = "h1", *, began: float, ended: float, since: float = 0.0, cause: str = "reset"
) -> dict[str, Any]:
    return {"kind": kind, "cause": cause, "number": 1, "began": began, "since": since or began, "ended": ended}


def event(fault: Any, began: float, over: float) -> Event:
    return Event(FAULTS[fault.__name__], began, over)


@pytest.mark.parametrize(
    ("fault", "found", "explained"),
    [
        (faults.link_reset, failure(began=99, ended=101), False),
        (faults.router_reboots, failure("ssh", began=105, since=50, ended=106), False),
        (faults.connector_dies, failure(began=99, ended=101), True),
        (faults.connector_dies, failure(began=101.5, since=50, ended=102), False),  # new: it would have been parked
        (faults.connector_dies, failure("ssh", began=101, since=50, ended=102), True),
        (faults.connector_dies, failure("ssh", began=103, since=102.5, ended=104), False),
        (faults.connector_dies, failure(began=99, ended=98), False),
        (faults.connector_dies, failure("websocket", began=150, since=50, ended=151), False),  # long after
        (faults.edge_dies, failure(began=101, ended=101, cause="refused"), True),
        (faults.edge_dies, failure(began=105, ended=106), False),  # it serves again
        (faults.edge_dies, failure(began=99, ended=101, cause="wrong: another hash"), False),
    ],
)
def test_what_explains_a_failure(fault: Any, found: dict[str, Any], explained: bool) -> None:
    assert bool(explanation(found, [event(fault, 100, 103)])) == explained


def test_what_an_old_edge_carries_does_not_resume() -> None:
    events = [event(faults.edge_upgrades, 100, 101), event(faults.link_reset, 120, 120)]
    assert explanation(failure("ssh", began=120, since=50, ended=121), events) == "link_reset"
    assert not explanation(failure("ssh", began=120, since=110, ended=121), events)
    assert not explanation(failure("ssh", began=110, since=50, ended=111), events)


def test_the_same_seed_gives_the_same_faults() -> None:
    assert list(islice(plan(7), 50)) == list(islice(plan(7), 50)) != list(islice(plan(8), 50))
    assert {fault.name for _, fault in islice(plan(7), 500)} == set(FAULTS)


@pytest.mark.timeout(240)
def test_a_minute(lab: Lab) -> None:
    said: list[str] = []
    outcome = Soak(lab, seed=SEED, say=said.append).run(42)
    report = summary(outcome, lab.loads[0].table(outcome.report))
    print("\n".join([*said, report]))
    assert outcome.problems == [], f"{report}\n{lab.logs()}"
    assert len(outcome.events) >= 6
    assert outcome.counted["tunnel_resumes"] >= 2
