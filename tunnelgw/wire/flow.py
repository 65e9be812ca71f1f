"""Flow control: windows, how they grow, and the caps on everything that a peer may make us keep.

A window is charged when DATA arrives and credited when the next transport accepted the bytes. It grows to three times
what was consumed in one minimum round trip (dynamic right-sizing): a fast reader far away gets its bandwidth-delay
product, a slow reader keeps 256 KiB however fast its bytes arrive.

Invariant: bytes received and not consumed never exceed the window that was granted, per stream; their sum, with what
their many or few objects cost, is held under a cap per session and, through `Budget`, per process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tunnelgw.wire.session import Session
    from tunnelgw.wire.stream import Stream

KIB = 1024
MIB = 1024 * KIB

INITIAL_WINDOW = 256 * KIB  # 2.5 MB/s at 100 ms before it grows; a page with its images needs no growth
PRESSED_WINDOW = 64 * KIB  # for new streams while buffers are above half of a cap
MAX_WINDOW = 16 * MIB  # 160 MB/s at 100 ms
MAX_CREDIT = 2**31 - 1  # all credit a peer may hold out for one stream: no sum of two wraps 32 bits
RTT_FLOOR = 0.002  # seconds: two busy event loops take turns more slowly than a ping on loopback suggests
INITIAL_WINDOWS = frozenset((INITIAL_WINDOW, PRESSED_WINDOW))


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Bounds of one session; every default is safe for a small VPS."""

    streams: int = 16384  # opened here: 10,000 idle visitors and room
    accepted: int = 20480  # opened by the peer: its own limit, plus those whose end has not reached us yet
    # More than one core can serve; the burst is `accepted`. As many again are refused; a peer that goes on is cut.
    opens_per_second: float = 20000.0
    buffered: int = 64 * MIB  # received, not consumed, overhead included; one feed may exceed it until its end
    retained: int = 32 * MIB  # sent, not acknowledged; sending stops there
    control: int = 1 * MIB  # one reassembled CONTROL message: 4,096 offers are about 800 KiB
    answers: int = 4 * MIB  # queued answers (memory) beyond which a peer that asks for more is cut: 57,000 resets
    datagrams: int = 1 * MIB  # queued datagrams; the oldest are dropped
    lingering: int = 4096  # streams reset here whose late bytes are still checked against their window
    max_window: int = MAX_WINDOW


DEFAULT_LIMITS = SessionLimits()


class Holder(Protocol):
    """Whoever holds bytes that may be given up: a stream, or an exchange with a body that no stream takes yet."""

    @property
    def weight(self) -> int:
        """How many."""

    @property
    def stalled_since(self) -> float:
        """When any of them last moved."""

    def shed(self) -> None:
        """Give all of it up, and whatever it was for (`buffer_limit`)."""


class Budget:
    """Bytes that a process holds for others, received or to be sent, and by how much windows grew.

    One object per process, given to each session, which adds and subtracts directly; who holds bytes that are in no
    stream tells by `hold`. `later` calls a function soon, but not from within the caller: relief resets streams, and
    whoever writes to one must not find it gone in its hands.
    """

    __slots__ = ("limit", "high", "used", "queued", "grown", "holders", "sessions", "_due", "_dropped", "_later")

    def __init__(self, limit: int = 128 * MIB, *, later: Callable[[Callable[[], None]], object] | None = None) -> None:
        self.resize(limit)
        self.used = 0  # received, not consumed
        self.queued = 0  # written, not sent; or in no stream
        self.grown = 0
        self.sessions: set[Session] = set()
        self.holders: set[Holder] = set()  # beside the streams of `sessions`
        self._due = False
        self._dropped = 0  # datagrams, by sessions that are over
        self._later = later

    def resize(self, limit: int) -> None:
        """Another limit from now on."""
        self.limit = limit
        self.high = limit - limit // 16  # where `relief` begins

    def leave(self, session: Session) -> None:
        """A session is over."""
        if session in self.sessions:
            self.sessions.remove(session)
            self._dropped += session.datagrams_dropped

    @property
    def datagrams_dropped(self) -> int:
        """By all sessions that there ever were."""
        return self._dropped + sum(session.datagrams_dropped for session in self.sessions)

    def hold(self, holder: Holder, change: int) -> None:
        """The weight of a holder that is no stream has just changed by so much."""
        self.queued += change
        if holder.weight:
            self.holders.add(holder)
            if self.used + self.queued > self.high:
                self.overflow()
        else:
            self.holders.discard(holder)

    @property
    def held(self) -> int:
        """All of it."""
        return self.used + self.queued

    @property
    def full(self) -> bool:
        """Whether all sessions together hold so much that nothing new may begin."""
        return self.used + self.queued >= self.limit

    def overflow(self) -> None:
        """More is held than `high`: relieve soon."""
        if not self._due and self._later is not None:
            self._due = True
            self._later(self.relieve)

    def relieve(self) -> None:
        """Above `high`: give up what is longest without progress in the process."""
        self._due = False
        excess = relief(self.held, self.limit)
        if excess:
            found: list[Holder] = [*self.holders]
            found += [stream for session in self.sessions for stream in session.streams.values() if stream.weight]
            found.sort(key=lambda holder: holder.stalled_since)
            shed(((holder, holder.weight) for holder in found), excess)


class Windows:
    """The receiving windows of one session's streams: credit, growth, pressure."""

    __slots__ = ("pressed", "_budget", "_grown", "_limits")

    def __init__(self, limits: SessionLimits, budget: Budget) -> None:
        self.pressed = False  # above half of a cap: new streams start small, windows stop growing
        self._limits = limits
        self._budget = budget
        self._grown = 0

    @property
    def initial(self) -> int:
        """What a new stream is granted."""
        return PRESSED_WINDOW if self.pressed else INITIAL_WINDOW

    def review(self, buffered: int) -> bool:
        """Compare with the caps; whether `initial` changed. Pressure ends below three eighths, or it would flap."""
        eighths = 3 if self.pressed else 4
        limits, budget = self._limits, self._budget
        held = budget.used + budget.queued
        pressed = buffered * 8 > limits.buffered * eighths or held * 8 > budget.limit * eighths
        changed = pressed != self.pressed
        self.pressed = pressed
        return changed

    def credit(self, stream: Stream, *, now: float, min_rtt: float) -> int:
        """What a stream's peer gets back, and more where the window is too small for the round trip."""
        credit = stream.owed
        stream.owed = 0
        stream.owing = False
        stream.epoch_consumed += credit
        elapsed = now - stream.epoch_at
        if elapsed >= max(min_rtt, RTT_FLOOR):
            if not self.pressed:
                credit += self._grow(stream, elapsed, min_rtt)
            stream.epoch_at = now
            stream.epoch_consumed = 0
        stream.granted += credit
        return credit

    def release(self, stream: Stream) -> None:
        """A stream is over."""
        self._grown -= stream.grown
        self._budget.grown -= stream.grown
        stream.grown = 0

    def _grow(self, stream: Stream, elapsed: float, min_rtt: float) -> int:
        limits, budget = self._limits, self._budget
        wanted = fitting_window(stream.epoch_consumed, elapsed=elapsed, min_rtt=min_rtt)
        growth = min(wanted, 2 * stream.window, limits.max_window) - stream.window
        growth = min(growth, limits.buffered - self._grown, budget.limit - budget.grown)
        if growth <= 0:
            return 0
        stream.window += growth
        stream.grown += growth
        self._grown += growth
        budget.grown += growth
        return growth


def fitting_window(consumed: int, *, elapsed: float, min_rtt: float) -> int:
    """The window for a reader that consumed so many bytes in `elapsed` seconds: three times its share of a round trip.

    A sender held back by its window gets between half of it and all of it through in a round trip, since credit for a
    small one comes by halves: with two instead of three the window could stop growing at half speed.
    """
    rtt = max(min_rtt, RTT_FLOOR)
    return int(3.0 * consumed * rtt / max(elapsed, rtt))


def relief(held: int, cap: int) -> int:
    """Bytes to free, if any. Relief begins a sixteenth below the cap, where new streams are refused: those that stand
    still make room before they keep anybody else out. It stops as much again below, or it would search at each frame.
    """
    return held - (cap - cap // 8) if held > cap - cap // 16 else 0


def shed(holders: Iterable[tuple[Holder, int]], excess: int) -> None:
    """Give up one after another, with the bytes that each frees, until `excess` are free."""
    for holder, freed in holders:
        if excess <= 0:
            return
        excess -= freed
        holder.shed()


class TokenBucket:
    """So many events at once, then so many a second."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

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
