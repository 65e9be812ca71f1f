"""A stream with both ends in this process: how the gateway at home reaches a target, without a tunnel in between.

Each `End` behaves towards its sink as a tunnel's `Stream` does, so splices and the gateway cannot tell them apart.
Bytes are handed over at once and neither copied nor kept here; what the far sink has not passed on counts as `queued`,
and above `HIGH_WATER` the writer is asked to pause.

Invariants: an end's sink hears nothing after a reset, from whichever side it came; an orderly end never overtakes
bytes; `queued` of one end is what the other end's sink was given and has not passed on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.wire.stream import NULL_SINK

if TYPE_CHECKING:
    from tunnelgw.obs.reasons import Reason
    from tunnelgw.wire.events import StreamSink

# A transport's own read is up to 256 KiB; one of them on top of this is what a slow visitor makes us keep.
HIGH_WATER = 64 * 1024
LOW_WATER = 16 * 1024


class End:
    """One end. `far` is the other one."""

    __slots__ = ("_gone", "_paused", "_shut", "far", "queued", "sink")

    far: End
    sent_anything = True  # both ends are made at once

    def __init__(self) -> None:
        self.sink: StreamSink = NULL_SINK
        self.queued = 0
        self._paused = False
        self._shut = False
        self._gone = False

    @property
    def closed(self) -> bool:
        """As `Stream.closed`."""
        return self._gone or (self._shut and self.far._shut)

    @property
    def linked(self) -> bool:
        """There is nothing in between that could be away."""
        return True

    @property
    def leaving(self) -> bool:
        """Nobody else decides when this process ends."""
        return False

    def write(self, data: bytes | memoryview) -> None:
        """As `Stream.write`."""
        if self._shut:
            if self._gone:
                return
            raise RuntimeError("write after finish")
        if not data:
            return
        self.queued += len(data)
        self.far.sink.stream_data(bytes(data))  # no copy for bytes
        if self.queued > HIGH_WATER and not self._paused:
            self._paused = True
            self.sink.pause_sending()

    def hurry(self) -> None:
        """As `Stream.hurry`: everything went already."""

    def lend(self, data: memoryview) -> None:
        """As `Stream.lend`."""
        self.write(data)

    def finish(self) -> None:
        """As `Stream.finish`."""
        if not self._shut:
            self._shut = True
            self.far.sink.stream_finished()

    def reset(self, reason: Reason) -> None:
        """As `Stream.reset`."""
        if self._gone:
            return
        far = self.far
        told = far.sink
        for end in (self, far):
            end._gone = end._shut = True
            end.queued = 0
            end.sink = NULL_SINK
        told.stream_reset(reason)

    def consumed(self, count: int) -> None:
        """As `Stream.consumed`."""
        writer = self.far
        if self._gone:
            return
        if count > writer.queued:
            raise RuntimeError(f"consumed {count} of {writer.queued} bytes")
        writer.queued -= count
        if writer._paused and writer.queued <= LOW_WATER:
            writer._paused = False
            writer.sink.resume_sending()


def stream_pair() -> tuple[End, End]:
    """Both ends of a new stream; the sinks are the callers' to set."""
    near, far = End(), End()
    near.far, far.far = far, near
    return near, far
