"""Handshakes in fair order, and few enough at a time that everybody who is through gets their turn of the loop.

A TLS handshake is the dearest thing that a stranger can ask for: about 0.3 ms of the processor and 100 KB while it
lasts. So a loop turn begins a few, addresses with few under way go first (`access/turns.py`), and when too many are
under way the oldest of whoever has most is cut (`access/crowd.py`). Without a crowd a handshake begins at once.

Who owns a socket: the front door until `join`, this file until `start`, whoever `start` calls after that.
Invariant: each socket that joined is started once, or refused once, or left while it waited; only those that wait are
kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.access.turns import Turns

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from tunnelgw.net.ledger import CountedSocket, Ledger

# Begun in one loop turn: about 1.5 ms, so that requests wait little; still thousands a second.
STARTS_PER_TURN = 4


class Handshakes:
    """Inputs: `join`, `leave`. `refused(sock)` takes back a socket whose turn did not come in time."""

    __slots__ = ("_ledger", "_left", "_loop", "_refused", "_scheduled", "_starts", "_turns")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, ledger: Ledger, *, refused: Callable[[CountedSocket], None]
    ) -> None:
        self._loop = loop
        self._ledger = ledger
        self._refused = refused
        self._turns: Turns[CountedSocket] = Turns()
        self._starts: dict[CountedSocket, tuple[Callable[[], object], float]] = {}  # what to do then, and until when
        self._left = STARTS_PER_TURN
        self._scheduled = False

    def join(self, sock: CountedSocket, start: Callable[[], object], *, until: float) -> None:
        """Call `start` when it is this socket's turn; `until` (loop time) at the latest."""
        key = sock.peer if sock.key is None else sock.key
        self._turns.join(key, sock, self._ledger.under_way(sock.key))
        self._starts[sock] = start, until
        self._serve()

    def leave(self, sock: CountedSocket) -> None:
        """It is closed before its turn. Idempotent."""
        self._turns.discard(sock)
        self._starts.pop(sock, None)

    def _serve(self) -> None:
        while self._left:
            sock = self._turns.take()
            if sock is None:
                break
            start, until = self._starts.pop(sock)
            if self._loop.time() > until:
                self._refused(sock)
                continue
            self._left -= 1
            self._ledger.shake(sock)
            start()
        if not self._scheduled and self._left < STARTS_PER_TURN:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        self._left = STARTS_PER_TURN
        self._serve()
