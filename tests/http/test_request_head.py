"""Request heads through both codecs: what must work, and every bad input with the answer it gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tunnelgw.errors import RemoteError
from tunnelgw.http import h1, reference
from tunnelgw.http.head import Framing, RequestHead

if TYPE_CHECKING:
    from types import ModuleType

CODECS = pytest.mark.parametrize("codec", [h1, reference], ids=["httptools", "h11"])


def block(first: bytes = b"GET / HTTP/1.1", *lines: bytes, host: bytes | None = b"a.example.com") -> bytes:
    fields = [b"Host: " + host] if host is not None else []
    return b"\r\n".join([first, *fields, *lines, b"", b""])


def parse(codec: ModuleType, data: bytes, *, secure: bool = True) -> RequestHead:
    head = codec.parse_request_head(data, secure=secure)
    assert isinstance(head, RequestHead)
    return head


@CODECS
def test_a_browsers_request(codec: ModuleType) -> None:
    head = parse(
        codec,
        block(
            b"POST /a/b?c=d&e=/../ HTTP/1.1", b"X-One:  two words \t", b"X-One: again", b"Content-Length: 0005",
            b"Connection: Keep-Alive", b"Cookie: a=b; c=d", b"Empty:", b"Latin: \xe9", b"X-Request-ID: abc-1",
            host=b"A.Example.com.:443",
        ),
    )  # fmt: skip
    assert head == RequestHead(
        method=b"POST",
        path=b"/a/b?c=d&e=/../",
        host="a.example.com",
        authority=b"A.Example.com.:443",
        version=11,
        fields=[
            (b"x-one", b"two words"), (b"x-one", b"again"), (b"cookie", b"a=b; c=d"), (b"empty", b""), (b"latin",
            b"\xe9"),
        ],
        claimed=[],
        framing=Framing.LENGTH,
        length=5,
        keep_alive=True,
        request_id=b"abc-1",
    )  # fmt: skip


@CODECS
def test_large_heads_that_must_work(codec: ModuleType) -> None:
    target = b"/" + b"a" * 7999
    lines = [b"X-%d: value" % number for number in range(78)] + [b"Cookie: " + b"c" * 7500]
    head = parse(codec, block(b"GET " + target + b" HTTP/1.1", *lines))
    assert head.path == target
    assert len(head.fields) == 79


@CODECS
@pytest.mark.parametrize(
    ("first", "lines", "keep"),
    [
        (b"GET / HTTP/1.1", [], True),
        (b"GET / HTTP/1.1", [b"Connection: close"], False),
        (b"GET / HTTP/1.1", [b"Connection: keep-alive", b"Connection: X, Close"], False),
        (b"GET / HTTP/1.0", [], False),
        (b"GET / HTTP/1.0", [b"Connection: keep-alive"], True),
        (b"GET / HTTP/1.0", [b"Connection: keep-alive, close"], False),
    ],
)
def test_keep_alive(codec: ModuleType, first: bytes, lines: list[bytes], *, keep: bool) -> None:
    assert parse(codec, block(first, *lines)).keep_alive is keep


@CODECS
@pytest.mark.parametrize(
    "method", [b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"PATCH", b"PROPFIND", b"QUERY", b"MKCALENDAR"]
)
def test_methods_with_and_without_a_body(codec: ModuleType, method: bytes) -> None:
    assert parse(codec, block(method + b" / HTTP/1.1")).framing is Framing.NONE
    head = parse(codec, block(method + b" / HTTP/1.1", b"Transfer-Encoding: Chunked"))
    assert (head.framing, head.length) == (Framing.CHUNKED, -1)
    head = parse(codec, block(method + b" / HTTP/1.1", b"Content-Length: 9223372036854775807"))
    assert (head.framing, head.length) == (Framing.LENGTH, 9223372036854775807)


@CODECS
def test_targets(codec: ModuleType) -> None:
    assert parse(codec, block(b"OPTIONS * HTTP/1.1")).path == b"*"
    head = parse(codec, block(b"GET http://A.Example.COM/x?y HTTP/1.1", host=b"a.example.com:80"))
    assert (head.path, head.host, head.authority) == (b"/x?y", "a.example.com", b"A.Example.COM")
    head = parse(codec, block(b"GET https://a.example.com?y HTTP/1.1", host=b"a.example.com:443"))
    assert head.path == b"/?y"
    head = parse(codec, block(b"GET https://a.example.com HTTP/1.1", host=b"a.example.com"))
    assert head.path == b"/"
    head = parse(codec, block(b"GET http://a.example.com/ HTTP/1.0", host=None), secure=False)
    assert head.host == "a.example.com"
    for path in (b"/.well-known/x", b"/a..b/...", b"//x", b"/a;b=c", b"/%25", b"/?a=/../b\\c", b"/~u/[x]{y}|^`"):
        assert parse(codec, block(b"GET " + path + b" HTTP/1.1")).path == path


@CODECS
def test_http_1_0_without_host_is_nobodys(codec: ModuleType) -> None:
    head = parse(codec, block(b"GET / HTTP/1.0", host=None))
    assert (head.host, head.authority, head.version) == ("", b"", 10)


@CODECS
def test_addresses_are_valid_hosts(codec: ModuleType) -> None:
    assert parse(codec, block(host=b"[::1]:8443")).host == "::1"
    assert parse(codec, block(host=b"127.0.0.1")).host == "127.0.0.1"
    assert parse(codec, block(host=b"localhost")).host == "localhost"


@CODECS
def test_upgrade_only_to_websocket_and_only_when_asked_for_properly(codec: ModuleType) -> None:
    good = (b"Connection: keep-alive, Upgrade", b"Upgrade: WebSocket", b"Sec-WebSocket-Key: x")
    head = parse(codec, block(b"GET / HTTP/1.1", *good))
    assert head.upgrade == b"websocket"
    assert head.fields == [(b"sec-websocket-key", b"x")]
    for first, lines in [
        (b"GET / HTTP/1.0", good),
        (b"POST / HTTP/1.1", good),
        (b"GET / HTTP/1.1", (*good, b"Content-Length: 3")),
        (b"GET / HTTP/1.1", good[1:]),
        (b"GET / HTTP/1.1", (b"Connection: upgrade", b"Upgrade: h2c", b"HTTP2-Settings: AAA")),
        (b"GET / HTTP/1.1", (b"Connection: upgrade", b"Upgrade: websocket, h2c")),
        (b"GET / HTTP/1.1", (b"Connection: upgrade", b"Upgrade: websocket", b"Upgrade: h2c")),
    ]:
        head = parse(codec, block(first, *lines))
        assert head.upgrade == b""
        assert {name for name, _ in head.fields} <= {b"sec-websocket-key"}


@CODECS
def test_expect(codec: ModuleType) -> None:
    assert parse(codec, block(b"PUT / HTTP/1.1", b"Expect: 100-Continue", b"Content-Length: 1")).expect_continue
    assert parse(
        codec, block(b"PUT / HTTP/1.1", b"Expect: 100-continue", b"Transfer-Encoding: chunked")
    ).expect_continue
    assert not parse(codec, block(b"PUT / HTTP/1.1", b"Expect: 100-continue", b"Content-Length: 0")).expect_continue
    assert not parse(codec, block(b"GET / HTTP/1.1", b"Expect: 100-continue")).expect_continue
    assert not parse(codec, block(b"PUT / HTTP/1.0", b"Expect: x", b"Content-Length: 1")).expect_continue


@CODECS
def test_hop_by_hop_fields_and_what_connection_names_are_gone(codec: ModuleType) -> None:
    head = parse(
        codec,
        block(
            b"GET / HTTP/1.1", b"Connection: X-Hop, close, Host, Content-Length, X-Forwarded-For, X-Request-Id",
            b"X-Hop: 1", b"Keep-Alive: timeout=5", b"Proxy-Connection: close", b"TE: trailers, deflate",
            b"Proxy-Authorization: Basic x", b"Proxy: http://evil", b"Upgrade: foo", b"X-Forwarded-For: 192.0.2.1",
            b"Content-Length: 3", b"X-Request-Id: kept", b"X-Stays: 1",
        ),
    )  # fmt: skip
    assert head.fields == [(b"x-stays", b"1")]
    assert (head.host, head.framing, head.length) == ("a.example.com", Framing.LENGTH, 3)
    assert head.claimed == [(b"x-forwarded-for", b"192.0.2.1")]
    assert head.request_id == b"kept"
    assert head.trailers_ok


@CODECS
def test_imitations_of_reserved_names_are_dropped(codec: ModuleType) -> None:
    lines = [
        b"X_Forwarded_For: 1", b"X.Forwarded.For: 1", b"x_forwarded-proto: 1", b"Content_Length: 5", b"X_Real_IP: 1",
        b"Transfer_Encoding: chunked", b"Transfer.Encoding: chunked", b"X~Forwarded!Host: 1", b"Content~Length: 9",
    ]  # fmt: skip
    head = parse(codec, block(b"GET / HTTP/1.1", *lines, b"my_field: kept", b"a.b: kept"))
    assert head.fields == [(b"my_field", b"kept"), (b"a.b", b"kept")]
    assert head.claimed == []
    assert head.framing is Framing.NONE


@CODECS
def test_claims_are_kept_apart(codec: ModuleType) -> None:
    names = [
        b"X-Forwarded-For", b"X-Forwarded-Host", b"X-Forwarded-Anything", b"X-Real-IP", b"Forwarded",
        b"CF-Connecting-IP",
        b"True-Client-IP", b"X-Client-IP", b"X-Host", b"X-Original-URL",
    ]  # fmt: skip
    head = parse(codec, block(b"GET / HTTP/1.1", *(name + b": evil" for name in names)))
    assert head.fields == []
    assert [name for name, _ in head.claimed] == [name.lower() for name in names]


@CODECS
@pytest.mark.parametrize("value", [b"", b"a b", b"\xe9", b"x" * 129])
def test_invalid_request_ids_are_dropped(codec: ModuleType, value: bytes) -> None:
    head = parse(codec, block(b"GET / HTTP/1.1", b"X-Request-Id: " + value))
    assert (head.request_id, head.fields) == (b"", [])


def case(number: int, data: bytes, status: int = 400, *, secure: bool = True) -> object:
    return pytest.param(data, status, secure, id=f"{number}-{status}-{data[:60]!r}")


def get(*lines: bytes) -> bytes:
    return block(b"POST / HTTP/1.1", *lines)


def target(text: bytes, **more: bytes | None) -> bytes:
    return block(b"GET " + text + b" HTTP/1.1", **more)


# The number is the line of the list of bad inputs that the case belongs to; 0 for others.
REFUSED = [
    case(1, get(b"Content-Length: 5", b"Transfer-Encoding: chunked")),
    case(1, get(b"Transfer-Encoding: chunked", b"Content-Length: 5")),
    case(2, get(b"Content-Length: 5", b"Content-Length: 5")),
    case(2, get(b"Content-Length: 5", b"Content-Length: 6")),
    case(2, get(b"Content-Length:", b"Content-Length: 5")),
    case(2, get(b"Content-Length: 5, 5")),
    *(
        case(3, get(b"Content-Length: " + value))
        for value in (
            b"+5", b"-0", b"-5", b"0x5", b"1_0", b"5abc", b"5.0", "\u0665".encode(), b"\xb2", b"\x0b5", b"5\xa0",
            b"5 5", b"",
            b"18446744073709551621", b"9" * 5000, b"1e1",
        )
    ),
    *(
        case(4, get(b"Transfer-Encoding: " + value))
        for value in (
            b"xchunked", b",chunked", b"chunked,", b"chunked, chunked", b'"chunked"', b"\x0bchunked", b"chunked\xa0",
            b"chun\xe2\x84\xaaed", b"identity", b"gzip, chunked", b"chunked, identity", b"chunked;q=1", b"", b"gzip",
        )
    ),
    case(4, get(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked")),
    case(4, get(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity")),
    case(4, get(b"Transfer-Encoding:", b" chunked")),
    case(4, get(b"Transfer-Encoding : chunked")),
    case(5, block(b"POST / HTTP/1.0", b"Transfer-Encoding: chunked")),
    case(12, get(b"X: a", b" b")),
    case(12, get(b"X: a", b"\tb")),
    *(case(13, get(b"X: a" + bytes([byte]) + b"b")) for byte in (0, 1, 8, 10, 11, 12, 13, 27, 31, 127)),
    *(case(13, target(b"/a" + bytes([byte]) + b"b")) for byte in (0, 1, 9, 10, 11, 13, 27, 127, 0x80, 0xFF)),
    case(14, get(b"X : a")),
    case(14, get(b"X\t: a")),
    case(14, block(b"GET / HTTP/1.1", b"Host: a.example.com", host=None).replace(b"Host", b" Host")),
    case(14, get(b"no colon")),
    case(14, get(b": empty")),
    *(case(14, get(b"X" + mark + b"Y: a"))
      for mark in (b"(", b"@", b'"', b"/", b"\x80", b"\0", b" ", b"[", b"{", b"\\")),
    case(15, b"GET / HTTP/1.1\r\nHost: a.example.com\r\n\rX"),
    case(15, b"GET / HTTP/1.1\r\nHost: a.example.com\r\r\n\r\n"),
    case(15, b"GET / HTTP/1.1\r\nHost: a.example.com\n\r\n\r\n"),
    case(15, b"GET / HTTP/1.1\nHost: a.example.com\n\n"),
    case(15, b"\r\nGET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n"),
    case(15, b"GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\nGET / HTTP/1.1\r\n\r\n"),
    case(17, b"GET /\r\n\r\n"),
    case(17, block(b"GET / HTTP/0.9"), 505),
    case(17, block(b"GET / HTTP/1.2"), 505),
    case(17, block(b"GET / HTTP/2.0"), 505),
    case(17, b"PRI * HTTP/2.0\r\n\r\n", 505),
    case(17, block(b"GET / HTTP/1.10")),
    case(17, block(b"GET / http/1.1")),
    case(17, block(b"GET / HTTP/11111111111111111111.1")),
    case(17, block(b"GET / RTSP/1.0")),
    case(17, block(b"GET / HTTP/1.1 ")),
    case(17, block(b"GET  / HTTP/1.1")),
    case(17, block(b"GET /  HTTP/1.1")),
    case(17, block(b" GET / HTTP/1.1")),
    case(17, block(b"GET\t/ HTTP/1.1")),
    *(
        case(18, target(text))
        for text in (
            b"x", b"@evil", b".evil", b":80", b"*", b"/a#b", b"/#", b"//evil\\x", b"a.example.com/x",
            b"ftp://a.example.com/",
            b"http:/x", b"http://", b"http:///x", b"https:a.example.com", b"?x", b"http://a.example.com#x", b"/a\\b",
        )
    ),
    case(18, block(b"CONNECT a.example.com:443 HTTP/1.1"), 405),
    case(18, block(b"TRACE / HTTP/1.1"), 405),
    case(18, block(b"POST * HTTP/1.1")),
    case(19, b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n"),
    case(20, get(*(b"X-%d: y" % number for number in range(200))), 431),
    case(20, get(*(b"X: y" for _ in range(12_000))), 431),
    case(0, block(b"BREW / HTTP/1.1"), 501),
    case(0, block(b"get / HTTP/1.1"), 501),
    case(0, block(b"M@X / HTTP/1.1")),
    case(24, block(host=None)),
    case(24, get(b"Host: a.example.com")),
    case(24, get(b"host: b.example.com")),
    case(25, block(b"GET / HTTP/1.0", b"Host: a.example.com")),
    *(
        case(26, block(host=host))
        for host in (
            b"u@a.example.com", b"u:p@a.example.com", b"a.example.com/x", b"a.example.com?x", b"a.example.com#x", b"",
            b"a.example.com, b.example.com", b'"a.example.com"', b"a.example.com\\x", b"%61.example.com",
            b"a.example.com:x",
            b"a.example.com:65536", b"a.example.com:0", b"a.example.com:", b"a.example.com:80:80", b"a..b", b"a b",
            b"-a.b",
            b"[::1", b"[fe80::1%25eth0]", b"a.example.com;x", b"caf\xc3\xa9.example.com", b"a.example.com:+1",
            b"0x7f.1",
        )
    ),
    case(30, target(b"http://b.example.com/")),
    case(30, target(b"http://a.example.com:81/")),
    case(30, target(b"http://u@a.example.com/", host=b"u@a.example.com")),
    case(30, target(b"http://u@a.example.com/")),
    case(30, target(b"http://a.example.com/", host=None)),
    case(30, target(b"https://a.example.com/"), 400, secure=False),
    case(30, target(b"http://a.example.com/../x")),
    case(45, get(b"Expect: 100-continue, x", b"Content-Length: 1"), 417),
    case(45, get(b"Expect: 100-continu", b"Content-Length: 1"), 417),
    case(45, get(b"Expect: 100-continue", b"Expect: 100-continue"), 417),
    case(45, get(b"Expect: "), 417),
    *(
        case(106, target(text))
        for text in (
            b"/a/../wiki", b"/..", b"/.", b"/a/./b", b"/a/.", b"/%2e%2e/", b"/%2E/x", b"/.%2e?x", b"/a%2f..%2fb",
            b"/..;/x",
            b"/a/..%3bx", b"/a%5c..%5cb", b"/..%2f", b"/a/%2e%2e?b",
        )
    ),
]  # fmt: skip


@CODECS
@pytest.mark.parametrize(("data", "status", "secure"), REFUSED)
def test_refused(codec: ModuleType, data: bytes, status: int, secure: bool) -> None:
    with pytest.raises(RemoteError) as caught:
        codec.parse_request_head(data, secure=secure)
    assert caught.value.reason.status == status


@CODECS
def test_caches_are_bounded_and_give_the_same_answers(codec: ModuleType) -> None:
    from tunnelgw.http.checks import _HOSTS
    from tunnelgw.http.fields import NAMES

    for number in range(5000):
        head = parse(codec, block(b"GET / HTTP/1.1", b"X-Flood-%d: y" % number, host=b"h%d.example.com" % number))
        assert head.host == f"h{number}.example.com"
        assert head.fields == [(b"x-flood-%d" % number, b"y")]
    assert len(NAMES) <= 2048
    assert len(_HOSTS) <= 2048
    long = b"X-" + b"L" * 5000
    assert parse(codec, block(b"GET / HTTP/1.1", long + b": y")).fields == [(long.lower(), b"y")]
    assert long not in NAMES
