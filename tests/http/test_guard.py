"""HTTP/2 frames before the engine: streams that are over, frames that mean nothing, heads that are not whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.http.test_h2 import PREFACE, frame
from tunnelgw.http.guard import _SENDING_LIMIT, NOISE_BURST, FrameError, FrameGuard
from tunnelgw.http.h2 import ErrorCode, Http2
from tunnelgw.obs.reasons import Reason

GET = b"\x82\x87\x84\x41\x0da.example.com"
POST = b"\x83\x87\x84\x41\x0da.example.com"


def window(stream: int, increment: int) -> bytes:
    return frame(8, 0, stream, increment.to_bytes(4, "big"))


def greeted() -> Http2:
    engine = Http2(serving=True)
    engine.receive(PREFACE + frame(4) + frame(4, 1))
    engine.pull(4096)
    return engine


# What HTTP/2 conformance tests send and libnghttp2 lets pass (RFC 9113 sections 5.1, 5.1.1, 6.3; RFC 7540 5.3.1).
OVER = [
    (frame(1, 4, 1, POST) + frame(3, 0, 1, bytes(4)) + frame(0, 1, 1, b"test"), ErrorCode.STREAM_CLOSED),
    (frame(1, 4, 1, POST) + frame(3, 0, 1, bytes(4)) + frame(1, 5, 1, GET), ErrorCode.STREAM_CLOSED),
    (frame(1, 5, 1, GET) + frame(0, 1, 1, b"test"), ErrorCode.STREAM_CLOSED),
    (frame(1, 5, 1, GET) + frame(1, 5, 1, GET), ErrorCode.STREAM_CLOSED),
    (frame(1, 5, 5, GET) + frame(1, 5, 3, GET), ErrorCode.STREAM_CLOSED),
    (frame(2, 0, 1, b"\0\0\0\1\xff"), ErrorCode.PROTOCOL_ERROR),
    (frame(2, 0, 0, b"\0\0\0\1\xff"), ErrorCode.PROTOCOL_ERROR),
]


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize(("data", "code"), OVER)
def test_what_the_engine_would_let_pass(data: bytes, code: int, step: int) -> None:
    engine = greeted()
    with pytest.raises(FrameError) as caught:
        for start in range(0, len(data), step):
            engine.receive(data[start : start + step])
    assert caught.value.code == code
    words = engine.last_words(code)
    assert words[3] == 7
    assert words[16] == code


def test_an_overflow_of_a_streams_window_ends_the_stream() -> None:
    engine = greeted()
    engine.receive(frame(1, 4, 1, GET) + window(1, 2**31 - 1) + window(1, 2**31 - 1) + frame(6, 0, 0, bytes(8)))
    said = engine.pull(4096)
    assert frame(3, 0, 1, b"\0\0\0\3") in said
    assert frame(6, 1, 0, bytes(8)) in said, "the connection goes on"
    # Two that fit together with the window are no overflow.
    engine.receive(frame(1, 4, 3, GET) + window(3, 2**30) + window(3, 2**30 - 65536))
    assert engine.pull(4096) == b""


def test_late_frames_on_a_stream_that_we_have_reset_are_no_error() -> None:
    engine = greeted()
    engine.receive(frame(1, 4, 1, POST))
    engine.reset(1, ErrorCode.CANCEL)
    engine.pull(4096)
    engine.receive(frame(0, 0, 1, b"on its way") + frame(0, 1, 1, b"the rest") + window(1, 5))


def test_streams_that_were_reset_are_not_remembered_for_ever() -> None:
    guard = FrameGuard()
    guard.feed(PREFACE, 0.0)
    for number in range(1, 4 * _SENDING_LIMIT, 2):
        guard.feed(frame(1, 4, number, POST), 0.0)
    assert len(guard._sending) == _SENDING_LIMIT
    guard.feed(frame(0, 1, 1, b"too old to tell"), 0.0)


NOISES = [
    frame(6, 0, 0, bytes(8)),
    frame(4),
    frame(2, 0, 9, b"\0\0\0\0\x10"),
    window(0, 1),
    frame(0x20, 0, 0, b"unknown"),
    frame(0, 0, 1),
    frame(0, 8, 1, b"\xff" + bytes(255)),
]


@pytest.mark.parametrize("noise", NOISES)
def test_frames_that_mean_nothing_are_rationed(noise: bytes) -> None:
    guard = FrameGuard()
    guard.feed(PREFACE + frame(1, 4, 1, POST), 100.0)
    guard.feed(noise * NOISE_BURST, 100.0)
    with pytest.raises(FrameError) as caught:
        for _ in range(3):
            guard.feed(noise * NOISE_BURST, 100.0)
    assert (caught.value.code, caught.value.reason) == (ErrorCode.ENHANCE_YOUR_CALM, Reason.RATE_LIMIT)


def test_time_and_what_was_sent_forgive() -> None:
    guard = FrameGuard()
    guard.feed(PREFACE, 0.0)
    for second in range(100):
        guard.feed(NOISES[0] * 190, float(second))
    # One WINDOW_UPDATE for the connection and one for the stream, for each DATA frame of 100 octets.
    for _ in range(20_000):
        guard.feed(window(0, 109) + window(1, 109), 100.0)
        guard.forgive(109)


def test_a_head_that_is_not_whole_is_known() -> None:
    guard = FrameGuard()
    assert guard.inside
    guard.feed(PREFACE, 0.0)
    assert not guard.inside
    for end in range(1, len(GET) + 9):
        guard = FrameGuard()
        guard.feed(PREFACE + frame(1, 5, 1, GET)[:end], 0.0)
        assert guard.inside
        guard.feed(frame(1, 5, 1, GET)[end:], 0.0)
        assert not guard.inside
    guard.feed(frame(1, 1, 3, GET), 0.0)
    assert guard.inside, "its CONTINUATION is to come"
    guard.feed(frame(9, 0, 3), 0.0)
    assert guard.inside
    guard.feed(frame(9, 4, 3), 0.0)
    assert not guard.inside
    guard.feed(frame(1, 4, 5, POST) + frame(0, 0, 5, bytes(100))[:50], 0.0)
    assert not guard.inside, "the rest of a body has other deadlines"


KINDS = st.sampled_from([0, 0, 1, 1, 2, 3, 4, 6, 8, 9, 32])
FRAMES = st.lists(st.tuples(KINDS, st.integers(0, 5), st.integers(0, 9), st.binary(max_size=20)), max_size=12)


@given(FRAMES, st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_cuts_make_no_difference(frames: list[tuple[int, int, int, bytes]], sizes: list[int]) -> None:
    data = PREFACE + b"".join(frame(kind, flags, stream, payload) for kind, flags, stream, payload in frames)

    def run(cuts: list[int]) -> object:
        guard = FrameGuard()
        at = turn = 0
        try:
            while at < len(data):
                size = cuts[turn % len(cuts)]
                guard.feed(data[at : at + size], 0.0)
                at, turn = at + size, turn + 1
        except FrameError as error:
            return error.code
        return guard.inside, guard.noise, guard._last, list(guard._sending)

    assert run(sizes) == run([len(data)])
