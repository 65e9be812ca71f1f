"""Greetings and control messages: whole, in pieces, and as the JSON alone.

The first byte says how the rest is cut; a greeting that is understood can be said again and is understood the same.
"""

from __future__ import annotations

import msgspec

from tests.fuzz.wire_session import brief
from tunnelgw.errors import Refused, RemoteError
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire import frames
from tunnelgw.wire.control import Hello, JoinStart, decode_control, decode_greeting, decode_open
from tunnelgw.wire.flow import Budget
from tunnelgw.wire.frames import HEADER, HEADER_SIZE, HELLO, MAX_PAYLOAD, OPEN_WINDOWS
from tunnelgw.wire.hello import MAX_GREETING, GreetingReader, encode_greeting, negotiate
from tunnelgw.wire.session import Session

_MALFORMED = (msgspec.MsgspecError, ValueError, RecursionError)


class Handler:
    """Hears control messages."""

    def control_received(self, message: object) -> None:
        assert decode_control(msgspec.json.encode(message)) == message

    def stream_opened(self, stream: object, request: object) -> None:
        pass


def read(data: bytes, size: int) -> list[object]:
    """The greetings in `data`, fed in pieces of `size`; what follows them is kept."""
    reader, found = GreetingReader(), []
    for start in range(0, len(data), size):
        message = reader.feed(data[start : start + size])
        while message is not None:
            found.append(message)
            message = reader.feed(b"")
        assert len(reader.rest) < HEADER_SIZE + MAX_GREETING + size
    return found


def outcome(data: bytes, size: int) -> object:
    """The greetings, or what was wrong."""
    try:
        return read(data, size)
    except RemoteError as error:
        brief(error)
        return "refused"


def control(payload: bytes) -> None:
    """The same bytes as a CONTROL message and as an OPEN's request, of a session."""
    session = Session(opens_odd=True, handler=Handler(), wake=lambda: None, budget=Budget(), now=0.0)  # type: ignore[arg-type]
    session.attach(0, 0.0)
    piece = payload[:MAX_PAYLOAD]
    for frame in (
        frames.encode(frames.CONTROL, 0, piece),
        frames.encode(frames.OPEN, 2, OPEN_WINDOWS.pack(0, 262144) + piece[: MAX_PAYLOAD - 8]),
    ):
        try:
            session.feed(frame, 0.0)
        except RemoteError as error:
            brief(error)
    session.close(Reason.PROTOCOL_ERROR)


def one(data: bytes) -> None:
    """One input."""
    if not data:
        return
    how, rest = data[0], data[1:]
    framed = HEADER.pack(HELLO << 24 | len(rest), 0) + rest
    for text in (rest, framed):
        whole = outcome(text, len(text) or 1)
        assert outcome(text, 1 + how) == whole
    control(rest)
    for decode in (decode_greeting, decode_open, decode_control):
        try:
            message = decode(rest)
        except _MALFORMED:
            continue
        if decode is decode_greeting:
            assert read(encode_greeting(message), 7) == [message]
        if isinstance(message, Hello | JoinStart):
            try:
                assert negotiate(message.versions) == 1
            except Refused as refusal:
                brief(refusal)
