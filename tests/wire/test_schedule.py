"""Who sends next: fair, short and new flows first, nobody starves."""

from __future__ import annotations

from tests.wire.wirepair import End, Pair
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire import frames
from tunnelgw.wire.control import Notice
from tunnelgw.wire.flow import KIB
from tunnelgw.wire.frames import HEADER, MAX_FRAME, MAX_PAYLOAD
from tunnelgw.wire.schedule import FILLED, TURN
from tunnelgw.wire.stream import BEGUN, HIGH_WATER, HOT


def frames_of(data: bytes) -> list[tuple[int, int, int]]:
    """Type, stream and length of each frame."""
    found, offset = [], 0
    while offset < len(data):
        word, number = HEADER.unpack_from(data, offset)
        found.append((word >> 24, number, word & 0xFFFFFF))
        offset += 8 + (word & 0xFFFFFF)
    assert offset == len(data)
    return found


def opened(count: int) -> tuple[Pair, list]:
    pair = Pair()
    streams = [pair.edge.open()[0] for _ in range(count)]
    pair.run()
    return pair, streams


def test_equal_flows_get_equal_shares_in_whole_frames() -> None:
    pair, streams = opened(4)
    turn = TURN // MAX_PAYLOAD
    for stream in streams:
        stream.write(bytes(3 * TURN))
    said = frames_of(pair.edge.session.pull(4 * 2 * turn * MAX_FRAME, 0.0))
    assert [number for _, number, _ in said] == [s.id for s in streams for _ in range(turn)] * 2
    assert {length for _, _, length in said} == {MAX_PAYLOAD}


def test_a_small_request_overtakes_downloads() -> None:
    pair, streams = opened(5)
    for stream in streams[:4]:
        stream.write(bytes(200 * KIB))
    pair.edge.session.pull(65536, 0.0)
    streams[4].write(b"small")
    assert frames_of(pair.edge.session.pull(65536, 0.0))[0] == (frames.DATA, streams[4].id, 5)
    fresh, _ = pair.edge.open()
    fresh.write(b"new")
    said = frames_of(pair.edge.session.pull(65536, 0.0))
    assert said[0][:2] == (frames.OPEN, fresh.id)
    assert said[1] == (frames.DATA, fresh.id, 3)


def test_young_flows_do_not_starve_old_ones() -> None:
    pair, streams = opened(41)
    streams[0].write(bytes(200 * KIB))
    before = streams[0].queued
    for _ in range(4):
        for stream in streams[1:]:
            stream.write(bytes(4 * KIB))
        pair.edge.session.pull(65536, 0.0)
    assert before - streams[0].queued >= 4 * 15 * KIB


def test_a_flow_alone_fills_the_whole_pull() -> None:
    pair, (stream,) = opened(1)
    stream.write(bytes(200 * KIB))
    data = pair.edge.session.pull(65536, 0.0)
    assert len(data) == 65536
    assert len(frames_of(data)) == 4


def test_many_small_writes_make_one_frame() -> None:
    pair, (stream,) = opened(1)
    for _ in range(100):
        stream.write(b"x" * 10)
    assert frames_of(pair.edge.session.pull(65536, 0.0)) == [(frames.DATA, stream.id, 1000)]


def test_a_flow_without_credit_leaves_the_list_and_comes_back() -> None:
    pair = Pair(held=True)
    stream, _ = pair.edge.open()
    stream.write(bytes(300 * KIB))
    pair.run()
    far = pair.home.handler.sinks[1]
    assert len(far.data) == 256 * KIB
    assert not pair.edge.session.has_output
    far.stream.consumed(200 * KIB)
    pair.run()
    assert len(far.data) == 300 * KIB


def test_control_goes_before_streams() -> None:
    pair, (stream,) = opened(1)
    stream.write(bytes(200 * KIB))
    pair.edge.session.send_control(Notice(reason="x", message="y"))
    assert frames_of(pair.edge.session.pull(65536, 0.0))[0][0] == frames.CONTROL


def test_opens_leave_in_order_and_one_that_was_reset_never_leaves() -> None:
    pair = Pair()
    streams = [pair.edge.open()[0] for _ in range(6)]
    for stream in reversed(streams):
        stream.write(bytes([stream.id]))
    assert not any(stream.sent_anything for stream in streams)
    streams[2].reset(Reason.CANCELLED)
    pair.run()
    assert list(pair.home.handler.sinks) == [1, 3, 7, 9, 11]
    assert all(sink.data == bytes([number]) for number, sink in pair.home.handler.sinks.items())
    assert pair.edge.session.stream_count == 5


def test_the_sink_is_paused_above_high_water_and_resumed_below_half() -> None:
    pair = Pair()
    stream, sink = pair.edge.open()
    stream.write(bytes(64 * KIB))
    assert not sink.paused
    stream.write(b"x")
    stream.write(b"x")
    assert sink.pauses == 1
    pair.edge.session.pull(16 * KIB, 0.0)
    assert sink.paused
    pair.edge.session.pull(32 * KIB, 0.0)
    assert not sink.paused


def test_wake_comes_once_until_everything_was_pulled() -> None:
    pair, (stream,) = opened(1)
    wakes = pair.edge.wakes
    stream.write(bytes(40 * KIB))
    stream.write(b"more")
    assert pair.edge.wakes == wakes + 1
    pair.edge.session.pull(16 * KIB, 0.0)
    stream.write(b"more")
    assert pair.edge.wakes == wakes + 1
    pair.edge.pull_all()
    stream.write(b"again")
    assert pair.edge.wakes == wakes + 2


def test_writes_are_not_copied_before_the_pull() -> None:
    _pair, (stream,) = opened(1)
    data = bytes(256 * KIB)
    stream.write(data)
    assert stream.queue[0] is data


def test_no_output_without_a_link() -> None:
    end = End(opens_odd=True)
    stream, _ = end.open()
    stream.write(b"early")
    assert end.wakes == 0
    assert end.session.pull(65536, 0.0) == b""
    end.session.attach(0, 0.0)
    assert end.wakes == 1
    assert b"early" in end.pull_all()


def test_write_after_finish_is_our_bug_and_after_reset_is_nothing() -> None:
    _pair, (first,) = opened(1)
    first.finish()
    first.finish()
    try:
        first.write(b"x")
    except RuntimeError:
        first.reset(Reason.CANCELLED)
    first.write(b"x")
    assert first.closed
    assert first.queued == 0


def test_much_in_one_turn_is_pulled_before_its_end() -> None:
    """The link writes it while it is in the cache; the sink may go on at once."""
    pair = Pair()
    session = pair.edge.session
    pulled: list[bytes] = []
    session.wake = lambda: pulled.append(session.pull(256 * KIB, 0.0)) if session.scheduler.hot else None
    stream, sink = pair.edge.open()
    stream.write(bytes(HOT - BEGUN - 1))
    stream.hurry()
    assert not pulled
    stream.write(bytes(HIGH_WATER))
    assert sink.paused
    stream.hurry()
    assert sum(size for kind, _, size in frames_of(pulled[0]) if kind == frames.DATA) == HOT + HIGH_WATER - BEGUN - 1
    assert not sink.paused
    assert not session.has_output
    stream.write(bytes(HOT - BEGUN - 1))
    stream.hurry()
    assert len(pulled) == 1


def test_many_small_messages_in_one_turn_are_pulled_before_its_end() -> None:
    pair, streams = opened(HOT // BEGUN)
    session = pair.edge.session
    pulled: list[bytes] = []
    session.wake = lambda: pulled.append(session.pull(256 * KIB, 0.0)) if session.scheduler.hot else None
    for stream in streams:
        assert not pulled
        stream.write(b"small")
        stream.hurry()
    assert [kind for kind, _, _ in frames_of(pulled[0])] == [frames.DATA] * len(streams)


def test_a_link_that_takes_nothing_is_asked_again_after_as_much() -> None:
    pair, (stream,) = opened(1)
    stream.write(bytes(HOT))
    stream.hurry()
    wakes = pair.edge.wakes
    stream.write(bytes(HOT // 2))
    stream.hurry()
    assert pair.edge.wakes == wakes
    stream.write(bytes(HOT // 2))
    stream.hurry()
    assert pair.edge.wakes == wakes + 1


def test_no_number_of_young_flows_keeps_one_that_drained_waiting() -> None:
    pair, streams = opened(41)
    streams[0].write(bytes(65 * KIB))
    sink = streams[0].sink
    assert sink.paused
    for _ in range(4):
        for stream in streams[1:]:
            stream.write(bytes(4 * KIB))
        pair.edge.session.pull(64 * KIB, 0.0)
    assert not sink.paused


def test_few_of_many_that_drained_are_told_at_once() -> None:
    """The others' bytes wait where they come from."""
    pair, streams = opened(10)
    sinks = [stream.sink for stream in streams]
    for stream in streams:
        stream.write(bytes(65 * KIB))
    assert all(sink.paused for sink in sinks)
    told = []
    pair.edge.session.pull(1024 * KIB, 0.0)
    while pair.edge.session.has_output:
        told.append(sum(not sink.paused for sink in sinks))
        assert pair.edge.session.pull(1024 * KIB, 0.0) == b""
    assert told == [FILLED, 2 * FILLED]
    assert not any(sink.paused for sink in sinks), "none is forgotten"
