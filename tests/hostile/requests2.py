"""Hostile HTTP/2 requests: what must come of the stream, and what the service may see.

`RESET`: the stream ends with an error; or the connection does, where the protocol makes it a connection error. Nothing
of such a request may reach the service as a whole request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.hostile.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GET,
    HEADERS,
    POST,
    RST_STREAM,
    block,
    frame,
    request,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.hostile.recorder import Request

RESET = frozenset({"reset", "goaway", "closed"})


@dataclass(frozen=True)
class Case2:
    """`wanted`: outcomes, or statuses, that are right for stream 1."""

    line: str
    data: bytes
    wanted: frozenset[str | int]
    served: int
    check: Callable[[Request], bool] | None = None
    early: bool = False  # what was promised came, and may have been passed on, before the visitor went on

    @property
    def id(self) -> str:
        return f"{self.line}: {self.data[9:90]!r}"


def case(line: object, data: bytes, *wanted: str | int, check: object = None, early: bool = False) -> Case2:
    """No outcome: the stream or the connection ends with an error."""
    found = frozenset(wanted) or RESET
    return Case2(str(line), data, found, int(200 in found or early), check, early)  # type: ignore[arg-type]


def get(*more: tuple[bytes, bytes], **changed: bytes | None) -> bytes:
    return request([*_pseudo(GET, changed), *more])


def post(*more: tuple[bytes, bytes], body: bytes = b"hello", end: bool = True, **changed: bytes | None) -> bytes:
    return request([*_pseudo(POST, changed), *more], end=False) + frame(DATA, END_STREAM if end else 0, 1, body)


def _pseudo(fields: list[tuple[bytes, bytes]], changed: dict[str, bytes | None]) -> list[tuple[bytes, bytes]]:
    values = [(name, changed.get(name[1:].decode(), value)) for name, value in fields]
    return [(name, value) for name, value in values if value is not None]


def connect(*more: tuple[bytes, bytes], protocol: bytes | None = None, full: bool = False) -> bytes:
    fields = [(b":method", b"CONNECT"), (b":authority", b"web.example.com")]
    if protocol is not None:
        fields.append((b":protocol", protocol))
    if full:
        fields += [(b":scheme", b"https"), (b":path", b"/ok")]
    return request([*fields, *more], end=False)


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: web.example.com\r\nX-Evil: 1\r\n\r\n"
EVIL_VALUES = [b"a" + bytes([byte]) + b"b" for byte in (*range(9), *range(10, 32), 127)]
TRAILER = request([*POST], end=False) + frame(DATA, 0, 1, b"hello")


def trailers(*fields: tuple[bytes, bytes], end: bool = True) -> bytes:
    return TRAILER + frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), 1, block(fields))


NAMES = [
    *(case(98, get((b"x-a", value))) for value in EVIL_VALUES),
    *(case(98, get((b"x-a", value))) for value in (b" a", b"a ", b"\ta", b"a\t", b"a\r\nX-Evil: 1",
    b"a\r\n\r\n" + SMUGGLED)),
    *(case(98, get((name, b"a"))) for name in (
        b"X-A", b"x-A", b"x a", b"x:a", b"x\r\na", b"x\na", b"x\0a", b"", b" x", b"x ", b"x\x7f", b"x\x80", b"x\xff",
        b"(x)",
        b"x@a", b'x"a', b"x/a", b"x[a", b"x{a", b"x\ta", b"a: b\r\nx-evil", b"HOST", b"Content-Length",
        b"Transfer-Encoding",
    )),
    *(case(98, get(path=path)) for path in (
        b"/ok\r\nX-Evil: 1", b"/ok HTTP/1.1\r\nHost: evil\r\n\r\n" + SMUGGLED, b"/ok b", b"/ok\0", b"/ok\x01",
        b"/ok\x7f",
        b"/ok\xff", b"/ok\x80", b"/ok\t", b" /ok", b"/ok ", b"/ok\n", b"/ok#b", b"/ok\xc3\xa4",
    )),
    *(case(98, get(authority=value)) for value in (
        b"web.example.com\r\nX-Evil: 1", b"web.example.com\0", b" web.example.com", b"web.example.com ",
        b"web.example.com\x7f",
    )),
    *(case(98, get(method=value), *RESET, 405, 501) for value in (
        b"GET /smuggled HTTP/1.1\r\nX: ", b"GET\r\n", b"G T", b"GET\0", b"", b"get", b"G\xc3\x8bT", b"BREW",
    )),
    *(case(98, get(scheme=value)) for value in (b"https\r\nX-Evil: 1", b"ftp", b"", b"javascript", b"https://x/")),
]  # fmt: skip

FRAMING = [
    *(case(99, post((b"content-length", value))) for value in (
        b"4", b"6", b"+5", b"-5", b"0x5", b"5,5", b"5 5", b"", b"5abc", b"99999999999999999999", b"5.0", b"\xb2",
    )),
    case(99, post((b"content-length", b"5"), (b"content-length", b"5"))),
    case(99, post((b"content-length", b"5"), (b"content-length", b"6"))),
    case(99, get((b"content-length", b"5"))),
    case(99, post((b"content-length", b"5"), end=False) + frame(DATA, END_STREAM, 1, b"X"), early=True,
         check=lambda r: r.body == b"hello"),
    *(case(99, post((b"content-length", b"0"), body=body), early=True, check=lambda r: r.body == b"")
      for body in (b"hello", SMUGGLED)),
    case(99, post((b"content-length", b"%d" % (len(SMUGGLED) + 9)), body=SMUGGLED)),
    case(99, post((b"content-length", b"5")), 200, check=lambda r: r.body == b"hello"),
    case(99, post(), 200, check=lambda r: r.body == b"hello"),
    case(99, post(body=SMUGGLED), 200, check=lambda r: r.body == SMUGGLED),
    case(99, get((b"content-length", b"0")), 200),
    *(case(99, post(field)) for field in (
        (b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"identity"), (b"transfer-encoding", b""),
        (b"connection", b"close"), (b"connection", b"x-hop"), (b"connection", b"upgrade"), (b"keep-alive",
        b"timeout=5"),
        (b"proxy-connection", b"keep-alive"), (b"upgrade", b"websocket"), (b"upgrade", b"h2c"), (b"te", b"gzip"),
        (b"te", b"trailers, gzip"), (b"te", b""), (b"te", b"chunked"),
    )),
    case(99, post((b"te", b"trailers")), 200),
    *(case(40, post((name, value)), 200, check=lambda r: r.body == b"hello") for name, value in (
        (b"transfer_encoding", b"chunked"), (b"content_length", b"0"), (b"x_forwarded_for", b"evil"),
        (b"content.length", b"1"),
    )),
    *(case(39, get((name, b"evil")), 200) for name in (
        b"x-forwarded-for", b"x-real-ip", b"x-forwarded-host", b"forwarded", b"cf-connecting-ip", b"x-original-url",
        b"proxy-authorization", b"proxy",
    )),
    *(case(45, post((b"expect", value)), 417, "reset") for value in (b"x", b"100-continue, x", b"")),
    case(45, post((b"expect", b"100-continue")), 200, check=lambda r: r.body == b"hello"),
]  # fmt: skip

PSEUDO = [
    *(case(100, get(**{name: None}), *RESET, 501) for name in ("method", "scheme", "path", "authority")),
    *(case(100, get(**{name: b""}), *RESET, 501) for name in ("method", "scheme", "path", "authority")),
    *(case(100, request([*GET, field])) for field in GET),
    *(case(100, request([*GET, (name, b"x")])) for name in (b":unknown", b":status", b":protocol", b":", b":Path",
    b"::path")),
    *(case(100, request([*GET[:3], (b"x-a", b"b"), GET[3]])) for _ in range(1)),
    *(case(100, request([(b"x-a", b"b"), *GET])) for _ in range(1)),
    case(100, request([*GET, (b"x-a", b"b"), (b":path", b"/smuggled")])),
    case(100, request([(b":status", b"200"), *GET])),
    *(case(100, get(path=path)) for path in (
        b"ok", b"http://web.example.com/ok", b"https://evil.example.com/", b"*", b"?x", b"//evil\\ok", b"@evil",
        b".evil", b":80",
    )),
    *(case(106, get(path=path)) for path in (b"/../ok", b"/ok/%2e%2e/", b"/ok/..;/x", b"/ok\\..\\x", b"/ok/.",
    b"/wiki/../ok")),
    *(case(100, get((b"host", host))) for host in (
        b"other.example.com", b"", b"web.example.com:444", b"web.example.com, other.example.com",
        b"evil@web.example.com",
    )),
    case(100, get((b"host", b"web.example.com"), (b"host", b"web.example.com"))),
    case(100, get((b"host", b"web.example.com")), 200),
    case(100, get((b"host", b"web.example.com"), authority=None), 200),
    *(case(26, get(authority=host)) for host in (
        b"u@web.example.com", b"web.example.com/x", b"web.example.com?x", b"web.example.com, other.example.com",
        b"[::1",
        b"web.example.com:x", b"web.example.com:65536", b"web.example.com\\x", b"%77eb.example.com",
        b"caf\xc3\xa9.example.com",
    )),
    *(case(27, get(authority=host), 404, 421, "reset") for host in (b"[::1]", b"127.0.0.1", b"localhost",
    b"edge.example.com")),
    *(case(101, get(authority=host), 421) for host in (
        b"other.example.com", b"OTHER.example.com", b"nobody.example.com", b"x.web.example.com", b"example.com",
        b"other.example.com:443",
    )),
    case(29, get(authority=b"WEB.example.com:443"), 200),
    case(103, connect(), 405, *RESET),
    case(103, connect(full=True), 405, *RESET),
    *(case(103, connect(protocol=protocol, full=True), 501, *RESET) for protocol in (
        b"connect-udp", b"connect-ip", b"websocket2", b"", b"h2c", b"tcp", b"webtransport", b"websocket\r\nX-Evil: 1",
    )),
    case(103, connect(protocol=b"websocket")),
    case(103, get(method=b"TRACE"), 405),
    case(103, request([*GET, (b":protocol", b"websocket")])),
    case(103, request([(b":method", b"CONNECT"), (b":protocol", b"websocket"), *GET[1:]])),
    case(103, request([(b":method", b"CONNECT"), (b":protocol", b"websocket"), *GET[1:], (b"content-length", b"5")],
    end=False)),
]  # fmt: skip

TRAILERS = [
    *(case(105, trailers(field)) for field in (
        (b":path", b"/smuggled"), (b":method", b"GET"), (b":status", b"200"), (b"host", b"evil"), (b"content-length",
        b"5"),
        (b"transfer-encoding", b"chunked"), (b"connection", b"close"), (b"authorization", b"evil"),
        (b"x-forwarded-for", b"evil"),
        (b"X-A", b"b"), (b"x a", b"b"), (b"x-a", b"b\r\nX-Evil: 1"), (b"x-a", b"\0"), (b"", b"b"), (b"te", b"trailers"),
        (b"cookie", b"a"), (b"x_real_ip", b"evil"), (b"upgrade", b"h2c"), (b"content-type", b"a/b"), (b"x-a", b" b"),
    )),
    case(105, trailers(*((b"x-%d" % number, b"a") for number in range(40)))),
    case(105, trailers((b"x-a", b"a"), end=False)),
    case(105, trailers((b"x-a", b"b")), 200, check=lambda r: r.trailers == [(b"x-a", b"b")]),
]  # fmt: skip

SIZES = [
    case(20, get((b"x-a", b"a" * 40_000)), 431, *RESET),
    case(20, get((b"x-a", b"a" * 1_000_000)), 431, *RESET),
    case(20, get(*((b"x-a", b"b"),) * 250), 431, *RESET),
    case(20, get(*((b"x-%d" % number, b"b") for number in range(12_000))), 431, *RESET),
    case(20, get(path=b"/ok" + b"a" * 40_000), 431, 414, *RESET),
    case(20, get((b"x" * 70_000, b"a")), 431, *RESET),
    case(22, get(path=b"/ok" + b"a" * 7997), 200),
    case(22, get((b"cookie", b"a=" + b"b" * 7500)), 200),
    case(22, get(*((b"x-%d" % number, b"y" * 100) for number in range(80))), 200),
    case(22, get(*((b"cookie", b"a%d=b" % number) for number in range(100))), 200,
    check=lambda r: len(r.values(b"cookie")) == 1),
]  # fmt: skip

# What HTTP/2 conformance tests send, beside others: streams that are over, frames where they may not be.
HEAD = block(POST)
FRAMES = [
    *(case(102, data) for data in (
        frame(DATA, END_STREAM, 1, b"before a head"),
        frame(HEADERS, END_HEADERS | END_STREAM, 0, block(GET)), frame(HEADERS, END_HEADERS | END_STREAM, 2,
        block(GET)),
        frame(CONTINUATION, END_HEADERS, 1, block(GET)), frame(HEADERS, END_STREAM, 1, block(GET)) + frame(6, 0, 0,
        bytes(8)),
        frame(HEADERS, END_STREAM, 1, block(GET)) + frame(CONTINUATION, END_HEADERS, 3, b""),
        frame(HEADERS, END_STREAM, 1, block(GET)[:9]) + frame(DATA, END_STREAM, 1, b"x"),
        frame(HEADERS, END_HEADERS, 1, HEAD) + frame(RST_STREAM, 0, 1, bytes(4)) + frame(DATA, END_STREAM, 1, b"x"),
        frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\xff\xff\xff\xff"), frame(HEADERS, END_HEADERS | END_STREAM, 1,
        b"\x80"),
        frame(HEADERS, END_HEADERS | END_STREAM | 8, 1, b"\xff" + block(GET)), frame(5, END_HEADERS, 1,
        b"\0\0\0\2" + block(GET)),
        frame(6, 0, 1, bytes(8)), frame(6, 0, 0, bytes(7)), frame(4, 0, 1, b""), frame(4, 0, 0, bytes(5)), frame(4,
        1, 0, bytes(6)),
        frame(4, 0, 0, b"\0\2\0\0\0\2"), frame(4, 0, 0, b"\0\4\xff\xff\xff\xff"), frame(4, 0, 0, b"\0\5\0\0\0\1"),
        frame(8, 0, 0, bytes(4)), frame(8, 0, 0, bytes(3)), frame(8, 0, 0, b"\x7f\xff\xff\xff") * 2, frame(8, 0, 1,
        b"\0\0\0\1"),
        frame(3, 0, 1, bytes(4)), frame(3, 0, 0, bytes(4)), frame(7, 0, 1, bytes(8)), frame(2, 0, 0, bytes(5)),
        frame(2, 0, 1, b"\0\0\0\1\0"), frame(2, 0, 1, bytes(4)), frame(0, 0, 0, b"x"),
        b"\xff\xff\xff" + frame(DATA)[3:], b"\xff" * 64,
        b"GET /smuggled HTTP/1.1\r\nHost: web.example.com\r\n\r\n" + bytes(64),
    )),
]  # fmt: skip

CASES: list[Case2] = [*NAMES, *FRAMING, *PSEUDO, *TRAILERS, *SIZES, *FRAMES]
