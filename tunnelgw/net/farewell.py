"""Saying one last thing to a peer and closing so that it can be read.

Closing a socket with unread bytes in it sends RST, and an RST makes the peer throw away what we just said. So: take
what is there, say it, end our half, and read on until the peer ends its half or a short time is over.

Invariant: the socket is closed within `LINGER_SECONDS` plus one granule, whatever the peer does.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from tunnelgw.net.timers import INF

if TYPE_CHECKING:
    import asyncio

    from tunnelgw.net.timers import Wheel

LINGER_SECONDS = 1.0  # a round trip to anywhere on earth, twice
_TAKE = 64 * 1024
_TURNS = 16  # a peer that keeps sending is cut after this many reads


class Farewell:
    """Owns `sock` from the start: says `data`, closes."""

    __slots__ = ("_loop", "_sock", "_turns", "armed_until", "deadline")

    def __init__(self, loop: asyncio.AbstractEventLoop, wheel: Wheel, sock: socket.socket, data: bytes) -> None:
        self._loop = loop
        self._sock = sock
        self._turns = 0
        self.deadline = INF
        self.armed_until = INF
        try:
            ended = self._take()
            sock.send(data)  # a few bytes into an empty send buffer: all or nothing
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            ended = True
        if ended:
            sock.close()
            return
        loop.add_reader(sock.fileno(), self._ready)
        wheel.arm(self, loop.time() + LINGER_SECONDS)

    def on_deadline(self, now: float) -> None:  # noqa: ARG002 - the wheel's interface
        """Long enough."""
        self._close()

    def _ready(self) -> None:
        self._turns += 1
        try:
            ended = self._take()
        except OSError:
            ended = True
        if ended or self._turns >= _TURNS:
            self._close()

    def _take(self) -> bool:
        """Read what is there; True at the peer's end."""
        try:
            return not self._sock.recv(_TAKE)
        except (BlockingIOError, InterruptedError):
            return False

    def _close(self) -> None:
        self.deadline = INF
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
