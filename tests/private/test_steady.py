"""Packets no faster than the far end takes them, on a clock that the test moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunnelgw.private import steady
from tunnelgw.private.steady import QUEUE, SILENT_SECONDS, Steady
from tunnelgw.wire.waiting import AGE

if TYPE_CHECKING:
    from collections.abc import Callable

PARCEL = bytes(64 * 1024)


class Clock:
    """A loop as far as timers go."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None], Timer]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        timer = Timer()
        self.timers.append((self.now + seconds, call, timer))
        return timer

    def go(self, seconds: float) -> None:
        self.now += seconds
        due = [one for one in self.timers if one[0] <= self.now]
        self.timers = [one for one in self.timers if one[0] > self.now]
        for _, call, timer in due:
            if not timer.cancelled:
                call()


class Timer:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Wire:
    """A stream, its tunnel's queue and what seals, all in one; the test carries its datagrams."""

    def __init__(self) -> None:
        self.sent = 0
        self.out: list[bytes] = []
        self.full = False
        self.on_datagram: Callable[[bytes], None] | None = None

    def seal(self, data: bytes) -> bytes:
        self.sent += 1
        return (self.sent - 1).to_bytes(8, "big") + data

    def open(self, sealed: bytes) -> bytes | None:
        return sealed[8:] if len(sealed) >= 8 else None

    def send_datagram(self, sealed: bytes, now: float) -> None:
        assert now >= 100.0
        self.out.append(sealed)

    def has_room(self, resume: Callable[[], None]) -> bool:
        return not self.full


def make(clock: Clock) -> tuple[Steady, Wire, list[bytes]]:
    got: list[bytes] = []
    wire: Any = Wire()
    return Steady(wire, wire, wire, got.append, loop=clock), wire, got  # type: ignore[arg-type]


def carry(wire: Wire, to: Wire) -> None:
    out, wire.out = wire.out, []
    for sealed in out:
        assert to.on_datagram is not None
        to.on_datagram(sealed)


def fill(end: Steady, resume: Callable[[], None]) -> int:
    count = 1
    end.send(PARCEL)
    while end.has_room(resume):
        end.send(PARCEL)
        count += 1
    return count


def test_what_is_under_way_is_bounded_and_goes_on_when_it_was_heard() -> None:
    clock = Clock()
    (near, its), (_, theirs, got) = make(clock)[:2], make(clock)
    told: list[str] = []
    assert fill(near, lambda: told.append("go")) == QUEUE // len(PARCEL)
    clock.go(0.01)
    carry(its, theirs)
    assert len(got) == QUEUE // len(PARCEL)
    assert told == []
    carry(theirs, its)
    assert told == ["go"]
    assert len(got) == QUEUE // len(PARCEL), "what was heard is said to nobody"


def test_little_is_heard_too() -> None:
    clock = Clock()
    (near, its), (_, theirs, _) = make(clock)[:2], make(clock)
    for waits in (0.0, steady.ACK_SECONDS):  # the first one is heard of at once, others are collected
        near.send(b"ping")
        carry(its, theirs)
        assert bool(theirs.out) == (not waits)
        clock.go(waits)
        carry(theirs, its)
        assert near._size == 0
    assert not near._under_way


def test_a_silent_far_end_holds_us_up_for_a_second_at_a_time() -> None:
    clock = Clock()
    near, _, _ = make(clock)
    told: list[str] = []
    fill(near, lambda: told.append("go"))
    clock.go(SILENT_SECONDS / 2)
    assert told == []
    clock.go(SILENT_SECONDS / 2)
    assert told == ["go"]
    assert near.has_room(lambda: None)


def test_losses_are_forgotten_with_what_came_after_them() -> None:
    clock = Clock()
    (near, its), (_, theirs, got) = make(clock)[:2], make(clock)
    fill(near, lambda: None)
    del its.out[:-2]  # all but two are lost
    clock.go(0.01)
    carry(its, theirs)
    clock.go(steady.ACK_SECONDS)
    carry(theirs, its)
    assert len(got) == 2
    assert near._size == 0


def turn(clock: Clock, near: Steady, its: Wire, theirs: Wire, seconds: float) -> None:
    fill(near, lambda: None)
    clock.go(seconds)
    carry(its, theirs)
    carry(theirs, its)


def test_a_long_way_gets_a_large_window_and_a_narrow_one_does_not() -> None:
    clock = Clock()
    (near, its), (_, theirs, _) = make(clock)[:2], make(clock)
    for _ in range(20):
        turn(clock, near, its, theirs, 0.1)
    assert near.window > 4 * QUEUE, "100 ms, and nothing queues"
    assert near.window <= steady.MOST
    clock = Clock()
    (near, its), (_, theirs, _) = make(clock)[:2], make(clock)
    near.send(b"ping")
    clock.go(0.01)
    carry(its, theirs)
    carry(theirs, its)
    for _ in range(40):
        turn(clock, near, its, theirs, 0.01 + near.window / 2_500_000)  # 20 Mbit/s: it is queued
    assert near.window < QUEUE
    assert 0.1 < near.window / 2_500_000 < AGE, "what waits is neither nothing nor late"
    for _ in range(40):
        turn(clock, near, its, theirs, 0.01 + near.window / 125_000)  # it becomes a bad 1 Mbit/s, and a good line
    assert near.window / 125_000 < AGE, "for longer than it remembers the shortest round trip"
    for _ in range(40):
        turn(clock, near, its, theirs, 0.02)
    assert near.window > QUEUE


def test_whatever_the_far_end_says() -> None:
    clock = Clock()
    near, wire, got = make(clock)
    for text in (b"\xff", b"\xff\xff", b"\xff" + b"\xff" * 8, b"\xff" * 100):
        near.send(PARCEL)
        assert wire.on_datagram is not None
        wire.on_datagram(bytes(8) + text)
        wire.on_datagram(text[:3])
    assert got == []
    assert near.refused == 4
    assert near._size >= 0
    wire.full = True
    assert not near.has_room(lambda: None), "the link is full"
    near.close()
    near.close()
    assert wire.on_datagram is None
    near.send(PARCEL)
    assert near.has_room(lambda: None)


def test_who_is_silent_holds_up_a_shared_source_once() -> None:
    """Its packets are dropped from then on, until it is heard again: others wait for the same interface."""
    clock = Clock()
    near, its, _ = make(clock)
    far, theirs, got = make(clock)
    told: list[str] = []
    held = 0
    for _ in range(400):
        held += not near.offer(PARCEL, lambda: told.append("go"))
        if near._expiry is not None and not near.silent:
            clock.go(SILENT_SECONDS)
        clock.go(0.05)
    assert held == 1
    assert near.silent
    its.out = its.out[-1:]
    carry(its, theirs)
    assert got
    clock.go(0.01)
    carry(theirs, its)
    assert not near.silent
    assert far.refused == 0


def test_what_is_heard_within_one_tick_of_the_clock_took_some_time() -> None:
    clock = Clock()
    near, its, _ = make(clock)
    for _ in range(8):
        fill(near, lambda: None)
        clock.go(SILENT_SECONDS)
    fill(near, lambda: None)
    heard = bytes((steady.HEARD,)) + (2**63).to_bytes(8, "big")
    assert its.on_datagram is not None
    its.on_datagram(bytes(8) + heard)
    assert near._size == 0
    assert near.window >= steady.LEAST
