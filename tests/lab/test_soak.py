"""A minute of the soak, and the rules by which it judges."""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab import faults
from tests.lab.faults import FAULTS
from tests.lab.soak import Soak, plan, soaking, summary, unavailable
from tests.lab.verdict import RULES, Event, explanation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab.lab import Lab

pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.slow]
SEED = 22435  # within that time: links, a NAT, a killed connector, a killed edge, full disks
SECONDS = 36.0


@pytest.fixture
def lab(possible: None, tmp_path: Path) -> Iterator[Lab]:
    if unavailable():
        pytest.skip(f"the soak {unavailable()}")
    with soaking(tmp_path) as lab:
        yield lab


def failure(
    kind: str = "h1", *, began: float, ended: float, since: float = 0.0, cause: str = "reset", method: str = "POST"
) -> dict[str, Any]:
    return {
        "kind": kind, "cause": cause, "method": method, "number": 1, "began": began, "since": since or began,
        "ended": ended,
    }  # fmt: skip


def event(fault: Any, began: float, over: float) -> Event:
    return Event(FAULTS[fault.__name__], began, over)


@pytest.mark.parametrize(
    ("fault", "found", "explained"),
    [
        (faults.link_reset, failure(began=99, ended=101), False),
        (faults.router_reboots, failure("ssh", began=105, since=50, ended=106), False),
        (faults.connector_dies, failure(began=99, ended=101, cause="answered 503 x"), True),
        (faults.connector_dies, failure(began=99, ended=101), False),  # told, never cut
        (faults.connector_dies, failure(began=101.5, since=50, ended=102, cause="answered 503 x"), False),  # it waits
        (faults.connector_dies, failure("ssh", began=101, since=50, ended=102), True),
        (faults.connector_dies, failure("ssh", began=103, since=102.5, ended=104), False),
        (faults.connector_dies, failure("upload", began=99, ended=98), False),
        (faults.connector_dies, failure("websocket", began=150, since=50, ended=151), False),  # long after
        (faults.edge_dies, failure(began=101, ended=101, cause="refused"), True),
        (faults.edge_dies, failure(began=105, ended=106), False),  # it serves again
        (faults.edge_dies, failure(began=101, ended=106, cause="answered 502 x"), False),
        (faults.edge_dies, failure(began=99, ended=101, cause="wrong: another hash"), False),
        # What is safe is asked once more, of the other member of a group too.
        (faults.connector_dies, failure("h2", began=99, ended=101, method="GET"), False),
        (faults.connector_dies, failure("group", began=99, ended=101, method="GET"), False),
        (faults.connector_dies, failure("download", began=99, ended=101, method="GET"), True),
        # A stop lets what is short end.
        (faults.connector_restarts, failure(began=99, ended=101), False),
        (faults.connector_restarts, failure("ssh", began=101, since=50, ended=102), True),
        (faults.service_down, failure(began=102, since=50, ended=102, cause="answered 502 x"), True),
        (faults.service_down, failure(began=102, ended=102, cause="answered 503 x"), False),
        (faults.service_down, failure(began=102, ended=102), False),  # told, never cut
        (faults.service_down, failure("upload", began=99, ended=102), True),
        (faults.service_down, failure("ticks", began=100.1, since=50, ended=100.2), True),
        (faults.service_down, failure("ssh", began=100.1, since=50, ended=100.2), False),
        (faults.service_down, failure("group", began=100.1, since=50, ended=100.2, cause="answered 502 x"), False),
        (faults.service_down, failure(began=104.5, since=50, ended=104.6, cause="answered 502 x"), False),  # it is up
        (faults.service_slow, failure(began=101, ended=111.1, cause="answered 504 x"), True),
        (faults.service_slow, failure(began=101, ended=102, cause="answered 504 x"), False),  # too early
        (faults.service_slow, failure("ticks", began=101, since=50, ended=111), False),  # it waits
        (faults.disks_full, failure("ssh", began=101, since=50, ended=102), False),
        (faults.clocks_jump, failure("ssh", began=101, since=50, ended=102), False),
        (faults.edge_without_descriptors, failure(began=101, ended=102), True),
        (faults.edge_without_descriptors, failure(began=101, since=50, ended=102), False),  # it was open
        (faults.edge_without_descriptors, failure(began=101, ended=102, cause="answered 502 x"), False),
        (faults.connector_without_descriptors, failure(began=101, since=50, ended=102, cause="answered 502 x"), True),
        (faults.connector_without_descriptors, failure(began=101, since=50, ended=102), False),
        (faults.connector_without_descriptors, failure("ssh", began=101, since=50, ended=102), False),
        (faults.connector_without_descriptors, failure("ssh", began=101, ended=102), True),
    ],
)
def test_what_explains_a_failure(fault: Any, found: dict[str, Any], explained: bool) -> None:
    assert bool(explanation(found, [event(fault, 100, 103)])) == explained


@pytest.mark.parametrize(
    ("found", "explained"),
    [
        (failure(began=110, ended=130.2, cause="answered 503 x"), True),
        (failure(began=110, ended=115, cause="answered 503 x"), False),  # it had to wait
        (failure(began=110, ended=130.2, cause="answered 502 x"), False),
        (failure(began=101, since=50, ended=191, cause="answered 502 x"), True),
        (failure(began=101, ended=191, cause="answered 502 x"), False),  # a stream of its own
        (failure(began=101, since=50, ended=191, cause="answered 502 x", method="GET"), False),
        (failure(began=150, since=50, ended=191, cause="answered 502 x"), False),  # it was not sent then
        (failure("ssh", began=101, since=50, ended=191), False),
    ],
)
def test_what_a_long_sleep_explains(found: dict[str, Any], explained: bool) -> None:
    assert bool(explanation(found, [event(faults.connector_sleeps_long, 100, 190)])) == explained


def test_what_is_safe_is_asked_once_more_not_twice() -> None:
    told = failure("group", began=99.5, ended=104.5, cause="answered 503 x", method="GET")
    first, second = event(faults.connector_dies, 100, 101), event(faults.connector_dies, 103, 104)
    assert explanation(told, [first, second]) == "connector_dies"
    assert not explanation(told, [first])
    assert not explanation({**told, "began": 102.5}, [first, second])
    assert not explanation({**told, "cause": "reset"}, [first, second])


def test_a_connector_that_stops_without_a_link_cuts_what_is_under_way() -> None:
    cut = failure("upload", began=99, ended=103)
    stop = event(faults.connector_restarts, 100, 102)
    assert explanation(cut, [event(faults.link_frozen, 98, 98), stop]) == "connector_restarts"
    assert not explanation(cut, [event(faults.link_frozen, 80, 80), stop])
    assert not explanation({**cut, "began": 102.5}, [event(faults.link_frozen, 98, 98), stop])


def test_a_group_of_which_one_may_be_away() -> None:
    told = failure("group", began=120.2, ended=120.3, cause="answered 502 x", method="GET")
    down = event(faults.service_down, 120, 121)
    assert explanation(told, [event(faults.link_frozen, 112, 112), down]) == "service_down"
    assert not explanation(told, [event(faults.link_frozen, 105, 105), down]), "that was noticed long ago"
    assert not explanation(told, [event(faults.disks_full, 112, 117), down])
    assert not explanation({**told, "cause": "reset"}, [event(faults.link_frozen, 112, 112), down])


def test_what_an_old_edge_carries_does_not_resume() -> None:
    events = [event(faults.edge_upgrades, 100, 101), event(faults.link_reset, 120, 120)]
    assert explanation(failure("ssh", began=120, since=50, ended=121), events) == "link_reset"
    assert not explanation(failure("ssh", began=120, since=110, ended=121), events)
    assert not explanation(failure("ssh", began=110, since=50, ended=111), events)
    jump = [event(faults.edge_upgrades, 100, 101), event(faults.clocks_jump, 120, 124)]
    assert explanation(failure(began=123, since=50, ended=123.1), jump) == "clocks_jump", "the link was cut in between"
    events = [event(faults.edge_upgrades, 100, 101), event(faults.service_down, 120, 120)]
    assert not explanation(failure("ssh", began=120, since=50, ended=121), events), "the link is not lost by that"


def test_the_same_seed_gives_the_same_faults() -> None:
    def first(seed: int, count: int) -> list[Any]:
        return list(islice(plan(seed, lambda: math.inf), count))

    assert first(7, 50) == first(7, 50) != first(8, 50)
    assert {fault.name for _, fault in first(7, 1000)} == set(FAULTS)


def test_nothing_is_begun_that_takes_too_long() -> None:
    short = list(islice(plan(7, lambda: 90.0), 1000))
    assert {fault.name for _, fault in short} == set(FAULTS) - {"connector_sleeps_long"}
    everything = [one for one in islice(plan(7, lambda: math.inf), 1000) if one[1].name != "connector_sleeps_long"]
    assert everything == short[: len(everything)], "nothing else changes by that"
    assert list(plan(7, lambda: 2.0)) == []


def test_each_word_has_its_rule() -> None:
    assert {fault.breaks for fault in FAULTS.values()} == set(RULES)


@pytest.mark.timeout(240)
def test_a_minute(lab: Lab) -> None:
    said: list[str] = []
    outcome = Soak(lab, seed=SEED, say=said.append).run(SECONDS)
    report = summary(outcome, lab.loads[-1].table(outcome.report))
    print("\n".join([*said, report]))
    assert outcome.problems == [], f"{report}\n{lab.logs()}"
    assert len(outcome.events) >= 3
    assert outcome.counted["tunnel_resumes"] >= 2
