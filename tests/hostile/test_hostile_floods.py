"""Floods over HTTP/2, and visitors that never read: the connection ends, memory stays flat, others are served."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.hostile.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GET,
    HEADERS,
    PING,
    POST,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Visitor2,
    block,
    frame,
    request,
)
from tests.hostile.visitor import Visitor
from tests.system.harness import wait_until

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from tests.hostile.conftest import Hostile

pytestmark = pytest.mark.system
# What one hostile visitor may add to the edge, with room for an allocator's habits.
MOST_MEMORY = 24_000_000
MOST_BYTES = 4_000_000  # of a flood; each is over long before
ENHANCE_YOUR_CALM = 11


def repeated(data: bytes, *, first: bytes = b"") -> Iterator[bytes]:
    yield first
    while True:
        yield data * (32768 // len(data) + 1)


def streams(part: bytes, per: bytes) -> Iterator[bytes]:
    """Each stream: a request, and then something on it."""
    number = 1
    while True:
        out = []
        for _ in range(100):
            out.append(frame(HEADERS, END_HEADERS | (END_STREAM if per[:1] == b"e" else 0), number, part))
            if per[1:2] == b"r":
                out.append(frame(RST_STREAM, 0, number, b"\0\0\0\x08"))
            elif per[1:2] == b"0":
                out.append(frame(WINDOW_UPDATE, 0, number, bytes(4)))
            elif per[1:2] == b"w":
                out.append(frame(WINDOW_UPDATE, 0, number, b"\x7f\xff\xff\xff"))
            elif per[1:2] == b"d":
                out.append(frame(DATA, END_STREAM, number, b"too late"))
            elif per[1:2] == b"p":
                out.append(frame(PRIORITY, 0, number, number.to_bytes(4, "big") + b"\0"))
            number += 2
        yield b"".join(out)


OPEN = frame(HEADERS, END_HEADERS, 1, block(POST))
BOMB = b"\x82\x87\x84\x40\x01a\x7f\x81\x1e" + b"b" * 4000 + b"\xbe" * 8000
FLOODS = {
    "PING": lambda: repeated(frame(PING, 0, 0, bytes(8))),
    "SETTINGS": lambda: repeated(frame(SETTINGS, 0, 0, b"\0\3\0\0\0\1")),
    "empty SETTINGS": lambda: repeated(frame(SETTINGS)),
    "PRIORITY": lambda: repeated(frame(PRIORITY, 0, 1, b"\0\0\0\3\0")),
    "WINDOW_UPDATE": lambda: repeated(frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1")),
    "WINDOW_UPDATE of a stream": lambda: repeated(frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\1"), first=OPEN),
    "unknown frames": lambda: repeated(frame(0x42, 0, 0, b"x" * 20)),
    "empty DATA": lambda: repeated(frame(DATA, 0, 1), first=OPEN),
    "padding alone": lambda: repeated(frame(DATA, 8, 1, b"\xff" + bytes(255)), first=OPEN),
    "CONTINUATION": lambda: repeated(frame(CONTINUATION, 0, 1, b""), first=frame(HEADERS, 0, 1, block(GET))),
    "CONTINUATION with fields": lambda: repeated(
        frame(CONTINUATION, 0, 1, b"\0\x01a\x40" + b"b" * 64), first=frame(HEADERS, 0, 1, block(GET))
    ),
    "rapid reset": lambda: streams(block(GET), b"er"),
    "rapid reset of uploads": lambda: streams(block(POST), b"or"),
    "MadeYouReset by increments of nothing": lambda: streams(block(GET), b"e0"),
    "MadeYouReset by overflows": lambda: streams(block(POST), b"ow"),
    "MadeYouReset by late data": lambda: streams(block(GET), b"ed"),
    "MadeYouReset by priorities": lambda: streams(block(GET), b"ep"),
    "more streams than announced": lambda: streams(block(POST), b"o-"),
    "HPACK bomb": lambda: streams(BOMB, b"e-"),
}


@pytest.mark.parametrize("reads", [True, False], ids=["reads", "deaf"])
@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_ends_its_connection_and_nothing_else(hostile: Hostile, name: str, reads: bool) -> None:
    edge = hostile.world.edge
    assert edge is not None
    hostile.beside()
    before, sent = edge.memory(), 0
    with Visitor2(hostile.world) as visitor:
        visitor.sock.settimeout(20)
        for part in FLOODS[name]():
            # Who does not listen is read and ignored for a few seconds more, while the edge says goodbye in TLS.
            if not visitor.send(part) or sent > MOST_BYTES:
                break
            sent += len(part)
            if reads:
                drain(visitor)
            if sent // 400_000 != (sent - len(part)) // 400_000:
                hostile.beside()
                assert edge.memory() - before < MOST_MEMORY
            if visitor.closed or visitor.goaway is not None:
                break
        while not visitor.closed and visitor.goaway is None:
            visitor.fill()
        if visitor.goaway is not None:
            assert visitor.goaway != 0
    hostile.beside()
    assert edge.memory() - before < MOST_MEMORY


def drain(visitor: Visitor2) -> None:
    """Read what is there already."""
    visitor.sock.settimeout(0.001)
    try:
        while visitor.fill():
            pass
    except AssertionError:
        pass
    visitor.sock.settimeout(20)


@pytest.mark.parametrize("version", [1, 2])
def test_who_never_reads_holds_no_more_than_windows(hostile: Hostile, version: int) -> None:
    """A hundred megabytes are asked for and not taken: neither process grows by more than windows, and others go on."""
    world, recorder = hostile.world, hostile.recorder
    edge, home = world.edge, world.connectors["home"].process
    assert edge is not None
    assert home is not None

    def script(sock: socket.socket) -> bool:
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        sock.settimeout(20)
        for _ in range(1000):
            sock.sendall(bytes(100_000))
        return True

    recorder.scripts["huge"] = script
    hostile.beside()
    before = edge.memory(), home.memory()
    lost = recorder.connections
    if version == 1:
        visitors: list[Visitor | Visitor2] = [Visitor(world) for _ in range(3)]
        for visitor in visitors:
            visitor.send(b"GET /answer/huge HTTP/1.1\r\nHost: web.example.com\r\n\r\n")
    else:
        # A window that is never opened: not even the first byte may go.
        visitors = [Visitor2(world, settings=b"\0\4\0\0\0\0") for _ in range(3)]
        for visitor in visitors:
            visitor.send(request([*GET[:3], (b":path", b"/answer/huge")]))
    recorder.wait_for(lambda: recorder.connections >= lost + 3, "all three are asked for")
    for _ in range(100):
        hostile.beside()
    assert edge.memory() - before[0] < MOST_MEMORY
    assert home.memory() - before[1] < MOST_MEMORY
    for visitor in visitors:
        visitor.sock.close()
    hostile.beside()


def test_a_reset_in_the_middle_resets_the_service(hostile: Hostile) -> None:
    """Uploads and downloads, and the connection serves on."""
    recorder = hostile.recorder
    gone: list[int] = []

    def script(sock: socket.socket) -> bool:
        sock.settimeout(20)
        try:
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
            while True:
                sock.sendall(bytes(65536))
        except OSError:
            gone.append(1)
        return False

    recorder.scripts["reset"] = script
    with Visitor2(hostile.world) as visitor:
        for turn in range(3):
            number, lost, heads = 1 + 6 * turn, recorder.lost, recorder.heads
            visitor.send(request([*GET[:3], (b":path", b"/answer/reset")], stream=number))
            while number not in visitor.heads:
                assert visitor.fill()
            visitor.send(request(POST, stream=number + 2, end=False) + frame(DATA, 0, number + 2, b"begun"))
            recorder.wait_for(lambda heads=heads: recorder.heads >= heads + 2, "the upload's head")
            for one in (number, number + 2):
                visitor.send(frame(RST_STREAM, 0, one, b"\0\0\0\x08"))
            recorder.wait_for(lambda lost=lost: recorder.lost > lost, "the service hears that the upload ended")
            wait_until(lambda turn=turn: len(gone) == turn + 1, what="the service hears that the download ended")
            canary = b"/canary/reset/%d" % turn
            assert visitor.get(canary, number + 4) == (200, b"served GET " + canary)
    hostile.beside()


def test_slow_heads_have_one_absolute_deadline(hostile: Hostile) -> None:
    """One byte after the other does not help, on either version, beside a download or not."""
    world = hostile.world
    slow = Visitor(world)
    slow.send(b"GET /ok HTTP/1.1\r\nHost: web.exa")
    slow2 = Visitor2(world)
    whole = request(GET)
    slow2.send(whole[:9])
    beside = Visitor2(world)
    beside.send(request([*POST], end=False) + frame(HEADERS, 0, 3, block(GET)))
    silent = Visitor(world)
    visitors: list[Visitor | Visitor2] = [slow, slow2, beside]
    open_ = set(range(3))
    for turn in range(200):
        for index in sorted(open_):
            visitor = visitors[index]
            visitor.sock.settimeout(0.05)
            part = (b"m", whole[9 + turn : 10 + turn], frame(CONTINUATION, 0, 3, b""))[index]
            if turn % 4 == 0 and part and not visitor.send(part):
                open_.discard(index)
            try:
                if not visitor.fill() or (isinstance(visitor, Visitor2) and visitor.goaway is not None):
                    open_.discard(index)
            except AssertionError:
                continue
        if not open_:
            break
    assert not open_, f"still open: {open_}"
    assert slow.buffer.startswith(b"HTTP/1.1 408 ")
    assert slow2.goaway == ENHANCE_YOUR_CALM
    assert beside.goaway
    silent.sock.settimeout(20)
    assert not silent.fill(), "silence is cut, too"
    for visitor in (*visitors, silent):
        visitor.sock.close()
    hostile.beside()
