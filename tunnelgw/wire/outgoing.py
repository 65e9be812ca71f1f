"""What a session itself has to say, beside its streams' bytes: answers, acknowledgements, credit, control, datagrams.

Uncounted frames (PONG, PING, ACK, GOAWAY, then datagrams) go first and form the prefix of what is pulled; counted
ones (WINDOW, RESET, CONTROL) come before streams.

Invariant: what a peer can make us queue is bounded: one PONG, one ACK, a WINDOW per stream, and about
`limits.answers` bytes of RESET and CONTROL, beyond which whoever asks for more without reading is cut.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from tunnelgw.errors import RemoteError
from tunnelgw.wire.fragments import split
from tunnelgw.wire.frames import ACK, CONTROL, GOAWAY, PING, PONG, RESET, U32, U64, WINDOW, encode
from tunnelgw.wire.schedule import LEAST, Parts
from tunnelgw.wire.waiting import DatagramQueue

if TYPE_CHECKING:
    from tunnelgw.obs.reasons import Reason
    from tunnelgw.wire.flow import SessionLimits, Windows
    from tunnelgw.wire.stream import Stream


QUEUED_COST = 64  # what a queued frame's object costs beside its bytes


class Outgoing:
    """Frames of the session itself. Inputs: the methods up to `detach`; outputs: `fill_uncounted`, `fill_counted`."""

    __slots__ = (
        "datagrams",
        "heard",
        "leaving",
        "urgent",
        "waiting",
        "_ack",
        "_answers",
        "_control",
        "_farewell",
        "_goaway",
        "_owing",
        "_ping",
        "_pong",
    )

    def __init__(self, limits: SessionLimits) -> None:
        self.urgent = False  # something uncounted waits
        self.leaving: Reason | None = None
        self.heard = False  # the peer has read that we are leaving, hence opens no more streams
        self.waiting = 0  # memory of the queued RESET and CONTROL frames
        self.datagrams = DatagramQueue(limits.datagrams)
        self._answers = limits.answers
        self._control: deque[bytes] = deque()
        self._owing: deque[Stream] = deque()
        self._pong = b""
        self._ping = False
        self._ack = False
        self._goaway = False
        self._farewell = 0  # number of the ping that followed our GOAWAY

    def __bool__(self) -> bool:
        """Whether something counted waits."""
        return bool(self._owing or self._control)

    def ping(self) -> None:
        """Ask whether the peer lives."""
        self._ping = self.urgent = True

    def pong(self, payload: bytes) -> None:
        """Answer a ping; of several before the answer left, only the last."""
        self._pong = payload
        self.urgent = True

    def acknowledge(self) -> None:
        """Tell the peer what was received."""
        self._ack = self.urgent = True

    def go_away(self) -> None:
        """Say (again, on a new link) that we are leaving, and ask behind it: the answer proves that it was read."""
        self._goaway = self._ping = self.urgent = True

    def answered(self, number: int) -> None:
        """The peer answered that ping, hence has read whatever was sent before it."""
        if self._farewell and number >= self._farewell:
            self.heard = True

    def datagram(self, flow: int, data: bytes, now: float) -> None:
        """Queue a datagram."""
        self.datagrams.put(flow, data, now)
        self.urgent = True

    def control(self, payload: bytes) -> None:
        """Queue a typed message."""
        for frame in split(CONTROL, 0, payload):
            self._queue(frame)

    def reset(self, number: int, reason: Reason) -> None:
        """Give up a stream that the peer knows."""
        self._queue(encode(RESET, number, bytes((reason.code,))))

    def check_read(self) -> None:
        """Before anything is done that may need an answer: `RemoteError` for a peer that does not read its answers."""
        if self.waiting > self._answers:
            raise RemoteError("asks for more and does not read its answers")

    def _queue(self, frame: bytes) -> None:
        self.waiting += len(frame) + QUEUED_COST
        self._control.append(frame)

    def initial_window(self, window: int) -> None:
        """Announce what new streams may assume."""
        self._queue(encode(WINDOW, 0, U32.pack(window)))

    def owe(self, stream: Stream) -> None:
        """A stream's consumed bytes are to be credited."""
        stream.owing = True
        self._owing.append(stream)

    def detach(self) -> None:
        """The link is gone, and what belonged to it."""
        self.datagrams.clear()
        self._pong = b""
        self._ping = self._ack = self._goaway = self.urgent = False

    def clear(self) -> None:
        """The session is over."""
        self.detach()
        self._owing.clear()
        self._control.clear()
        self.waiting = 0

    def fill_uncounted(
        self, parts: Parts, limit: int, *, received: int, ping_number: int, now: float
    ) -> tuple[bool, bool]:
        """Append what is urgent; whether an ACK and whether a PING was among it."""
        acked, pinged = self._ack, self._ping
        if self._pong:
            parts.append(encode(PONG, 0, self._pong))
        if self._goaway and self.leaving is not None:
            parts.append(encode(GOAWAY, 0, bytes((self.leaving.code,))))
            self._farewell = ping_number
        if pinged:
            parts.append(encode(PING, 0, U64.pack(ping_number)))
        if acked:
            parts.append(encode(ACK, 0, U64.pack(received)))
        self._pong = b""
        self._ping = self._ack = self._goaway = False
        if self.datagrams:  # half of each pull, so that neither datagrams nor streams wait for the other
            self.datagrams.fill(parts, limit // 2, now)
        self.urgent = bool(self.datagrams)
        return acked, pinged

    def fill_counted(self, parts: Parts, room: int, windows: Windows, *, now: float, min_rtt: float) -> int:
        """Append WINDOW, then RESET and CONTROL frames for about `room` bytes; the bytes appended."""
        used = 0
        owing, control = self._owing, self._control
        while owing and room - used >= LEAST:
            stream = owing.popleft()
            if not (stream.gone or stream.fin_received):
                frame = encode(WINDOW, stream.id, U32.pack(windows.credit(stream, now=now, min_rtt=min_rtt)))
                parts.append(frame)
                used += len(frame)
        while control and room - used >= LEAST:
            frame = control.popleft()
            self.waiting -= len(frame) + QUEUED_COST
            parts.append(frame)
            used += len(frame)
        return used
