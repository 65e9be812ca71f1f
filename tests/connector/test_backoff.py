"""The dialling rhythm: at once after a loss, jittered below a ceiling, never slower than promised."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunnelgw.connector.backoff import LONG_CEILING, LONG_OUTAGE, REFUSED_CEILING, SETTLED, SHORT_CEILING, Backoff


def highest() -> float:
    return 0.999999


def test_a_settled_link_is_dialled_again_at_once() -> None:
    backoff = Backoff(random=highest)
    backoff.connected(100.0)
    assert backoff.lost(100.0 + SETTLED) == 0.0


def test_a_flapping_link_waits_longer_each_time() -> None:
    backoff = Backoff(random=highest)
    waits = []
    now = 0.0
    for _ in range(7):
        backoff.connected(now)
        now += 0.1
        waits.append(backoff.lost(now))
        now += waits[-1]
    assert waits == sorted(waits)
    assert waits[0] == 0.0
    assert waits[1] > 0.4
    assert waits[-1] > 3.9


def test_the_ceiling_is_four_seconds_then_fifteen() -> None:
    backoff = Backoff(random=highest)
    now = 0.0
    while now < LONG_OUTAGE:
        wait = backoff.failed(now)
        assert wait <= SHORT_CEILING
        now += wait + 1.0
    assert SHORT_CEILING < backoff.failed(now) <= LONG_CEILING


def test_a_settled_link_ends_the_outage() -> None:
    backoff = Backoff(random=highest)
    for second in range(0, 400, 10):
        backoff.failed(float(second))
    backoff.connected(400.0)
    assert backoff.lost(500.0) == 0.0
    assert backoff.failed(500.0) <= 0.25


def test_a_refusal_sets_a_floor_that_is_bounded() -> None:
    backoff = Backoff(random=highest)
    assert 15.0 <= backoff.failed(0.0, floor=15.0) <= 15.0 * 1.25
    assert backoff.failed(0.0, floor=86400.0) <= REFUSED_CEILING * 1.25


@given(st.lists(st.tuples(st.sampled_from("clf"), st.floats(0, 1000)), max_size=60), st.floats(0, 0.999999))
def test_no_history_waits_longer_than_promised(events: list[tuple[str, float]], chance: float) -> None:
    backoff = Backoff(random=lambda: chance)
    now = 0.0
    for event, gap in events:
        now += gap
        if event == "c":
            backoff.connected(now)
        else:
            wait = backoff.lost(now) if event == "l" else backoff.failed(now)
            assert 0.0 <= wait <= LONG_CEILING
