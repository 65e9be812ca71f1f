"""Every bound on what a peer controls, and what happens beyond it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.wire.wirepair import REQUEST, End, Pair, Sink
from tunnelgw.errors import LocalError, Refused, RemoteError
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire import frames
from tunnelgw.wire.control import ClaimResult, Claims, Notice
from tunnelgw.wire.control import encode as encode_json
from tunnelgw.wire.flow import INITIAL_WINDOW, KIB, MIB, PRESSED_WINDOW, Budget, SessionLimits, fitting_window
from tunnelgw.wire.frames import HEADER, MAX_PAYLOAD, MORE, OPEN_WINDOWS, U32, U64, encode
from tunnelgw.wire.hello import GreetingReader
from tunnelgw.wire.stream import CREDIT_MOST, MARK_COST

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.wire.stream import Stream


def open_frame(number: int, granted: int = INITIAL_WINDOW, assumed: int = INITIAL_WINDOW) -> bytes:
    return encode(frames.OPEN, number, OPEN_WINDOWS.pack(granted, assumed) + encode_json(REQUEST))


def home(*, held: bool = False, limits: SessionLimits | None = None, budget: Budget | None = None) -> End:
    end = End(opens_odd=False, held=held, limits=limits or SessionLimits(), budget=budget)
    end.session.attach(0, 0.0)
    end.pull_all()
    return end


def data_frames(number: int, size: int) -> bytes:
    out = []
    while size:
        piece = min(size, MAX_PAYLOAD)
        out.append(encode(frames.DATA, number, bytes(piece)))
        size -= piece
    return b"".join(out)


WRONG = {
    "unknown type": HEADER.pack(0x70 << 24, 0),
    "type of the greeting": HEADER.pack(frames.HELLO << 24 | 2, 0) + b"{}",
    "too long": HEADER.pack(MAX_PAYLOAD + 1, 1),
    "longest length": HEADER.pack(0xFFFFFF, 1),
    "empty DATA": open_frame(1) + HEADER.pack(0, 1),
    "empty DATA for a closed stream": open_frame(1) + encode(frames.RESET, 1, b"\x01") + HEADER.pack(0, 1),
    "FIN with payload": open_frame(1) + encode(frames.FIN, 1, b"x"),
    "RESET without reason": open_frame(1) + encode(frames.RESET, 1),
    "MORE where it means nothing": open_frame(1) + HEADER.pack((frames.FIN | MORE) << 24, 1),
    "ACK for a stream": encode(frames.ACK, 1, bytes(8)),
    "short PING": encode(frames.PING, 0, b"x"),
    "DATA never opened": encode(frames.DATA, 1, b"x"),
    "DATA for stream 0": encode(frames.DATA, 0, b"x"),
    "FIN never opened": encode(frames.FIN, 3),
    "RESET never opened": encode(frames.RESET, 3, b"\x01"),
    "WINDOW never opened": encode(frames.WINDOW, 3, U32.pack(5)),
    "frame for an id of ours": encode(frames.FIN, 2),
    "parity": open_frame(2),
    "reuse": open_frame(1) + open_frame(1),
    "reuse after the end": open_frame(1) + encode(frames.RESET, 1, b"\x01") + open_frame(1),
    "decreasing": open_frame(5) + open_frame(3),
    "OPEN of stream 0": open_frame(0),
    "OPEN junk": encode(frames.OPEN, 1, OPEN_WINDOWS.pack(INITIAL_WINDOW, INITIAL_WINDOW) + b"junk"),
    "OPEN wrong types": encode(frames.OPEN, 1, OPEN_WINDOWS.pack(INITIAL_WINDOW, INITIAL_WINDOW) + b'{"service":7}'),
    "OPEN assumes too much": open_frame(1, assumed=INITIAL_WINDOW + 1),
    "OPEN grants too much": open_frame(1, granted=2**31),
    "DATA after FIN": open_frame(1) + encode(frames.FIN, 1) + encode(frames.DATA, 1, b"x"),
    "second FIN": open_frame(1) + encode(frames.FIN, 1) * 2,
    "beyond the window": open_frame(1, assumed=PRESSED_WINDOW) + data_frames(1, PRESSED_WINDOW + 1),
    "zero credit": open_frame(1) + encode(frames.WINDOW, 1, U32.pack(0)),
    "zero credit, closed": open_frame(1) + encode(frames.RESET, 1, b"\x01") + encode(frames.WINDOW, 1, U32.pack(0)),
    "credit overflow": open_frame(1) + encode(frames.WINDOW, 1, U32.pack(2**31 - 1)),
    "credit of 32 bits": open_frame(1) + encode(frames.WINDOW, 1, U32.pack(2**32 - 1)),
    "credit by sums": open_frame(1) + encode(frames.WINDOW, 1, U32.pack(2**29)) * 4,
    "initial window": encode(frames.WINDOW, 0, U32.pack(2**30)),
    "ACK beyond sent": encode(frames.ACK, 0, U64.pack(1)),
    "CONTROL junk": encode(frames.CONTROL, 0, b"{"),
    "CONTROL unknown": encode(frames.CONTROL, 0, b'{"type":"nope"}'),
    "CONTROL deep": encode(frames.CONTROL, 0, b"[" * 16000),
    "CONTROL too large": encode(frames.CONTROL | MORE, 0, bytes(MAX_PAYLOAD)) * 65,
    "DATAGRAM too large": encode(frames.DATAGRAM | MORE, 7, bytes(MAX_PAYLOAD)) * 5,
    "DATAGRAM mixed": encode(frames.DATAGRAM | MORE, 7, b"a") + encode(frames.DATAGRAM, 8, b"b"),
}


@pytest.mark.parametrize("kind", [frames.OPEN, frames.CONTROL, frames.HELLO])
def test_what_a_peer_sent_is_not_repeated_at_length(kind: int) -> None:
    """An error's text goes into logs and answers."""
    junk = b'{"type":"' + b"x" * 16000 + b'","kind":7,"service":"' + b"y" * 200 + b'"}'
    with pytest.raises(RemoteError) as caught:
        if kind == frames.HELLO:
            GreetingReader().feed(encode(kind, 0, junk))
        elif kind == frames.OPEN:
            home().session.feed(encode(kind, 1, OPEN_WINDOWS.pack(INITIAL_WINDOW, INITIAL_WINDOW) + junk), 0.0)
        else:
            home().session.feed(encode(kind, 0, junk), 0.0)
    assert len(caught.value.text) < 300


@pytest.mark.parametrize("name", WRONG)
def test_a_peer_that_breaks_a_rule_is_a_remote_error(name: str) -> None:
    with pytest.raises(RemoteError):
        home(held=True).session.feed(WRONG[name], 0.0)


def test_a_length_is_judged_before_its_payload_arrives() -> None:
    end = home()
    end.session.feed(HEADER.pack(MAX_PAYLOAD + 1, 1)[:7], 0.0)
    with pytest.raises(RemoteError):
        end.session.feed(HEADER.pack(MAX_PAYLOAD + 1, 1)[7:], 0.0)


def test_a_window_is_filled_to_the_byte_and_credited_when_half_was_consumed() -> None:
    end = home(held=True)
    end.session.feed(open_frame(1) + data_frames(1, INITIAL_WINDOW), 0.0)
    stream = end.session.streams[1]
    assert stream.unread == INITIAL_WINDOW
    assert end.session.buffered == end.budget.used == stream.held == INITIAL_WINDOW  # one object
    end.pull_all()
    stream.consumed(INITIAL_WINDOW // 2 - 1)
    assert end.pull_all() == b""
    stream.consumed(1)
    assert end.pull_all() == encode(frames.WINDOW, 1, U32.pack(INITIAL_WINDOW // 2))
    with pytest.raises(RuntimeError):
        stream.consumed(INITIAL_WINDOW)


def test_a_large_window_is_credited_long_before_half_of_it_was_consumed() -> None:
    """A sender far away would stand still for half of each round trip."""
    end = home(held=True)
    end.session.feed(open_frame(1), 0.0)
    stream = end.session.streams[1]
    stream.window = stream.granted = 16 * MIB
    end.session.feed(data_frames(1, CREDIT_MOST), 0.0)
    end.pull_all()
    stream.consumed(CREDIT_MOST - 1)
    assert end.pull_all() == b""
    stream.consumed(1)
    assert end.pull_all() == encode(frames.WINDOW, 1, U32.pack(CREDIT_MOST))


def test_full_frames_in_a_row_are_given_to_the_sink_as_one() -> None:
    end = home(held=True)
    given: list[int] = []
    end.session.feed(open_frame(1) + open_frame(3), 0.0)
    sink = end.session.streams[1].sink
    take = sink.stream_data
    sink.stream_data = lambda data: (given.append(len(data)), take(data))  # type: ignore[method-assign,assignment]
    row = data_frames(1, 2 * MAX_PAYLOAD + 5)
    end.session.feed(row + data_frames(3, 7) + row + row[: 8 + MAX_PAYLOAD] + row[:100], 0.0)
    assert given == [2 * MAX_PAYLOAD + 5, 3 * MAX_PAYLOAD + 5]
    assert end.session.buffered == 5 * MAX_PAYLOAD + 17
    end.session.feed(row[100:], 0.0)
    assert given[2:] == [MAX_PAYLOAD, MAX_PAYLOAD + 5]
    assert end.session.received == 2 * len(open_frame(1)) + len(data_frames(3, 7)) + 3 * len(row) + 8 + MAX_PAYLOAD


def test_a_row_of_frames_ends_at_the_window() -> None:
    end = home(held=True)
    end.session.feed(open_frame(1, assumed=PRESSED_WINDOW), 0.0)
    row = data_frames(1, PRESSED_WINDOW)
    with pytest.raises(RemoteError):
        end.session.feed(row + data_frames(1, 1), 0.0)
    assert end.session.streams[1].unread == PRESSED_WINDOW
    end = home(held=True)
    end.session.feed(open_frame(1, assumed=PRESSED_WINDOW), 0.0)
    with pytest.raises(RemoteError):
        end.session.feed(row + HEADER.pack(0, 1), 0.0)


def test_late_bytes_of_a_stream_reset_here_are_ignored_within_its_window() -> None:
    end = home(held=True)
    end.session.feed(open_frame(1, assumed=PRESSED_WINDOW) + data_frames(1, 1000), 0.0)
    stream = end.session.streams[1]
    stream.reset(Reason.TARGET_REFUSED)
    before = end.session.received
    late = data_frames(1, PRESSED_WINDOW - 1000)
    end.session.feed(late + encode(frames.WINDOW, 1, U32.pack(1)), 0.0)
    assert end.session.received == before + len(late) + 12
    assert end.session.buffered == end.budget.used == 0
    stream.consumed(1000)
    with pytest.raises(RemoteError):
        end.session.feed(data_frames(1, 1), 0.0)


def test_after_the_late_end_of_a_stream_reset_here_nothing_may_come() -> None:
    end = home()
    end.session.feed(open_frame(1), 0.0)
    end.session.streams[1].reset(Reason.TARGET_REFUSED)
    end.session.feed(encode(frames.FIN, 1) + encode(frames.RESET, 1, b"\x01"), 0.0)
    with pytest.raises(RemoteError):
        end.session.feed(data_frames(1, 1), 0.0)


def test_lingering_streams_are_bounded() -> None:
    end = home(limits=SessionLimits(lingering=3))
    for number in range(1, 21, 2):
        end.session.feed(open_frame(number), 0.0)
        end.session.streams[number].reset(Reason.CANCELLED)
    assert len(end.session.table._lingering) == 3
    end.session.feed(data_frames(1, 10), 0.0)  # forgotten: ignored


def resets(data: bytes) -> list[tuple[int, int]]:
    found, offset = [], 0
    while offset < len(data):
        word, number = HEADER.unpack_from(data, offset)
        if word >> 24 == frames.RESET:
            found.append((number, data[offset + 8]))
        offset += 8 + (word & 0xFFFFFF)
    return found


def test_streams_beyond_the_cap_are_refused_and_their_data_ignored() -> None:
    end = home(limits=SessionLimits(accepted=5))
    end.session.feed(b"".join(open_frame(n) + data_frames(n, 10) for n in range(1, 21, 2)), 0.0)
    assert end.session.stream_count == 5
    assert resets(end.pull_all()) == [(n, Reason.STREAM_LIMIT.code) for n in range(11, 21, 2)]


def test_open_and_reset_at_full_speed_meets_the_rate() -> None:
    end = home(limits=SessionLimits(accepted=10, opens_per_second=5.0))
    flood = [open_frame(n) + encode(frames.RESET, n, b"\x01") for n in range(1, 201, 2)]
    end.session.feed(b"".join(flood[:20]), 0.0)
    assert len(end.handler.sinks) == 10
    assert len(resets(end.pull_all())) == 10
    end.session.feed(open_frame(1001) + open_frame(1003), 0.2)
    assert len(end.handler.sinks) == 11
    with pytest.raises(RemoteError):  # it does not heed its refusals
        end.session.feed(b"".join(open_frame(n) for n in range(2001, 2101, 2)), 0.2)


def test_a_peer_that_does_not_read_its_refusals_is_cut() -> None:
    end = home(limits=SessionLimits(accepted=0, answers=50 * 73))
    with pytest.raises(RemoteError):
        end.session.feed(b"".join(open_frame(n) for n in range(1, 201, 2)), 0.0)
    assert end.session.out.waiting <= 51 * 73


def test_a_peer_that_does_not_read_the_resets_of_what_it_opened_is_cut() -> None:
    """Streams that the owner resets (a service that is not declared) are answers like any other."""
    end = home(limits=SessionLimits(answers=50 * 73))
    end.handler.stream_opened = lambda stream, request: stream.reset(Reason.SERVICE_UNKNOWN)  # type: ignore[method-assign]
    with pytest.raises(RemoteError):
        end.session.feed(b"".join(open_frame(n) for n in range(1, 2001, 2)), 0.0)
    assert end.session.out.waiting <= 51 * 73


def test_a_peer_that_does_not_read_the_answers_to_its_messages_is_cut() -> None:
    pair = Pair(SessionLimits(answers=20 * KIB))
    text = encode(frames.CONTROL, 0, encode_json(Notice(reason="x", message="y")))
    pair.edge.handler.control_received = lambda message: pair.edge.session.send_control(  # type: ignore[method-assign]
        Notice(reason="x", message="m" * 1000)
    )
    with pytest.raises(RemoteError):
        pair.edge.session.feed(text * 100, 0.0)
    assert pair.edge.session.out.waiting < 22 * KIB


@pytest.mark.parametrize("size", [1, 2, 16])
def test_many_small_frames_that_a_sink_holds_are_charged_with_what_their_objects_cost(size: int) -> None:
    end = home(held=True)
    end.session.feed(open_frame(1) + encode(frames.DATA, 1, b"x" * size) * 1600, 0.0)
    stream = end.session.streams[1]
    assert stream.unread == 1600 * size
    assert stream.held == end.session.buffered == end.budget.used == 1600 * size + 100 * MARK_COST
    stream.consumed(800 * size)
    assert end.session.buffered == 800 * size + 50 * MARK_COST
    stream.consumed(800 * size)
    assert stream.held == end.session.buffered == end.budget.used == 0
    end.session.feed(encode(frames.DATA, 1, b"x" * size) * 1600, 0.0)
    stream.reset(Reason.CANCELLED)
    assert end.session.buffered == end.budget.used == 0


def test_frames_that_are_passed_on_at_once_are_not_charged() -> None:
    end = home()
    end.session.feed(open_frame(1) + encode(frames.DATA, 1, b"x") * 10_000, 0.0)
    assert end.session.buffered == 0
    assert len(end.handler.sinks[1].data) == 10_000


def test_a_flood_of_small_frames_meets_the_cap_long_before_its_windows() -> None:
    """Sixteen streams may hold 4 MiB by their windows; in frames of one byte that were 400 MB of objects."""
    limits = SessionLimits(buffered=1 * MIB)
    end = home(held=True, limits=limits)
    for number in range(1, 33, 2):
        if number not in end.session.streams:
            end.session.feed(open_frame(number, assumed=end.session.windows.initial), float(number))
        end.session.feed(encode(frames.DATA, number, b"x") * 4000, float(number))
        assert end.session.buffered <= limits.buffered
        end.pull_all(float(number))
    assert sum(sink.reason is Reason.BUFFER_LIMIT for sink in end.handler.sinks.values()) > 4


def test_small_pieces_that_wait_for_the_window_are_joined() -> None:
    """A visitor who sends byte by byte into a stalled stream makes us keep bytes, not objects."""
    pair = Pair()
    stream, _ = pair.edge.open()
    pair.run()
    stream.credit = 5
    text = bytes(range(256)) * 40
    for index in range(len(text)):
        stream.write(text[index : index + 1] if index % 2 else memoryview(text)[index : index + 1])
        if index == 3:
            pair.run()
    assert len(stream.queue) < 40
    pair.home.session.feed(pair.edge.pull_all(), 0.0)
    stream.credit = 100_000
    pair.edge.session.scheduler.unblock(stream)
    pair.run()
    assert bytes(pair.home.handler.sinks[1].data) == text


def test_opening_beyond_the_cap_is_refused_here() -> None:
    pair = Pair(SessionLimits(streams=2))
    pair.edge.open()
    pair.edge.open()
    with pytest.raises(Refused) as caught:
        pair.edge.open()
    assert caught.value.reason is Reason.STREAM_LIMIT


def test_one_visitor_leaves_streams_to_the_others() -> None:
    pair = Pair(SessionLimits(streams=100))
    session = pair.edge.session

    def take(visitor: str | None) -> list[Stream]:
        streams: list[Stream] = []

        def until_refused() -> None:
            while len(streams) < 101:
                streams.append(session.open(REQUEST, Sink(), 0.0, visitor=visitor))

        with pytest.raises(Refused) as refused:
            until_refused()
        assert refused.value.reason is Reason.STREAM_LIMIT
        return streams

    flood = take("203.0.113.1")
    assert len(flood) == 20
    assert len(take("203.0.113.2")) == 16
    flood.pop().reset(Reason.CANCELLED)
    assert len(take("203.0.113.1")) == 0, "less is left by now"
    assert len(take(None)) == 65, "a trusted proxy stands for many"
    for stream in flood:
        stream.finish()
        stream.sink = Sink()
    pair.run()
    for stream in list(pair.home.session.streams.values()):
        stream.finish()
    pair.run()
    session.close(Reason.EDGE_STOPPING)
    assert (session.table.opened.taken, session.table.opened._held) == (0, {})


def test_a_ping_flood_costs_one_answer() -> None:
    end = home()
    end.session.feed(b"".join(encode(frames.PING, 0, U64.pack(n)) for n in range(10_000)), 0.0)
    assert end.pull_all() == encode(frames.PONG, 0, U64.pack(9_999))


def test_retained_stops_at_its_cap_and_goes_on_after_an_ack() -> None:
    limits = SessionLimits(retained=100 * KIB)
    pair = Pair(limits)
    stream, _ = pair.edge.open()
    stream.write(bytes(250 * KIB))
    stream.finish()
    sent = b"".join(iter(lambda: pair.edge.session.pull(16384, 0.0), b""))
    assert 60 * KIB < len(sent) < 100 * KIB
    assert pair.edge.session.retained_frames.size <= limits.retained
    assert not pair.edge.session.has_output
    wakes = pair.edge.wakes
    pair.home.session.feed(sent, 0.0)
    pair.home.session.tick(0.1)
    pair.edge.session.feed(pair.home.session.pull(65536, 0.1), 0.1)
    assert pair.edge.wakes == wakes + 1
    for _ in range(9):
        pair.pass_time(0.2)
    assert len(pair.home.handler.sinks[1].data) == 250 * KIB
    assert pair.home.handler.sinks[1].finished


def test_many_small_pulls_are_counted_with_what_they_cost() -> None:
    pair = Pair(SessionLimits(retained=64 * KIB))
    stream, _ = pair.edge.open()
    for _ in range(2000):
        stream.write(b"x")
        pair.edge.session.pull(65536, 0.0)
    assert pair.edge.session.retained_frames.size <= 64 * KIB


@pytest.mark.parametrize("count", [1, 70, 10**6])
def test_a_resume_at_a_count_that_cannot_be_is_refused(count: int) -> None:
    pair = Pair()
    stream, _ = pair.edge.open()
    stream.write(b"x" * 500)
    pair.run()
    pair.detach()
    with pytest.raises(RemoteError):
        pair.edge.session.attach(count, 0.0)


def test_a_count_below_what_was_acknowledged_is_refused() -> None:
    pair = Pair()
    stream, _ = pair.edge.open()
    stream.write(b"x" * 500)
    pair.run()
    pair.pass_time(1)
    assert pair.edge.session.retained_frames.size == 0
    pair.detach()
    with pytest.raises(RemoteError):
        pair.edge.session.attach(0, 0.0)


def test_pressure_starts_new_streams_small_and_the_cap_resets_the_stalest() -> None:
    limits = SessionLimits(buffered=1 * MIB)
    pair = Pair(limits, held=True)
    sinks = []
    for turn in range(3):
        pair.now = float(turn)
        stream, sink = pair.edge.open()
        stream.write(bytes(INITIAL_WINDOW))
        sinks.append(sink)
        pair.run()
    late, _ = pair.edge.open()
    pair.run()
    assert late.credit == PRESSED_WINDOW
    assert pair.home.session.streams[late.id].window == PRESSED_WINDOW
    far = pair.home.handler.sinks
    far[1].stream.consumed(10)  # progress: now the second one is the stalest
    small = [pair.edge.open()[0] for _ in range(7)]
    pair.run()
    for stream in small:
        stream.write(bytes(PRESSED_WINDOW))
        pair.run()
    assert pair.home.session.buffered <= limits.buffered
    assert far[3].reason is Reason.BUFFER_LIMIT
    assert far[1].reason is None
    assert sinks[1].reason is Reason.BUFFER_LIMIT
    for sink in far.values():
        if sink.reason is None:
            sink.stream.consumed(sink.stream.unread)
    pair.run()
    pair.edge.session.send_control(Notice(reason="x", message="y"))
    pair.run()
    fresh, _ = pair.edge.open()
    pair.run()
    assert fresh.credit == INITIAL_WINDOW


def test_at_the_cap_an_open_is_refused() -> None:
    end = home(held=True, limits=SessionLimits(buffered=256 * KIB))
    end.session.feed(open_frame(1) + data_frames(1, 256 * KIB) + open_frame(3), 0.0)
    assert (3, Reason.BUFFER_LIMIT.code) in resets(end.pull_all())


def test_who_stands_still_below_the_cap_makes_room_before_anybody_is_refused() -> None:
    end = home(held=True, limits=SessionLimits(buffered=256 * KIB))
    end.session.feed(open_frame(1) + data_frames(1, 240 * KIB), 0.0)
    end.session.feed(data_frames(1, 1) + open_frame(3) + data_frames(3, 1), 1.0)
    assert resets(end.pull_all()) == [(1, Reason.BUFFER_LIMIT.code)]
    assert end.session.buffered == 1


def test_the_cap_of_the_process_resets_the_stalest_of_any_session() -> None:
    budget = Budget(512 * KIB)
    first, second = home(held=True, budget=budget), home(held=True, budget=budget)
    first.session.feed(open_frame(1) + data_frames(1, 250 * KIB), 0.0)
    second.session.feed(open_frame(1) + data_frames(1, 230 * KIB), 1.0)
    second.session.feed(open_frame(3, assumed=PRESSED_WINDOW), 1.0)
    assert resets(first.pull_all() + second.pull_all()) == []
    second.session.feed(data_frames(3, 1), 1.0)
    assert first.handler.sinks[1].reason is Reason.BUFFER_LIMIT
    assert budget.used == 230 * KIB + 1


def test_windows_grow_with_consumption_not_with_arrival() -> None:
    assert fitting_window(256 * KIB, elapsed=0.1, min_rtt=0.1) == 768 * KIB
    assert fitting_window(16 * MIB, elapsed=0.1, min_rtt=0.1) == 48 * MIB
    assert fitting_window(256 * KIB, elapsed=10.0, min_rtt=0.1) < INITIAL_WINDOW
    fast, slow = Pair(), Pair(held=True)
    for pair in (fast, slow):
        pair.home.session.liveness.min_rtt = 0.1
        stream, _ = pair.edge.open()
        for _ in range(40):
            pair.now += 0.1
            stream.write(bytes(max(0, stream.credit - stream.queued)))
            pair.run()
            pair.home.session.liveness.min_rtt = 0.1
    assert fast.home.session.streams[1].window == 16 * MIB
    assert fast.home.budget.grown == 16 * MIB - INITIAL_WINDOW
    assert slow.home.session.streams[1].window == INITIAL_WINDOW
    fast.home.session.close(Reason.CONNECTOR_STOPPING)
    assert fast.home.budget.grown == fast.home.budget.used == 0


def test_growth_stops_at_the_caps() -> None:
    pair = Pair(SessionLimits(buffered=2 * MIB))
    stream, _ = pair.edge.open()
    for _ in range(40):
        pair.home.session.liveness.min_rtt = 0.1
        pair.now += 0.1
        stream.write(bytes(max(0, stream.credit - stream.queued)))
        pair.run()
    assert pair.home.session.streams[1].window == 2 * MIB + INITIAL_WINDOW


def test_control_messages_are_bounded_on_both_sides() -> None:
    pair = Pair()
    large = Claims(revision=1, results=[ClaimResult(name="n" * 60, message="m" * 1000) for _ in range(900)])
    pair.edge.session.send_control(large)
    pair.run()
    assert pair.home.handler.controls == [large]
    with pytest.raises(LocalError):
        pair.edge.session.send_control(Claims(revision=1, results=large.results * 2))


def test_datagrams_are_dropped_oldest_first_and_never_wait_for_a_link() -> None:
    limits = SessionLimits(datagrams=200 * KIB)
    pair = Pair(limits)
    with pytest.raises(ValueError):
        pair.edge.session.send_datagram(1, bytes(65536), 0.0)
    for number in range(5):
        pair.edge.session.send_datagram(number, bytes(65535), 0.0)
    for _ in range(10_000):
        pair.edge.session.send_datagram(99, b"", 0.0)
    assert pair.edge.session.datagrams_dropped >= 8_000
    pair.run()
    assert {flow for flow, _ in pair.home.handler.datagrams} == {3, 4, 99}, "the newest of each, none starved"
    pair.detach()
    pair.edge.session.send_datagram(5, b"lost", 0.0)
    pair.attach()
    pair.run()
    assert (5, b"lost") not in pair.home.handler.datagrams


def test_datagrams_never_block_streams() -> None:
    pair = Pair()
    stream, _ = pair.edge.open()
    stream.write(bytes(100 * KIB))
    got = 0
    for _ in range(8):
        pair.edge.session.send_datagram(7, bytes(65535), 0.0)
        pair.home.session.feed(pair.edge.session.pull(65536, 0.0), 0.0)
        got = len(pair.home.handler.sinks[1].data)
    assert got == 100 * KIB
    assert len(pair.home.handler.datagrams) >= 7


def test_half_a_datagram_dies_with_its_link_and_half_a_control_message_does_not() -> None:
    end = home()
    text = encode_json(Notice(reason="warning", message="m"))
    half = encode(frames.CONTROL | MORE, 0, text[:9])
    end.session.feed(half + encode(frames.DATAGRAM | MORE, 7, b"half"), 0.0)
    assert end.session.received == len(half)
    end.session.detach(0.0)
    end.session.attach(0, 0.0)
    end.session.feed(encode(frames.CONTROL, 0, text[9:]) + encode(frames.DATAGRAM, 8, b"whole"), 0.0)
    assert end.handler.controls == [Notice(reason="warning", message="m")]
    assert end.handler.datagrams == [(8, b"whole")]


def test_a_handler_that_sets_no_sink_costs_a_reset() -> None:
    end = home()
    end.handler.stream_opened = lambda stream, request: None  # type: ignore[method-assign]
    end.session.feed(open_frame(1), 0.0)
    assert resets(end.pull_all()) == [(1, Reason.INTERNAL.code)]
    assert end.session.streams == {}


def test_a_sink_may_close_the_session_in_the_middle_of_a_feed() -> None:
    end = home()

    class Closer(Sink):
        def stream_data(self, data: bytes) -> None:
            end.session.close(Reason.REVOKED)

    def opened(stream: object, request: object) -> None:
        stream.sink = Closer()  # type: ignore[attr-defined]

    end.handler.stream_opened = opened  # type: ignore[method-assign]
    end.session.feed(open_frame(1) + data_frames(1, 10) * 3 + open_frame(3) + b"\x00\x00", 0.0)
    end.session.feed(data_frames(1, 10), 0.0)
    assert end.session.streams == {}
    assert end.budget.used == 0
    assert end.pull_all() == b""


def test_what_waits_to_be_sent_counts_and_the_stalest_of_it_goes() -> None:
    later: list[Callable[[], None]] = []
    budget = Budget(512 * KIB, later=later.append)
    first, second = home(budget=budget), home(budget=budget)
    for end, at in ((first, 1.0), (second, 2.0)):
        end.session.feed(open_frame(1), at)
        end.session.streams[1].write(bytes(240 * KIB))
    assert (budget.queued, budget.held, later) == (480 * KIB, 480 * KIB, [])
    second.pull_all()
    sent = 480 * KIB - budget.queued  # that one moves
    assert sent > 0
    first.session.streams[1].write(bytes(sent + 1))
    first.session.streams[1].write(b"x")
    assert len(later) == 1  # not from within the write
    later.pop()()
    assert first.handler.sinks[1].reason is Reason.BUFFER_LIMIT
    assert 1 in second.session.streams
    assert budget.held == budget.queued == second.session.streams[1].queued
    second.session.close(Reason.CANCELLED)
    assert budget.held == 0


class Body:
    """Bytes that are in no stream."""

    def __init__(self, budget: Budget, since: float) -> None:
        self.budget, self.stalled_since, self.weight, self.was_shed = budget, since, 0, False

    def set(self, weight: int) -> None:
        change, self.weight = weight - self.weight, weight
        self.budget.hold(self, change)

    def shed(self) -> None:
        self.was_shed = True
        self.set(0)


def test_what_waits_outside_of_streams_counts_and_goes_in_its_turn() -> None:
    later: list[Callable[[], None]] = []
    budget = Budget(512 * KIB, later=later.append)
    old, new = Body(budget, 1.0), Body(budget, 3.0)
    end = home(budget=budget)
    end.session.feed(open_frame(1), 2.0)
    end.session.streams[1].write(bytes(100 * KIB))
    old.set(200 * KIB)
    new.set(150 * KIB)
    assert (budget.held, later) == (450 * KIB, [])
    new.set(200 * KIB)
    assert len(later) == 1
    later.pop()()
    assert (old.was_shed, new.was_shed) == (True, False)
    assert 1 in end.session.streams
    old.stalled_since = 4.0
    old.set(200 * KIB)
    later.pop()()
    assert end.handler.sinks[1].reason is Reason.BUFFER_LIMIT
    assert not new.was_shed
    new.set(0)
    old.set(0)
    assert (budget.held, budget.holders) == (0, set())


def test_a_smaller_limit_sheds_below_it() -> None:
    """The limit of the configuration comes after the budget was made."""
    later: list[Callable[[], None]] = []
    budget = Budget(later=later.append)
    budget.resize(512 * KIB)
    body = Body(budget, 1.0)
    body.set(500 * KIB)
    later.pop()()
    assert body.was_shed


def test_at_the_cap_nothing_is_opened_either() -> None:
    pair = Pair()
    pair.edge.session.budget.resize(1024)
    pair.edge.session.budget.used = 1024
    with pytest.raises(Refused) as raised:
        pair.edge.open()
    assert raised.value.reason is Reason.BUFFER_LIMIT


def test_a_source_of_datagrams_that_can_wait_is_told_when_to_go_on() -> None:
    pair = Pair(SessionLimits(datagrams=400 * KIB))
    queue, told = pair.edge.session.out.datagrams, []
    assert queue.has_room(1, lambda: told.append("never"))
    for _ in range(3):
        pair.edge.session.send_datagram(1, bytes(40000), 0.0)
    assert not queue.has_room(1, lambda: told.append("drained"))
    assert told == []
    pair.run()
    assert told == ["drained"]
    assert queue.has_room(1, lambda: told.append("never"))
    for _ in range(3):
        pair.edge.session.send_datagram(1, bytes(40000), 0.0)
    assert not queue.has_room(1, lambda: told.append("the link is gone"))
    pair.detach()
    assert told == ["drained", "the link is gone"]
    assert pair.edge.session.datagrams_dropped == 3, "nothing was dropped before that"
