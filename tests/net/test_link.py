"""A link's just-in-time sending, with a session and a transport that are stand-ins. (Whole links: tests/connector.)"""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from tunnelgw.net import link as module
from tunnelgw.net.link import BATCH_LEAST, BATCH_MOST, BATCH_NARROW, KEPT_BYTES, LONG, SHORT, Link


class FakeTransport(asyncio.Transport):
    def __init__(self, sock: socket.socket | None) -> None:
        super().__init__()
        self.sock = sock
        self.written: list[bytes] = []
        self.limits = (0, 0)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.sock if name == "socket" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.limits = (high or 0, low or 0)

    def write(self, data: bytes) -> None:
        self.written.append(data)


class FullSession:
    """Always has output."""

    deadline = float("inf")
    quiet = False
    link_dead = False
    scheduler = SimpleNamespace(hot=False)
    received = 0
    retained_frames = SimpleNamespace(sent=0)

    def tick(self, now: float) -> None:
        pass

    def attach(self, peer_received: int, now: float) -> None:
        pass

    def pull(self, limit: int, now: float) -> bytes:
        return bytes(limit)


@pytest.fixture
def attached(monkeypatch: pytest.MonkeyPatch):
    loop = asyncio.new_event_loop()
    pair = socket.socketpair()
    transport = FakeTransport(pair[0])
    link = Link(None, loop=loop)
    link.connection_made(transport)
    link.attach(FullSession(), 0)
    unsent = [0]
    monkeypatch.setattr(module.sockets, "unsent", lambda _descriptor: unsent[0])
    yield link, transport, unsent
    link._unwatch()
    for sock in pair:
        sock.close()
    module.os.close(link._dup)
    loop.close()


def test_a_link_that_drains_at_once_gets_more_at_once(attached) -> None:
    link, transport, _unsent = attached
    for _ in range(6):
        link.flush()
    sizes = [len(data) for data in transport.written]
    assert sizes[0] == BATCH_LEAST
    assert sizes == sorted(sizes)
    assert sizes[-1] == BATCH_MOST
    assert transport.limits[0] == BATCH_MOST


def test_a_link_with_unsent_bytes_waits(attached) -> None:
    link, transport, unsent = attached
    link.flush()
    unsent[0] = BATCH_LEAST + 1
    link.flush()
    link.flush()
    assert len(transport.written) == 1


@pytest.mark.parametrize("megabits", [1, 2, 4, 8, 20, 60, 1000])
def test_a_narrow_line_gets_little_at_a_time(attached, monkeypatch: pytest.MonkeyPatch, megabits: int) -> None:
    """A batch drains in 3 to 10 ms where it is smaller than usual; a line that becomes fast again is believed."""
    link, transport, unsent = attached
    now = [0.0]
    monkeypatch.setattr(link._loop, "time", lambda: now[0])
    for rate in (megabits, 2, megabits, 1000, megabits):
        for _ in range(12):
            unsent[0] = 2 * BATCH_MOST
            while not link._watching:
                link.flush()
            now[0] += link._batch / (rate * 125_000)
            unsent[0] = 0
            link._full = False  # the other reason to grow is another test's
            link._writable()
        batch = link._batch
        seconds = batch / (rate * 125_000)
        assert seconds < LONG or batch == BATCH_NARROW
        assert seconds > SHORT or batch >= BATCH_LEAST
        assert (batch == BATCH_MOST) == (rate == 1000)
        assert transport.limits[0] == batch


def test_a_transport_that_lost_its_socket_is_no_trouble(attached) -> None:
    """uvloop's TLS transport forgets its socket a turn before it says connection_lost."""
    link, transport, _unsent = attached
    link.flush()
    transport.sock = None
    link.flush()
    assert len(transport.written) == 2
    assert len(transport.written[1]) == BATCH_LEAST


def test_memory_is_given_back_once_after_a_burst(attached, monkeypatch: pytest.MonkeyPatch) -> None:
    link, _transport, _unsent = attached
    given: list[int] = []
    monkeypatch.setattr(module, "give_back", lambda: given.append(link.session.received))
    for received in (0, 0, 10, 10, KEPT_BYTES + 10, 2 * KEPT_BYTES, 2 * KEPT_BYTES, 2 * KEPT_BYTES, 3 * KEPT_BYTES):
        link.session.received = received
        link._tick()
    assert given == [2 * KEPT_BYTES]
    link._tick()
    assert given == [2 * KEPT_BYTES, 3 * KEPT_BYTES]
