"""The wheel: never early, late by at most a granule, and moving later is free."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from tunnelgw.net.timers import INF, LAG_SECONDS, Wheel

if TYPE_CHECKING:
    import pytest


class Clock:
    """The part of an event loop that the wheel uses, with time moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.calls: list[tuple[float, object]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback) -> Clock:
        self.calls.append((self.now + delay, callback))
        return self

    def cancel(self) -> None:
        self.calls.clear()

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self.calls and min(when for when, _ in self.calls) <= end:
            self.calls.sort(key=lambda call: call[0])
            self.now, callback = self.calls.pop(0)
            callback()
        self.now = end


class Item:
    def __init__(self, clock: Clock) -> None:
        self.deadline = INF
        self.armed_until = INF
        self.clock = clock
        self.fired: list[float] = []

    def on_deadline(self, now: float) -> None:
        self.fired.append(now)


def test_fires_once_and_not_early() -> None:
    clock = Clock()
    wheel, item = Wheel(clock), Item(clock)
    wheel.arm(item, clock.now + 1.0)
    clock.advance(0.99)
    assert item.fired == []
    clock.advance(0.6)
    assert len(item.fired) == 1
    clock.advance(10)
    assert len(item.fired) == 1
    assert clock.calls == []  # an idle wheel holds no timer


def test_moving_later_needs_no_arm() -> None:
    clock = Clock()
    wheel, item = Wheel(clock), Item(clock)
    wheel.arm(item, clock.now + 1.0)
    item.deadline = clock.now + 5.0
    clock.advance(4.9)
    assert item.fired == []
    clock.advance(0.6)
    assert len(item.fired) == 1


def test_what_is_forgotten_never_fires_and_is_not_kept() -> None:
    clock = Clock()
    wheel = Wheel(clock)
    item, other = Item(clock), Item(clock)
    kept = weakref.ref(item)
    wheel.arm(item, clock.now + 60.0)
    wheel.arm(item, clock.now + 5.0)  # earlier: the wheel must not keep it in two places
    wheel.arm(other, clock.now + 5.0)
    wheel.forget(item)
    assert item.deadline == item.armed_until == INF
    wheel.arm(item, clock.now + 2.0)
    clock.advance(3.0)
    assert len(item.fired) == 1
    wheel.arm(item, clock.now + 60.0)
    wheel.forget(item)
    wheel.forget(item)
    del item
    assert kept() is None
    clock.advance(100.0)
    assert len(other.fired) == 1
    assert clock.calls == []


def test_one_may_forget_or_move_another_of_the_same_turn() -> None:
    clock = Clock()
    wheel = Wheel(clock)

    class Meddler(Item):
        def on_deadline(self, now: float) -> None:
            super().on_deadline(now)
            wheel.forget(gone)
            wheel.arm(moved, now + 3.0)

    first, gone, moved = Meddler(clock), Item(clock), Item(clock)
    for item in (first, gone, moved):
        wheel.arm(item, clock.now + 1.0)
    clock.advance(2.0)
    assert [len(item.fired) for item in (first, gone, moved)] == [1, 0, 0]
    clock.advance(10.0)
    assert [len(item.fired) for item in (first, gone, moved)] == [1, 0, 1]


def test_cleared_never_fires() -> None:
    clock = Clock()
    wheel, item = Wheel(clock), Item(clock)
    wheel.arm(item, clock.now + 1.0)
    item.deadline = INF
    clock.advance(10)
    assert item.fired == []


def test_close_stops_everything() -> None:
    clock = Clock()
    wheel, item = Wheel(clock), Item(clock)
    wheel.arm(item, clock.now + 1.0)
    wheel.close()
    clock.advance(10)
    assert item.fired == []


def test_a_late_turn_is_remembered_for_a_while() -> None:
    clock = Clock()
    wheel, item = Wheel(clock), Item(clock)
    wheel.arm(item, clock.now + 1000.0)
    clock.advance(10)
    assert wheel.lag < 1e-6
    clock.calls = [(when + 3.0, callback) for when, callback in clock.calls]  # the loop does something else meanwhile
    clock.advance(4)
    assert abs(wheel.lag - 3.0) < 1e-6
    clock.advance(LAG_SECONDS)
    assert abs(wheel.lag - 3.0) < 1e-6
    clock.advance(LAG_SECONDS + 1)
    assert wheel.lag < 1e-6


@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 8)), min_size=1, max_size=20))
def test_any_sequence_of_arms(steps: list[tuple[float, float]]) -> None:
    clock = Clock()
    wheel, item = Wheel(clock), Item(clock)
    due = INF
    for wait, delay in steps:
        clock.advance(wait)
        if item.fired:
            assert all(fired >= due for fired in item.fired)
            assert item.fired[0] <= due + 0.5 + 1e-6
            item.fired.clear()
        else:
            assert due > clock.now - 0.5
        due = clock.now + delay
        wheel.arm(item, due)
    clock.advance(20)
    assert len(item.fired) == 1
    assert due <= item.fired[0] <= due + 0.5 + 1e-6


def test_a_deadline_that_fails_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Item):
        def on_deadline(self, now: float) -> None:
            raise ValueError("ours")

    clock = Clock()
    wheel, broken, item, later = Wheel(clock), Broken(clock), Item(clock), Item(clock)
    for one, when in ((broken, 1.0), (item, 1.0), (later, 2.0)):
        wheel.arm(one, clock.now + when)
    clock.advance(3)
    assert len(item.fired) == len(later.fired) == 1
    assert "our own fault" in caplog.text
