"""Hostile responses of a local service, by the promise that each one tests, and what a visitor must see.

`wanted`: a status, or "cut" (the visitor sees that the rest is missing); `body`: what it reads. Bytes are sent as they
are; a callable gets the socket, and says by its result whether the connection serves on.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.hostile.recorder import reset

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    Script = bytes | Callable[[socket.socket], bool | None]

OK = b"HTTP/1.1 200 OK\r\n"
SMUGGLED = OK + b"Content-Length: 8\r\n\r\nsmuggled"


@dataclass(frozen=True)
class Reply:
    line: str
    script: Script
    wanted: frozenset[int | str]
    body: bytes | None = None
    method: bytes = b"GET"
    fields: tuple[bytes, ...] = ()  # of the request
    lacks: tuple[bytes, ...] = ()  # fields that the visitor must not see

    @property
    def id(self) -> str:
        return f"{self.line}: {self.script[:80]!r}" if isinstance(self.script, bytes) else f"{self.line}: {self.script}"


def reply(line: object, script: Script, *wanted: int | str, **more: object) -> Reply:
    """By default 502."""
    return Reply(str(line), script, frozenset(wanted or (502,)), **more)  # type: ignore[arg-type]


def ok(*lines: bytes, body: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def then(data: bytes, end: Callable[[socket.socket], object] | None = None) -> Script:
    """Send and close, or end otherwise."""

    def script(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            sock.sendall(data)
        if end is not None:
            end(sock)

    script.__qualname__ = repr(data[:60])
    return script


CL, TE = b"Content-Length: 5", b"Transfer-Encoding: chunked"
HELLO = b"5\r\nhello\r\n0\r\n\r\n"

INVALID = [
    *(reply(48, ok(*lines, body=body)) for lines, body in (
        ((CL, TE), HELLO), ((TE, CL), HELLO), ((CL, CL), b"hello"), ((CL, b"Content-Length: 6"), b"hello!"),
        ((TE, TE), HELLO), ((TE, b"Transfer-Encoding: identity"), HELLO), ((b"Content-Length: 0", CL), b"hello"),
        ((b"Content-Length:", CL), b"hello"),
    )),
    *(reply(48, ok(b"Content-Length: " + value, body=b"hello")) for value in (
        b"-5", b"+5", b"0x5", b"5,5", b"5 5", b"", b"5abc", b"99999999999999999999", b"1e1", b"\xb2", b"5;",
        b"9" * 5000,
    )),
    *(reply(48, ok(b"Transfer-Encoding: " + value, body=HELLO)) for value in (
        b"gzip", b"gzip, chunked", b"chunked, chunked", b"identity", b"", b"xchunked", b"chunked, identity",
        b"\x0bchunked", b"chunked;q",
    )),
    reply(48, b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + HELLO),
    *(reply(48, ok(CL, b"X: a" + bytes([byte]) + b"b", body=b"hello")) for byte in (*range(9), *range(10, 32), 127)),
    *(reply(48, ok(CL, line, body=b"hello")) for line in (
        b"X: a\r\n b", b"X: a\r\n\tb", b"X : a", b"no colon", b": empty", b" X: a", b"X Y: a", b"X\x00: a", b"X(: a",
        b"X\xff: a",
        b"X: a\nY: b", b"X: a\rY: b",
    )),
    *(reply(48, line + b"\r\nContent-Length: 5\r\n\r\nhello") for line in (
        b"HTTP/1.1 2000 OK", b"HTTP/1.1 20 OK", b"HTTP/1.1 099 OK", b"HTTP/1.1 000 OK", b"HTTP/1.1 600 OK",
        b"HTTP/1.1 999 OK",
        b"HTTP/1.1 abc OK", b"HTTP/1.1 2 0 0", b"HTTP/1.1  200 OK", b"HTTP/1.1\t200 OK", b"HTTP/2 200 OK",
        b"HTTP/2.0 200 OK",
        b"HTTP/1.2 200 OK", b"HTTP/0.9 200 OK", b"http/1.1 200 OK", b"HTTP/1.1 +200 OK", b"HTTP/1.1 200OK",
        b"HTTP/1.1200 OK",
        b" HTTP/1.1 200 OK", b"\r\nHTTP/1.1 200 OK", b"ICY 200 OK", b"HTTP/1.1 200 O\x00K", b"HTTP/1.1 200 O\rK",
        b"HTTP/1.1 -200 OK",
        b"HTTP/1.1", b"200 OK", b"HTTP/1.1 \xef\xbc\x92\xef\xbc\x90\xef\xbc\x90 OK", b"",
    )),
    *(reply(48, then(data)) for data in (
        b"<html>HTTP/0.9 has no head</html>", b"\x00" * 100, b"\xff" * 100, b"\x16\x03\x03\x00\x05hello",
        b"SSH-2.0-x\r\n", b"PRI * HTTP/2.0",
        b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n", OK[:10], OK, OK + b"X: a", OK + b"X: a\r\n",
        b"HTTP/1.1 200 OK\n\nhello",
        b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", b"\n", b"\r\n\r\n", b"0", b"{}",
    )),
    *(reply(23, then(OK + data)) for data in (
        b"X: " + b"a" * 1_200_000 + b"\r\n\r\n", b"X: a\r\n" * 201 + b"\r\n", b"X: a\r\n" * 200_000,
        b"X" * 1_200_000 + b": a\r\n\r\n",
    )),
    reply(23, then(b"HTTP/1.1 200 " + b"O" * 1_200_000 + b"\r\n\r\n")),
    reply(46, b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 2000 + SMUGGLED),
    reply(46, b"HTTP/1.1 100 Continue\r\n\r\n" * 2000 + SMUGGLED),
    reply(44, b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n" + SMUGGLED),
    reply(44, b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + SMUGGLED),
    reply(44, b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n" + SMUGGLED),
]  # fmt: skip

WHOLE = [
    *(reply(0, ok(*lines, body=body), 200, body=b"hello") for lines, body in (
        ((CL,), b"hello"), ((TE,), HELLO), ((b"content-length:5",), b"hello"), ((b"Transfer-Encoding: Chunked",),
        HELLO),
        ((TE,), b"5;a=b\r\nhello\r\n0;c\r\n\r\n"), ((TE,), b"2\r\nhe\r\n3\r\nllo\r\n00\r\nX-T: a\r\n\r\n"),
    )),
    reply(0, then(ok(body=b"hello")), 200, body=b"hello"),
    reply(0, then(b"HTTP/1.0 200 OK\r\n\r\nhello"), 200, body=b"hello"),
    reply(0, b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", 200, body=b"hello"),
    reply(0, b"HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\nhello", 200, body=b"hello"),
    reply(0, b"HTTP/1.1 200 \xff\xfe\r\nContent-Length: 5\r\n\r\nhello", 200, body=b"hello"),
    reply(36, ok(CL, b"Connection: X-Hop", b"X-Hop: evil", body=b"hello"), 200, body=b"hello", lacks=(b"x-hop",)),
    reply(37, ok(CL, b"Connection: Content-Length, Date", body=b"hello"), 200, body=b"hello"),
    *(reply(38, ok(CL, name + b": evil", body=b"hello"), 200, body=b"hello", lacks=(name.lower(),)) for name in (
        b"Keep-Alive", b"Proxy-Connection", b"Upgrade", b"Proxy-Authenticate", b"TE", b"HTTP2-Settings",
    )),
    *(reply(40, ok(CL, name + b": 1", body=b"hello"), 200, body=b"hello", lacks=(name.lower(),)) for name in (
        b"Content_Length", b"Transfer_Encoding", b"Content.Length",
    )),
    *(reply(46, interim + ok(CL, body=b"hello"), 200, body=b"hello") for interim in (
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 16, b"HTTP/1.1 199 x\r\nContent-Length: 9\r\n\r\n",
        b"HTTP/1.0 100 Continue\r\n\r\n",
    )),
    # Bytes that no request asked for: never an answer to the next one.
    *(reply(49, first + SMUGGLED, status, body=body, method=method) for first, status, body, method in (
        (ok(CL, body=b"hello"), 200, b"hello", b"GET"), (ok(TE, body=HELLO), 200, b"hello", b"GET"),
        (ok(CL), 200, b"", b"HEAD"), (ok(TE), 200, b"", b"HEAD"), (ok(b"Content-Length: 0"), 200, b"", b"GET"),
        (b"HTTP/1.1 204 No\r\n\r\n", 204, b"", b"GET"), (b"HTTP/1.1 304 No\r\nContent-Length: 5\r\n\r\n", 304, b"",
        b"GET"),
        (b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\nhello", 204, b"", b"GET"), (ok(CL, body=b"hello"), 200, b"",
        b"HEAD"),
        (b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n" + HELLO, 204, b"", b"GET"),
        (b"HTTP/1.1 304 No\r\nTransfer-Encoding: chunked\r\n\r\n" + HELLO, 304, b"", b"GET"),
        (ok(CL, body=b"hello\r\n"), 200, b"hello", b"GET"), (ok(CL, body=b"hello\n"), 200, b"hello", b"GET"),
        (ok(CL, b"Connection: close", body=b"hello"), 200, b"hello", b"GET"),
    )),
    reply(51, then(b"HTTP/1.1 413 No\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello"), 413, body=b"hello"),
]  # fmt: skip

CUT = [
    *(reply(50, then(ok(*lines, body=body), end), "cut") for end in (None, reset) for lines, body in (
        ((b"Content-Length: 100",), b"hello"), ((b"Content-Length: 5",), b"hell"), ((TE,), b"5\r\nhello\r\n"), ((TE,
        ), b"5\r\nhel"),
        ((TE,), b"5\r\nhello\r\n0\r\n"), ((TE,), b"5\r\nhello\r\n0\r\nX: a\r\n"), ((TE,), b""),
        ((b"Content-Length: 5",), b""),
    )),
    reply(50, then(ok(body=b"hello"), reset), "cut"),
    *(reply(50, ok(TE, body=b"5\r\nhello\r\n" + chunk + b"\r\nhello\r\n0\r\n\r\n"), "cut") for chunk in (
        b"0x5", b"+5", b"-5", b" 5", b"5 ", b"5g", b"", b"00000000000000005", b"5;a\nb", b"5;a\x00",
        b"5;" + b"a" * 300, b"\xb5",
    )),
    *(reply(50, ok(TE, body=body), "cut") for body in (
        b"5\r\nhello\n0\r\n\r\n", b"5\r\nhelloXX0\r\n\r\n", b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0\r\nX : a\r\n\r\n",
        b"5\r\nhello\r\n0\r\nX: a\r\n b\r\n\r\n", b"5\r\nhello\r\n0\r\n" + b"X: a\r\n" * 40 + b"\r\n",
        b"5\r\nhello\r\n0\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
    )),
    *(reply(52, then(data, end), 502) for data in (b"", b"HTTP/1.1 2",
    b"HTTP/1.1 200 OK\r\nX: a\r\n") for end in (None, reset)),
]  # fmt: skip

WEBSOCKET = (
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
UPGRADES = [
    reply(42, b"HTTP/1.1 426 No\r\nContent-Length: 5\r\n\r\nhello" + SMUGGLED, 426, body=b"hello", fields=WEBSOCKET),
    reply(42, ok(CL, body=b"hello") + SMUGGLED, 200, body=b"hello", fields=WEBSOCKET),
    reply(42, b"HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n" + SMUGGLED, 502, fields=WEBSOCKET),
    reply(42, b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\n\r\n" + SMUGGLED, 502, fields=WEBSOCKET),
    reply(42, b"HTTP/1.1 101 S\r\nConnection: upgrade\r\n\r\n" + SMUGGLED, 502, fields=WEBSOCKET),
]  # fmt: skip

REPLIES: list[Reply] = [*INVALID, *WHOLE, *CUT, *UPGRADES]
