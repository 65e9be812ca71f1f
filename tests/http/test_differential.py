"""Both codecs over heads that are nearly valid: equal results, equal refusals, and no other exception."""

from __future__ import annotations

from typing import TYPE_CHECKING

import h11
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnelgw.errors import OriginError, RemoteError, TunnelgwError
from tunnelgw.http import h1, reference
from tunnelgw.http.codec import find_request_end, find_response_end
from tunnelgw.http.fields import valid_name, valid_value

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = st.sampled_from(
    [
        *(b"Host", b"host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Upgrade", b"Expect"),
        *(b"TE", b"Cookie"),
        *(b"X-Forwarded-For", b"Content_Length", b"X-A", b"X-B", b"Keep-Alive", b"Trailer", b"", b" X", b"X ", b"X\0"),
    ]
)
VALUES = st.sampled_from(
    [
        *(b"a.example.com", b"b.example.com", b"a.example.com:443", b"5", b"0", b"05", b"+5", b"5, 5"),
        *(b"chunked", b"Chunked"),
        *(b"gzip, chunked", b"identity", b"close", b"keep-alive", b"upgrade", b"X-A, close", b"websocket", b"h2c", b""),
        *(b"100-continue", b"trailers", b"a\tb", b"a\rb", b"a\nb", b"\xff", b"\x7f", b" padded "),
        *(b'a,b;c="d"', b"(c)"),
    ]
)
LINES = st.lists(
    st.tuples(NAMES, st.sampled_from([b": ", b":", b" : ", b":\t", b""]), VALUES).map(b"".join), max_size=5
)
ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\n ", b"\r\r\n"])
METHODS = st.sampled_from(
    [
        b"GET",
        b"POST",
        b"HEAD",
        b"OPTIONS",
        b"CONNECT",
        b"TRACE",
        b"PROPFIND",
        b"QUERY",
        b"PRI",
        b"BREW",
        b"get",
        b"SOURCE",
        b"SETUP",
        b"M-SEARCH",
    ]
)
TARGETS = st.sampled_from(
    [
        *(b"/", b"/a?b", b"*", b"http://a.example.com/x", b"https://b.example.com", b"/a/../b", b"/%2e"),
        *(b"//x", b"/#", b"x"),
        *(b"/|{}^`", b"/?a=b\\c", b"http://[::1]/", b"/\x80", b"a.example.com:443", b'/a"b<c>', b"/[x]", b"?", b"/?#"),
    ]
)
VERSIONS = st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1"])
SPACES = st.sampled_from([b" ", b" ", b" ", b" ", b"  ", b"\t"])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    first = draw(METHODS) + draw(SPACES) + draw(TARGETS) + b" " + draw(VERSIONS)
    lines = [first, *([b"Host: a.example.com"] if draw(st.booleans()) else []), *draw(LINES)]
    data = b"".join(line + (draw(ENDS) if draw(st.integers(0, 9)) == 0 else b"\r\n") for line in lines)
    return data + b"\r\n"


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    status = draw(
        st.sampled_from([b"200", b"101", b"100", b"103", b"204", b"304", b"404", b"599", b"600", b"099", b"20"])
    )
    first = (
        draw(VERSIONS)
        + draw(SPACES)
        + status
        + draw(st.sampled_from([b" OK", b"", b" ", b" \xff", b" a\tb", b"OK", b" \0"]))
    )
    lines = [first, *draw(LINES)]
    data = b"".join(line + (draw(ENDS) if draw(st.integers(0, 9)) == 0 else b"\r\n") for line in lines)
    return data + b"\r\n"


def outcome(parse: Callable[[], object]) -> object:
    try:
        return parse()
    except TunnelgwError as error:
        return type(error), error.reason


@settings(max_examples=500)
@given(requests(), st.booleans())
def test_requests(data: bytes, secure: bool) -> None:
    fast = outcome(lambda: h1.parse_request_head(data, secure=secure))
    assert fast == outcome(lambda: reference.parse_request_head(data, secure=secure))
    assert not isinstance(fast, tuple) or fast[0] is RemoteError


@settings(max_examples=500)
@given(responses(), st.sampled_from([b"GET", b"HEAD", b"POST"]))
def test_responses(data: bytes, method: bytes) -> None:
    fast = outcome(lambda: h1.parse_response_head(data, method=method))
    assert fast == outcome(lambda: reference.parse_response_head(data, method=method))
    assert not isinstance(fast, tuple) or fast[0] is OriginError


@settings(max_examples=300)
@given(st.binary(max_size=80), st.integers(0, 90), st.sampled_from([b"", b"\r\n\r\n"]))
def test_junk_and_heads_with_junk_in_them(junk: bytes, at: int, tail: bytes) -> None:
    request = b"POST /a?b HTTP/1.1\r\nHost: a.example.com\r\nContent-Length: 5\r\nX-A: b\r\n\r\n"
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\nServer: x\r\n\r\n"
    for data in (junk + tail, request[:at] + junk + request[at:], request[:at] + junk + tail):
        fast = outcome(lambda data=data: h1.parse_request_head(data, secure=True))  # type: ignore[misc]
        assert fast == outcome(lambda data=data: reference.parse_request_head(data, secure=True))  # type: ignore[misc]
    for data in (junk + tail, response[:at] + junk + response[at:], response[:at] + junk + tail):
        fast = outcome(lambda data=data: h1.parse_response_head(data, method=b"GET"))  # type: ignore[misc]
        assert fast == outcome(lambda data=data: reference.parse_response_head(data, method=b"GET"))  # type: ignore[misc]


@settings(max_examples=200)
@given(requests())
def test_what_is_accepted_is_safe_to_write_again(data: bytes) -> None:
    try:
        head = h1.parse_request_head(data, secure=True)
    except RemoteError:
        return
    for name, value in head.fields:
        assert valid_name(name)
        assert valid_value(value)
        assert name == name.lower()
    assert not any(byte <= 0x20 or byte >= 0x7F for byte in head.path + head.authority)


@settings(max_examples=150)
@given(requests(), st.binary(max_size=8))
def test_a_head_is_found_the_same_whole_and_byte_by_byte(data: bytes, tail: bytes) -> None:
    """Byte by byte, junk may be refused earlier; where it is not, the end is the same. A valid head always is found."""

    def bytewise() -> int:
        buffer = bytearray()
        for byte in data + tail:
            seen = len(buffer)
            buffer.append(byte)
            end = find_request_end(buffer, searched=seen)
            if end >= 0:
                return end
        return -1

    whole = outcome(lambda: find_request_end(data + tail))
    parsed = outcome(lambda: h1.parse_request_head(data, secure=True))
    slow = outcome(bytewise)
    assert slow in (whole, (RemoteError, slow[1] if isinstance(slow, tuple) else None))
    if not isinstance(parsed, tuple):
        assert whole == slow == len(data)


def test_response_heads_byte_by_byte() -> None:
    data = b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n"
    for end in range(len(data)):
        assert find_response_end(data[:end]) == -1
    assert find_response_end(data + b"body") == len(data)
    assert find_response_end(b"xx" + data, 2) == len(data) + 2


def test_h11_is_no_smuggling_filter() -> None:
    """Why the strict pattern and the checks run around it: if this fails, h11 has become stricter."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"GET / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\nContent-Length: 5\n folded\n\n")
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError:
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(b"GET / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\nContent-Length: 5\n\n")
        event = connection.next_event()
    assert isinstance(event, h11.Request)
