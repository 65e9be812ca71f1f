"""Percentiles, slopes and schedules."""

from __future__ import annotations

import pytest

from loadtest.scenes.samples import Schedule, milliseconds, percentile, slope


def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed():
    values = list(range(1, 1001))
    assert [percentile(values, share) for share in (0.5, 0.99, 0.999, 1.0)] == [500, 990, 999, 1000]
    assert percentile(values, 0.0) == 1
    assert percentile([3.0], 0.5) == percentile([3.0], 0.999) == 3.0
    assert percentile([5.0, 1.0, 4.0, 2.0], 0.5) == 2.0  # of any order


def test_no_values_have_no_percentile():
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_milliseconds_of_seconds():
    assert milliseconds([0.001] * 99 + [0.25]) == {"p50_ms": 1.0, "p99_ms": 1.0, "p99.9_ms": 250.0, "max_ms": 250.0}


def test_a_slope_is_what_a_line_gains():
    assert slope([(0.0, 5.0), (1.0, 7.0), (2.0, 9.0)]) == pytest.approx(2.0)
    assert slope([(0.0, 1.0), (1.0, 3.0), (2.0, 1.0), (3.0, 3.0)]) == pytest.approx(0.4)
    assert slope([(10.0, 4.0), (20.0, 4.0)]) == 0.0


@pytest.mark.parametrize("samples", [[], [(1.0, 2.0)], [(1.0, 2.0), (1.0, 3.0)]])
def test_a_slope_needs_two_moments(samples):
    with pytest.raises(ValueError, match="two moments"):
        slope(samples)


def test_requests_keep_their_times_however_late_they_are_looked_at():
    schedule = Schedule(rate=4, begin=10.0)
    assert schedule.due(9.9, until=12.0) == []
    assert schedule.due(10.0, until=12.0) == [10.0]
    assert schedule.due(10.2, until=12.0) == []
    assert schedule.due(11.1, until=12.0) == [
        10.25,
        10.5,
        10.75,
        11.0,
    ]  # after a stall all of them, with their own times
    assert schedule.due(20.0, until=12.0) == [11.25, 11.5, 11.75]
    assert schedule.due(30.0, until=12.0) == []


def test_a_schedule_has_as_many_requests_as_its_rate_says():
    schedule = Schedule(rate=1000, begin=0.0)
    times = [at for step in range(700) for at in schedule.due(step * 0.0031, until=2.0)]
    assert len(times) == 2000
    assert times == sorted(set(times))
