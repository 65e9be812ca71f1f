"""Joins two streams: what arrives on one is written to the other, with its ends, pauses and resets.

It reads nothing and keeps nothing but what arrives before the second stream is there. Credit follows the bytes: the
first stream's peer gets it back only when the second one's queue takes more, so whoever reads slowly holds one window
of its own stream and nothing of anybody else's.

Pure. Invariants: each half ends once; after a reset of either side the other one is reset with the same reason; bytes
given to a half equal bytes credited plus bytes owed, until the stream is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.obs.reasons import Reason
    from tunnelgw.wire.events import StreamEnd


class Half:
    """The sink of one of the two streams."""

    __slots__ = ("_early", "_relay", "ended", "other", "owed", "paused", "stream")

    other: Half

    def __init__(self, relay: Relay) -> None:
        self.stream: StreamEnd | None = None  # whose sink this is
        self.owed = 0  # bytes passed on that were not credited yet
        self.paused = False  # this stream's queue is full: the other half owes
        self.ended = False
        self._early: list[bytes] = []  # bounded by the stream's window, since nothing is credited
        self._relay = relay

    def stream_data(self, data: bytes) -> None:
        target, stream = self.other.stream, self.stream
        if target is None or stream is None:
            self._early.append(data)
            return
        target.write(data)
        if self.other.paused:
            self.owed += len(data)
        else:
            stream.consumed(len(data))
        target.hurry()

    def stream_finished(self) -> None:
        self.ended = True
        target = self.other.stream
        if target is not None:
            target.finish()
        if self.other.ended:
            self._relay.end()

    def stream_reset(self, reason: Reason) -> None:
        target = self.other.stream
        if target is not None:
            target.reset(reason)
        self._relay.end()

    def pause_sending(self) -> None:
        self.paused = True

    def resume_sending(self) -> None:
        self.paused = False
        other = self.other
        owed, other.owed = other.owed, 0
        if owed and other.stream is not None:
            other.stream.consumed(owed)

    def pour(self) -> None:
        """The other stream is there: pass on what waited for it."""
        early, self._early = self._early, []
        for data in early:
            self.stream_data(data)
        if self.ended and self.other.stream is not None:
            self.other.stream.finish()

    def drop(self) -> None:
        """Nobody will take what waits."""
        self._early.clear()


class Relay:
    """Two halves. Inputs: `near` and `far` as sinks, `join` for each stream; `over` is called once at the end."""

    __slots__ = ("_over", "far", "near")

    def __init__(self, over: Callable[[], None]) -> None:
        self.near, self.far = Half(self), Half(self)
        self.near.other, self.far.other = self.far, self.near
        self._over: Callable[[], None] | None = over

    def join(self, half: Half, stream: StreamEnd) -> None:
        """This half's stream is there, and its sink is `half` from now on."""
        half.stream = stream
        stream.sink = half
        half.other.pour()
        half.pour()

    def cut(self, reason: Reason) -> None:
        """End both streams, whoever was joined."""
        for half in (self.near, self.far):
            if half.stream is not None:
                half.stream.reset(reason)
        self.end()

    def end(self) -> None:
        """Both ended, or one was reset. Idempotent."""
        over, self._over = self._over, None
        if over is not None:
            self.near.drop()
            self.far.drop()
            over()
