"""Body readers: whole, byte by byte, with a tail, against h11, and every malformed chunk."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnelgw.errors import OriginError, RemoteError
from tunnelgw.http.body import (
    LAST_CHUNK,
    MAX_TRAILERS,
    ChunkedBody,
    CloseBody,
    LengthBody,
    encode_chunk,
    encode_trailers,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunnelgw.http.body import BodyReader


def read(body: BodyReader, parts: Iterable[bytes]) -> tuple[bytes, bytes]:
    """(payload, bytes after the body)."""
    payload, rest = b"", b""
    for part in parts:
        if body.done:
            rest += part
            continue
        data, end = body.feed(part)
        assert body.done or end == len(part)
        payload += data
        rest += part[end:]
    return payload, rest


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def single(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def test_length() -> None:
    body = LengthBody(5)
    data = b"abc"
    assert body.feed(data) == (data, 3)
    assert body.feed(data)[0] == b"ab"
    assert body.done
    assert LengthBody(0).done
    whole = b"x" * 100
    body = LengthBody(100)
    assert body.feed(whole)[0] is whole
    body.eof()
    assert LengthBody(2).feed(b"..abc", 2) == (b"ab", 4)
    assert LengthBody(3).feed(b"..abc", 2) == (b"abc", 5)
    assert LengthBody(4).feed(b"..abc", 2) == (b"abc", 5)


def test_a_short_body_is_never_complete() -> None:
    body = LengthBody(5)
    body.feed(b"abcd")
    with pytest.raises(RemoteError):
        body.eof()
    with pytest.raises(OriginError):
        LengthBody(1, origin=True).eof()
    chunked = ChunkedBody(origin=True)
    chunked.feed(b"5\r\nabcde\r\n0\r\n")
    with pytest.raises(OriginError):
        chunked.eof()


def test_until_the_end() -> None:
    body = CloseBody()
    assert body.feed(b"abc") == (b"abc", 3)
    assert body.feed(b"abc", 1) == (b"bc", 3)
    assert not body.done
    body.eof()
    assert body.done


def test_writing_and_reading() -> None:
    data = encode_chunk(b"abc") + encode_chunk(b"x" * 300) + encode_trailers([(b"grpc-status", b"0")])
    for parts in ([data + b"next"], single(data + b"next")):
        body = ChunkedBody()
        assert read(body, parts) == (b"abc" + b"x" * 300, b"next")
        assert body.trailers == [(b"grpc-status", b"0")]
        body.eof()
    body = ChunkedBody()
    assert body.feed(b"..3\r\nabc\r\n" + LAST_CHUNK + b"..", 2) == (b"abc", 15)


def test_a_large_chunk_is_passed_on_in_the_slices_that_arrive() -> None:
    body = ChunkedBody()
    assert body.feed(b"FFFFFFFF\r\n") == (b"", 10)
    part = b"z" * 65536
    assert body.feed(part) == (part, len(part))


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.sampled_from([b"", b";a", b';a="b c"'])), max_size=6),
    st.lists(st.tuples(st.sampled_from([b"x-a", b"X-B"]), st.sampled_from([b"1", b"", b"a b"])), max_size=3),
    st.binary(max_size=10),
    st.lists(st.integers(0, 500), max_size=10),
    st.booleans(),
)
def test_against_h11(
    chunks: list[tuple[bytes, bytes]], trailers: list[tuple[bytes, bytes]], tail: bytes, cuts: list[int], upper: bool
) -> None:
    sizes = b"%X" if upper else b"%x"
    data = b"".join(sizes % len(chunk) + extension + b"\r\n" + chunk + b"\r\n" for chunk, extension in chunks)
    data += b"0\r\n" + b"".join(name + b": " + value + b"\r\n" for name, value in trailers) + b"\r\n"
    oracle = h11.Connection(h11.SERVER)
    oracle.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + data + tail)
    payload = b""
    while not isinstance(event := oracle.next_event(), h11.EndOfMessage):
        if isinstance(event, h11.Data):
            payload += event.data
    for parts in ([data + tail], single(data + tail), pieces(data + tail, cuts)):
        body = ChunkedBody()
        assert read(body, parts) == (payload, tail)
        assert body.done
        assert body.trailers == list(event.headers)


GOOD = b"3\r\nabc\r\n"
MALFORMED = [
    *(size + b"\r\nabc\r\n" for size in (b"0x3", b"+3", b"-3", b"0_3", b" 3", b"3 ", b"3g", b"", b"\t3")),
    b"3\t\r\nabc\r\n",
    b"\xb3\r\nabc\r\n",
    b"00000000000000003\r\nabc\r\n",  # 17 digits
    b"3 ;x\r\nabc\r\n",
    b"3;x\ny\r\nabc\r\n",
    b"3;x\ry\r\nabc\r\n",
    b"3;x\0y\r\nabc\r\n",
    b'3;x="a\r\nb"\r\nabc\r\n\r\n',
    b"3;" + b"x" * 300 + b"\r\nabc\r\n",
    b"3;" + b"x" * 70_000,
    b"3\nabc\r\n",
    b"3\r\nabc\n",
    b"3\r\nabcd\r\n",
    b"3\r\nabcXY",
    b"3\r\nabc\rX",
    b"3\r\nab\r\n0\r\n\r\n",
    b"3\r\rabc",
    b"".join(b"1;%s\r\nx\r\n" % (b"e" * 200) for _ in range(25)),
    b"0\r\nX: a\nY: b\r\n\r\n",
    b"0\r\nX: a\r\n folded\r\n\r\n",
    b"0\r\n X: a\r\n\r\n",
    b"0\r\nX : a\r\n\r\n",
    b"0\r\nno colon\r\n\r\n",
    b"0\r\nX: \0\r\n\r\n",
    b"0\r\nX: " + b"a" * MAX_TRAILERS + b"\r\n\r\n",
    b"0\r\n" + b"X: a\r\n" * 33 + b"\r\n",
    b"0\r\nX: " + b"a" * 1_300_000,
]


@pytest.mark.parametrize("data", MALFORMED, ids=lambda data: repr(data[:24]))
def test_malformed_chunks(data: bytes) -> None:
    for before in (b"", GOOD):
        for parts in ([before + data], single((before + data)[:20_000])):
            body = ChunkedBody()
            with pytest.raises(RemoteError):
                read(body, parts)
            assert not body.done


def test_forbidden_trailers_are_dropped_and_the_others_kept() -> None:
    names = [b"Host", b"Content-Length", b"transfer-encoding", b"Authorization", b"X-Forwarded-For", b"Content_Length"]
    data = b"0\r\n" + b"".join(name + b": x\r\n" for name in names) + b"Server-Timing: y\t\r\n\r\n"
    body = ChunkedBody()
    assert body.feed(data) == (b"", len(data))
    assert body.trailers == [(b"server-timing", b"y")]


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from([b"3\r\n", b"abc", b"\r\n", b"\n", b"0", b"\r", b";x", b"X: y\r\n", b"f", b"\0", b"zz"]),
        max_size=12,
    )
)
def test_cutting_changes_nothing(tokens: list[bytes]) -> None:
    data = b"".join(tokens)

    def outcome(parts: list[bytes]) -> object:
        body = ChunkedBody()
        try:
            return (*read(body, parts), body.done, body.trailers)
        except RemoteError as error:
            return error.reason

    assert outcome([data]) == outcome(single(data))
