"""When a link is dead, and when it is only us who slept."""

from __future__ import annotations

import math

import pytest

from tests.wire.wirepair import End, Pair
from tunnelgw.wire import frames
from tunnelgw.wire.frames import CONTROL, HEADER, PONG, U64, encode
from tunnelgw.wire.liveness import FRAME_SECONDS


def die(end: End, now: float) -> float:
    """The peer is silent from now on: when the link is found dead."""
    for _ in range(1000):
        end.pull_all(now)
        now = end.session.deadline
        end.session.tick(now)
        if end.session.link_dead:
            return now
    raise AssertionError("never")


@pytest.mark.parametrize("last", [0.0, 3.0, 4.9, 5.0, 61.7])
def test_a_silent_death_shows_within_ten_seconds_when_idle(last: float) -> None:
    pair = Pair()
    pair.run()
    pair.pass_time(last)
    for end in (pair.edge, pair.home):
        assert die(end, last) - last <= 10.0 - 0.25


@pytest.mark.parametrize("last", [0.0, 3.0, 61.7])
def test_with_bytes_unacknowledged_within_three(last: float) -> None:
    pair = Pair()
    stream, _ = pair.edge.open()
    pair.run()
    pair.pass_time(last)
    stream.write(b"request")
    assert die(pair.edge, last) - last <= 3.0


def test_a_link_that_takes_no_bytes_dies_too() -> None:
    pair = Pair()
    stream, _ = pair.edge.open()
    pair.run()
    stream.write(bytes(100_000))
    pair.edge.session.pull(1000, 0.0)
    while not pair.edge.session.link_dead:
        pair.now = pair.edge.session.deadline
        pair.edge.session.tick(pair.now)
    assert pair.now <= 3.0


def test_bytes_unacknowledged_ask_at_once() -> None:
    pair = Pair()
    stream, _ = pair.edge.open()
    pair.run()
    pair.pass_time(3.0)
    stream.write(b"request")
    assert encode(frames.PING, 0, b"")[:1] == pair.edge.pull_all(3.0)[-16:-15]


def test_any_byte_proves_life() -> None:
    pair = Pair()
    pair.run()
    byte = encode(frames.PONG, 0, bytes(8)) * 100
    now = 0.0
    for index in range(100):  # one byte in four seconds
        now += 4.0
        pair.edge.session.feed(byte[index : index + 1], now)
        pair.edge.session.tick(now)
        assert not pair.edge.session.link_dead


def test_an_idle_pair_lives_and_talks_little() -> None:
    pair = Pair()
    pair.run()
    pair.pass_time(600.0)
    assert not pair.edge.session.link_dead
    assert not pair.home.session.link_dead
    assert pair.edge.session.received == pair.home.session.received == 0
    assert pair.edge.session.liveness.next_number <= 123


def test_who_slept_asks_once_more() -> None:
    pair = Pair()
    stream, _ = pair.edge.open()
    pair.run()
    stream.write(b"x")
    pair.edge.pull_all()
    session = pair.edge.session
    session.tick(1.0)
    session.tick(500.0)
    assert not session.link_dead
    assert pair.edge.pull_all(500.0)[:1] == bytes([frames.PING])
    assert die(pair.edge, 500.0) <= 503.0


def test_who_slept_and_then_hears_goes_on() -> None:
    pair = Pair()
    pair.run()
    session = pair.edge.session
    session.tick(5.0)
    session.tick(900.0)
    session.feed(encode(frames.PONG, 0, U64.pack(1)), 900.1)
    assert not session.link_dead
    assert session.deadline > 900.1
    session.tick(903.5)
    assert not session.link_dead


def test_the_round_trip_is_measured_and_starts_anew_on_a_new_link() -> None:
    pair = Pair()
    session = pair.edge.session
    session.pull(65536, 0.0)
    session.feed(encode(frames.PONG, 0, U64.pack(1)), 0.08)
    assert session.rtt == session.min_rtt == pytest.approx(0.08)
    session.feed(encode(frames.PONG, 0, U64.pack(1)) + encode(frames.PONG, 0, U64.pack(77)), 9.0)
    assert session.rtt == pytest.approx(0.08)
    session.detach(10.0)
    assert session.deadline == math.inf
    session.tick(11.0)
    session.attach(0, 100.0)
    assert session.min_rtt == 0.0
    session.pull(65536, 100.0)
    session.feed(encode(frames.PONG, 0, U64.pack(2)), 100.2)
    assert session.min_rtt == pytest.approx(0.2)


def test_an_ack_comes_after_a_tenth_of_a_second_or_256_kib() -> None:
    pair = Pair()
    stream, _ = pair.edge.open()
    pair.run()
    pair.pass_time(1.0)
    stream.write(b"x")
    pair.run()
    assert pair.home.session.deadline == pytest.approx(1.1)
    assert pair.edge.session.retained_frames.size > 0
    pair.pass_time(0.11)
    assert pair.edge.session.retained_frames.size == 0
    stream.write(bytes(260 * 1024))
    pair.run()
    assert pair.edge.session.retained_frames.size < 64 * 1024


def test_stall_timers_stand_still_without_a_link() -> None:
    pair = Pair(held=True)
    stream, _ = pair.edge.open()
    stream.write(b"x")
    pair.run()
    home = pair.home.session
    assert home.oldest_stalled(5.0) == 5.0
    pair.now = 5.0
    pair.detach()
    assert home.oldest_stalled(90.0) == 5.0
    pair.now = 100.0
    pair.attach()
    assert home.oldest_stalled(101.0) == pytest.approx(6.0)


def test_a_frame_that_never_ends_is_no_sign_of_life() -> None:
    """A byte every few seconds answers no ping, and keeps a link only as long as one frame may take."""
    pair = Pair()
    pair.run()
    session = pair.edge.session
    session.feed(HEADER.pack(CONTROL << 24 | 1000, 0), 0.0)
    now, drip = 0.0, 2.0
    while not session.link_dead:
        now = min(session.deadline, drip)
        assert now < 40.0
        if now == drip:
            session.feed(b"x", now)
            drip += 2.0
        session.tick(now)
        session.pull(65536, now)
    assert now == FRAME_SECONDS


def test_whole_frames_in_small_pieces_keep_a_link() -> None:
    pair = Pair()
    pair.run()
    session = pair.edge.session
    now = 0.0
    text = encode(PONG, 0, bytes(8))
    for index in range(200):
        now += 1.5
        session.feed(text[index % 16 : index % 16 + 1], now)
        while session.deadline <= now:
            session.tick(now)
            session.pull(65536, now)
        assert not session.link_dead
