"""An HTTP/2 visitor that sends exact frames over TLS, and understands what comes back."""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING

import hpack

from tests.hostile.visitor import Peer, connect

if TYPE_CHECKING:
    from tests.system.harness import World

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED = 1, 4, 8
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
Fields = "Sequence[tuple[bytes, bytes]]"
GET = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"web.example.com"), (b":path", b"/ok")]
POST = [(b":method", b"POST"), *GET[1:]]


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def block(fields: Fields) -> bytes:
    """A field list, each field a literal that is not indexed and not Huffman-coded: any bytes can be said."""
    parts = []
    for name, value in fields:
        parts += [b"\0", _length(len(name)), name, _length(len(value)), value]
    return b"".join(parts)


def _length(size: int) -> bytes:
    if size < 127:
        return bytes([size])
    size -= 127
    out = b"\x7f"
    while size >= 128:
        out += bytes([size & 127 | 128])
        size >>= 7
    return out + bytes([size])


def request(fields: Fields, *, stream: int = 1, end: bool = True) -> bytes:
    """HEADERS, with CONTINUATION where it is long."""
    data = block(fields)
    parts = [data[start : start + 16000] for start in range(0, len(data), 16000)] or [b""]
    out = b""
    for index, part in enumerate(parts):
        last = END_HEADERS if index == len(parts) - 1 else 0
        out += frame(CONTINUATION if index else HEADERS, last | (END_STREAM if end and not index else 0), stream, part)
    return out


class Gone(Exception):  # noqa: N818 - an answer
    """The edge closed the connection."""


class Visitor2(Peer):
    """One HTTP/2 connection. `wait` until a stream or the connection has its outcome."""

    def __init__(self, world: World, *, settings: bytes = b"", name: str = "web.example.com") -> None:
        self.sock = connect(world, name, "h2")
        self.buffer = bytearray()
        self.decoder = hpack.Decoder(max_header_list_size=1 << 20)
        self.heads: dict[int, dict[bytes, bytes]] = {}
        self.bodies: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.goaway: int | None = None
        self.pongs = 0
        self.closed = False
        self.credit = True  # give back what arrives
        self.send(PREFACE + frame(SETTINGS, 0, 0, settings))

    def outcome(self, stream: int) -> tuple[str, int]:
        """("status", n), ("reset", code), ("goaway", code) or ("closed", 0)."""
        while True:
            if self.goaway is not None:
                return "goaway", self.goaway
            if stream in self.resets:
                return "reset", self.resets[stream]
            if stream in self.ended and stream in self.heads:
                return "status", int(self.heads[stream][b":status"])
            if not self.fill():
                return ("goaway", self.goaway) if self.goaway is not None else ("closed", 0)

    def fill(self) -> bool:
        """Read once; False where the connection ended."""
        try:
            data = self.sock.recv(65536)
        except TimeoutError:
            raise AssertionError(f"no answer: {self.heads} {self.resets}") from None
        except (ConnectionError, ssl.SSLError):
            data = b""
        if not data:
            self.closed = True
            return False
        self.buffer += data
        while len(self.buffer) >= 9:
            length = int.from_bytes(self.buffer[:3], "big")
            if len(self.buffer) < 9 + length:
                break
            kind, flags, stream = self.buffer[3], self.buffer[4], int.from_bytes(self.buffer[5:9], "big")
            payload = bytes(self.buffer[9 : 9 + length])
            del self.buffer[: 9 + length]
            self._note(kind, flags, stream, payload)
        return True

    def _note(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == HEADERS:
            assert flags & END_HEADERS
            fields = self.decoder.decode(payload, raw=True)
            if stream not in self.heads or int(self.heads[stream][b":status"]) < 200:
                self.heads[stream] = {bytes(name): bytes(value) for name, value in fields}
        elif kind == DATA:
            self.bodies[stream] = self.bodies.get(stream, b"") + payload
            if payload and self.credit:
                more = len(payload).to_bytes(4, "big")
                self.send(frame(WINDOW_UPDATE, 0, 0, more) + frame(WINDOW_UPDATE, 0, stream, more))
        elif kind == RST_STREAM:
            self.resets.setdefault(stream, int.from_bytes(payload, "big"))
        elif kind == GOAWAY:
            self.goaway = int.from_bytes(payload[4:8], "big")
        elif kind == PING and flags & 1:
            self.pongs += 1
        elif kind == SETTINGS and not flags & 1:
            with contextlib.suppress(OSError):
                self.sock.sendall(frame(SETTINGS, 1))
        if kind in (HEADERS, DATA) and flags & END_STREAM:
            self.ended.add(stream)

    def get(self, path: bytes, stream: int) -> tuple[int, bytes]:
        """A good request; status and body."""
        self.send(request([*GET[:3], (b":path", path)], stream=stream))
        kind, value = self.outcome(stream)
        assert kind == "status", (kind, value)
        return value, self.bodies.get(stream, b"")
