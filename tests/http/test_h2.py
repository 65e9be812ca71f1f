"""The HTTP/2 engine: debts, limits, and that a peer's junk is a `RemoteError` and nothing else."""

from __future__ import annotations

import ngh2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelgw.errors import RemoteError
from tunnelgw.http.h2 import (
    CONNECTION_WINDOW,
    STREAM_LIMIT,
    STREAM_WINDOW,
    DataReceived,
    ErrorCode,
    Http2,
    RequestReceived,
    StreamClosed,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
GET = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a.example.com"), (b":path", b"/")]
POST = [(b":method", b"POST"), *GET[1:]]


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def pair() -> tuple[Http2, ngh2.Connection]:
    engine = Http2(serving=True)
    browser = ngh2.Connection(ngh2.Role.CLIENT)
    browser.initiate_connection()
    engine.receive(browser.data_to_send())
    browser.receive_data(engine.pull(65536))
    engine.receive(browser.data_to_send())
    return engine, browser


def test_what_is_announced() -> None:
    _, browser = pair()
    settings = browser.remote_settings
    assert settings[ngh2.Setting.MAX_CONCURRENT_STREAMS] == STREAM_LIMIT
    assert settings[ngh2.Setting.INITIAL_WINDOW_SIZE] == STREAM_WINDOW
    assert settings[ngh2.Setting.ENABLE_CONNECT_PROTOCOL] == 1
    assert browser.remote_window_size == CONNECTION_WINDOW


def test_debts_are_paid_in_parts() -> None:
    engine, browser = pair()
    number = browser.send_request(POST)
    browser.send_data(number, bytes(200_000))
    received = 0
    for event in engine.receive(browser.data_to_send()):
        if isinstance(event, DataReceived):
            received += len(event.data)
            engine.owe(number, len(event.data))
    assert received == 200_000
    assert engine.debt(number) == 200_000
    engine.pay(number, 150_000)
    assert engine.debt(number) == 50_000
    browser.receive_data(engine.pull(65536))
    assert browser.stream_remote_window_size(number) >= STREAM_WINDOW - 50_000
    engine.pay(number)
    engine.pay(number)
    assert engine.debt(number) == 0


def test_a_stalled_stream_leaves_room_for_others() -> None:
    engine, browser = pair()
    stalled = browser.send_request(POST)
    browser.send_data(stalled, bytes(2 * STREAM_WINDOW))
    engine.receive(browser.data_to_send())
    other = browser.send_request(POST)
    browser.send_data(other, bytes(100_000), end_stream=True)
    events = engine.receive(browser.data_to_send())
    assert sum(len(event.data) for event in events if isinstance(event, DataReceived)) == 100_000


def test_debts_of_closed_streams_reach_the_connection() -> None:
    engine, browser = pair()
    for _ in range(3 * CONNECTION_WINDOW // STREAM_WINDOW):
        number = browser.send_request(POST)
        browser.send_data(number, bytes(STREAM_WINDOW))
        for event in engine.receive(browser.data_to_send()):
            if isinstance(event, DataReceived):
                engine.owe(number, len(event.data))
        assert engine.debt(number) == STREAM_WINDOW
        engine.reset(number, ErrorCode.CANCEL)
        data = engine.pull(65536)
        assert any(isinstance(event, StreamClosed) for event in engine.events())
        engine.pay(number)
        browser.receive_data(data + engine.pull(65536))
        browser.events()
    assert browser.remote_window_size > CONNECTION_WINDOW // 2


def test_sending_to_a_stream_that_is_gone() -> None:
    engine, browser = pair()
    number = browser.send_request(GET, end_stream=True)
    (event,) = engine.receive(browser.data_to_send())
    assert isinstance(event, RequestReceived)
    browser.reset_stream(number)
    engine.receive(browser.data_to_send())
    engine.interim(number, [(b":status", b"103")])
    engine.respond(number, [(b":status", b"200")], end=False)
    engine.send(number, b"x")
    engine.end(number, [(b"a", b"b")])
    engine.reset(number, ErrorCode.CANCEL)
    assert engine.window(number) == 0
    engine.pull(65536)


@pytest.mark.parametrize(
    "flood",
    [
        frame(6, payload=bytes(8)) * 50_000,  # PING
        frame(4, payload=b"\0\3\0\0\0\1") * 50_000,  # SETTINGS
        frame(1, 0, 1, b"\x82") + frame(9, 0, 1, b"\x84") * 50_000,  # CONTINUATION
        b"".join(frame(1, 5, 2 * n + 1, b"\x82\x87\x84") + frame(3, 0, 2 * n + 1, bytes(4)) for n in range(5000)),
        frame(1, 4, 1, b"\x83\x87\x84\x01\x01a") + frame(0, 0, 1) * 50_000,  # empty DATA
        # MadeYouReset: half-closed streams that are made to be reset by window updates of nothing
        b"".join(
            frame(1, 5, 2 * n + 1, b"\x82\x87\x84\x01\x01a") + frame(8, 0, 2 * n + 1, bytes(4)) for n in range(9000)
        ),
        # HPACK bomb: one large entry in the table, named many times
        frame(1, 4, 1, b"\x82\x87\x84\x40\x01a\x7f\x81\x1e" + b"b" * 4000 + b"\xbe" * 4000),
        frame(0, 0, 1, b"data before a head"),
        frame(8, payload=bytes(4)),
        b"\xff" * 100,
    ],
    ids=[
        "ping",
        "settings",
        "continuation",
        "rapid-reset",
        "empty-data",
        "made-you-reset",
        "hpack",
        "order",
        "window",
        "junk",
    ],
)
def test_floods_end_the_connection(flood: bytes) -> None:
    engine = Http2(serving=True)
    engine.receive(PREFACE + frame(4))
    over = False
    answered = 0
    for start in range(0, len(flood), 16384):
        try:
            engine.receive(flood[start : start + 16384])
            # A visitor who sends floods reads nothing: its answers pile up.
            if len(flood) > 1_000_000 and start % 65536:
                continue
            answer = engine.pull(1 << 20)
        except RemoteError:
            over = True
            break
        answered += len(answer)
        if b"\x00\x00\x08\x07\x00" in answer or _goaway(answer):
            over = True
            break
    assert over or _bounded(engine, answered, len(flood))


def _goaway(data: bytes) -> bool:
    at = 0
    while at + 9 <= len(data):
        if data[at + 3] == 7:
            return True
        at += 9 + int.from_bytes(data[at : at + 3], "big")
    return False


def _bounded(engine: Http2, answered: int, sent: int) -> bool:
    """Not ended, but nothing piled up either: what came was answered with at most as much."""
    return engine.queued() == 0 and answered <= sent


@given(st.lists(st.binary(max_size=60), max_size=8), st.booleans())
def test_junk_is_a_remote_error(parts: list[bytes], greeted: bool) -> None:
    engine = Http2(serving=True)
    try:
        if greeted:
            engine.receive(PREFACE + frame(4))
        for part in parts:
            engine.receive(part)
            engine.pull(4096)
    except RemoteError:
        engine.last_words(ErrorCode.PROTOCOL_ERROR)


@given(
    st.lists(st.tuples(st.integers(0, 10), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=40)), max_size=10)
)
def test_odd_frames_are_a_remote_error(frames: list[tuple[int, int, int, bytes]]) -> None:
    engine = Http2(serving=True)
    engine.receive(PREFACE + frame(4))
    try:
        for kind, flags, stream, payload in frames:
            for event in engine.receive(frame(kind, flags, stream, payload)):
                if isinstance(event, DataReceived) and event.data:
                    engine.owe(event.stream_id, len(event.data))
                    engine.pay(event.stream_id)
            engine.pull(4096)
    except RemoteError:
        engine.last_words(ErrorCode.PROTOCOL_ERROR)
