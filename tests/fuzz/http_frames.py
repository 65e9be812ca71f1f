"""HTTP/2 from a visitor: nothing but `FrameError`, heads that are refused or safe, the same verdict however it is cut.

The first byte says how the rest is cut, and whether it is raw bytes or a program of frames (kind, flags, stream,
length).
"""

from __future__ import annotations

from tunnelgw.errors import RemoteError
from tunnelgw.http import pseudo
from tunnelgw.http.guard import FrameError, FrameGuard
from tunnelgw.http.h2 import DataReceived, ErrorCode, Http2, RequestReceived, StreamClosed, TrailersReceived

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADS = (b"\x82\x87\x84\x41\x0da.example.com", b"\x83\x87\x84\x41\x0da.example.com", b"\x82\x87\x84\x01\x01a\x5f\x01b")


def frames(program: bytes) -> bytes:
    """Frames of mostly plausible shape, from four bytes each and what payload follows."""
    data, at = PREFACE + b"\0\0\0\4\0\0\0\0\0", 0
    while at + 4 <= len(program):
        kind, flags, stream, size = program[at : at + 4]
        at += 4
        if kind & 0x80:
            payload = HEADS[size % len(HEADS)]
        else:
            payload = program[at : at + size % 48]
            at += len(payload)
        data += len(payload).to_bytes(3, "big") + bytes([kind % 12, flags]) + (stream % 16).to_bytes(4, "big") + payload
    return data


def run(data: bytes, size: int) -> None:
    """All of it through an engine that serves, as the gateway does it."""
    engine = Http2(serving=True)
    try:
        for start in range(0, len(data), size):
            for event in engine.receive(data[start : start + size]):
                if isinstance(event, RequestReceived):
                    try:
                        pseudo.request_head(list(event.headers), end_stream=event.end_stream, secure=True)
                    except RemoteError:
                        engine.reset(event.stream_id, ErrorCode.PROTOCOL_ERROR)
                    else:
                        engine.respond(event.stream_id, [(b":status", b"200")], end=False)
                        engine.send(event.stream_id, b"answer", end=True)
                elif isinstance(event, DataReceived) and event.data:
                    engine.owe(event.stream_id, len(event.data))
                    engine.pay(event.stream_id)
                elif isinstance(event, TrailersReceived):
                    try:
                        pseudo.trailers(list(event.headers))
                    except ValueError:
                        engine.reset(event.stream_id, ErrorCode.PROTOCOL_ERROR)
                elif isinstance(event, StreamClosed):
                    engine.pay(event.stream_id)
            engine.pull(4096)
    except FrameError as error:
        engine.last_words(error.code)
    except RemoteError:
        engine.last_words(ErrorCode.PROTOCOL_ERROR)


def verdict(data: bytes, size: int) -> object:
    """What the guard says."""
    guard = FrameGuard()
    try:
        for start in range(0, len(data), size):
            guard.feed(data[start : start + size], 0.0)
    except FrameError as error:
        return error.code
    return guard.inside, guard.noise


def one(data: bytes) -> None:
    """One input."""
    if not data:
        return
    size = 1 + (data[0] >> 1)
    stream = frames(data[1:]) if data[0] & 1 else PREFACE + data[1:]
    assert verdict(stream, size) == verdict(stream, len(stream)), "cuts make no difference"
    run(stream, size)
