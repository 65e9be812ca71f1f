"""Flow control arithmetic: windows, how they grow, and the caps that hold everything a peer may make us keep.

A window is charged when DATA arrives and credited when the next transport accepted the bytes. It grows to twice what was consumed
in one minimum round trip (dynamic right-sizing), so a fast reader far away gets its bandwidth-delay product and a slow reader
keeps 256 KiB however fast its bytes arrive.

Invariant: bytes received and not consumed never exceed the window that was granted, per stream; their sum is watched against a cap
per session and, through `Budget`, per process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunnelgw.wire.session import Session
    from tunnelgw.wire.stream import Stream

KIB = 1024
MIB = 1024 * KIB

INITIAL_WINDOW = 256 * KIB  # 2.5 MB/s at 100 ms before it grows; a page with its images needs no growth
PRESSED_WINDOW = 64 * KIB  # for new streams while buffers are above half of a cap
MAX_WINDOW = 16 * MIB  # 160 MB/s at 100 ms
RTT_FLOOR = 0.002  # two event loops take turns: on loopback the round trip of a ping is not the round trip of bulk data
MAX_CREDIT = 2**31 - 1  # the sum of all credit a peer may hold out for one stream: fits 32 bits with no wrap
INITIAL_WINDOWS = frozenset((INITIAL_WINDOW, PRESSED_WINDOW))


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Bounds of one session; every default is safe for a small VPS."""

    streams: int = 16384  # opened by this side: 10,000 idle visitors and room
    accepted: int = 20480  # opened by the peer: its own limit plus those whose end has not reached us yet
    opens_per_second: float = 20000.0  # more than one core can serve; the burst is `accepted`
    buffered: int = 64 * MIB  # received, not consumed
    retained: int = 32 * MIB  # sent, not acknowledged; sending stops there
    control: int = 1 * MIB  # one reassembled CONTROL message (4,096 offers are about 800 KiB)
    answers: int = 65536  # frames that the peer makes us queue (RESET for refused OPENs) and does not read
    datagrams: int = 1 * MIB  # queued datagrams; the oldest are dropped
    lingering: int = 4096  # streams reset by us whose late bytes are still checked against their window
    max_window: int = MAX_WINDOW


DEFAULT_LIMITS = SessionLimits()


class Budget:
    """Bytes that all sessions of a process hold for their consumers, and what windows grew beyond their start.

    One object per process, given to each session, which adds and subtracts directly.
    """

    __slots__ = ("limit", "used", "grown", "sessions")

    def __init__(self, limit: int = 128 * MIB) -> None:
        self.limit = limit
        self.used = 0
        self.grown = 0
        self.sessions: set[Session] = set()

    def relieve(self) -> None:
        """Above the cap: reset whichever streams of the process are longest without progress."""
        streams = [stream for session in self.sessions for stream in session.streams.values()]
        reset_stalest(streams, self.used - relieved(self.limit))


def grown_window(window: int, consumed: int, *, elapsed: float, min_rtt: float, largest: int) -> int:
    """The window that fits a reader which consumed so many bytes in `elapsed` seconds: never smaller, at most doubled."""
    rtt = max(min_rtt, RTT_FLOOR)
    wanted = int(2.0 * consumed * rtt / max(elapsed, rtt))
    return max(window, min(wanted, 2 * window, largest))


def relieved(cap: int) -> int:
    """Where relief stops: a sixteenth below the cap, so that the search for stalled streams is not repeated per frame."""
    return cap - cap // 16


def reset_stalest(streams: Iterable[Stream], excess: int) -> None:
    """Reset the streams longest without progress until `excess` bytes are free."""
    for stream in sorted((s for s in streams if s.unread), key=lambda s: s.progress_at):
        if excess <= 0:
            return
        excess -= stream.unread
        sink = stream.sink
        stream.reset(Reason.BUFFER_LIMIT)
        sink.stream_reset(Reason.BUFFER_LIMIT)


class TokenBucket:
    """So many events at once, then so many a second."""

    __slots__ = ("_rate", "_burst", "_tokens", "_at")

    def __init__(self, *, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, now: float) -> bool:
        """True if an event at `now` is within the rate."""
        tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if tokens < 1.0:
            self._tokens = tokens
            return False
        self._tokens = tokens - 1.0
        return True
