"""Whatever arrives, `RemoteError` is all that comes out; the same bytes give the same result however they are cut."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire.wirepair import End, Pair
from tunnelgw.errors import RemoteError
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire.control import Notice
from tunnelgw.wire.frames import HEADER, RULES, encode


def conversation(side: str) -> bytes:
    """What one side says in a conversation that uses every frame."""
    pair = Pair()
    said = {"edge": bytearray(), "home": bytearray()}

    def run() -> None:
        while True:
            forth = pair.edge.session.pull(5000, pair.now)
            pair.home.session.feed(forth, pair.now)
            back = pair.home.session.pull(5000, pair.now)
            pair.edge.session.feed(back, pair.now)
            said["edge"] += forth
            said["home"] += back
            if not forth and not back:
                return

    mine, theirs = (pair.edge, pair.home) if side == "edge" else (pair.home, pair.edge)
    first, _ = mine.open()
    second, _ = mine.open()
    first.write(b"request " * 3000)
    second.write(b"other")
    mine.session.send_control(Notice(reason="warning", message="m" * 1000))
    mine.session.send_datagram(9, b"d" * 20000, 0.0)
    run()
    for number, sink in theirs.handler.sinks.items():
        sink.stream.write(bytes([number]) * 300_000)
        sink.stream.finish()
    run()
    first.finish()
    second.reset(Reason.CANCELLED)
    pair.now = 0.2
    mine.session.tick(pair.now)
    mine.session.go_away(Reason.EDGE_STOPPING)
    run()
    return bytes(said[side])


STREAMS = {side: conversation(side) for side in ("edge", "home")}


def receiver(side: str) -> End:
    """Who listens to `side`, having opened two streams of its own."""
    end = End(opens_odd=side != "edge")
    end.session.attach(0, 0.0)
    end.open()
    end.open()
    end.pull_all()
    return end


def hear(side: str, data: bytes, sizes: list[int]) -> tuple[object, ...]:
    end = receiver(side)
    session = end.session
    offset, turn = 0, 0
    error = False
    try:
        while offset < len(data):
            size = sizes[turn % len(sizes)]
            session.feed(data[offset : offset + size], 0.0)
            offset += size
            turn += 1
    except RemoteError:
        error = True
    got = {number: (bytes(s.data), s.finished, s.reason) for number, s in end.handler.sinks.items()}
    return error, session.received, got, end.handler.controls, end.handler.datagrams, end.handler.leaving


def frame_kinds(data: bytes) -> set[int]:
    kinds, offset = set(), 0
    while offset < len(data):
        word, _ = HEADER.unpack_from(data, offset)
        kinds.add(word >> 24 & 0x7F)
        offset += 8 + (word & 0xFFFFFF)
    return kinds


def test_the_conversations_say_everything() -> None:
    assert frame_kinds(STREAMS["edge"]) | frame_kinds(STREAMS["home"]) == set(RULES)


def test_whole_byte_by_byte_and_with_a_tail_in_both_orientations() -> None:
    for side, data in STREAMS.items():
        data = data[:60_000]
        whole = hear(side, data, [len(data)])
        assert hear(side, data, [1]) == whole
        assert hear(side, data, [7]) == whole
        tail = encode(5, 0, b'{"type":"notice"')[:-1]
        assert hear(side, data + tail, [len(data), 3])[:2] == whole[:2]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(("edge", "home")), st.lists(st.integers(1, 20_000), min_size=1, max_size=6))
def test_cuts_do_not_matter(side: str, sizes: list[int]) -> None:
    data = STREAMS[side][:60_000]
    assert hear(side, data, sizes) == hear(side, data, [len(data)])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(("edge", "home")), st.binary(max_size=400), st.integers(1, 100))
def test_junk(side: str, junk: bytes, size: int) -> None:
    hear(side, junk, [size])


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(("edge", "home")),
    st.lists(st.tuples(st.integers(0, 70_000), st.integers(0, 255)), min_size=1, max_size=5),
    st.integers(1, 30_000),
)
def test_mutated_conversations(side: str, flips: list[tuple[int, int]], size: int) -> None:
    data = bytearray(STREAMS[side][:70_000])
    for position, value in flips:
        data[position % len(data)] = value
    hear(side, bytes(data), [size])


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(("edge", "home")),
    st.lists(
        st.tuples(
            st.sampled_from([*RULES, 0x85, 0x8B]),
            st.integers(0, 9),
            st.sampled_from(
                [b"", b"\x01", b"\0\0\0\x09", b"\0" * 8, b"\0\x04\0\0\0\x04\0\0" + b'{"service":"a"}', b"x" * 90]
            ),
        ),
        max_size=30,
    ),
)
def test_well_formed_frames_in_any_order(side: str, frames: list[tuple[int, int, bytes]]) -> None:
    hear(side, b"".join(encode(kind, stream, payload) for kind, stream, payload in frames), [50])
