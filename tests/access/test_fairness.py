"""Who goes and who is next when there is no room for all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunnelgw.access.crowd import Crowd
from tunnelgw.access.turns import Turns


def test_the_heaviest_address_loses_its_oldest() -> None:
    crowd: Crowd[str] = Crowd(4)
    assert [crowd.add("flood", f"f{number}") for number in range(4)] == [None] * 4
    assert crowd.add("visitor", "v0") == "f0"
    assert crowd.add("visitor", "v1") == "f1"
    assert crowd.add("flood", "f4") == "f2"
    assert set(crowd) == {"f3", "f4", "v0", "v1"}


def test_of_equals_the_oldest_goes() -> None:
    crowd: Crowd[str] = Crowd(2)
    assert [crowd.add(name, name) for name in "abcd"] == [None, None, "a", "b"]


def test_of_equals_who_holds_most_beside_it_goes() -> None:
    crowd: Crowd[str] = Crowd(9)
    for name in ("a0", "b0", "c0", "d0", "d1"):
        crowd.add(name[0], name)
    held = {"a": 1, "b": 3, "c": 3, "d": 2}
    taken = [crowd.take(lambda key: held[str(key)]) for _ in range(6)]
    assert taken == ["d0", "b0", "c0", "d1", "a0", None]


def test_members_without_an_address_are_nobodys_burden() -> None:
    crowd: Crowd[str] = Crowd(3)
    assert [crowd.add(None, name) for name in "xy"] == [None, None]
    assert [crowd.add("flood", name) for name in "ab"] == [None, "a"]
    assert set(crowd) == {"x", "y", "b"}


def test_a_member_that_left_is_not_asked_to_go() -> None:
    crowd: Crowd[str] = Crowd(2)
    crowd.add("a", "a0")
    crowd.discard("a0")
    crowd.discard("a0")
    assert [crowd.add("b", "b0"), crowd.add("c", "c0"), crowd.add("b", "b1")] == [None, None, "b0"]
    assert "b0" not in crowd


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=200))
def test_the_books_of_a_crowd_agree(steps: list[tuple[int, int]]) -> None:
    crowd: Crowd[int] = Crowd(6)
    model: dict[int, int] = {}
    for number, (key, leaving) in enumerate(steps):
        gone = crowd.add(key, number)
        model[number] = key
        if gone is not None:
            sizes = [list(model.values()).count(one) for one in model.values()]
            assert list(model.values()).count(model[gone]) == max(sizes)
            del model[gone]
        if leaving < 3 and model:
            member = list(model)[leaving % len(model)]
            crowd.discard(member)
            del model[member]
        assert set(crowd) == set(model)
        assert len(crowd) == len(model) <= 6
    for member in list(model):
        crowd.discard(member)
    assert (crowd._members, crowd._by_size, crowd._largest) == ({}, {}, 0)


def test_an_address_with_little_under_way_comes_first() -> None:
    turns: Turns[str] = Turns()
    for number in range(3):
        turns.join("flood", f"f{number}", 50 + number)
    turns.join("family", "y", 5)
    turns.join("visitor", "v", 1)
    assert len(turns) == 5
    assert [turns.take() for _ in range(6)] == ["v", "y", "f0", "f1", "f2", None]
    assert not turns


def test_addresses_take_turns() -> None:
    turns: Turns[str] = Turns()
    for item in ("a0", "a1", "a2", "b0", "b1", "c0"):
        turns.join(item[0], item, 4)
    assert [turns.take() for _ in range(6)] == ["a0", "b0", "c0", "a1", "b1", "a2"]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 100_000))))
def test_everything_that_waits_comes_out_once(joins: list[tuple[int, int]]) -> None:
    turns: Turns[int] = Turns()
    for number, (key, under_way) in enumerate(joins):
        turns.join(key, number, under_way)
    assert sorted(turns.take() for _ in joins) == list(range(len(joins)))  # type: ignore[type-var]
    assert turns.take() is None


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 300), st.integers(0, 5)), max_size=200))
def test_what_is_discarded_is_not_kept(steps: list[tuple[int, int, int]]) -> None:
    turns: Turns[int] = Turns()
    model: dict[int, None] = {}
    for number, (key, under_way, what) in enumerate(steps):
        turns.join(key, number, under_way)
        model[number] = None
        if what == 0:
            gone = next(iter(model))
            turns.discard(gone)
            turns.discard(gone)
            del model[gone]
        elif what == 1:
            taken = turns.take()
            assert taken in model
            del model[taken]
        assert len(turns) == len(model)
        assert sum(len(items) for keys in turns._classes for items in keys.values()) == len(model)
        assert all(items for keys in turns._classes for items in keys.values())
    assert sorted(turns.take() for _ in model) == sorted(model)  # type: ignore[type-var]
    assert turns.take() is None
