"""Response heads through both codecs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tunnelgw.errors import OriginError
from tunnelgw.http import h1, reference
from tunnelgw.http.head import Framing, ResponseHead
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from types import ModuleType

CODECS = pytest.mark.parametrize("codec", [h1, reference], ids=["httptools", "h11"])


def block(first: bytes = b"HTTP/1.1 200 OK", *lines: bytes) -> bytes:
    return b"\r\n".join([first, *lines, b"", b""])


def parse(codec: ModuleType, data: bytes, method: bytes = b"GET") -> ResponseHead:
    head = codec.parse_response_head(data, method=method)
    assert isinstance(head, ResponseHead)
    return head


@CODECS
def test_a_usual_response(codec: ModuleType) -> None:
    head = parse(
        codec,
        block(
            b"HTTP/1.1 200 Very  fine ", b"Content-Length: 12", b"Set-Cookie: a", b"Set-Cookie: b ",
            b"Connection: X-Hop",
            b"X-Hop: 1", b"Keep-Alive: timeout=5", b"Proxy-Authenticate: x", b"X-Request-Id: y", b"Forwarded: z",
        ),
    )  # fmt: skip
    assert head == ResponseHead(
        status=200,
        reason=b"Very  fine ",
        fields=[(b"set-cookie", b"a"), (b"set-cookie", b"b"), (b"x-request-id", b"y"), (b"forwarded", b"z")],
        framing=Framing.LENGTH,
        length=12,
        keep_alive=True,
        dated=False,
    )
    assert parse(codec, block(b"HTTP/1.1 200 OK", b"DATE: now")).dated


@CODECS
@pytest.mark.parametrize(
    ("first", "lines", "method", "framing", "length", "keep"),
    [
        (b"HTTP/1.1 200 OK", [b"Transfer-Encoding: chunked"], b"GET", Framing.CHUNKED, -1, True),
        (b"HTTP/1.1 200 OK", [], b"GET", Framing.CLOSE, -1, False),
        (b"HTTP/1.1 200", [b"Content-Length: 0"], b"GET", Framing.LENGTH, 0, True),
        (b"HTTP/1.1 200 ", [b"Connection: close", b"Content-Length: 3"], b"GET", Framing.LENGTH, 3, False),
        (b"HTTP/1.0 200 OK", [b"Content-Length: 3"], b"GET", Framing.LENGTH, 3, False),
        (b"HTTP/1.0 200 OK", [b"Content-Length: 3", b"Connection: keep-alive"], b"GET", Framing.LENGTH, 3, True),
        (b"HTTP/1.0 200 OK", [b"Connection: keep-alive"], b"GET", Framing.CLOSE, -1, False),
        (b"HTTP/1.1 200 OK", [b"Content-Length: 9"], b"HEAD", Framing.NONE, 9, True),
        (b"HTTP/1.1 200 OK", [b"Transfer-Encoding: chunked"], b"HEAD", Framing.NONE, -1, True),
        (b"HTTP/1.1 200 OK", [], b"HEAD", Framing.NONE, -1, True),
        (b"HTTP/1.1 304 Not Modified", [b"Content-Length: 9"], b"GET", Framing.NONE, 9, True),
        (b"HTTP/1.1 204 No Content", [b"Content-Length: 0"], b"GET", Framing.NONE, -1, True),
        (b"HTTP/1.1 204 No Content", [b"Transfer-Encoding: chunked"], b"GET", Framing.NONE, -1, True),
        (b"HTTP/1.1 100 Continue", [], b"PUT", Framing.NONE, -1, True),
        (b"HTTP/1.1 103 Early Hints", [b"Link: </a>"], b"GET", Framing.NONE, -1, True),
        (b"HTTP/1.1 599 Odd", [b"Content-Length: 1"], b"GET", Framing.LENGTH, 1, True),
    ],
)
def test_framing(
    codec: ModuleType, first: bytes, lines: list[bytes], method: bytes, framing: Framing, length: int, *, keep: bool
) -> None:
    head = parse(codec, block(first, *lines), method)
    assert (head.framing, head.length, head.keep_alive) == (framing, length, keep)


@CODECS
def test_switching_protocols(codec: ModuleType) -> None:
    head = parse(codec, block(b"HTTP/1.1 101 Switching", b"Connection: Upgrade", b"Upgrade: WebSocket", b"Sec-X: 1"))
    assert (head.status, head.upgrade, head.framing) == (101, b"websocket", Framing.NONE)
    assert head.fields == [(b"sec-x", b"1")]
    assert parse(codec, block(b"HTTP/1.1 101 Switching", b"Upgrade: websocket")).upgrade == b""
    assert parse(codec, block(b"HTTP/1.1 101 Switching")).upgrade == b""
    head = parse(codec, block(b"HTTP/1.1 426 No", b"Connection: upgrade", b"Upgrade: websocket", b"Content-Length: 0"))
    assert (head.upgrade, head.framing, head.keep_alive) == (b"", Framing.LENGTH, True)


DOUBTFUL = [
    block(b"HTTP/1.1 200 OK", b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    block(b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    block(b"HTTP/1.1 200 OK", b"Content-Length: 5", b"Content-Length: 5"),
    block(b"HTTP/1.1 200 OK", b"Content-Length: 5", b"Content-Length: 6"),
    block(b"HTTP/1.1 200 OK", b"Content-Length: 5,5"),
    block(b"HTTP/1.1 200 OK", b"Content-Length: -5"),
    block(b"HTTP/1.1 200 OK", b"Content-Length: +5"),
    block(b"HTTP/1.1 200 OK", b"Content-Length: 99999999999999999999"),
    block(b"HTTP/1.1 200 OK", b"Content-Length:"),
    block(b"HTTP/1.1 304 OK", b"Content-Length: x"),
    block(b"HTTP/1.1 200 OK", b"Transfer-Encoding: gzip, chunked"),
    block(b"HTTP/1.1 200 OK", b"Transfer-Encoding: identity"),
    block(b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    block(b"HTTP/1.0 200 OK", b"Transfer-Encoding: chunked"),
    block(b"HTTP/1.1 200 OK", b"X: a\rb"),
    block(b"HTTP/1.1 200 OK", b"X: a\nb"),
    block(b"HTTP/1.1 200 OK", b"X: a\0b"),
    block(b"HTTP/1.1 200 OK", b"X: a\x7fb"),
    block(b"HTTP/1.1 200 OK", b"X: a", b" folded"),
    block(b"HTTP/1.1 200 OK", b"X : a"),
    block(b"HTTP/1.1 200 OK", b": a"),
    block(b"HTTP/1.1 200 OK", b"no colon"),
    block(b"HTTP/1.1 200 OK", b"X(: a"),
    block(b"HTTP/1.1 099 Low"),
    block(b"HTTP/1.1 600 High"),
    block(b"HTTP/1.1 20 Short"),
    block(b"HTTP/1.1 2000 Long"),
    block(b"HTTP/1.1 200OK"),
    block(b"HTTP/1.1  200 OK"),
    block(b"HTTP/1.1 2x0 OK"),
    block(b"HTTP/1.1 200 O\0K"),
    block(b"HTTP/1.1 200 O\rK"),
    block(b"HTTP/2.0 200 OK"),
    block(b"HTTP/1.2 200 OK"),
    block(b"HTTP/0.9 200 OK"),
    block(b"http/1.1 200 OK"),
    block(b"ICY 200 OK"),
    b"<html>\r\n\r\n",
    b"HTTP/1.1 200 OK\nX: y\n\n",
    b"HTTP/1.1 200 OK\r\nX: y\n\r\n",
    b"\r\nHTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n\r\n",
]


@CODECS
@pytest.mark.parametrize("data", DOUBTFUL)
def test_doubtful_responses_are_the_targets_fault(codec: ModuleType, data: bytes) -> None:
    with pytest.raises(OriginError) as caught:
        codec.parse_response_head(data, method=b"GET")
    assert caught.value.reason is Reason.UPSTREAM_INVALID


@CODECS
def test_too_many_fields(codec: ModuleType) -> None:
    parse(codec, block(b"HTTP/1.1 200 OK", *(b"X: y" for _ in range(200))))
    with pytest.raises(OriginError) as caught:
        codec.parse_response_head(block(b"HTTP/1.1 200 OK", *(b"X: y" for _ in range(201))), method=b"GET")
    assert caught.value.reason is Reason.UPSTREAM_HEAD_TOO_LARGE
