"""What is said inside a private stream: whole, byte by byte and with a tail; anything else is a RemoteError."""

from __future__ import annotations

import pytest

from tunnelgw.errors import RemoteError
from tunnelgw.private import messages
from tunnelgw.private.messages import (
    MESSAGE_MAX,
    Answer,
    Reader,
    Ready,
    RefusedInside,
    Want,
    WantPackets,
    WantService,
    WantTcp,
    WantUdp,
    decode_answer,
    decode_want,
)

KEYS = ("0f" * 32, "f0" * 32)
WANTS: list[Want] = [
    WantService("ssh"),
    WantTcp("nas.lan", 445),
    WantUdp(*KEYS),
    WantPackets(*KEYS, mtu=1400),
]
ANSWERS: list[Answer] = [Ready(), Ready(addresses=["10.9.0.2/24"], dns=["10.9.0.1"]), RefusedInside("no_route", "why")]
CASES = [(decode_want, want) for want in WANTS] + [(decode_answer, answer) for answer in ANSWERS]


@pytest.mark.parametrize(("decode", "message"), CASES)
def test_whole_byte_by_byte_and_with_a_tail(decode: object, message: Want | Answer) -> None:
    data = messages.encode(message)
    whole = Reader(decode)
    assert whole.feed(data + b"tail") == message
    assert whole.rest == b"tail"
    single = Reader(decode)
    found = [single.feed(data[at : at + 1]) for at in range(len(data))]
    assert found == [None] * (len(data) - 1) + [message]
    assert single.rest == b""


@pytest.mark.parametrize(
    "data",
    [
        (MESSAGE_MAX + 1).to_bytes(2, "big"),
        b"\x00\x00",
        b"\x00\x01{",
        b"\x00\x02{}",
        b"\x00\x04nope",
        messages.encode(Ready()),  # an answer where a want belongs
        b"\x00\x1a" + b'{"type":"tcp","host":"a" }',
        messages.encode(WantService("x" * 63)).replace(b"x" * 63, b"x" * 64).replace(b"\x00\x5a", b"\x00\x5b", 1),
        (2000).to_bytes(2, "big") + b"[" * 2000,
    ],
)
def test_what_is_no_want(data: bytes) -> None:
    with pytest.raises(RemoteError):
        Reader(decode_want).feed(data)


def test_a_length_is_judged_before_its_message_arrives() -> None:
    reader = Reader(decode_want)
    assert reader.feed(b"\xff") is None
    with pytest.raises(RemoteError):
        reader.feed(b"\xff")


def test_what_is_said_is_as_short_as_what_is_read() -> None:
    with pytest.raises(ValueError, match="a message of"):
        messages.encode(RefusedInside("x", "y" * MESSAGE_MAX))
