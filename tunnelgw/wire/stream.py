"""One near end of a stream: two independent halves, and nothing that touches the link.

The sending half is a queue of the caller's own immutable objects: nothing is copied before `Session.pull` joins
them. The receiving half keeps no bytes at all, only counts: what the peer may still send (`granted`), what the sink
holds (`unread`), what the sink has passed on and the peer has not got back yet (`owed`).

Invariant: `granted + unread + owed` is the window at any time, until FIN or reset; after a reset the sink is never
called again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.wire.flow import KIB, MIB

if TYPE_CHECKING:
    from tunnelgw.obs.reasons import Reason
    from tunnelgw.wire.control import Open
    from tunnelgw.wire.events import StreamSink
    from tunnelgw.wire.session import Session

# Where the scheduler has the stream.
IDLE = 0  # nothing to send
LISTED = 1  # in one of the scheduler's lists
BLOCKED = 2  # bytes queued, but the peer's window is used up

HIGH_WATER = 128 * KIB  # queued bytes at which the sink is asked to pause: two round robins of eight streams
HIGH_WATER_MOST = 1 * MIB  # for streams whose window grew: one loop turn at 1 GB/s


class NullSink:
    """Stands in where a sink must not be called any more, or was not set yet."""

    __slots__ = ()

    def stream_data(self, data: bytes) -> None:
        """Nobody is interested."""

    def stream_finished(self) -> None:
        """Nobody is interested."""

    def stream_reset(self, reason: Reason) -> None:
        """Nobody is interested."""

    def pause_sending(self) -> None:
        """Nobody sends."""

    def resume_sending(self) -> None:
        """Nobody sends."""


NULL_SINK: StreamSink = NullSink()


class Stream:
    """One near end of a stream. Inputs: `write`, `finish`, `reset`, `consumed`; all of them may leave output to pull.

    The first group of fields is for the stream's owner; the others belong to the session and its scheduler.
    """

    __slots__ = (
        "id", "sink", "request", "owner", "queued", "unread", "sent_anything",
        "session", "gone", "shut",
        "queue", "offset", "credit", "high", "paused", "place", "turn", "fin_sent",
        "granted", "window", "owed", "owing", "grown", "epoch_at", "epoch_consumed", "progress_at", "fin_received",
    )  # fmt: skip

    def __init__(self, session: Session, number: int, request: Open, sink: StreamSink) -> None:
        self.id = number
        self.sink: StreamSink = sink
        self.request = request
        self.owner: object = None
        self.queued = 0  # bytes written, not yet pulled
        self.unread = 0  # bytes given to the sink, not yet consumed
        self.sent_anything = False  # False while even OPEN has not been pulled
        self.session = session
        self.gone = False  # reset by either side, or the session ended
        self.shut = False  # finish() or reset: write() is over
        # Sending half.
        self.queue: list[bytes | memoryview] = []
        self.offset = 0  # into the first object of the queue
        self.credit = 0  # what the peer's window still takes
        self.high = HIGH_WATER
        self.paused = False
        self.place = IDLE
        self.turn = 0  # bytes left of the round robin's turn
        self.fin_sent = False
        # Receiving half.
        self.granted = 0  # what the peer may still send; -1 after its FIN
        self.window = 0
        self.owed = 0
        self.owing = False  # a WINDOW frame is due
        self.grown = 0  # window beyond its start, as counted against the caps
        self.epoch_at = 0.0  # since when epoch_consumed counts
        self.epoch_consumed = 0
        self.progress_at = 0.0  # when the sink last consumed, or began to owe
        self.fin_received = False

    @property
    def closed(self) -> bool:
        """Both halves are done, or the stream was reset."""
        return self.gone or (self.fin_sent and self.fin_received)

    @property
    def linked(self) -> bool:
        """False while the tunnel waits for a link."""
        return self.session.attached

    @property
    def leaving(self) -> bool:
        """Whether the other side takes no further streams: this one is not worth keeping."""
        return self.session.peer_leaving is not None

    def write(self, data: bytes | memoryview) -> None:
        """Queue bytes that will not change. Does nothing after a reset; `RuntimeError` after `finish`."""
        if self.shut:
            if self.gone:
                return
            raise RuntimeError("write after finish")
        size = len(data)
        if not size:
            return
        self.queue.append(data)
        queued = self.queued = self.queued + size
        if queued > self.high and not self.paused:
            self.paused = True
            self.sink.pause_sending()
        if not self.place:
            self.session.scheduler.activate(self)  # last: this may pull at once

    def finish(self) -> None:
        """FIN our half after what is queued. Idempotent."""
        if not self.shut:
            self.shut = True
            if not self.place:
                self.session.scheduler.activate(self)

    def reset(self, reason: Reason) -> None:
        """Give up both halves, tell the peer why. Idempotent; the sink gets no further call."""
        if not self.gone:
            self.session.reset_stream(self, reason)

    def consumed(self, count: int) -> None:
        """The next transport accepted `count` of the bytes given to the sink: the peer may send as many more."""
        unread = self.unread - count
        if unread < 0:
            if self.gone:
                return
            raise RuntimeError(f"consumed {count} of {self.unread} bytes")
        self.unread = unread
        session = self.session
        session.buffered -= count
        session.budget.used -= count
        self.progress_at = session.now
        owed = self.owed = self.owed + count
        if self.fin_received:
            if not unread:
                session.retire(self)
        elif owed * 2 >= self.window and not self.owing and owed:
            session.owe(self)

    def abandon(self) -> None:
        """Drop everything held for this stream (the session's part of a reset)."""
        self.gone = self.shut = True
        self.queue.clear()
        self.queued = self.offset = 0
        session = self.session
        session.buffered -= self.unread
        session.budget.used -= self.unread
        self.unread = 0
        self.sink = NULL_SINK
