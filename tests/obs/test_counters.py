"""Counters, snapshots and their merge."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from tunnelgw.obs.counters import DURATION_BOUNDS, ProcessCounters, RouteCounters
from tunnelgw.obs.reasons import Reason
from tunnelgw.obs.snapshot import ProcessSnapshot, empty, merge

counts = st.integers(min_value=0, max_value=2**53)
labels = st.sampled_from(["a.example.com/", "b.example.com/wiki", "tcp:2222"])
routes = st.fixed_dictionaries(
    {
        "requests": st.dictionaries(st.sampled_from(["200", "404", "502"]), counts),
        "bytes_in": counts,
        "bytes_out": counts,
        "durations": st.lists(counts, min_size=len(DURATION_BOUNDS) + 1, max_size=len(DURATION_BOUNDS) + 1),
        "duration_sum": counts.map(float),
    }
)
connectors = st.fixed_dictionaries(
    {
        "up": st.integers(0, 4),
        "detached": st.integers(0, 4),
        "rtt": st.sampled_from([0.0, 0.01, 0.2]),
        "reconnects": counts,
        "resumes": counts,
        "streams": counts,
    }
)
snapshots = st.fixed_dictionaries(
    {
        "routes": st.dictionaries(labels, routes),
        "refused": st.dictionaries(st.sampled_from(["no_route", "idle"]), counts),
        "failovers": st.dictionaries(st.sampled_from(["target_refused", "target_reset"]), counts),
        "left_out": st.dictionaries(st.sampled_from(["target_refused", "target_tls"]), counts),
        "members": st.dictionaries(labels, st.dictionaries(st.sampled_from(["home", "office"]), st.integers(0, 1))),
        "connections": st.dictionaries(st.sampled_from(["https", "http", "tcp"]), counts),
        "parked": counts,
        "parked_total": counts,
        "buffered_bytes": counts,
        "datagrams_dropped": counts,
        "loop_lag": st.sampled_from([0.0, 0.01, 0.2]),
        "connectors": st.dictionaries(st.sampled_from(["home", "office"]), connectors),
        "certificates": st.dictionaries(st.sampled_from(["a", "b"]), st.floats(1, 1e10)),
        "order_failures": st.dictionaries(st.sampled_from(["a", "b"]), st.integers(0, 9)),
        "state_failing": st.integers(0, 1),
    }
)


def test_a_bound_is_inclusive_and_what_is_slower_has_its_own_bucket() -> None:
    route = RouteCounters("a")
    for seconds in (0.0, DURATION_BOUNDS[0], DURATION_BOUNDS[0] + 1e-9, DURATION_BOUNDS[-1], 1e9):
        route.observe(200, seconds)
    assert route.durations[0] == 2
    assert route.durations[1] == 1
    assert route.durations[-2:] == [1, 1]
    assert sum(route.durations) == 5


def test_a_status_that_http_does_not_know_makes_no_label() -> None:
    route = RouteCounters("a")
    for status in (99, 600, 999, -1, 10**9):
        route.observe(status, 0.1)
    assert route.requests == {502: 5}


def test_a_route_keeps_its_counters_when_it_comes_back() -> None:
    counters = ProcessCounters()
    counters.route("a").observe(200, 0.1)
    assert counters.route("a").requests == {200: 1}


def test_every_reason_can_be_counted() -> None:
    counters = ProcessCounters()
    for reason in Reason:
        counters.refuse(reason)
        counters.refuse(reason)
    assert counters.snapshot()["refused"] == {reason.label: 2 for reason in Reason}
    assert counters.refused(Reason.NO_ROUTE) == 2


def test_snapshot_is_json_and_a_copy() -> None:
    counters = ProcessCounters()
    counters.route("a").observe(200, 0.1)
    counters.connection_opened("https")
    counters.park()
    snapshot = counters.snapshot()
    assert json.loads(json.dumps(snapshot)) == snapshot
    counters.route("a").observe(200, 0.1)
    counters.connection_closed("https")
    counters.unpark()
    assert snapshot["routes"]["a"]["requests"] == {"200": 1}
    assert snapshot["connections"] == {"https": 1}
    assert (snapshot["parked"], counters.parked, counters.parked_total) == (1, 0, 1)


@given(snapshots)
def test_merge_of_one_is_that_one(one: ProcessSnapshot) -> None:
    assert merge([one]) == one
    assert merge([empty(), one]) == one


@given(snapshots, snapshots, snapshots)
def test_merge_is_associative_and_commutative_and_leaves_its_arguments_alone(
    one: ProcessSnapshot, two: ProcessSnapshot, three: ProcessSnapshot
) -> None:
    before = json.dumps([one, two, three])
    whole = merge([one, two, three])
    assert whole == merge([merge([one, two]), three]) == merge([three, merge([two, one])])
    assert json.dumps([one, two, three]) == before
