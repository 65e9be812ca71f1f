"""A session: everything one tunnel is, except its link. Bytes and times in, bytes and deadlines out.

The shell gives it a link's bytes (`feed`), takes what is to be sent (`pull`), and calls `tick` at `deadline`. A session outlives its
links: `detach` forgets what was half read, `attach` sends again what the peer has not got, and streams do not notice.

Counted frames are kept until acknowledged (retain.py); what frames do is in incoming.py, who sends next in schedule.py, whether the
link lives in liveness.py.

Invariant: `received` counts whole counted frames that took full effect, and every counted byte pulled is either acknowledged or
retained; so after any cut, at any byte, both sides agree where to go on.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from tunnelgw.errors import LocalError, Refused, RemoteError
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire.control import encode as encode_json
from tunnelgw.wire.flow import (
    DEFAULT_LIMITS,
    INITIAL_WINDOW,
    PRESSED_WINDOW,
    Budget,
    SessionLimits,
    TokenBucket,
    grown_window,
    relieved,
    reset_stalest,
)
from tunnelgw.wire.fragments import MAX_DATAGRAM, Assembler, DatagramQueue, split
from tunnelgw.wire.frames import (
    ACK,
    CONTROL,
    COUNTED_BELOW,
    GOAWAY,
    HEADER,
    HEADER_SIZE,
    MAX_PAYLOAD,
    OPEN,
    OPEN_WINDOWS,
    PING,
    PONG,
    RESET,
    U32,
    U64,
    WINDOW,
    check_header,
    encode,
)
from tunnelgw.wire.incoming import HANDLERS
from tunnelgw.wire.liveness import LATE, Liveness
from tunnelgw.wire.retain import Retained
from tunnelgw.wire.schedule import LEAST, Parts, Scheduler
from tunnelgw.wire.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.wire.control import Control, Open
    from tunnelgw.wire.events import SessionHandler, StreamSink

__all__ = ["Budget", "Session", "SessionLimits"]

ACK_BYTES = 256 * 1024  # acknowledge at once from here on
ACK_SECONDS = 0.1  # and in any case after this
LAST_ID = 2**32 - 2

_unpack = HEADER.unpack_from


class Session:
    """One tunnel's session. Inputs: `attach`, `detach`, `feed`, `tick` and the calls of its owner and its streams; each may leave
    output to `pull` (then `wake` is called, once until `pull` leaves none) and move `deadline` earlier.

    The first group of fields is public; the others belong to wire/.
    """

    __slots__ = (
        "attached", "link_dead", "received", "buffered", "deadline", "streams", "budget", "limits",
        "handler", "now", "scheduler", "liveness", "parity", "last_accepted", "accepted", "peer_initial", "peer_leaving",
        "control_parts", "datagram_parts", "pong",
        "_wake", "_quiet", "_partial", "_retained", "_control", "_owing", "_datagrams", "_last_opened", "_last_sent",
        "_lingering", "_opens", "_answers", "_ack_sent", "_ack_due", "_ack_now", "_ping_now", "_leaving", "_leaving_now",
        "_pressed", "_grown", "_detached_at", "_closed",
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
        self.link_dead = False
        self.received = 0  # counted bytes; told to the peer in Hello or Welcome
        self.buffered = 0  # bytes received, not consumed
        self.deadline = math.inf
        self.streams: dict[int, Stream] = {}
        self.budget = budget
        self.limits = limits
        self.handler = handler
        self.now = now  # of the last call that brought it
        self.scheduler = Scheduler(self)
        self.liveness = Liveness()
        self.parity = 1 if opens_odd else 0  # of ids opened here
        self.last_accepted = 0
        self.accepted = 0  # live streams opened by the peer
        self.peer_initial = INITIAL_WINDOW
        self.peer_leaving: Reason | None = None
        self.control_parts = Assembler(limits.control)
        self.datagram_parts = Assembler(MAX_DATAGRAM)
        self.pong = b""
        self._wake = wake
        self._quiet = True  # no output is waiting: the next one calls wake
        self._partial = bytearray()
        self._retained = Retained(limits.retained)
        self._control: deque[bytes] = deque()
        self._owing: deque[Stream] = deque()
        self._datagrams = DatagramQueue(limits.datagrams)
        self._last_opened = -1 if opens_odd else 0
        self._last_sent = 0  # highest id whose OPEN was sent
        self._lingering: dict[int, int] = {}  # reset here, peer's half open: what it may still send
        self._opens = TokenBucket(rate=limits.opens_per_second, burst=limits.accepted, now=now)
        self._answers = 0
        self._ack_sent = 0
        self._ack_due = math.inf
        self._ack_now = False
        self._ping_now = False
        self._leaving: Reason | None = None
        self._leaving_now = False
        self._pressed = False
        self._grown = 0
        self._detached_at = now
        self._closed = False
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
    def retained(self) -> int:
        """Memory kept for a resume, in bytes."""
        return self._retained.size

    @property
    def acknowledged_bytes(self) -> tuple[int, int]:
        """Counted bytes that the peer has, and that were sent."""
        return self._retained.acked, self._retained.sent

    @property
    def stream_count(self) -> int:
        """Streams that hold anything: open, half closed, or not read to their end."""
        return len(self.streams)

    @property
    def datagrams_dropped(self) -> int:
        """Datagrams that found the queue full or the link gone."""
        return self._datagrams.dropped

    @property
    def has_output(self) -> bool:
        """Whether `pull` would return anything now."""
        if not self.attached:
            return False
        if self.pong or self._ack_now or self._ping_now or self._leaving_now or self._datagrams:
            return True
        retained = self._retained
        if retained.resending:
            return True
        return bool(self.scheduler or self._owing or self._control) and retained.room >= LEAST

    # The link.

    def attach(self, peer_received: int, now: float) -> None:
        """A new link is up, whose peer has `peer_received` counted bytes; `RemoteError` if that cannot be."""
        if self._closed:
            return
        if self.attached:
            self.detach(now)
        retained = self._retained
        retained.rewind(peer_received)
        gap = now - self._detached_at
        for stream in self.streams.values():
            stream.progress_at += gap  # stall timers stood still
        self.now = now
        self.attached = True
        self.link_dead = False
        self._ack_sent = self.received  # the greeting said it
        self._ack_due = math.inf
        self._ack_now = False
        self._leaving_now = self._leaving is not None
        self.liveness.start(now, outstanding=retained.resending)
        self._ask(now)
        self.deadline = self.liveness.ask_at()

    def detach(self, now: float) -> None:
        """The link is gone: what was half read or uncounted is gone with it."""
        if not self.attached:
            return
        self.attached = False
        self._detached_at = now
        self._partial.clear()
        self.datagram_parts.clear()
        self._datagrams.clear()
        self.pong = b""
        self._ping_now = self._ack_now = self._leaving_now = False
        self.deadline = math.inf
        self._quiet = True

    def feed(self, data: bytes | memoryview, now: float) -> None:
        """Bytes from the link, cut anywhere. Raises `RemoteError` and nothing else; the session is then over."""
        if not self.attached:
            return
        self.now = now
        self.liveness.hear(now)
        offset = self._feed_partial(data) if self._partial else 0
        offset = self._walk(data, offset)
        if self._closed:
            return
        if offset < len(data) and self.attached:
            self._partial += data[offset:]
            if len(self._partial) >= HEADER_SIZE:
                check_header(*_unpack(self._partial))  # before its payload is waited for
        budget = self.budget
        if self.buffered > self.limits.buffered:
            reset_stalest(self.streams.values(), self.buffered - relieved(self.limits.buffered))
        if budget.used > budget.limit:
            budget.relieve()
        if self._pressed or self.buffered * 2 > self.limits.buffered or budget.used * 2 > budget.limit:
            self._review_pressure()
        missing = self.received - self._ack_sent
        if missing:
            if missing >= ACK_BYTES:
                self._ack_now = True
                self.notify()
            elif self._ack_due == math.inf and self.attached:
                due = self._ack_due = now + ACK_SECONDS
                if due < self.deadline:
                    self.deadline = due

    def pull(self, limit: int, now: float) -> bytes:
        """Whole frames for the link, about `limit` bytes; b"" if there is nothing to send now."""
        if not self.attached:
            return b""
        self.now = now
        parts: Parts = []
        limit = max(limit, LEAST)
        skip = 0
        if self.pong or self._ack_now or self._ping_now or self._leaving_now or self._datagrams:
            skip = self._fill_uncounted(parts, limit, now)
        retained = self._retained
        if retained.resending:
            parts += retained.take_again(limit - skip)
            data = b"".join(parts)
        else:
            room = limit - skip
            if retained.room < room:
                room = retained.room
            used = 0
            if room >= LEAST:
                if self._owing or self._control:
                    used = self._fill_control(parts, room, now)
                if room - used >= LEAST:
                    used += self.scheduler.fill(parts, room - used)
            data = b"".join(parts)
            if used:
                retained.keep(data, skip)
                self._counted_left(now)
                self.scheduler.tell_resumed()
        self._quiet = not self.has_output
        return data

    def tick(self, now: float) -> None:
        """`deadline` passed: acknowledge, ask, or declare the link dead."""
        if now < self.deadline or not self.attached:
            return
        self.now = now
        late = now - self.deadline
        if now >= self._ack_due:
            self._ack_due = math.inf
            self._ack_now = True
            self.notify()
        liveness = self.liveness
        if now >= liveness.dead_at():
            if late < LATE or liveness.forgiven:
                self.link_dead = True
                self.deadline = math.inf
                return
            liveness.forgive(now)
            self._ask(now)
        elif now >= liveness.ask_at():
            self._ask(now)
        self.deadline = min(self._ack_due, liveness.ask_at(), liveness.dead_at())

    # The owner.

    def open(self, request: Open, sink: StreamSink, now: float) -> Stream:
        """Open a stream; what is written to it follows its OPEN at once. `Refused` at the cap or when the peer is leaving."""
        self.now = now
        if self._closed:
            raise Refused("the session is over", reason=Reason.CONNECTOR_AWAY)
        if self.peer_leaving is not None:
            raise Refused("the peer takes no new streams", reason=self.peer_leaving)
        number = self._last_opened + 2
        if len(self.streams) - self.accepted >= self.limits.streams or number > LAST_ID:
            raise Refused("too many streams are open in this tunnel", reason=Reason.STREAM_LIMIT)
        self._last_opened = number
        stream = Stream(self, number, request, sink)
        self.streams[number] = stream
        self.scheduler.open(stream)
        return stream

    def send_control(self, message: Control) -> None:
        """Send a typed message; `LocalError` if it is larger than any peer accepts."""
        payload = encode_json(message)
        if len(payload) > self.limits.control:
            raise LocalError(f"a control message of {len(payload)} bytes: declare fewer services")
        self._control.extend(split(CONTROL, 0, payload))
        self.notify()

    def send_datagram(self, flow: int, data: bytes) -> None:
        """Send at most 65,535 bytes, or drop them: the oldest where the queue is full, all while there is no link."""
        self._datagrams.put(flow, data)
        if self.attached:
            self.notify()
        else:
            self._datagrams.clear()

    def go_away(self, reason: Reason) -> None:
        """Take no new streams; those that are open go on."""
        self._leaving = reason
        self._leaving_now = self.attached
        self.notify()

    def close(self, reason: Reason) -> None:
        """The session is over: every sink is told, everything held is given back."""
        if self._closed:
            return
        self.detach(self.now)
        self._closed = True
        streams = list(self.streams.values())
        for stream in streams:
            sink = stream.sink
            self.forget(stream)
            sink.stream_reset(reason)
        self.scheduler.clear()
        self._owing.clear()
        self._control.clear()
        self._lingering.clear()
        self._retained.drop()
        self.budget.sessions.discard(self)

    def oldest_stalled(self, now: float) -> float:
        """Seconds that the most stalled stream has waited for its consumer; 0.0 if none waits."""
        until = now if self.attached else self._detached_at
        return max((until - s.progress_at for s in self.streams.values() if s.unread), default=0.0)

    # Streams, the scheduler and incoming.py.

    def notify(self) -> None:
        """Output appeared."""
        if self._quiet and self.has_output:
            self._quiet = False
            self._wake()

    def owe(self, stream: Stream) -> None:
        """Half of a stream's window was consumed: a WINDOW is due."""
        stream.owing = True
        self._owing.append(stream)
        self.notify()

    def retire(self, stream: Stream) -> None:
        """Drop a stream that ended both ways and was read to its end; until then it counts and can be reset."""
        if stream.fin_sent and stream.fin_received and not stream.unread and not stream.gone:
            self._remove(stream)

    def forget(self, stream: Stream) -> None:
        """Drop a stream without a word to the peer: it knows."""
        if not stream.sent_anything:
            self.scheduler.withdraw(stream)
        self._remove(stream)
        stream.abandon()

    def reset_stream(self, stream: Stream, reason: Reason) -> None:
        """Drop a stream and tell the peer, if it knows of it and does not think it over."""
        told = stream.sent_anything and not stream.closed
        if told and not stream.fin_received:
            self.linger(stream.id, stream.granted)
        live = stream.id in self.streams
        if live:
            self.forget(stream)
        else:
            stream.abandon()
        if told:
            self._control.append(encode(RESET, stream.id, bytes((reason.code,))))
            self.notify()

    def answer_reset(self, number: int, reason: Reason) -> None:
        """Refuse an OPEN. A peer that makes us answer without end and does not read is cut."""
        if len(self._control) >= self.limits.answers:
            raise RemoteError("too many refused streams and unread answers")
        self._control.append(encode(RESET, number, bytes((reason.code,))))
        self.notify()

    def refusal(self) -> Reason | None:
        """Why an OPEN that arrives now is refused, if it is."""
        if self._leaving is not None:
            return self._leaving
        if self.accepted >= self.limits.accepted or not self._opens.take(self.now):
            return Reason.STREAM_LIMIT
        if self.buffered >= relieved(self.limits.buffered) or self.budget.used >= relieved(self.budget.limit):
            return Reason.BUFFER_LIMIT
        return None

    def lookup(self, number: int) -> Stream | None:
        """The stream of a frame; None if it is over; `RemoteError` if the peer cannot know of it."""
        stream = self.streams.get(number)
        if stream is not None:
            if not stream.sent_anything:
                raise RemoteError(f"frame for stream {number}, which was not opened")
            return stream
        newest = self._last_sent if number & 1 == self.parity else self.last_accepted
        if not 0 < number <= newest:
            raise RemoteError(f"frame for stream {number}, which was not opened")
        return None

    def linger(self, number: int, granted: int) -> None:
        """Remember what a peer may still send on a stream that was reset here."""
        lingering = self._lingering
        if len(lingering) >= self.limits.lingering:
            del lingering[next(iter(lingering))]
        lingering[number] = granted

    def late_fin(self, number: int) -> None:
        """FIN or RESET for a stream that is over here: nothing more may follow."""
        self._lingering.pop(number, None)

    def acknowledged(self, count: int) -> None:
        """The peer has `count` counted bytes."""
        retained = self._retained
        retained.acknowledge(count)
        self.liveness.outstanding = math.inf if count == retained.sent else self.now
        self.notify()

    def encode_open(self, stream: Stream) -> bytes:
        """The OPEN of a local stream, as it leaves: from now on both windows hold."""
        granted = PRESSED_WINDOW if self._pressed else INITIAL_WINDOW
        stream.granted = stream.window = granted
        stream.credit = self.peer_initial
        stream.epoch_at = self.now
        stream.sent_anything = True
        self._last_sent = stream.id
        request: bytes = encode_json(stream.request)
        return encode(OPEN, stream.id, OPEN_WINDOWS.pack(granted, stream.credit) + request)

    # Inside.

    def _walk(self, data: bytes | memoryview, offset: int) -> int:
        """Handle the whole frames of `data`; where the first incomplete one begins."""
        end = len(data)
        last = end - HEADER_SIZE
        uncounted = offset
        view = type(data) is not bytes
        get = self.streams.get
        budget = self.budget
        try:
            while offset <= last:
                word, number = _unpack(data, offset)
                start = offset + HEADER_SIZE
                if word <= MAX_PAYLOAD:  # DATA
                    stop = start + word
                    if stop > end:
                        break
                    stream = get(number)
                    if stream is None:
                        self._late_data(number, word)
                        offset = stop
                        continue
                    granted = stream.granted - word
                    if granted < 0 or not word:
                        raise RemoteError(f"DATA of {word} bytes for stream {number}: beyond its window or its end")
                    offset = stop
                    stream.granted = granted
                    if not stream.unread:
                        stream.progress_at = self.now
                    stream.unread += word
                    self.buffered += word
                    budget.used += word
                    stream.sink.stream_data(bytes(data[start:stop]) if view else data[start:stop])  # type: ignore[arg-type]
                    continue
                kind, more = check_header(word, number)
                stop = start + (word & 0xFFFFFF)
                if stop > end:
                    break
                if kind >= COUNTED_BELOW:
                    uncounted += stop - offset
                offset = stop
                HANDLERS[kind](self, number, bytes(data[start:stop]), more)
                if self._closed:
                    return end
        finally:
            self.received += offset - uncounted
        return offset

    def _feed_partial(self, data: bytes | memoryview) -> int:
        """Complete the frame that the last feed left; where the rest of `data` begins."""
        partial = self._partial
        offset = 0
        if len(partial) < HEADER_SIZE:
            offset = HEADER_SIZE - len(partial)
            partial += data[:offset]
            if len(partial) < HEADER_SIZE:
                return len(data)
        word, number = _unpack(partial)
        check_header(word, number)
        missing: int = HEADER_SIZE + (word & 0xFFFFFF) - len(partial)
        partial += data[offset : offset + missing]
        if len(data) - offset < missing:
            return len(data)
        frame = bytes(partial)
        partial.clear()
        self._walk(frame, 0)
        return offset + missing

    def _late_data(self, number: int, size: int) -> None:
        """DATA for a stream that is over here: it crossed our RESET. Ignored, within the window it had."""
        if not size:
            raise RemoteError("empty DATA")
        self.lookup(number)
        granted = self._lingering.get(number)
        if granted is not None:
            if size > granted:
                raise RemoteError(f"DATA of {size} bytes for stream {number}: beyond its window")
            self._lingering[number] = granted - size

    def _fill_uncounted(self, parts: Parts, limit: int, now: float) -> int:
        used = 0
        if self.pong:
            parts.append(encode(PONG, 0, self.pong))
            self.pong = b""
        if self._ping_now:
            parts.append(encode(PING, 0, U64.pack(self.liveness.pinged(now))))
            self._ping_now = False
        if self._ack_now:
            parts.append(encode(ACK, 0, U64.pack(self.received)))
            self._ack_sent = self.received
            self._ack_due = math.inf
            self._ack_now = False
        if self._leaving_now and self._leaving is not None:
            parts.append(encode(GOAWAY, 0, bytes((self._leaving.code,))))
            self._leaving_now = False
        for part in parts:
            used += len(part)
        if self._datagrams:  # half of the turn, so that neither datagrams nor streams wait for the other
            used += self._datagrams.fill(parts, limit // 2)
        return used

    def _fill_control(self, parts: Parts, room: int, now: float) -> int:
        used = 0
        owing, control = self._owing, self._control
        while owing and room - used >= LEAST:
            stream = owing.popleft()
            if not (stream.gone or stream.fin_received):
                parts.append(encode(WINDOW, stream.id, U32.pack(self._credit(stream, now))))
                used += HEADER_SIZE + 4
        while control and room - used >= LEAST:
            frame = control.popleft()
            parts.append(frame)
            used += len(frame)
        return used

    def _credit(self, stream: Stream, now: float) -> int:
        """What a stream's peer gets back, and more where its window is too small for the round trip."""
        stream.owing = False
        credit = stream.owed
        stream.owed = 0
        stream.epoch_consumed += credit
        elapsed = now - stream.epoch_at
        if elapsed >= self.liveness.min_rtt:
            growth = self._growth(stream, elapsed)
            if growth:
                stream.window += growth
                stream.grown += growth
                self._grown += growth
                self.budget.grown += growth
                credit += growth
            stream.epoch_at = now
            stream.epoch_consumed = 0
        stream.granted += credit
        return credit

    def _growth(self, stream: Stream, elapsed: float) -> int:
        limits, budget = self.limits, self.budget
        if self._pressed:
            return 0
        growth = (
            grown_window(
                stream.window,
                stream.epoch_consumed,
                elapsed=elapsed,
                min_rtt=self.liveness.min_rtt,
                largest=limits.max_window,
            )
            - stream.window
        )
        if self._grown + growth > limits.buffered or budget.grown + growth > budget.limit:
            return 0
        return growth

    def _review_pressure(self) -> None:
        """Above half of a cap new streams start small; below three eighths of both they start as usual."""
        share = 3 if self._pressed else 4
        pressed = self.buffered * 8 > self.limits.buffered * share or self.budget.used * 8 > self.budget.limit * share
        if pressed != self._pressed:
            self._pressed = pressed
            window = PRESSED_WINDOW if pressed else INITIAL_WINDOW
            self._control.append(encode(WINDOW, 0, U32.pack(window)))
            self.notify()

    def _counted_left(self, now: float) -> None:
        liveness = self.liveness
        if liveness.outstanding == math.inf:
            liveness.outstanding = now
            due = liveness.ask_at()
            if due <= now:
                self._ask(now)
                due = liveness.ask_at()
            if due < self.deadline:
                self.deadline = due

    def _ask(self, now: float) -> None:
        self.liveness.ask(now)
        self._ping_now = True
        self.notify()

    def _remove(self, stream: Stream) -> None:
        if self.streams.pop(stream.id, None) is None:
            return
        if stream.id & 1 != self.parity:
            self.accepted -= 1
        self._grown -= stream.grown
        self.budget.grown -= stream.grown
        stream.grown = 0
