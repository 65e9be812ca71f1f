"""Nearly valid messages for the targets of HTTP's fuzzing: what a fuzzer rarely makes by itself."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import http_fields, http_request, http_response
from tests.http.test_differential import requests, responses

CORPUS = Path(__file__).parent.parent / "corpus" / "http"

BODIES = st.sampled_from(
    [
        *(b"", b"hello", b"hello!", b"5\r\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n0\r\nX-T: a\r\nHost: evil\r\n\r\n"),
        *(b"5;x=y\r\nhello\r\n00\r\n\r\n", b"0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n", b"5\r\nhelloX\r\n0\r\n\r\n"),
    ]
)


@settings(max_examples=400)
@given(st.lists(st.tuples(requests(), BODIES), min_size=1, max_size=3))
def test_what_is_forwarded_is_one_request(messages: list[tuple[bytes, bytes]]) -> None:
    http_request.one(b"".join(head + body for head, body in messages))


@settings(max_examples=400)
@given(st.integers(0, 15), st.lists(responses(), min_size=1, max_size=3), BODIES)
def test_what_is_answered_is_one_response(how: int, heads: list[bytes], body: bytes) -> None:
    http_response.one(bytes([how]) + b"".join(heads) + body)


PSEUDO = st.tuples(
    st.sampled_from([b":method=GET", b":method=POST", b":method=CONNECT", b""]),
    st.sampled_from([b":scheme=https", b":scheme=http"]),
    st.sampled_from([b":authority=a.example.com", b":authority=b", b"host=a.example.com"]),
    st.sampled_from([b":path=/", b":path=/a?b", b":path=/a b", b":path=*"]),
)
LINES = st.lists(
    st.sampled_from(
        [
            *(b"content-length=5", b"content-length=0", b"te=trailers", b"cookie=a=b", b"cookie=", b"x-a=\r", b"X=a"),
            *(b"!x-t=a", b"!host=a", b"!:path=/", b"x_forwarded_for=1", b"x-forwarded-for=1", b"expect=100-continue"),
            *(b"transfer-encoding=chunked", b"host=a.example.com", b"x=a\x1fb", b" x=a", b"x=a ", b"connection=close"),
        ]
    ),
    max_size=6,
)


@settings(max_examples=300)
@given(st.booleans(), PSEUDO, LINES)
def test_what_came_by_http2_is_one_request(end: bool, pseudo: tuple[bytes, ...], lines: list[bytes]) -> None:
    http_fields.one(bytes([end]) + b"\n".join([*pseudo, *lines]))
