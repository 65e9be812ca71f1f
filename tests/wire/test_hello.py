"""Greetings: whole, byte by byte, with the session's bytes behind; too long, junk, no common version."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelgw.errors import Refused, RemoteError
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire.control import Hello, JoinStart, RefusedMessage, Renewed
from tunnelgw.wire.frames import HEADER, HELLO
from tunnelgw.wire.hello import MAX_GREETING, VERSIONS, GreetingReader, encode_greeting, negotiate

GREETING = Hello(versions=[1], software="test", instance="i" * 16, dial=3, session="s" * 20, received=2**40)
LARGE = Renewed(certificate="c" * 12288, ca="a" * 12288)


@pytest.mark.parametrize("message", [GREETING, LARGE, JoinStart(versions=[1]), RefusedMessage(reason="revoked")])
def test_whole_byte_by_byte_and_with_a_tail(message: Hello) -> None:
    data = encode_greeting(message)
    reader = GreetingReader()
    assert reader.feed(data) == message
    assert reader.rest == b""
    reader = GreetingReader()
    for index in range(len(data) - 1):
        assert reader.feed(data[index : index + 1]) is None
    assert reader.feed(memoryview(data)[-1:]) == message
    reader = GreetingReader()
    assert reader.feed(data + b"session bytes") == message
    assert reader.rest == b"session bytes"


def test_several_greetings_follow_each_other() -> None:
    reader = GreetingReader()
    assert reader.feed(b"") is None
    assert reader.feed(encode_greeting(JoinStart(versions=[1])) + encode_greeting(GREETING) + b"x") == JoinStart([1])
    assert reader.feed(b"") == GREETING
    assert reader.rest == b"x"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x00",
        HEADER.pack(HELLO << 24 | MAX_GREETING + 1, 0),
        HEADER.pack(HELLO << 24 | 0xFFFFFF, 0),
        HEADER.pack(HELLO << 24, 0),
        HEADER.pack(HELLO << 24 | 2, 1) + b"{}",
        HEADER.pack(HELLO << 24 | 2, 0) + b"{}",
        HEADER.pack(HELLO << 24 | 4, 0) + b"\xff\xfe\x00\x01",
        HEADER.pack(HELLO << 24 | 60000, 0) + b"[" * 60000,
        HEADER.pack(HELLO << 24 | 16, 0) + b'{"type":"nope"}.',
    ],
)
def test_what_is_no_greeting_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteError):
        GreetingReader().feed(data)


def test_a_length_is_refused_before_its_payload_is_waited_for() -> None:
    reader = GreetingReader()
    assert reader.feed(HEADER.pack(HELLO << 24 | MAX_GREETING, 0)) is None
    with pytest.raises(RemoteError):
        GreetingReader().feed(HEADER.pack(HELLO << 24 | MAX_GREETING + 1, 0))


@given(st.binary(max_size=200), st.integers(0, 100))
def test_junk_raises_remote_error_only(junk: bytes, position: int) -> None:
    data = bytearray(encode_greeting(GREETING))
    data[position : position + len(junk) % 9] = junk
    for raw in (bytes(data), junk):
        try:
            GreetingReader().feed(raw)
        except RemoteError:
            pass


def test_an_oversized_greeting_is_not_sent() -> None:
    with pytest.raises(ValueError):
        encode_greeting(Renewed(certificate="c" * 40000, ca="a" * 40000))


def test_versions() -> None:
    assert negotiate([7, *VERSIONS]) == max(VERSIONS)
    assert negotiate(VERSIONS) == max(VERSIONS)


@pytest.mark.parametrize(
    ("offered", "said"),
    [
        ([9, 7], "the connector speaks version 7, 9 of the tunnel protocol, the edge 1: upgrade the edge"),
        ([0, -1], "the connector speaks version -1, 0 of the tunnel protocol, the edge 1: upgrade the connector"),
    ],
)
def test_without_a_common_version_the_older_side_is_named(offered: list[int], said: str) -> None:
    with pytest.raises(Refused) as caught:
        negotiate(offered)
    assert caught.value.reason is Reason.VERSION_MISMATCH
    assert caught.value.text == said
