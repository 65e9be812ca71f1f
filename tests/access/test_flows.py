"""Which UDP flows there may be: whatever floods do, proven flows stay and the number is bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunnelgw.access.flows import NEW_SECONDS, PROVEN_SECONDS, FlowBounds, patience


class Flow:
    def __init__(self, key: str | None) -> None:
        self.key = key
        self.proven = False


KEYS = st.one_of(st.none(), st.sampled_from("abcdef"))
STEPS = st.lists(st.tuples(st.sampled_from(("add", "add", "add", "prove", "remove")), KEYS, st.integers(0, 99)))


@given(STEPS)
def test_bounds_hold_and_no_proven_flow_goes_for_another(steps: list[tuple[str, str | None, int]]) -> None:
    bounds: FlowBounds[Flow] = FlowBounds(new=5, proven=7, per_key=3)
    alive: list[Flow] = []
    for step, key, number in steps:
        if step == "add":
            flow = Flow(key)
            gone = bounds.add(flow)
            alive.append(flow)
            if gone is not None:
                assert gone is not flow, "the newest always gets in"
                assert not gone.proven
                alive.remove(gone)
        elif alive:
            flow = alive[number % len(alive)]
            if step == "prove":
                bounds.prove(flow)
            else:
                bounds.remove(flow)
                bounds.remove(flow)
                alive.remove(flow)
        new = [flow for flow in alive if not flow.proven]
        assert len(bounds) == len(alive)
        assert bounds.proven == len(alive) - len(new) <= 7
        assert len(new) <= 5
        assert all(sum(flow.key == key for flow in new) <= 3 for key in "abcdef")
    for flow in alive:
        bounds.remove(flow)
    assert len(bounds) == 0


def test_who_has_most_goes_first_and_of_those_the_oldest() -> None:
    bounds: FlowBounds[Flow] = FlowBounds(new=4, proven=4, per_key=3)
    single = Flow("a")
    many = [Flow("b") for _ in range(3)]
    assert [bounds.add(flow) for flow in (single, *many)] == [None] * 4
    assert bounds.add(Flow("c")) is many[0]
    assert bounds.add(Flow("b")) is many[1], "as many as an address may have: its own oldest goes"


def test_one_address_has_no_more_than_its_share_of_proven_flows() -> None:
    bounds: FlowBounds[Flow] = FlowBounds(new=100, proven=16)
    for _ in range(16):
        flow = Flow("a")
        bounds.add(flow)
        bounds.prove(flow)
    assert bounds.proven == 3
    other = Flow("b")
    bounds.add(other)
    bounds.prove(other)
    assert other.proven


def test_a_flow_waits_longer_once_it_is_proven() -> None:
    flow = Flow("a")
    assert patience(flow) == NEW_SECONDS
    flow.proven = True
    assert patience(flow) == PROVEN_SECONDS
