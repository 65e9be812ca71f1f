"""Datagrams that wait for the link: order, bounds, age, and that nobody waits for somebody else's bulk."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire.wirepair import End, Pair
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire.flow import Budget, SessionLimits
from tunnelgw.wire.frames import HEADER_SIZE
from tunnelgw.wire.waiting import AGE, FLOW_COST, MAX_DATAGRAM, OBJECT_COST, TURN, DatagramQueue

if TYPE_CHECKING:
    from collections.abc import Iterable

KIB = 1024
ROOM = 32 * KIB
BOUND = 256 * KIB

SIZES = st.one_of(st.integers(8, 1400), st.integers(8, MAX_DATAGRAM))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(1, 5), SIZES),
        st.tuples(st.just("many"), st.integers(1, 40), st.integers(1, 40)),  # of so many flows each
        st.tuples(st.just("fill"), st.integers(1, 64), st.just(0)),
        st.tuples(st.just("wait"), st.integers(1, 40), st.just(0)),
    ),
    max_size=60,
)


def number_of(data: bytes) -> int:
    return int.from_bytes(data[:8], "big")


class Run:
    """A queue and what comes out of it, as the far side reads it."""

    def __init__(self, bound: int = BOUND) -> None:
        self.queue = DatagramQueue(bound)
        self.bound = bound
        self.now = 100.0
        self.count = 0
        self.put_at: dict[int, tuple[int, float, int]] = {}  # number: flow, when, size
        self.far = End(opens_odd=False)
        self.far.session.attach(0, 0.0)
        self.out: list[tuple[int, bytes]] = self.far.handler.datagrams

    def put(self, flow: int, size: int) -> int:
        self.count += 1
        self.put_at[self.count] = (flow, self.now, size)
        self.queue.put(flow, self.count.to_bytes(8, "big") + bytes(size - 8), self.now)
        return self.count

    def fill(self, room: int = ROOM) -> list[int]:
        """One pull; the numbers that left, in order."""
        before = len(self.out)
        parts: list[bytes | memoryview] = []
        self.queue.fill(parts, room, self.now)
        self.far.session.feed(b"".join(parts), self.now)
        found = []
        for flow, data in self.out[before:]:
            known, at, size = self.put_at[number_of(data)]
            assert (flow, len(data)) == (known, size), "whole, and of its flow"
            assert at >= self.now - AGE, "never late"
            found.append(number_of(data))
        return found

    def memory(self) -> int:
        return sum(
            FLOW_COST + sum(len(frame) + OBJECT_COST for frame in flow.frames) for flow in self.queue._flows.values()
        )

    def check(self) -> None:
        flows = self.queue._flows
        assert self.queue._size == self.memory() <= self.bound
        assert all(flow.frames and len(flow.frames) == len(flow.since) for flow in flows.values())
        listed = [*self.queue._young, *self.queue._old]
        assert len(listed) == len(flows), "each flow is in one list, once, and nothing else is"
        assert {id(flow) for flow in listed} == {id(flow) for flow in flows.values()}


def in_order(found: Iterable[tuple[int, bytes]]) -> bool:
    by_flow = defaultdict(list)
    for flow, data in found:
        by_flow[flow].append(number_of(data))
    return all(one < other for numbers in by_flow.values() for one, other in pairwise(numbers))


@given(STEPS)
@settings(max_examples=300)
def test_whatever_happens(steps: list[tuple[str, int, int]]) -> None:
    run = Run()
    for what, number, size in steps:
        if what == "put":
            run.put(number, size)
        elif what == "many":
            for flow in range(number):
                for _ in range(size):
                    run.put(100 + flow, 8 + size)
        elif what == "fill":
            run.fill(number * KIB)
        else:
            run.now += number / 100
        run.check()
    while run.queue:
        run.fill()
        run.check()
    assert in_order(run.out)
    assert len(run.out) + run.queue.dropped == run.count, "each is sent or counted"


@given(st.lists(st.tuples(st.integers(1, 4), SIZES), min_size=1, max_size=12), st.integers(1, 64))
def test_within_the_bound_and_in_time_nothing_is_lost(puts: list[tuple[int, int]], room: int) -> None:
    run = Run(1024 * KIB)
    for flow, size in puts:
        run.put(flow, size)
    while run.queue:
        assert run.fill(room * KIB), "each pull sends one at least"
    assert len(run.out) == len(puts)
    assert in_order(run.out)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(8, 1400), st.sampled_from((1400, 60_000)))
def test_bulk_does_not_hold_up_a_game(bulks: list[int], size: int, large: int) -> None:
    """50 packets a second beside flows that have always more than the line takes: each leaves with the next pull."""
    run = Run()
    for turn in range(40):
        for flow, weight in enumerate(bulks):
            for _ in range(8 * weight):
                run.put(100 + flow, large)
        mine = run.put(1, size)
        sent = run.fill(8 * KIB)
        assert turn < len(bulks) or mine in sent, "once each of the others had its first turn"
        run.now += 0.02
        run.check()


@given(st.integers(8, MAX_DATAGRAM), st.integers(1, 16), st.integers(200, TURN - HEADER_SIZE))
@settings(max_examples=50, deadline=None)
def test_no_number_of_new_flows_starves_an_old_one(size: int, room: int, small: int) -> None:
    run = Run(1024 * KIB)
    new = 1000
    mine = [run.put(1, size) for _ in range(4)]
    for _ in range(10):
        while run.queue._size < 512 * KIB:  # more than a pull takes, of flows that never were before
            new += 1
            run.put(new, small)
        run.fill(room * KIB)
        run.now += 0.001
    sent = {number_of(data) for _, data in run.out}
    assert sent.issuperset(mine)
    assert len(sent) > len(mine), "and is not alone"


def test_flows_that_always_have_something_share_by_bytes() -> None:
    """Small packets, full ones and parcels of a whole machine's traffic: as many bytes of each."""
    run = Run(1024 * KIB)
    sizes = {1: 200, 2: 1400, 3: 60_000}
    sent: dict[int, int] = defaultdict(int)
    for _ in range(400):
        for flow, size in sizes.items():
            waiting = run.queue._flows.get(flow)
            have = waiting.size if waiting is not None else 0
            while have < 120_000:
                run.put(flow, size)
                have += size + OBJECT_COST
        for number in run.fill(ROOM):
            sent[run.put_at[number][0]] += run.put_at[number][2]
        run.now += 0.01
    assert max(sent.values()) < 1.2 * min(sent.values()), sent


def test_the_fullest_flow_loses_its_oldest() -> None:
    run = Run(64 * KIB)
    game = [run.put(1, 100) for _ in range(10)]
    bulk = [run.put(2, 1200) for _ in range(200)]
    game += [run.put(1, 100) for _ in range(10)]
    run.check()
    found = run.fill(1024 * KIB)
    assert [number for number in found if run.put_at[number][0] == 1] == game
    kept = [number for number in found if run.put_at[number][0] == 2]
    assert kept == bulk[-len(kept) :]
    assert len(kept) > 40, "and no more than has to be"
    assert run.queue.dropped == 200 - len(kept)


def test_a_visitor_with_many_ports_holds_no_more_and_costs_no_more() -> None:
    run = Run()
    for flow in range(20_000):
        run.put(flow, 8)
    run.check()
    assert len(run.queue._young) <= BOUND // FLOW_COST, "nothing is left of those that are gone"
    assert run.queue.dropped > 19_000


def test_late_is_late_by_the_time_of_the_pull() -> None:
    run = Run()
    old = [run.put(flow, 1000) for flow in (1, 2)]
    run.now += AGE * 0.75
    young = [run.put(flow, 1000) for flow in (2, 3)]
    run.now += AGE * 0.75
    assert run.fill() == young
    assert run.queue.dropped == len(old)
    assert not run.queue


def test_a_link_that_was_silent_sends_what_is_young() -> None:
    """The time of a datagram is its own, not that of the last thing the link did."""
    pair = Pair()
    pair.edge.session.send_datagram(1, b"before", pair.now)
    pair.now += 30.0
    pair.edge.session.send_datagram(1, b"after", pair.now)
    pair.edge.session.send_datagram(2, b"another's", pair.now)
    pair.run()
    assert pair.home.handler.datagrams == [(1, b"after"), (2, b"another's")]
    assert pair.edge.session.datagrams_dropped == 1


def test_a_source_waits_for_its_own_flow_alone() -> None:
    pair = Pair(SessionLimits(datagrams=400 * KIB))
    session, told = pair.edge.session, list[str]()
    for _ in range(5):
        session.send_datagram(1, bytes(40_000), 0.0)
    assert not session.out.datagrams.has_room(1, lambda: told.append("drained"))
    assert session.out.datagrams.has_room(2, lambda: told.append("never"))
    pair.run()
    assert told == ["drained"]


def test_a_process_counts_what_all_its_sessions_dropped() -> None:
    budget = Budget()
    ends = [End(opens_odd=True, budget=budget) for _ in range(2)]
    for end in ends:
        end.session.attach(0, 0.0)
        end.session.send_datagram(1, b"lost", 0.0)
        end.session.detach(0.0)
    assert budget.datagrams_dropped == 2
    for _ in range(2):
        ends[0].session.close(Reason.CONNECTOR_AWAY)
    assert budget.datagrams_dropped == 2, "a counter never falls"
