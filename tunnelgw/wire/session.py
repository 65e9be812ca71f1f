"""A session: everything one tunnel is, except its link. Bytes and times in, bytes and deadlines out.

The shell gives it a link's bytes (`feed`), takes what is to be sent (`pull`), and calls `tick` at `deadline`. A
session outlives its links: `detach` forgets what was half read, `attach` sends again what the peer has not got, and
streams do not notice. What frames do is in incoming.py, what the session says itself in outgoing.py, which stream
sends next in schedule.py, what is kept for a resume in retain.py, whether the link lives in liveness.py.

Invariant: `received` counts the whole counted frames that took effect, and every counted byte that was pulled is
either acknowledged or retained; so after a cut at any byte both sides agree where to go on.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tunnelgw.errors import LocalError, Refused
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire.control import encode as encode_json
from tunnelgw.wire.flow import DEFAULT_LIMITS, INITIAL_WINDOW, Budget, SessionLimits, Windows, relief, shed
from tunnelgw.wire.fragments import Assembler
from tunnelgw.wire.frames import OPEN, OPEN_WINDOWS, encode
from tunnelgw.wire.incoming import complete, keep_partial, walk
from tunnelgw.wire.liveness import FRAME_SECONDS, LATE, Liveness
from tunnelgw.wire.outgoing import Outgoing
from tunnelgw.wire.retain import Retained
from tunnelgw.wire.schedule import LEAST, Parts, Scheduler
from tunnelgw.wire.stream import Stream
from tunnelgw.wire.table import StreamTable
from tunnelgw.wire.waiting import MAX_DATAGRAM

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from tunnelgw.wire.control import Control, Open
    from tunnelgw.wire.events import SessionHandler, StreamSink

__all__ = ["Budget", "Session", "SessionLimits"]

ACK_BYTES = 64 * 1024  # acknowledge at once from here on: what the peer retains is memory that it has to touch
ACK_SECONDS = 0.1  # and in any case after this


class Session:
    """One tunnel's session, the edge's if `opens_odd`, else the connector's.

    Inputs: `attach`, `detach`, `feed`, `tick`, and the calls of its owner and its streams. Each may leave output: then
    `wake` is called, once until `pull` has left none. Each may move `deadline` earlier. The first fields are public.
    """

    __slots__ = (
        "attached", "link_dead", "received", "buffered", "deadline", "quiet", "streams",
        "budget", "closed", "control_parts", "datagram_parts", "handler", "limits", "liveness", "now", "out", "partial",
        "peer_initial", "peer_leaving", "retained_frames", "scheduler", "table", "wake", "windows",
        "_ack_due", "_ack_sent", "_detached_at",
    )  # fmt: skip

    def __init__(
        self,
        *,
        opens_odd: bool,
        handler: SessionHandler,
        wake: Callable[[], None],
        budget: Budget,
        now: float,
        limits: SessionLimits = DEFAULT_LIMITS,
    ) -> None:
        self.attached = False
        self.link_dead = False  # the peer is silent beyond its deadline: abort the link, then detach
        self.received = 0  # counted bytes; told to the peer in Hello or Welcome
        self.buffered = 0  # bytes received, not consumed
        self.deadline = math.inf  # when to call tick
        self.quiet = True  # no output waits: the next one calls wake
        self.table = StreamTable(opens_odd=opens_odd, limits=limits, now=now)
        self.streams = self.table.live  # by id; for reading
        self.limits = limits
        self.budget = budget
        self.handler = handler
        self.now = now  # of the last call that brought it
        self.windows = Windows(limits, budget)
        self.scheduler = Scheduler(self)
        self.liveness = Liveness()
        self.out = Outgoing(limits)
        self.retained_frames = Retained(limits.retained)
        self.control_parts = Assembler(limits.control)  # counted frames: outlives a link
        self.datagram_parts = Assembler(MAX_DATAGRAM)
        self.peer_initial = INITIAL_WINDOW
        self.peer_leaving: Reason | None = None
        self.wake = wake
        self.partial = bytearray()  # of the last frame
        self._ack_sent = 0
        self._ack_due = math.inf
        self._detached_at = now
        self.closed = False
        budget.sessions.add(self)

    @property
    def rtt(self) -> float:
        """Smoothed round trip in seconds; 0.0 while unknown."""
        return self.liveness.rtt

    @property
    def min_rtt(self) -> float:
        """Shortest round trip of this link in seconds; 0.0 while unknown."""
        return self.liveness.min_rtt

    @property
    def stream_count(self) -> int:
        """Streams that hold anything: open, half closed, or not read to their end."""
        return len(self.streams)

    @property
    def settled(self) -> bool:
        """The peer has all that was sent, and with it the end of each stream that was ended here."""
        retained = self.retained_frames
        return retained.acked == retained.sent and all(one.fin_sent or not one.shut for one in self.streams.values())

    @property
    def datagrams_dropped(self) -> int:
        """Those that waited too long, found the queue full or the link gone."""
        return self.out.datagrams.dropped

    @property
    def has_output(self) -> bool:
        """Whether `pull` would return anything now, or tell a sink to go on."""
        if not self.attached:
            return False
        retained = self.retained_frames
        if self.out.urgent or retained.resending:
            return True
        return bool(self.scheduler or self.out) and retained.room >= LEAST

    # The link.

    def attach(self, peer_received: int, now: float) -> None:
        """A new link is up, whose peer has `peer_received` counted bytes; `RemoteError` if that cannot be."""
        if self.closed:
            return
        self.detach(now)
        self.retained_frames.rewind(peer_received)
        gap = now - self._detached_at
        for stream in self.streams.values():
            stream.progress_at += gap  # stall timers stood still
            stream.sent_at += gap
        self.now = now
        self.attached = True
        self.link_dead = False
        self._ack_sent = self.received  # the greeting said it
        self._ack_due = math.inf
        if self.out.leaving is not None:
            self.out.go_away()
        self.liveness.start(now, outstanding=self.retained_frames.resending)
        self._ask(now)  # at once: the windows need the round trip
        self.deadline = self.liveness.ask_at()

    def detach(self, now: float) -> None:
        """The link is gone, and what was half read or uncounted with it."""
        if not self.attached:
            return
        self.attached = False
        self._detached_at = now
        self.partial.clear()
        self.datagram_parts.clear()
        self.out.detach()
        self.deadline = math.inf
        self.quiet = True

    def feed(self, data: bytes | memoryview, now: float) -> None:
        """Bytes from the link, cut anywhere. Raises `RemoteError` and nothing else; then close the session."""
        if not self.attached:
            return
        self.now = now
        self.liveness.hear(now)
        offset = complete(self, data) if self.partial else 0
        if not self.partial:
            self.liveness.begun = math.inf
        offset = walk(self, data, offset)
        if offset < len(data) and self.attached:
            keep_partial(self, data[offset:])
            self._begin_frame(now)
        limits, budget = self.limits, self.budget
        if self.buffered and (excess := relief(self.buffered, limits.buffered)):
            unread = sorted((s for s in self.streams.values() if s.unread), key=lambda s: s.progress_at)
            shed(((stream, stream.held) for stream in unread), excess)
        if budget.used + budget.queued > budget.high:
            budget.relieve()
        if self.windows.review(self.buffered):
            self.out.initial_window(self.windows.initial)
            self.notify()
        if self.received != self._ack_sent:
            self._owe_ack(now)

    def pull(self, limit: int, now: float) -> bytes:
        """Whole frames for the link, about `limit` bytes; b"" if there is nothing to send now."""
        if not self.attached:
            return b""
        self.now = now
        parts: Parts = []
        limit = max(limit, 2 * LEAST)
        skip = self._fill_uncounted(parts, limit, now) if self.out.urgent else 0
        retained = self.retained_frames
        used = 0
        if retained.resending:
            parts += retained.take_again(limit - skip)
        else:
            room = min(max(limit - skip, limit // 2), retained.room - skip)  # datagrams never starve streams
            if room >= LEAST:
                if self.out:
                    used = self.out.fill_counted(parts, room, self.windows, now=now, min_rtt=self.liveness.min_rtt)
                if room - used >= LEAST:
                    used += self.scheduler.fill(parts, room - used)
        data = b"".join(parts)
        if used:
            retained.keep(data, skip)
            self._expect_ack(now)
        self.scheduler.pulled()
        self.quiet = not self.has_output
        return data

    def tick(self, now: float) -> None:
        """`deadline` passed: acknowledge, ask, or find the link dead."""
        if now < self.deadline or not self.attached:
            return
        self.now = now
        late = now - self.deadline
        if now >= self._ack_due:
            self._ack_due = math.inf
            self.out.acknowledge()
            self.notify()
        liveness = self.liveness
        if now >= liveness.dead_at():
            if late < LATE or liveness.forgiven:
                self.link_dead = True
                self.deadline = math.inf
                return
            liveness.forgive(now)  # we slept; what the peer said meanwhile is about to be read
            self._ask(now)
        elif now >= liveness.ask_at():
            self._ask(now)
        self.deadline = min(self._ack_due, liveness.ask_at(), liveness.dead_at())

    # The owner.

    def open(self, request: Open, sink: StreamSink, now: float, *, visitor: Hashable | None = None) -> Stream:
        """Open a stream; what is written follows its OPEN at once. `Refused` at a cap or when the peer is leaving."""
        self.now = now
        if self.closed:
            raise Refused("the session is over", reason=Reason.CONNECTOR_AWAY)
        if self.peer_leaving is not None:
            raise Refused("the peer takes no new streams", reason=self.peer_leaving)
        if self.budget.full:
            raise Refused("this process holds as much as it may", reason=Reason.BUFFER_LIMIT)
        stream = Stream(self, self.table.next_id(visitor), request, sink, visitor)
        self.table.add(stream)
        self.scheduler.open(stream)
        return stream

    def send_control(self, message: Control) -> None:
        """Send a typed message; `LocalError` if it is larger than any peer accepts."""
        payload = encode_json(message)
        if len(payload) > self.limits.control:
            raise LocalError(f"a control message of {len(payload)} bytes is too large: declare fewer services")
        if not self.closed:
            self.out.control(payload)
            self.notify()

    def send_datagram(self, flow: int, data: bytes, now: float) -> None:
        """Send at most 65,535 bytes, or drop them: where they wait too long or too much waits, and without a link."""
        self.out.datagram(flow, data, now)
        if self.attached:
            self.notify()
        else:
            self.out.detach()

    def go_away(self, reason: Reason) -> None:
        """Ask the peer for no new streams; `out.heard` once it knows. What it has opened by then is served as ever."""
        self.out.leaving = reason
        if self.attached:
            self.out.go_away()
            self.notify()

    def close(self, reason: Reason) -> None:
        """The session is over: its streams are reset, but for those that ended both ways, which are read to the end."""
        if self.closed:
            return
        self.detach(self.now)
        self.closed = True
        for stream in [one for one in self.streams.values() if not one.closed]:
            sink = stream.sink
            self.forget(stream)
            sink.stream_reset(reason)
        for held in (self.scheduler, self.out, self.retained_frames):
            held.clear()
        if not self.streams:
            self.budget.leave(self)

    def oldest_stalled(self, now: float) -> float:
        """Seconds that the most stalled stream has waited for its consumer; 0.0 if none waits."""
        until = now if self.attached else self._detached_at
        return max((until - s.progress_at for s in self.streams.values() if s.unread), default=0.0)

    # Streams, the scheduler and incoming.py.

    def notify(self) -> None:
        """Output appeared."""
        if self.quiet and self.has_output:
            self.quiet = False
            self.wake()

    def owe(self, stream: Stream) -> None:
        """Half of a stream's window was consumed: a WINDOW is due."""
        self.out.owe(stream)
        self.notify()

    def retire(self, stream: Stream) -> None:
        """Drop a stream that ended both ways and was read to its end; until then it counts and can be reset."""
        if stream.fin_sent and stream.fin_received and not stream.unread:
            self._remove(stream)

    def forget(self, stream: Stream) -> None:
        """Drop a stream without a word to the peer."""
        if not stream.sent_anything:
            self.scheduler.withdraw(stream)
        self._remove(stream)
        stream.abandon()

    def reset_stream(self, stream: Stream, reason: Reason) -> None:
        """Drop a stream, and tell the peer if it knows of it and does not think it over."""
        told = stream.sent_anything and not stream.closed
        if told and not stream.fin_received:
            self.table.linger(stream.id, stream.granted)
        self.forget(stream)
        if told:
            self.out.reset(stream.id, reason)
            self.notify()

    def refusal(self) -> Reason | None:
        """Why an OPEN that arrives now is refused, if it is."""
        if self.table.crowded(self.now):
            return Reason.STREAM_LIMIT
        if self.buffered >= self.limits.buffered or self.budget.full:
            return Reason.BUFFER_LIMIT
        return None

    def encode_open(self, stream: Stream) -> bytes:
        """The OPEN of a local stream, as it leaves: from now on both windows hold."""
        stream.granted = stream.window = self.windows.initial
        stream.credit = self.peer_initial
        stream.epoch_at = self.now
        stream.sent_anything = True
        self.table.announced(stream.id)
        request: bytes = encode_json(stream.request)
        return encode(OPEN, stream.id, OPEN_WINDOWS.pack(stream.granted, stream.credit) + request)

    # Inside.

    def _remove(self, stream: Stream) -> None:
        if self.table.remove(stream):
            self.windows.release(stream)
            if self.closed and not self.streams:
                self.budget.leave(self)

    def _fill_uncounted(self, parts: Parts, limit: int, now: float) -> int:
        acked, pinged = self.out.fill_uncounted(
            parts, limit, received=self.received, ping_number=self.liveness.next_number, now=now
        )
        if acked:
            self._ack_sent = self.received
            self._ack_due = math.inf
        if pinged:
            self.liveness.pinged(now)
        return sum(map(len, parts))

    def _begin_frame(self, now: float) -> None:
        """Half a frame is here: its end is waited for, but not for ever."""
        if self.liveness.begun == math.inf:
            self.liveness.begun = now
            self.deadline = min(self.deadline, now + FRAME_SECONDS)

    def _owe_ack(self, now: float) -> None:
        if self.received - self._ack_sent >= ACK_BYTES:
            self.out.acknowledge()
            self.notify()
        elif self._ack_due == math.inf and self.attached:
            self._ack_due = now + ACK_SECONDS
            self.deadline = min(self.deadline, self._ack_due)

    def _expect_ack(self, now: float) -> None:
        """Counted bytes left: ask at once whether the peer lives, once a second."""
        liveness = self.liveness
        if liveness.outstanding == math.inf:
            liveness.outstanding = now
            if liveness.ask_at() <= now:
                self._ask(now)
            self.deadline = min(self.deadline, liveness.ask_at())

    def _ask(self, now: float) -> None:
        self.liveness.ask(now)
        self.out.ping()
        self.notify()
