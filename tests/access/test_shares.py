"""What one address may hold while others want something too."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunnelgw.access.shares import FEW, Shares, share


def fill(shares: Shares, keys: list[str]) -> dict[str, int]:
    """Each takes in turn whatever it gets, until nobody gets anything more."""
    held = dict.fromkeys(keys, 0)
    while True:
        before = shares.taken
        for key in keys:
            if shares.room_for(key):
                shares.take(key)
                held[key] += 1
        if shares.taken == before:
            return held


def test_one_address_gets_thousands_and_never_all() -> None:
    shares = Shares(16384)
    assert fill(shares, ["greedy"]) == {"greedy": 3277}
    assert shares.room_for("somebody else")


def test_many_greedy_addresses_leave_something_for_the_next() -> None:
    shares = Shares(16384)
    held = fill(shares, [f"greedy {number}" for number in range(256)])
    assert set(held.values()) <= {62, 63, 64}
    visitor = fill(shares, ["visitor"])["visitor"]
    assert visitor >= 45, "a browser's page"


def test_a_few_are_always_allowed_while_there_are_any() -> None:
    shares = Shares(8)
    assert fill(shares, ["a", "b", "c"]) == {"a": FEW, "b": FEW, "c": 2}
    assert not shares.room_for("d")
    assert not shares.room_for(None), "nobody is held responsible, and yet there is nothing left"


def test_nobody_in_particular_may_have_all() -> None:
    shares = Shares(100)
    assert shares.room_for(None, 100)
    shares.take(None, 100)
    assert not shares.room_for(None)
    shares.give_back(None, 100)
    assert (shares.taken, shares._held) == (0, {})


@given(st.integers(0, 200), st.lists(st.tuples(st.integers(0, 5), st.integers(1, 2), st.booleans()), max_size=200))
def test_the_books_agree(most: int, steps: list[tuple[int, int, bool]]) -> None:
    shares = Shares(most)
    model: dict[int, list[int]] = {}
    for key, count, takes in steps:
        held = model.setdefault(key, [])
        if not takes:
            if held:
                shares.give_back(key or None, held.pop())
        elif shares.room_for(key or None, count):
            assert not key or sum(held) < share(most - shares.taken)
            shares.take(key or None, count)
            held.append(count)
        assert shares.taken == sum(map(sum, model.values())) <= most
        assert shares._held == {key: sum(held) for key, held in model.items() if key and held}
