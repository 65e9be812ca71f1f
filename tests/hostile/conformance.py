"""HTTP/2 as its RFCs say, section by section: exact frames of a visitor, and what must come of each.

What is right must work: `WORKS`, stream 1 is answered with 200; `LIVES`, the connection answers a PING afterwards. What
is wrong must be told with one of the codes that its section allows: `connection(...)` by GOAWAY, `stream(...)` by
RST_STREAM on stream 1 or, which is always allowed, by GOAWAY with that code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

from tests.hostile.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GET,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    POST,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    block,
    frame,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

(
    NO_ERROR,
    PROTOCOL_ERROR,
    _,
    FLOW_CONTROL_ERROR,
    _,
    STREAM_CLOSED,
    FRAME_SIZE_ERROR,
    REFUSED_STREAM,
    _,
    COMPRESSION_ERROR,
) = range(10)
WITH_PRIORITY = 0x20
ALL = END_HEADERS | END_STREAM
WORKS, LIVES = "works", "lives"


@dataclass(frozen=True)
class Rule:
    """`section` of RFC 9113, or of RFC 7541 (HPACK) where it says so."""

    section: str
    what: str
    data: bytes
    wanted: object


def connection(*codes: int) -> tuple[str, frozenset[int]]:
    return "connection", frozenset(codes)


def stream(*codes: int) -> tuple[str, frozenset[int]]:
    return "stream", frozenset(codes)


def u32(number: int) -> bytes:
    return number.to_bytes(4, "big")


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(key.to_bytes(2, "big") + u32(value) for key, value in pairs))


def headers(fields: bytes, *, flags: int = ALL, number: int = 1) -> bytes:
    return frame(HEADERS, flags, number, fields)


def sized(length: bytes) -> bytes:
    """The head of a POST with this content-length."""
    return headers(block([*POST, (b"content-length", length)]), flags=END_HEADERS)


def without(name: bytes) -> bytes:
    return block([field for field in GET if field[0] != name])


def twice(name: bytes) -> bytes:
    return block([*GET, *(field for field in GET if field[0] == name)])


_HUFFMAN = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)
INCREMENTAL, PLAIN, NEVER = 0x40, 0x00, 0x10
_BASE = b"\x82\x87" + block(GET[2:])  # method and scheme by index, the others as literals


def _text(data: bytes, *, huffman: bool) -> bytes:
    data = _HUFFMAN.encode(data) if huffman else data
    return bytes([len(data) | (0x80 if huffman else 0)]) + data


def literal(kind: int, name: bytes | int, value: bytes, *, huffman: bool = False) -> bytes:
    first = bytes([kind | name]) if isinstance(name, int) else bytes([kind]) + _text(name, huffman=huffman)
    return first + _text(value, huffman=huffman)


def _literals() -> Iterable[Rule]:
    for kind, word in ((INCREMENTAL, "added to the table"), (PLAIN, "not added"), (NEVER, "never added")):
        for huffman in (False, True):
            how = f"{word}, {'Huffman' if huffman else 'plain'}"
            named = literal(kind, 1, b"web.example.com", huffman=huffman)
            yield Rule(
                "7541 6.2", f"a name by index, {how}",
                headers(b"\x82\x87" + named + literal(kind, 4, b"/ok", huffman=huffman)), WORKS,
            )  # fmt: skip
            fresh = literal(kind, b"x-new", b"value", huffman=huffman)
            yield Rule("7541 6.2", f"a new name, {how}", headers(_BASE + fresh), WORKS)


H, OPEN = block(GET), headers(block(POST), flags=END_HEADERS)
REQUEST = headers(H)
HALF = H[: len(H) // 2], H[len(H) // 2 :]
BEGUN = headers(HALF[0], flags=END_STREAM)  # the head is not whole
PING_NOW = frame(PING, 0, 0, b"whatever")

RIGHT = [
    Rule("3.4", "a preface and a request", REQUEST, WORKS),
    Rule("4.1", "a frame of an unknown type", frame(0x42, 0xFF, 0, b"x") + REQUEST, WORKS),
    Rule("4.1", "flags that mean nothing", frame(PING, 0xFE, 0, bytes(8)) + REQUEST, WORKS),
    Rule("4.1", "the reserved bit", frame(PING, 0, 1 << 31, bytes(8)) + REQUEST, WORKS),
    Rule("4.2", "a frame of 2^14 bytes", OPEN + frame(DATA, END_STREAM, 1, bytes(16384)), WORKS),
    Rule("5.1", "PRIORITY on an idle stream", frame(PRIORITY, 0, 1, u32(0) + b"\x0f") + REQUEST, WORKS),
    Rule("5.1", "WINDOW_UPDATE on a half-closed stream", REQUEST + frame(WINDOW_UPDATE, 0, 1, u32(100)), WORKS),
    Rule("5.1", "PRIORITY on a half-closed stream", REQUEST + frame(PRIORITY, 0, 1, u32(0) + b"\x01"), WORKS),
    Rule("5.1", "RST_STREAM on a half-closed stream", REQUEST + frame(RST_STREAM, 0, 1, u32(8)), LIVES),
    Rule("5.1", "PRIORITY on a closed stream",
         REQUEST + frame(RST_STREAM, 0, 1, u32(8)) + frame(PRIORITY, 0, 1, u32(0) + b"\x01"), LIVES),
    Rule("5.5", "an unknown frame beside a request", REQUEST + frame(0x16, 0, 1, bytes(8)), WORKS),
    Rule("6.1", "several DATA frames", OPEN + frame(DATA, 0, 1, b"ab") * 3 + frame(DATA, END_STREAM, 1, b"c"), WORKS),
    Rule("6.1", "DATA with padding", OPEN + frame(DATA, END_STREAM | PADDED, 1, b"\x05hello" + bytes(5)), WORKS),
    Rule("6.1", "DATA that is padding only", OPEN + frame(DATA, END_STREAM | PADDED, 1, b"\x05" + bytes(5)), WORKS),
    Rule("6.2", "HEADERS with padding", headers(b"\x06" + H + bytes(6), flags=ALL | PADDED), WORKS),
    Rule("6.2", "HEADERS with a priority", headers(u32(0) + b"\x0f" + H, flags=ALL | WITH_PRIORITY), WORKS),
    Rule("6.2", "HEADERS with both",
         headers(b"\x03" + u32(0) + b"\x0f" + H + bytes(3), flags=ALL | WITH_PRIORITY | PADDED), WORKS),
    *(Rule("6.3", f"PRIORITY: {name}", frame(PRIORITY, 0, 1, data) + REQUEST, WORKS) for name, data in (
        ("the lowest weight", u32(0) + b"\0"), ("the highest weight", u32(0) + b"\xff"),
        ("on another stream", u32(3) + b"\x0f"), ("exclusive", u32(1 << 31 | 3) + b"\x0f"),
    )),
    Rule("6.3", "PRIORITY on a later stream first", frame(PRIORITY, 0, 9, u32(0) + b"\x01") + REQUEST, WORKS),
    Rule("6.5", "settings that are unknown", settings((0x99, 1), (0xFFFF, 7)) + REQUEST, WORKS),
    Rule("6.5.3", "a setting said several times", settings((4, 100), (4, 1), (4, 65535)) + REQUEST, WORKS),
    Rule("6.7", "PING", PING_NOW + REQUEST, WORKS),
    Rule("6.7", "an answer to no PING", frame(PING, 1, 0, bytes(8)) + REQUEST, WORKS),
    Rule("6.9", "WINDOW_UPDATE on the connection", frame(WINDOW_UPDATE, 0, 0, u32(1000)) + REQUEST, WORKS),
    Rule("6.9.2", "a window of one byte", settings((4, 1)) + REQUEST, WORKS),
    Rule("6.9.2", "a window that grows under a response",
         settings((4, 0)) + REQUEST + settings((4, 1)) + settings((4, 65535)), WORKS),
    Rule("6.9.2", "a window that becomes negative, and positive again",
         settings((4, 3)) + REQUEST + settings((4, 0)) + frame(WINDOW_UPDATE, 0, 1, u32(1000)), WORKS),
    Rule("6.10", "a CONTINUATION",
         headers(HALF[0], flags=END_STREAM) + frame(CONTINUATION, END_HEADERS, 1, HALF[1]), WORKS),
    Rule("6.10", "several CONTINUATIONs", headers(H[:5], flags=END_STREAM) + frame(CONTINUATION, 0, 1, H[5:20])
         + frame(CONTINUATION, 0, 1, b"") + frame(CONTINUATION, END_HEADERS, 1, H[20:]), WORKS),
    Rule("7", "RST_STREAM with an unknown code", REQUEST + frame(RST_STREAM, 0, 1, u32(0xFF)), LIVES),
    Rule("7", "an odd setting beside", settings((3, 100)), LIVES),
    Rule("8.1", "HEAD", headers(block([(b":method", b"HEAD"), *GET[1:]])), WORKS),
    Rule("8.1", "POST", OPEN + frame(DATA, END_STREAM, 1, b"hello"), WORKS),
    Rule("8.1", "POST with trailers",
         OPEN + frame(DATA, 0, 1, b"hello") + headers(block([(b"x-sum", b"1")])), WORKS),
    Rule("8.1.1", "a content-length that is right",
         sized(b"5") + frame(DATA, 0, 1, b"he") + frame(DATA, END_STREAM, 1, b"llo"), WORKS),
    Rule("8.2.2", "TE: trailers", headers(block([*GET, (b"te", b"trailers")])), WORKS),
    Rule("7541 6.1", "fields by index", headers(_BASE), WORKS),
    *_literals(),
    Rule("7541 6.3", "a smaller table", headers(b"\x20" + H), WORKS),
    Rule("7541 6.3", "two changes of the table", headers(b"\x20\x3f\x81\x1f" + H), WORKS),
]  # fmt: skip

WRONG = [
    Rule("4.2", "DATA beyond the frame size", OPEN + frame(DATA, END_STREAM, 1, bytes(16385)),
         stream(FRAME_SIZE_ERROR)),
    Rule("4.2", "HEADERS beyond the frame size", headers(H + bytes(16385)), connection(FRAME_SIZE_ERROR)),
    Rule("4.3", "fields that are no HPACK", headers(b"\x7f\xff\xff\xff\xff\xff\xff"), connection(COMPRESSION_ERROR)),
    Rule("4.3", "PRIORITY within a head", BEGUN + frame(PRIORITY, 0, 1, u32(0) + b"\x0f"), connection(PROTOCOL_ERROR)),
    Rule("4.3", "another stream's HEADERS within a head", BEGUN + headers(H, number=3), connection(PROTOCOL_ERROR)),
    Rule("5.5", "an unknown frame within a head", BEGUN + frame(0x16, 0, 0, bytes(8)), connection(PROTOCOL_ERROR)),
    Rule("5.1", "DATA on an idle stream", frame(DATA, END_STREAM, 1, b"x"), connection(PROTOCOL_ERROR, STREAM_CLOSED)),
    Rule("5.1", "RST_STREAM on an idle stream", frame(RST_STREAM, 0, 1, u32(8)), connection(PROTOCOL_ERROR)),
    Rule("5.1", "WINDOW_UPDATE on an idle stream", frame(WINDOW_UPDATE, 0, 1, u32(1)), connection(PROTOCOL_ERROR)),
    Rule("5.1", "CONTINUATION on an idle stream", frame(CONTINUATION, END_HEADERS, 1, H), connection(PROTOCOL_ERROR)),
    Rule("5.1", "DATA after the end", REQUEST + frame(DATA, END_STREAM, 1, b"x"), stream(STREAM_CLOSED)),
    Rule("5.1", "HEADERS after the end", REQUEST + headers(H), stream(STREAM_CLOSED, PROTOCOL_ERROR)),
    Rule("5.1", "CONTINUATION after the end", REQUEST + frame(CONTINUATION, END_HEADERS, 1, H),
         connection(PROTOCOL_ERROR, STREAM_CLOSED)),
    Rule("5.1", "DATA after our own RST_STREAM",
         OPEN + frame(RST_STREAM, 0, 1, u32(8)) + frame(DATA, END_STREAM, 1, b"x"), stream(STREAM_CLOSED)),
    Rule("5.1", "HEADERS after our own RST_STREAM", OPEN + frame(RST_STREAM, 0, 1, u32(8)) + headers(H),
         stream(STREAM_CLOSED, PROTOCOL_ERROR)),
    Rule("5.1", "CONTINUATION after our own RST_STREAM",
         OPEN + frame(RST_STREAM, 0, 1, u32(8)) + frame(CONTINUATION, END_HEADERS, 1, H),
         connection(PROTOCOL_ERROR, STREAM_CLOSED)),
    Rule("5.1.1", "an even number", headers(H, number=2), connection(PROTOCOL_ERROR)),
    Rule("5.1.1", "a smaller number", headers(H, number=5) + headers(H, number=3),
         connection(PROTOCOL_ERROR, STREAM_CLOSED)),
    Rule("5.3.1", "HEADERS that depend on themselves", headers(u32(1) + b"\x0f" + H, flags=ALL | WITH_PRIORITY),
         stream(PROTOCOL_ERROR)),
    Rule("5.3.1", "PRIORITY that depends on itself", REQUEST + frame(PRIORITY, 0, 1, u32(1) + b"\x0f"),
         stream(PROTOCOL_ERROR)),
    Rule("6.1", "DATA on stream 0", frame(DATA, END_STREAM, 0, b"x"), connection(PROTOCOL_ERROR)),
    Rule("6.1", "DATA with too much padding", OPEN + frame(DATA, END_STREAM | PADDED, 1, b"\x06hello"),
         connection(PROTOCOL_ERROR)),
    Rule("6.2", "HEADERS on stream 0", headers(H, number=0), connection(PROTOCOL_ERROR)),
    Rule("6.2", "HEADERS with too much padding", headers(b"\xff" + H, flags=ALL | PADDED), connection(PROTOCOL_ERROR)),
    Rule("6.3", "PRIORITY on stream 0", frame(PRIORITY, 0, 0, u32(1) + b"\x0f"), connection(PROTOCOL_ERROR)),
    Rule("6.3", "PRIORITY of four bytes", OPEN + frame(PRIORITY, 0, 1, u32(0)), stream(FRAME_SIZE_ERROR)),
    Rule("6.4", "RST_STREAM on stream 0", frame(RST_STREAM, 0, 0, u32(8)), connection(PROTOCOL_ERROR)),
    Rule("6.4", "RST_STREAM of three bytes", OPEN + frame(RST_STREAM, 0, 1, bytes(3)), connection(FRAME_SIZE_ERROR)),
    Rule("6.5", "an acknowledgement with content", frame(SETTINGS, 1, 0, bytes(6)), connection(FRAME_SIZE_ERROR)),
    Rule("6.5", "SETTINGS on a stream", frame(SETTINGS, 0, 1, bytes(6)), connection(PROTOCOL_ERROR)),
    Rule("6.5", "SETTINGS of three bytes", frame(SETTINGS, 0, 0, bytes(3)), connection(FRAME_SIZE_ERROR)),
    Rule("6.5.2", "push neither on nor off", settings((2, 2)), connection(PROTOCOL_ERROR)),
    Rule("6.5.2", "a window above 2^31-1", settings((4, 1 << 31)), connection(FLOW_CONTROL_ERROR)),
    Rule("6.5.2", "a frame size below 2^14", settings((5, 16383)), connection(PROTOCOL_ERROR)),
    Rule("6.5.2", "a frame size above 2^24-1", settings((5, 1 << 24)), connection(PROTOCOL_ERROR)),
    Rule("6.6", "PUSH_PROMISE from a visitor", OPEN + frame(5, END_HEADERS, 1, u32(2) + H), connection(PROTOCOL_ERROR)),
    Rule("6.7", "PING on a stream", frame(PING, 0, 1, bytes(8)), connection(PROTOCOL_ERROR)),
    Rule("6.7", "PING of six bytes", frame(PING, 0, 0, bytes(6)), connection(FRAME_SIZE_ERROR)),
    Rule("6.8", "GOAWAY on a stream", frame(GOAWAY, 0, 1, bytes(8)), connection(PROTOCOL_ERROR)),
    Rule("6.9", "no credit for the connection", frame(WINDOW_UPDATE, 0, 0, u32(0)), connection(PROTOCOL_ERROR)),
    Rule("6.9", "no credit for a stream", OPEN + frame(WINDOW_UPDATE, 0, 1, u32(0)), stream(PROTOCOL_ERROR)),
    Rule("6.9", "WINDOW_UPDATE of three bytes", frame(WINDOW_UPDATE, 0, 0, bytes(3)), connection(FRAME_SIZE_ERROR)),
    Rule("6.9.1", "a connection's window above 2^31-1", frame(WINDOW_UPDATE, 0, 0, u32((1 << 31) - 1)) * 2,
         connection(FLOW_CONTROL_ERROR)),
    Rule("6.9.1", "a stream's window above 2^31-1", OPEN + frame(WINDOW_UPDATE, 0, 1, u32((1 << 31) - 1)) * 2,
         stream(FLOW_CONTROL_ERROR)),
    Rule("6.10", "another frame after a CONTINUATION", BEGUN + frame(CONTINUATION, 0, 1, b"") + frame(DATA, 1, 1, b"x"),
         connection(PROTOCOL_ERROR)),
    Rule("6.10", "CONTINUATION on stream 0", BEGUN + frame(CONTINUATION, END_HEADERS, 0, HALF[1]),
         connection(PROTOCOL_ERROR)),
    Rule("6.10", "CONTINUATION after a whole head", OPEN + frame(CONTINUATION, END_HEADERS, 1, H),
         connection(PROTOCOL_ERROR)),
    Rule("6.10", "CONTINUATION after the last one",
         headers(HALF[0], flags=0) + frame(CONTINUATION, END_HEADERS, 1, HALF[1]) + frame(CONTINUATION, 4, 1, H),
         connection(PROTOCOL_ERROR)),
    Rule("6.10", "CONTINUATION after DATA", OPEN + frame(DATA, 0, 1, b"x") + frame(CONTINUATION, END_HEADERS, 1, H),
         connection(PROTOCOL_ERROR)),
    Rule("8.1", "a second head that does not end", OPEN + headers(block([(b"x-sum", b"1")]), flags=END_HEADERS),
         stream(PROTOCOL_ERROR)),
    *(Rule("8.2", f"a field that may not be: {field[0]!r} {field[1]!r}", headers(block([*GET, field])),
           stream(PROTOCOL_ERROR)) for field in (
        (b"X-Upper", b"1"), (b":unknown", b"1"), (b":status", b"200"), (b"connection", b"keep-alive"),
        (b"te", b"trailers, deflate"), (b"transfer-encoding", b"chunked"), (b"upgrade", b"websocket"),
    )),
    Rule("8.1", "a pseudo-field in trailers", OPEN + headers(block([(b":method", b"GET")])), stream(PROTOCOL_ERROR)),
    Rule("8.3", "a pseudo-field after a field", headers(block([*GET[:3], (b"x-a", b"1"), GET[3]])),
         stream(PROTOCOL_ERROR)),
    Rule("8.3.1", "an empty path", headers(block([*GET[:3], (b":path", b"")])), stream(PROTOCOL_ERROR)),
    *(Rule("8.3.1", f"no {name.decode()}", headers(without(name)), stream(PROTOCOL_ERROR)) for name in (
        b":method", b":scheme", b":path")),
    *(Rule("8.3.1", f"{name.decode()} twice", headers(twice(name)), stream(PROTOCOL_ERROR)) for name in (
        b":method", b":scheme", b":path")),
    Rule("8.1.1", "a length that is not the body's",
         sized(b"1") + frame(DATA, END_STREAM, 1, b"test"), stream(PROTOCOL_ERROR)),
    Rule("8.1.1", "a length that is not the bodies'",
         sized(b"1") + frame(DATA, 0, 1, b"te") + frame(DATA, END_STREAM, 1, b"st"), stream(PROTOCOL_ERROR)),
    Rule("8.4", "PUSH_PROMISE on a new stream", frame(5, END_HEADERS, 1, u32(2) + H), connection(PROTOCOL_ERROR)),
    Rule("7541 2.3.3", "an index beyond the tables", headers(H + b"\xc6"), connection(COMPRESSION_ERROR)),
    Rule("7541 2.3.3", "a name beyond the tables", headers(H + b"\x7f\x07\x01x"), connection(COMPRESSION_ERROR)),
    Rule("7541 4.2", "a change of the table after a field", headers(H + b"\x20"), connection(COMPRESSION_ERROR)),
    Rule("7541 5.2", "Huffman padding of eight bits", headers(H + b"\x00\x01x\x82\x1f\xff"),
         connection(COMPRESSION_ERROR)),
    Rule("7541 5.2", "Huffman padding of zeros", headers(H + b"\x00\x01x\x81\x1e"), connection(COMPRESSION_ERROR)),
    Rule("7541 5.2", "Huffman with its end", headers(H + b"\x00\x01x\x84\xff\xff\xff\xff"),
         connection(COMPRESSION_ERROR)),
    Rule("7541 6.1", "index 0", headers(H + b"\x80"), connection(COMPRESSION_ERROR)),
    Rule("7541 6.3", "a table above what was allowed", headers(b"\x3f\xff\xff\x7f" + H), connection(COMPRESSION_ERROR)),
]  # fmt: skip

RULES = [*RIGHT, *WRONG]
