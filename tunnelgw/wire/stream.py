"""One near end of a stream: two independent halves, and nothing that touches the link.

The sending half is a queue of the caller's own immutable objects: nothing is copied before `Session.pull` joins
them. The receiving half keeps no bytes at all, only counts: what the peer may still send (`granted`), what the sink
holds (`unread`), what the sink has passed on and the peer has not got back yet (`owed`).

A window counts bytes, but frames of one byte cost a sink a hundred times that. So frames that arrive while the sink
holds something are marked, every so many of them, and each mark is charged against the caps until the bytes before it
were consumed. A sink that passes everything on at once never sees a mark.

Invariant: `granted + unread + owed` is the window at any time, until FIN or reset; `held` is what the caps were
charged; after a reset the sink is never called again.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from tunnelgw.obs.reasons import Reason
from tunnelgw.wire.flow import KIB

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from tunnelgw.wire.control import Open
    from tunnelgw.wire.events import StreamSink
    from tunnelgw.wire.session import Session

PRIVATE_FLOW = 0x8000_0000  # of datagrams that belong to a private stream; the other bits are the stream's id

# Where the scheduler has the stream.
IDLE = 0  # nothing to send
LISTED = 1  # in one of the scheduler's lists
BLOCKED = 2  # bytes queued, but the peer's window is used up

# Queued bytes at which the sink is asked to pause: a turn. One read of a socket overshoots it; more would only grow
# cold (up to 1 MiB for each of 16 downloads outgrew the processor's cache and cost the connector 17 % more).
HIGH_WATER = 64 * KIB
# So much in one turn of the loop goes out before its end: what waits for the others' bytes is cold when it is joined
# and encrypted (that cost a sixth of all processor time of 16 downloads at once), and the other side may begin with it.
# Each write costs both sides 15 us, whatever is in it: after 32 KiB it was too early (10 KiB answers, 16 connections:
# 8 % fewer requests a second; 160 and 256 KiB are no better than this).
HOT = 96 * KIB
# Each stream that begins to send counts as so many bytes besides, so that 32 small messages are let go as well (HTTP/2,
# 8 x 16: 14 % more requests a second than with one batch of all; batches of 8 cost more than they gain).
BEGUN = 3 * KIB

# Credit goes back when half of a window was consumed, and after so much of a large one: with halves alone a sender far
# away stood still for half of each round trip (200 ms, simulated: 43 MB/s through 16 MiB, so 84).
CREDIT_MOST = 512 * KIB

# An object of two bytes costs 48 bytes, its places in a sink's list and a transport's queue as many again.
FRAME_COST = 96
FRAMES_MARKED = 16  # frames a mark: up to 15 are not charged, 1.4 KB where a stream itself costs as much
MARK_COST = FRAMES_MARKED * FRAME_COST
# A writer's small pieces are joined to these from the 16th on, so that bytes that come one by one cost no more.
PIECE_LEAST = 1 * KIB
PIECES_MOST = 16


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
        "id", "sink", "request", "visitor", "queued", "unread", "sent_anything", "on_datagram",
        "session", "gone", "shut",
        "queue", "offset", "credit", "paused", "drained", "place", "turn", "fin_sent",
        "granted", "window", "owed", "owing", "grown", "epoch_at", "epoch_consumed", "progress_at", "fin_received",
        "sent_at", "_frames", "_marks", "_passed",
    )  # fmt: skip

    def __init__(
        self, session: Session, number: int, request: Open, sink: StreamSink, visitor: Hashable | None = None
    ) -> None:
        self.id = number
        self.sink: StreamSink = sink
        self.request = request
        self.visitor = visitor  # for whom it counts
        self.queued = 0  # bytes written, not yet pulled
        self.unread = 0  # bytes given to the sink, not yet consumed
        self.sent_anything = False  # False while even OPEN has not been pulled
        self.on_datagram: Callable[[bytes], None] | None = None  # who takes the datagrams that belong to it
        self.session = session
        self.gone = False  # reset by either side, or the session ended
        self.shut = False  # finish() or reset: write() is over
        # Sending half.
        self.queue: list[bytes | memoryview] = []
        self.offset = 0  # into the first object of the queue
        self.credit = 0  # what the peer's window still takes
        self.paused = False
        self.drained = False  # paused, and about to be resumed
        self.place = IDLE
        self.turn = 0  # bytes left of the round robin's turn
        self.fin_sent = False
        self.sent_at = 0.0  # while bytes wait: since when, or when some of them were last pulled
        # Receiving half.
        self.granted = 0  # what the peer may still send; -1 after its FIN
        self.window = 0
        self.owed = 0
        self.owing = False  # a WINDOW frame is due
        self.grown = 0  # window beyond its start, as counted against the caps
        self.epoch_at = 0.0  # since when epoch_consumed counts
        self.epoch_consumed = 0
        self.progress_at = 0.0  # while the sink owes: since when, or when it last consumed some
        self.fin_received = False
        self._frames = 0  # since the last mark, of those that found or left the sink holding something
        self._marks: deque[int] | None = None  # what must be consumed, counted as `_passed` is, to free each
        self._passed = 0  # bytes consumed since there are marks

    def send_datagram(self, data: bytes, now: float) -> None:
        """Queue a datagram that belongs to this stream; it may be lost."""
        if not self.gone:
            self.session.send_datagram(PRIVATE_FLOW | self.id, data, now)

    def has_room(self, resume: Callable[[], None]) -> bool:
        """Whether a source of such datagrams, which can wait, may send more; if not, `resume` is called once."""
        return self.session.out.datagrams.has_room(PRIVATE_FLOW | self.id, resume)

    @property
    def held(self) -> int:
        """What this stream is charged with against the caps: unread bytes, and what their objects cost."""
        marks = self._marks
        return self.unread if marks is None else self.unread + len(marks) * MARK_COST

    @property
    def weight(self) -> int:
        """All that it holds in memory, of both halves."""
        return self.held + self.queued

    @property
    def stalled_since(self) -> float:
        """When the half that holds bytes last moved; of two, the one that stands still for longer."""
        if not self.queued:
            return self.progress_at
        return min(self.progress_at, self.sent_at) if self.unread else self.sent_at

    @property
    def closed(self) -> bool:
        """Both halves are done, or the stream was reset."""
        return self.gone or (self.fin_sent and self.fin_received)

    @property
    def linked(self) -> bool:
        """False while the tunnel waits for a link; with what outlives its session there is nothing to wait for."""
        return self.session.attached or self.session.closed

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
        session = self.session
        queue, queued = self.queue, self.queued
        if not queued:
            self.sent_at = session.now
            queue.append(data)
        elif len(queue) < PIECES_MOST or size >= PIECE_LEAST or len(queue[-1]) >= PIECE_LEAST:
            queue.append(data)
        else:
            queue[-1] = b"".join((queue[-1], data))
        queued += size
        self.queued = queued
        budget = session.budget
        waiting = budget.queued = budget.queued + size
        if budget.used + waiting > budget.high:
            budget.overflow()
        if queued > HIGH_WATER and not self.paused:
            self.paused = True
            self.sink.pause_sending()
        scheduler = session.scheduler
        scheduler.fresh += size
        if not self.place:
            scheduler.activate(self)

    def hurry(self) -> None:
        """If much was written in this turn of the loop, let it go out now. The last call of who wrote."""
        scheduler = self.session.scheduler
        if scheduler.fresh >= HOT:
            scheduler.hurry()

    def lend(self, data: memoryview) -> None:
        """`write` and `hurry`, of bytes in a buffer that the caller uses again: what does not leave now is copied."""
        self.write(data)
        self.hurry()
        if self.queued:
            self._keep()

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

    def cut(self, reason: Reason) -> None:
        """As `reset`, and the sink hears of it."""
        sink = self.sink
        self.reset(reason)
        sink.stream_reset(reason)

    def shed(self) -> None:
        """Make room."""
        self.cut(Reason.BUFFER_LIMIT)

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
        if self._marks is not None:
            self._pass(count)
        if unread:
            self.progress_at = session.now
        owed = self.owed = self.owed + count
        if self.fin_received:
            if not unread:
                session.retire(self)
        elif (owed >= CREDIT_MOST or owed * 2 >= self.window) and not self.owing and owed:
            session.owe(self)

    def abandon(self) -> None:
        """Drop everything held for this stream (the session's part of a reset)."""
        self.gone = self.shut = True
        session = self.session
        session.budget.queued -= self.queued
        self.queue.clear()
        self.queued = self.offset = 0
        held = self.held
        session.buffered -= held
        session.budget.used -= held
        self.unread = 0
        self._marks = None
        self.sink = NULL_SINK

    def take(self, payload: bytes, size: int) -> None:
        """`size` bytes arrived, within the window: charge them and give them to the sink."""
        session = self.session
        self.granted -= size
        unread = self.unread
        if not unread:
            self.progress_at = session.now
        self.unread = unread + size
        session.buffered += size
        session.budget.used += size
        self.sink.stream_data(payload)
        if self.unread:
            self._hold()

    def _keep(self) -> None:
        """Only what was written last can be in somebody else's buffer, and still queued."""
        queue = self.queue
        last = queue[-1]
        if type(last) is memoryview:
            if self.offset and len(queue) == 1:
                last = last[self.offset :]
                self.offset = 0
            queue[-1] = bytes(last)

    def _hold(self) -> None:
        """The sink holds an object more: after so many, charge what they cost."""
        self._frames += 1
        if self._frames < FRAMES_MARKED:
            return
        self._frames = 0
        if self._marks is None:
            self._marks = deque()
            self._passed = 0
        self._marks.append(self._passed + self.unread)
        session = self.session
        session.buffered += MARK_COST
        session.budget.used += MARK_COST

    def _pass(self, count: int) -> None:
        """Bytes were consumed: free the marks that they reach."""
        marks = self._marks
        assert marks is not None
        passed = self._passed = self._passed + count
        session = self.session
        while marks and marks[0] <= passed:
            marks.popleft()
            session.buffered -= MARK_COST
            session.budget.used -= MARK_COST
        if not marks:
            self._marks = None
