"""Hostile HTTP/1.1 requests, by the promise that each one tests, and what must come of them.

Every request that may reach the service asks for something that begins with `/ok`; whatever else would be a second
request smuggled in. `served`: how many requests the service may understand, by default one for an answer of 200.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.hostile.visitor import HOST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.hostile.recorder import Request

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: web.example.com\r\nX-Evil: 1\r\n\r\n"
HELLO = b"5\r\nhello\r\n0\r\n\r\n"


@dataclass(frozen=True)
class Case:
    """`answers`: for each response the statuses that are right; 0: none, the connection is closed."""

    line: str
    data: bytes
    answers: tuple[frozenset[int], ...]
    served: int
    check: Callable[[Request], bool] | None = None
    leave: bool = False  # the visitor leaves after its bytes: nothing may be understood as a whole request
    method: bytes = b"GET"
    name: str = "web.example.com"

    @property
    def id(self) -> str:
        return f"{self.line}: {self.data[:60]!r}"


def case(line: object, data: bytes, *statuses: int | Iterable[int], served: int = -1, **more: object) -> Case:
    """One case; no status: 400."""
    answers = tuple(frozenset([one] if isinstance(one, int) else one) for one in statuses or (400,))
    if served < 0:
        served = sum(200 in answer for answer in answers)
    return Case(str(line), data, answers, served, **more)  # type: ignore[arg-type]


def head(first: bytes, *lines: bytes, host: bytes | None = HOST, body: bytes = b"") -> bytes:
    hosts = () if host is None else (b"Host: " + host,)
    return b"\r\n".join([first, *hosts, *lines, b"", b""]) + body


def get(*lines: bytes, **more: bytes | None) -> bytes:
    return head(b"GET /ok HTTP/1.1", *lines, **more)  # type: ignore[arg-type]


def post(*lines: bytes, body: bytes = b"", **more: bytes | None) -> bytes:
    return head(b"POST /ok HTTP/1.1", *lines, body=body, **more)  # type: ignore[arg-type]


def target(text: bytes, **more: bytes | None) -> bytes:
    return head(b"GET " + text + b" HTTP/1.1", **more)  # type: ignore[arg-type]


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", body=body)


def lacks(*names: bytes) -> Callable[[Request], bool]:
    return lambda request: not any(request.values(name) for name in names)


CL, TE = b"Content-Length: 5", b"Transfer-Encoding: chunked"

BOTH_FRAMINGS = [
    *(
        case(1, post(*lines, body=body))
        for lines in ((CL, TE), (TE, CL), (b"content-length: 5", b"transfer-encoding: chunked"), (TE,
        b"Content-Length: 0"),
                      (b"Content-Length: 4", TE), (TE, CL, TE), (CL, TE, CL), (b"Content-Length:", TE))
        for body in (HELLO, b"0\r\n\r\n" + SMUGGLED)
    ),
    *(
        case(2, post(*lines, body=b"hello" + SMUGGLED))
        for lines in ((CL, CL), (CL, b"Content-Length: 6"), (b"Content-Length: 0", CL), (b"Content-Length:", CL),
                      (CL, b"Content-Length:"), (b"Content-Length: 5, 5",), (b"Content-Length: 5, 6",),
                      (b"Content-Length: ,5",), (b"Content-Length: 5,",), (CL, b"content-length: 05"), (CL,) * 50)
    ),
    *(
        case(3, post(b"Content-Length: " + value, body=b"hello" + SMUGGLED))
        for value in (
            b"+5", b"-0", b"-5", b"0x5", b"1_0", b"5abc", b"5.0", b"5,0", "\u0665".encode(), b"\xb2", "\uff15".encode(),
            b"\x0b5", b"\x0c5", b"5\xa0", b"\xa05", b"5 5", b"", b" ", b"18446744073709551621", b"99999999999999999999",
            b"9" * 5000, b"1e1", b"five", b'"5"', b"5;", b"0b101", b"0o5", b"NaN", b"5\x00", b"\x005", b"(5)", b"5\t5",
        )
    ),
    case(3, post(b"Content-Length: 9223372036854775807", body=b"hello"), leave=True),
    case(3, post(b"Content-Length: 0005", body=b"hello"), 200, check=lambda r: r.values(b"content-length") == [b"5"]),
    case(3, post(b"Content-Length:   5  ", body=b"hello"), 200, check=lambda r: r.body == b"hello"),
    case(3, post(b"Content-Length:\t5\t", body=b"hello"), 200, check=lambda r: r.body == b"hello"),
    *(
        case(4, post(b"Transfer-Encoding: " + value, body=HELLO + SMUGGLED))
        for value in (
            b"xchunked", b"chunkedx", b",chunked", b"chunked,", b"chunked, chunked", b'"chunked"', b"'chunked'",
            b"\x0bchunked", b"\x0cchunked", b"chunked\x0b", b"chunked\x00", b"chunked\xa0", b"\xa0chunked",
            b"chun\xe2\x84\xaaed", b"chunked\x7f", b"identity", b"identity, chunked", b"gzip, chunked",
            b"chunked, gzip",
            b"chunked, identity", b"chunked;q=1", b"chunked; a=b", b"", b"gzip", b"cow", b"chunked chunked", b"chunk",
            b"deflate", b"x-chunked", b"chunked\tx", b"chu\tnked", b"chu nked", b"(chunked)", b"chunked/1", b"@chunked",
        )
    ),
    *(
        case(4, post(*lines, body=HELLO + SMUGGLED))
        for lines in (
            (TE, TE), (TE, b"Transfer-Encoding: identity"), (b"Transfer-Encoding: identity", TE),
            (b"Transfer-Encoding:", b" chunked"), (b"Transfer-Encoding:\t", b"\tchunked"),
            (b"Transfer-Encoding : chunked",),
            (b"Transfer-Encoding\t: chunked",), (b" Transfer-Encoding: chunked",), (b"\x0bTransfer-Encoding: chunked",),
            (b"Transfer-Encoding: chunked", b"Transfer-Encoding: x"), (b"X: a\nTransfer-Encoding: chunked",),
            (b"X: a\rTransfer-Encoding: chunked",), (b"Transfer\x00-Encoding: chunked",),
            (b"Transfer-\xc3\x88ncoding: chunked",),
            (b"Transfer-Encoding\xa0: chunked",), (b"X: a", b"Transfer-Encoding:"),
        )
    ),
    case(4, post(b"Transfer-Encoding: CHUNKED", body=HELLO), 200, check=lambda r: r.body == b"hello"),
    case(4, post(b"Transfer-Encoding:chunked", body=HELLO), 200, check=lambda r: r.body == b"hello"),
    case(4, post(b"Transfer-Encoding: \t chunked \t", body=HELLO), 200, check=lambda r: r.body == b"hello"),
    case(5, head(b"POST /ok HTTP/1.0", TE, body=HELLO + SMUGGLED)),
    case(5, head(b"POST /ok HTTP/1.0", TE, b"Connection: keep-alive", body=HELLO + SMUGGLED)),
    case(5, head(b"GET /ok HTTP/1.0", b"Transfer-Encoding: identity", body=SMUGGLED)),
    case(5, head(b"POST /ok HTTP/1.0", TE, CL, body=HELLO)),
]  # fmt: skip

CHUNKS = [
    *(
        case(6, chunked(size + b"\r\nhello\r\n0\r\n\r\n" + SMUGGLED))
        for size in (
            b"0x5", b"+5", b"-5", b"0_5", b" 5", b"5 ", b"5\t", b"\t5", b"5g", b"g", b"", b"00000000000000005",
            b"10000000000000005", b"ffffffffffffffff5", b"5.", b"5,5", b"\xb5", b"5\x00", b"\x005", b"0X5", b"5h",
            b"'5'",
            b"-0", b"5\x0b", b"\xef\xbc\x95", b"5\xa0",
        )
    ),
    *(case(6, chunked(size + b"\r\nhello"), leave=True) for size in (b"6", b"FFFFFFFF", b"7fffffffffffffff")),
    *(case(6, chunked(data), 200, check=lambda r: r.body == b"hello")
      for data in (b"5\r\nhello\r\n0\r\n\r\n", b"0005\r\nhello\r\n0\r\n\r\n", b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
                   b"5\r\nhello\r\n0000000000000000\r\n\r\n")),
    *(
        case(7, chunked(b"5;" + extension + b"\r\nhello\r\n0\r\n\r\n" + SMUGGLED))
        for extension in (b"a\nb", b"a\rb", b"a\x00b", b'a="\r\n', b'a="x\ny"', b"a=b\x7f", b"\x1b[2J", b"a\x0bb")
    ),
    case(7, chunked(b"5 ;a\r\nhello\r\n0\r\n\r\n")),
    case(7, chunked(b"5;" + b"a" * 300 + b"\r\nhello\r\n0\r\n\r\n"), {400, 413}),
    case(7, chunked(b"5;" + b"a" * 65536 + b"\r\nhello\r\n0\r\n\r\n"), {400, 413}),
    case(7, chunked(b"1;%b\r\nx\r\n" % (b"e" * 200) * 30 + b"0\r\n\r\n"), {400, 413}),
    *(case(7, chunked(b"5;" + extension + b"\r\nhello\r\n0;z\r\n\r\n"), 200, check=lambda r: r.body == b"hello")
      for extension in (b"", b"a", b"a=b", b'a="b c"', b'a="0\\r\\n"', b"a;b;c")),
    *(
        case(8, chunked(data + SMUGGLED))
        for data in (
            b"5\r\nhelloXX0\r\n\r\n", b"5\r\nhello\n0\r\n\r\n", b"5\r\nhello\r0\r\n\r\n", b"5\r\nhello0\r\n\r\n",
            b"5\r\nhello\n\r0\r\n\r\n", b"5\nhello\r\n0\r\n\r\n", b"5\rhello\r\n0\r\n\r\n", b"5\r\rhello\r\n0\r\n\r\n",
            b"4\r\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n0\n\n", b"5\r\nhello\r\n0\n\r\n", b"5\r\nhello\r\n0\r\r\n",
            b"5\r\nhello\r\n\r\n0\r\n\r\n", b"\r\n5\r\nhello\r\n0\r\n\r\n", b"\n",
        )
    ),
    *(
        case(9, chunked(b"5\r\nhello\r\n0\r\n" + trailers + b"\r\n" + SMUGGLED))
        for trailers in (
            b"X: a\nY: b\r\n", b"X: a\r\n folded\r\n", b" X: a\r\n", b"X : a\r\n", b"no colon\r\n", b"X: \x00\r\n",
            b"X: a\rb\r\n", b": a\r\n", b"X\x00: a\r\n", b"X: a\r\n\r",
        )
    ),
    *(case(9, chunked(b"5\r\nhello\r\n0\r\n" + name + b": evil\r\nX-Fine: a\r\n\r\n"), 200,
           check=lambda r: r.trailers == [(b"x-fine", b"a")] and r.body == b"hello")
      for name in (b"Host", b"Content-Length", b"Transfer-Encoding", b"Authorization", b"X-Forwarded-For", b"Cookie",
                   b"Connection", b"X_Forwarded_For", b"Content-Type", b"X-Real-IP", b"Te", b"Trailer", b"Set-Cookie")),
    case(9, chunked(b"0\r\n" + b"X: a\r\n" * 40 + b"\r\n"), {400, 413}),
    case(9, chunked(b"0\r\nX: " + b"a" * 1_300_000 + b"\r\n\r\n"), {400, 413}),
    case(10, post(b"Content-Length: 100", body=b"hello"), leave=True),
    case(10, post(b"Content-Length: 6", body=b"hello"), leave=True),
    case(10, chunked(b"5\r\nhel"), leave=True),
    case(10, chunked(b"5\r\nhello\r\n0\r\n"), leave=True),
    case(10, chunked(b"5\r\nhello\r\n0\r\nX: a\r\n"), leave=True),
    case(10, b"POST /ok HTTP/1.1\r\nHost: web.exam", leave=True),
    *(case(11, head(method + b" /ok HTTP/1.1", CL, body=b"hello"), 200, method=method,
    check=lambda r: r.body == b"hello")
      for method in (b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"PROPFIND")),
    *(case(11, head(method + b" /ok HTTP/1.1", TE, body=HELLO), 200, method=method, check=lambda r: r.body == b"hello")
      for method in (b"GET", b"HEAD", b"DELETE", b"OPTIONS")),
    case(11, get(b"Content-Length: %d" % len(SMUGGLED), body=SMUGGLED), 200, check=lambda r: r.body == SMUGGLED),
]  # fmt: skip

LINES = [
    *(case(12, get(*lines)) for lines in (
        (b"X: a", b" b"), (b"X: a", b"\tb"), (b"X:", b" b"), (b"X: a", b" Y: b"), (b"X: a", b" "), (b" folded",
        b"X: a"),
    )),
    *(case(13, get(b"X: a" + bytes([byte]) + b"b")) for byte in (*range(9), *range(10, 32), 127)),
    *(case(13, target(b"/ok" + bytes([byte]) + b"b")) for byte in (*range(33), 127, 128, 255) if byte not in (10, 13)),
    *(case(13, target(b"/ok" + mark + b"b")) for mark in (b"\n", b"\r", b"\r\n", b"\n ", b"\xc3\xa4")),
    *(case(13, head(b"G" + bytes([byte]) + b"T /ok HTTP/1.1")) for byte in (0, 1, 8, 11, 27, 127, 128, 255)),
    *(case(14, get(b"X" + mark + b"Y: a")) for mark in (
        b"(", b")", b"<", b">", b"@", b",", b";", b"\\", b'"', b"/", b"[", b"]", b"?", b"=", b"{", b"}", b" ", b"\t",
        b"\x80", b"\xff", b"\x00", b"\x7f",
    )),
    *(case(14, get(line)) for line in (b"X : a", b"X\t: a", b"no colon", b": empty", b":", b" X: a", b"\tX: a",
    b"\x00: a")),
    case(14, b"GET /ok HTTP/1.1\r\n Host: web.example.com\r\n\r\n"),
    case(14, b"GET /ok HTTP/1.1\r\n\r\nHost: web.example.com\r\n\r\n"),
    *(case(15, b"GET /ok HTTP/1.1\r\nHost: web.example.com" + end + SMUGGLED) for end in (
        b"\r\n\rX", b"\r\r\n\r\n", b"\n\r\n\r\n", b"\n\n", b"\n\r\n", b"\r\n\n", b"\r\r", b"\n\r\n\r", b"\r\n\r\r\n",
        b"\r\n\x00\r\n\r\n", b"\r\n \r\n\r\n", b"\x85\r\n\n",
    )),
    case(15, b"GET /ok HTTP/1.1\nHost: web.example.com\n\n"),
    case(15, b"\nGET /ok HTTP/1.1\r\nHost: web.example.com\r\n\r\n"),
    case(15, b"\r\n" + get(), 200),
    case(16, get() + get(), 200, 200),
    case(16, get() + post(CL, body=b"hello") + get(), 200, 200, 200),
    case(16, get() + post(CL, TE, body=HELLO), 200, 400),
    case(16, get() + SMUGGLED.replace(b"/1.1", b"/3.1"), 200, 505),
    case(16, get() + target(b"/ok", host=b"other.example.com"), 200, 421),
    case(16, get() + target(b"/ok", host=b"nobody.example.com"), 200, {404, 421}),
    case(16, get(b"Connection: close") + SMUGGLED, 200),
    case(16, head(b"GET /ok HTTP/1.0") + SMUGGLED, 200),
    case(16, post(CL, body=b"hello" + b"\r\n") + get(), 200, 200),
    case(16, post(CL, body=b"hello" + b"\n") + get(), 200, 400),
    *(case(17, data, {400, 505}) for data in (
        b"GET /ok\r\n\r\n", b"GET /ok\r\nHost: web.example.com\r\n\r\n", head(b"GET /ok HTTP/0.9"),
        head(b"GET /ok HTTP/1.2"),
        head(b"GET /ok HTTP/2.0"), head(b"GET /ok HTTP/3.0"), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        head(b"GET /ok HTTP/1.10"),
        head(b"GET /ok http/1.1"), head(b"GET /ok Http/1.1"), head(b"GET /ok HTTP/11111111111111111.1"),
        head(b"GET /ok RTSP/1.0"),
        head(b"GET /ok HTTP/1.1 "), head(b"GET  /ok HTTP/1.1"), head(b"GET /ok  HTTP/1.1"), head(b" GET /ok HTTP/1.1"),
        head(b"GET\t/ok HTTP/1.1"), head(b"GET /ok\tHTTP/1.1"), head(b"GET /ok HTTP/1"), head(b"GET /ok HTTP/1."),
        head(b"GET /ok HTTP/.1"), head(b"GET /ok HTTP/01.1"), head(b"GET /ok HTTP/1.01"), head(b"GET /ok HTTP/+1.1"),
        head(b"GET /ok HTTP /1.1"), head(b"GET /ok HTTPS/1.1"), head(b"GET /ok XHTTP/1.1"), head(b"GET /ok HTTP/1,1"),
        head(b"GET /ok HTTP/1.1\x00"), head(b"GET /ok HTTP/\xef\xbc\x91.1"), head(b"GET"), head(b"GET /ok"), head(b""),
    )),
    *(case(18, target(text)) for text in (
        b"ok", b"@evil.example.com", b".evil.example.com", b":80", b":80/ok", b"*", b"/ok#b", b"/#",
        b"evil.example.com/ok",
        b"ftp://web.example.com/ok", b"http:/ok", b"http://", b"http:///ok", b"https:web.example.com", b"?x",
        b"//evil\\ok",
        b"http://web.example.com#x", b"/ok\\b", b"javascript:alert(1)", b"file:///etc/passwd",
        b"http:\\\\web.example.com\\",
        b"web.example.com:443", b"gopher://web.example.com/", b"unix:/run/x", b"http//web.example.com/ok",
    )),
    *(case(18, head(method + b" " + text + b" HTTP/1.1"), 405) for method, text in (
        (b"CONNECT", b"web.example.com:443"), (b"CONNECT", b"/ok"), (b"CONNECT", b"169.254.169.254:80"), (b"TRACE",
        b"/ok"),
    )),
    case(18, head(b"OPTIONS * HTTP/1.1"), 200, method=b"OPTIONS", check=lambda r: r.target == b"*"),
    case(18, head(b"POST * HTTP/1.1")),
    *(case(18, head(method + b" /ok HTTP/1.1"), {400, 501}) for method in (
        b"get", b"Get", b"BREW", b"GETS", b"XGET", b"G-ET", b"M" * 1000, b"DEBUG", b"TRACK", b"G\xc3\x8bT",
        b"GET,POST", b"",
    )),
    case(19, b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + get()),
    case(19, b"PROXY UNKNOWN\r\n" + get()),
    case(19, b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12) + get()),
    case(19, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64)),
    case(19, b"\x05\x01\x00"),
    case(19, b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00"),
    case(19, b"SSH-2.0-OpenSSH_9.2p1\r\n"),
    case(19, b"\x80\x2e\x01\x00\x02" + bytes(40)),
]  # fmt: skip

SIZES = [
    case(20, get(b"X: " + b"a" * 1_000_000), {400, 431}),
    case(20, get(b"X" * 1_000_000 + b": a"), {400, 431}),
    case(20, target(b"/ok" + b"a" * 1_000_000), {400, 414, 431}),
    case(20, get(*(b"X-%d: y" % number for number in range(12_000))), {400, 431}),
    case(20, get(*(b"X: y",) * 201), {400, 431}),
    case(20, head(b"M" * 70_000 + b" /ok HTTP/1.1"), {400, 414, 431, 501}),
    case(20, get(b"Cookie: " + b"a=b; " * 10_000), {400, 431}),
    case(20, get(b"Host: " + b"a" * 33_000 + b".example.com", host=None), {400, 431}),
    case(21, b"GET /ok HTTP/1.1\r\nHost: web.example.com\r\n" + b"X: y\r\n" * 330_000, {400, 431}),
    case(21, b"GET /ok HTTP/1.1\r\nHost: web.example.com\r\nX: " + b"y" * 2_000_000, {400, 431}),
    case(21, b"GET /" + b"o" * 2_000_000, {400, 414, 431}),
    case(22, target(b"/ok" + b"a" * 7997), 200, check=lambda r: len(r.target) == 8000),
    case(22, get(b"Cookie: a=" + b"b" * 7500), 200, check=lambda r: len(r.values(b"cookie")[0]) == 7502),
    case(22, get(*(b"X-%d: %b" % (number, b"y" * 100) for number in range(80))), 200,
    check=lambda r: len(r.fields) > 80),
    case(22, target(b"/ok?" + b"&".join(b"k%d=%%20" % number for number in range(500))), 200),
]  # fmt: skip

HOSTS = [
    *(case(24, data) for data in (
        get(host=None), get(b"Host: web.example.com"), get(b"host: other.example.com"), get(b"Host: evil.example.com"),
        get(b"Host:", b" web.example.com", host=None), get(b"Host:", b"Host: web.example.com", host=None),
        get(b"Host: web.example.com", b"HOST: web.example.com"), get(b"Host : web.example.com", host=None),
    )),
    case(25, head(b"GET /ok HTTP/1.0", host=None), {400, 404}),
    case(25, head(b"GET /ok HTTP/1.0", b"Host: web.example.com")),
    *(case(26, get(host=host)) for host in (
        b"u@web.example.com", b"u:p@web.example.com", b"web.example.com/x", b"web.example.com?x",
        b"web.example.com#x", b"",
        b"web.example.com, other.example.com", b"web.example.com other.example.com", b'"web.example.com"',
        b"web.example.com\\x",
        b"web.example.com\x00", b"web.example.com\x00.evil", b"%77eb.example.com", b"web.example.com:x",
        b"web.example.com:65536",
        b"web.example.com:0", b"web.example.com:", b"web.example.com:80:80", b"web.example.com:-1",
        b"web.example.com:+443",
        b"web.example.com:4 43", b"web..example.com", b".web.example.com", b"-web.example.com", b"web.example.com;x",
        b"[::1",
        b"::1", b"[::1]x", b"[fe80::1%25eth0]", b"[fe80::1%eth0]", b"caf\xc3\xa9.example.com", b"web.example.com..",
        b"0x7f.1", b"127.1", b"2130706433", b"web.example.com:0x1bb", b"'web.example.com'", b"<web.example.com>", b"*",
        b"*.example.com", b"w" * 64 + b".example.com", b"a." * 150 + b"com", b"web.example.com:443@evil.com",
        b"$(id).example.com",
        b"web\t.example.com", b"web.example.com'--", b"../../etc", b"web.example.com|x",
    )),
    *(case(27, get(host=host), {400, 404, 421}) for host in (
        b"[::1]", b"127.0.0.1", b"localhost", b"0.0.0.0", b"[::]", b"127.0.0.1:9150", b"[::ffff:127.0.0.1]",
        b"169.254.169.254",
        b"edge.example.com", b"metadata.google.internal", b"localhost:9150",
    )),
    *(case(28, get(host=host), {404, 421}) for host in (
        b"x.web.example.com", b"aweb.example.com", b"web.example.com.evil.com", b"example.com", b"web.example", b"web",
        b"webexample.com", b"a.b.wild.example.com", b"wild.example.com", b"web-example.com",
    )),
    case(28, get(host=b"a.wild.example.com"), 200, name="a.wild.example.com"),
    case(28, get(host=b"a.b.wild.example.com"), {404, 421}, name="a.wild.example.com"),
    case(28, get(host=b"wild.example.com"), {404, 421}, name="a.wild.example.com"),
    *(case(29, get(host=host), 200) for host in (
        b"WEB.EXAMPLE.COM", b"Web.Example.Com", b"web.example.com.", b"web.example.com:443", b"web.example.com.:443",
    )),
    case(30, target(b"http://web.example.com/ok"), 200, check=lambda r: r.values(b"host") == [b"web.example.com"]),
    case(30, target(b"https://WEB.example.com/ok?a=b"), 200, check=lambda r: r.target == b"/ok?a=b"),
    *(case(30, data, {400, 404, 421}) for data in (
        target(b"http://other.example.com/ok"), target(b"http://web.example.com/ok", host=b"other.example.com"),
        target(b"http://web.example.com:81/ok"), target(b"http://u@web.example.com/ok"),
        target(b"http://u:p@web.example.com/ok"),
        target(b"http://web.example.com/ok", host=None), target(b"http://evil.com@web.example.com/ok"),
        target(b"http://web.example.com@evil.com/ok"), target(b"http://web.example.com/ok", host=b""),
        target(b"http://web.example.com/../ok"), target(b"http://web.example.com\\@evil.com/ok"),
    )),
    *(case("31", get(host=host), 421) for host in (b"other.example.com", b"OTHER.example.com",
    b"other.example.com:443")),
    *(case(32, get(), {404, 421}, name=name) for name in ("other.example.com", "a.wild.example.com")),
    *(case(35, get(field + b": other.example.com"), 200, check=lambda r: b"other.example.com" not in b"".join(
        value for _, value in r.fields)) for field in (
        b"X-Forwarded-Host", b"X-Host", b"X-Original-Host", b"X_Forwarded_Host",
    )),
    case(35, get(b'Forwarded: host=other.example.com;proto="http"'), 200, check=lacks(b"forwarded")),
]  # fmt: skip

PROXY = [
    case(36, get(b"Connection: X-Hop, keep-alive", b"X-Hop: 1", b"X-Kept: 1"), 200,
    check=lambda r: r.values(b"x-kept") == [b"1"]),
    case(36, get(b"Connection: X-Hop", b"X-Hop: 1", b"x-hop: 2"), 200),
    case(36, get(b"Connection: , ,X-Hop,,", b"X-Hop: 1"), 200),
    case(36, get(b"Connection: a", b"Connection: X-Hop", b"X-Hop: 1"), 200),
    case(37, post(b"Connection: Host, Content-Length, X-Forwarded-For", CL, body=b"hello"), 200,
    check=lambda r: r.body == b"hello"),
    case(37, post(b"Connection: Transfer-Encoding", TE, body=HELLO), 200, check=lambda r: r.body == b"hello"),
    case(37, get(b"Connection: X-Real-IP, X-Forwarded-Proto, X-Forwarded-Host, X-Forwarded-Port, X-Request-Id"), 200,
         check=lambda r: len(r.values(b"x-request-id")) == 1),
    case(37, get(b"Connection: close, Host"), 200),
    *(case(38, get(line), 200) for line in (
        b"Keep-Alive: timeout=5", b"Proxy-Connection: keep-alive", b"TE: gzip, trailers",
        b"Proxy-Authorization: Basic ZXZpbA==",
        b"Proxy: http://evil.example.com", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
    )),
    *(case(38, get(line), 200, check=lacks(b"upgrade", b"connection")) for line in (
        b"Upgrade: websocket", b"Upgrade: h2c", b"Upgrade: evil",
    )),
    *(case(39, get(field + b": evil"), 200) for field in (
        b"X-Forwarded-For", b"X-Forwarded-Proto", b"X-Forwarded-Host", b"X-Forwarded-Port", b"X-Real-IP",
        b"CF-Connecting-IP",
        b"True-Client-IP", b"X-Client-IP", b"Forwarded", b"X-Forwarded-Server", b"X-Forwarded-Prefix",
        b"X-Original-URL",
        b"X-Rewrite-URL", b"X-Forwarded-Scheme", b"X-Forwarded-Ssl", b"Fastly-Client-IP", b"X-Cluster-Client-IP",
        b"x-forwarded-for",
    )),
    *(case(40, get(field + b": evil"), {200, 400}, served=1) for field in (
        b"X_Forwarded_For", b"X.Forwarded.For", b"X-Forwarded_For", b"X_Real_IP", b"X_Forwarded_Proto", b"X~Real~IP",
        b"X!Forwarded!For", b"X-Forwarded.Host", b"Proxy_Authorization", b"Host_", b"CF_Connecting_IP",
    )[:-2]),
    *(case(40, post(field + b": " + value, body=b""), 200, check=lambda r: r.body == b"") for field, value in (
        (b"Content_Length", b"5"), (b"Content.Length", b"5"), (b"Transfer_Encoding", b"chunked"),
        (b"Transfer.Encoding", b"chunked"),
        (b"Content~Length", b"5"), (b"content_length", b"5"), (b"TRANSFER_ENCODING", b"chunked"),
    )),
    *(case(43, data, 200, check=lacks(b"upgrade", b"http2-settings")) for data in (
        get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"),
        get(b"Connection: upgrade", b"Upgrade: tcp"),
        head(b"GET /ok HTTP/1.0", b"Connection: upgrade", b"Upgrade: websocket"), get(b"Connection: upgrade",
        b"Upgrade: websocket, h2c"),
        get(b"Connection: upgrade", b"Upgrade: h2c", b"Upgrade: websocket"), get(b"Upgrade: websocket"),
        get(b"Connection: upgrade"),
    )),
    case(43, post(b"Connection: upgrade", b"Upgrade: websocket", CL, body=b"hello"), 200, check=lacks(b"upgrade")),
    *(case(45, post(b"Expect: " + value, CL, body=b"hello" + SMUGGLED), 417) for value in (
        b"100-continue, x", b"100-continu", b"x100-continue", b"100-continue;q=1", b"", b'"100-continue"', b"200-ok",
        b"100-continue, 100-continue",
    )),
    case(45, post(b"Expect: 100-continue", b"Expect: 100-continue", CL, body=b"hello"), 417),
    case(45, post(b"Expect: 100-continue", CL, body=b"hello"), 200, check=lambda r: r.body == b"hello"),
    case(45, post(b"Expect: 100-Continue", TE, body=HELLO), 200, check=lambda r: r.body == b"hello"),
    case(45, get(b"Expect: 100-continue"), 200, check=lacks(b"expect")),
    case(45, head(b"POST /ok HTTP/1.0", b"Expect: 100-continue", CL, body=b"hello"), 200,
    check=lambda r: r.body == b"hello"),
    *(case(106, target(text), 400) for text in (
        b"/ok/../wiki", b"/..", b"/.", b"/ok/./b", b"/ok/.", b"/%2e%2e/", b"/%2E/ok", b"/.%2e?ok", b"/ok%2f..%2fb",
        b"/..;/ok",
        b"/ok/..%3bx", b"/ok%5c..%5cb", b"/..%2f", b"/ok/%2e%2e?b", b"/ok/..", b"/wiki/../ok", b"/ok/%2e",
        b"/ok\\..\\b",
    )),
    *(case(106, target(text), 200, check=lambda r: r.target.startswith(b"/ok")) for text in (
        b"/ok/...", b"/ok/.well-known/x", b"/ok//wiki", b"/ok/%252e%252e/", b"/ok/a.b", b"/ok?../..", b"/ok?a=\\",
        b"/ok/%", b"/ok/%zz",
    )),
]  # fmt: skip

CASES: list[Case] = [*BOTH_FRAMINGS, *CHUNKS, *LINES, *SIZES, *HOSTS, *PROXY]
