"""Connections of which nobody knows yet where they lead: looked at, or waiting for their handshake.

What every door has in common: who is refused hears it as that door says it, is counted, and is gone from both lists;
who was decided belongs to others.

Invariant: a socket that is closed here is neither looked at nor waiting any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunnelgw.edge.handshakes import Handshakes
from tunnelgw.net.farewell import Farewell
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    import asyncio

    from tunnelgw.net.ledger import CountedSocket, Ledger
    from tunnelgw.net.peek import Peek
    from tunnelgw.net.timers import Wheel
    from tunnelgw.obs.counters import ProcessCounters


class Undecided:
    """The part of a door that looks and refuses."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, wheel: Wheel, ledger: Ledger, counters: ProcessCounters
    ) -> None:
        self._loop = loop
        self._wheel = wheel
        self._counters = counters
        self.ledger = ledger
        self._handshakes = Handshakes(loop, ledger, refused=self._crowded_out)
        self._peeks: dict[CountedSocket, Peek[Any]] = {}

    def _drop_all(self, *listeners: str) -> None:
        """Drop who is not decided yet and came in by one of these."""
        for sock in [sock for sock in self.ledger.looking if sock.listener in listeners]:
            self._forget(sock)
            sock.close()

    def _say(self, sock: CountedSocket, words: bytes, reason: Reason) -> None:
        self._counters.refuse(reason)
        sock.settle()  # decided: nobody else may close it now
        Farewell(self._loop, self._wheel, sock, words)

    def _drop(self, sock: CountedSocket, reason: Reason) -> None:
        self._counters.refuse(reason)
        sock.close()

    def _crowded_out(self, sock: CountedSocket) -> None:
        """Undecided, or waiting for its handshake, and there is no room for it."""
        self._forget(sock)
        self._drop(sock, Reason.HANDSHAKE_LIMIT)

    def _forget(self, sock: CountedSocket) -> None:
        self._handshakes.leave(sock)
        peek = self._peeks.pop(sock, None)
        if peek is not None:
            peek.cancel()
