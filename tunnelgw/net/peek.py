"""Looking at the first bytes of a connection without taking them (MSG_PEEK), with a deadline and a bounded effort.

A peeked socket stays readable, so a level-triggered loop would spin while the bytes are incomplete. SO_RCVLOWAT is
raised to what is needed next, and a wake-up that finds no more than the one before means FIN or an error: the end. A
peer that dribbles is looked at by timer after `WAKEUPS`, less and less often, so none costs more than 20 looks.

Invariants: nothing is ever consumed; whoever gets the socket afterwards finds SO_RCVLOWAT at 1 and no reader of ours on
it; `done` or `failed` is called exactly once, unless `cancel` came first.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Generic, TypeVar

from tunnelgw.errors import RemoteError
from tunnelgw.net.timers import INF
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from tunnelgw.net.ledger import CountedSocket
    from tunnelgw.net.timers import Wheel

T = TypeVar("T")

PEEK_LIMIT = 64 * 1024  # bytes looked at: a ClientHello of 16 KiB in absurdly small records
WAKEUPS = 6  # a hello in many segments takes two or three; beyond this, looking is timed
LOOK_SECONDS = (0.25, 1.0)  # first and longest time between two of those: at most 11 in the 10 s of a hello
_PEEK = int(socket.MSG_PEEK)  # an enum is converted at every call
_buffer = bytearray(PEEK_LIMIT)  # shared: a look is synchronous and copies what it found


class Peek(Generic[T]):
    """One connection being looked at, until `parse` returns a value or raises `RemoteError`.

    `needs(data)` says how many bytes in all are worth another look. `done(peek, value)` or `failed(peek, reason, seen)`
    takes `peek.sock` over. `wakeups` counts looks after the first, for tests and for the effort's bound.
    """

    __slots__ = (
        "_done", "_failed", "_handle", "_loop", "_needs", "_parse", "_raised", "_reading", "armed_until", "deadline",
        "seen", "sock", "until", "wakeups",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: CountedSocket,
        *,
        parse: Callable[[bytes], T | None],
        needs: Callable[[bytes], int],
        done: Callable[[Peek[T], T], None],
        failed: Callable[[Peek[T], Reason, bytes], None],
    ) -> None:
        self._loop = loop
        self.sock = sock
        self._parse = parse
        self._needs = needs
        self._done = done
        self._failed = failed
        self._handle: asyncio.TimerHandle | None = None
        self._reading = False
        self._raised = False
        self.seen = 0
        self.wakeups = 0
        self.until = INF
        self.deadline = INF
        self.armed_until = INF

    def start(self, wheel: Wheel, until: float) -> None:
        """Look once now; where that is not enough, again until `until` (loop time)."""
        self.until = until
        if not self._look(first=True):
            wheel.arm(self, until)

    def cancel(self) -> None:
        """Stop looking; neither callback comes. The socket is the caller's again."""
        self._stop()

    def on_deadline(self, now: float) -> None:  # noqa: ARG002 - the wheel's interface
        """Too slow."""
        self._fail(Reason.HELLO_TIMEOUT, b"")

    def _ready(self) -> None:
        self._look(first=False)

    def _timed(self) -> None:
        self._handle = None
        self._look(first=False)

    def _look(self, *, first: bool) -> bool:
        """True when it is over, one way or the other."""
        self.wakeups += not first
        try:
            count = self.sock.recv_into(_buffer, PEEK_LIMIT, _PEEK)
        except (BlockingIOError, InterruptedError):
            return self._wait(1)
        except OSError:
            return self._fail(Reason.HANDSHAKE_FAILED, b"")
        data = bytes(memoryview(_buffer)[:count])
        if not first and count <= self.seen and self._reading:
            return self._fail(Reason.HELLO_INVALID, b"")  # FIN or error in the middle: no more will come
        if not count:
            return self._fail(Reason.HELLO_INVALID, b"")
        self.seen = count
        try:
            found = self._parse(data)
        except RemoteError as error:
            return self._fail(error.reason, data)
        if found is not None:
            self._stop()
            self._done(self, found)
            return True
        if count >= PEEK_LIMIT:
            return self._fail(Reason.HELLO_INVALID, data)
        return self._wait(min(max(self._needs(data), count + 1), PEEK_LIMIT))

    def _wait(self, total: int) -> bool:
        if self.wakeups >= WAKEUPS:
            self._unread()
            if self._handle is None:
                first, longest = LOOK_SECONDS
                delay = min(first * 2.0 ** (self.wakeups - WAKEUPS), longest)
                self._handle = self._loop.call_later(delay, self._timed)
            return False
        if total > 1:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, total)
            self._raised = True
        if not self._reading:
            self._reading = True
            self._loop.add_reader(self.sock.fileno(), self._ready)
        return False

    def _unread(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self.sock.fileno())

    def _stop(self) -> None:
        self.deadline = INF
        self._unread()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._raised:
            # It travels with the descriptor: left raised, the handshake would wait for bytes that never come.
            self._raised = False
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def _fail(self, reason: Reason, data: bytes) -> bool:
        self._stop()
        self._failed(self, reason, data)
        return True
