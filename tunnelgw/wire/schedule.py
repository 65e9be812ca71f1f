"""Which stream sends next: deficit round robin, new and short flows first.

Two lists. A stream that begins to send with little queued is young and goes first, for one turn; what still has
bytes after that, or begins with many, is old and takes turns of four full frames. A frame can be cut anywhere, so a
turn is spent to the byte and no deficit is carried over. A stream that is alone sends as much as there is room for.

Invariant: OPEN frames leave in the order of their ids; nothing of a stream leaves before its OPEN or beyond its
credit; a quarter of each pull is kept for old flows, so that no number of young ones starves them.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from tunnelgw.wire.frames import FIN, HEADER, HEADER_SIZE, MAX_FRAME, MAX_PAYLOAD
from tunnelgw.wire.stream import BEGUN, BLOCKED, HIGH_WATER, IDLE, LISTED

if TYPE_CHECKING:
    from tunnelgw.wire.session import Session
    from tunnelgw.wire.stream import Stream

TURN = 4 * MAX_PAYLOAD  # 64 KiB: 26 ms at 20 Mbit/s; single frames make the other side write in small pieces
LEAST = 64  # with less room than this no further frame is begun
# Old streams that have something to send while others, whose queues drained, wait for their turn to be filled again:
# what the link takes at once. Bytes that wait longer are cold when they leave, and wait as well where they come from.
FILLED = 4

Parts = list["bytes | memoryview"]
_pack = HEADER.pack
_FIN_WORD = FIN << 24


class Scheduler:
    """Streams that have something to send. Inputs: `open`, `activate`, `unblock`, `pulled`; output: `fill`.

    fresh: bytes that streams queued since the last pull, and `BEGUN` for each that began. hot: `Session.wake` is called
    because that is much.
    """

    __slots__ = ("fresh", "hot", "_drained", "_old", "_opening", "_session", "_young")

    def __init__(self, session: Session) -> None:
        self._session = session
        self._opening: dict[int, Stream] = {}  # OPEN not sent yet, by id, in order
        self._young: deque[Stream] = deque()
        self._old: deque[Stream] = deque()
        self.fresh = 0
        self.hot = False
        self._drained: deque[Stream] = deque()  # to be told, a few at a time

    def __bool__(self) -> bool:
        return bool(self._old or self._young or self._opening or self._drained)

    def open(self, stream: Stream) -> None:
        """A new local stream: its OPEN goes out before anything of it."""
        stream.place = LISTED
        self._opening[stream.id] = stream
        self._session.notify()

    def withdraw(self, stream: Stream) -> None:
        """A stream is gone before its OPEN was sent."""
        self._opening.pop(stream.id, None)

    def activate(self, stream: Stream) -> None:
        """An idle stream has bytes or a FIN to send."""
        queued = stream.queued
        if queued and stream.credit <= 0:
            stream.place = BLOCKED
            return
        stream.place = LISTED
        stream.turn = TURN
        self.fresh += BEGUN
        if queued <= TURN:
            self._young.append(stream)
        else:
            self._old.append(stream)
        session = self._session
        if session.quiet:
            session.notify()

    def unblock(self, stream: Stream) -> None:
        """Credit came for a blocked stream: it goes on as an old one."""
        stream.place = LISTED
        stream.turn = TURN
        self._old.append(stream)
        self._session.notify()

    def clear(self) -> None:
        """The session is over."""
        self._opening.clear()
        self._young.clear()
        self._old.clear()
        self._drained.clear()

    def fill(self, parts: Parts, room: int) -> int:
        """Append frames for about `room` bytes; the bytes appended."""
        left = room
        if self._opening or self._young:
            left -= self._fill_young(parts, left - left // 4 if self._old else left)
        if self._old:
            left -= self._fill_old(parts, left)
            if left >= LEAST and (self._opening or self._young):
                left -= self._fill_young(parts, left)
        return room - left

    def hurry(self) -> None:
        """Much was queued in this turn of the loop: the link may pull it at once, while it is in the cache."""
        self.fresh = 0
        self.hot = True
        self._session.wake()
        self.hot = False

    def pulled(self) -> None:
        """Tell a few of the sinks whose queues drained; they may write, finish or reset at once."""
        self.fresh = 0
        drained = self._drained
        room = FILLED - len(self._old)  # young ones come and go: no number of them keeps others waiting
        while drained and room > 0:
            stream = drained.popleft()
            stream.drained = False
            if stream.paused and stream.queued * 2 <= HIGH_WATER:
                stream.paused = False
                room -= 1
                stream.sink.resume_sending()

    def _fill_young(self, parts: Parts, room: int) -> int:
        left = room
        opening, young, old = self._opening, self._young, self._old
        while opening and left >= LEAST:
            stream = opening.pop(next(iter(opening)))
            frame = self._session.encode_open(stream)
            parts.append(frame)
            left -= len(frame)
            stream.turn = TURN
            if stream.queued or stream.shut:
                if left < LEAST:
                    young.append(stream)
                else:
                    left -= self._turn(stream, parts, min(TURN, left - HEADER_SIZE))
                    if stream.place == LISTED:
                        self._after_open(stream)
            else:
                stream.place = IDLE
        while young and left >= LEAST:
            stream = young.popleft()
            if stream.gone:
                continue
            allowed = left - HEADER_SIZE
            left -= self._turn(stream, parts, allowed if allowed < stream.turn else stream.turn)
            if stream.place == LISTED:
                if stream.turn > 0:
                    young.appendleft(stream)
                else:
                    stream.turn = TURN
                    old.append(stream)
        return room - left

    def _after_open(self, stream: Stream) -> None:
        if stream.turn > 0:  # cut short by the room, not by its turn
            self._young.append(stream)
        else:
            stream.turn = TURN
            self._old.append(stream)

    def _fill_old(self, parts: Parts, room: int) -> int:
        left = room
        old = self._old
        while old and left >= LEAST:
            stream = old.popleft()
            if stream.gone:
                continue
            if old or self._young:
                left -= self._turn(stream, parts, min(stream.turn, left - HEADER_SIZE))
            else:  # alone: no turn to end
                left -= self._turn(stream, parts, left - HEADER_SIZE * -(-left // MAX_FRAME))
                stream.turn = TURN
            if stream.place == LISTED:
                if stream.turn > 0 and left < LEAST:
                    old.appendleft(stream)
                else:
                    stream.turn = TURN
                    old.append(stream)
        return room - left

    def _turn(self, stream: Stream, parts: Parts, allowed: int) -> int:
        """One stream's frames for at most `allowed` bytes of payload; sets its place; the bytes appended."""
        size = queued = stream.queued
        used = 0
        if 0 < queued <= MAX_PAYLOAD and queued <= stream.credit and queued <= allowed and not stream.offset:
            parts.append(_pack(queued, stream.id))  # all of it in one frame, as most messages are
            parts += stream.queue
            stream.queue.clear()
            used = queued + HEADER_SIZE
        elif queued:
            size = min(queued, stream.credit, allowed)
            used = cut(stream, size, parts)
            stream.turn -= size
            stream.sent_at = self._session.now
        if size:
            stream.credit -= size
            stream.queued = queued = queued - size
            self._session.budget.queued -= size
            if stream.paused and queued * 2 <= HIGH_WATER and not stream.drained:
                stream.drained = True
                self._drained.append(stream)
        if queued:
            if stream.credit <= 0:
                stream.place = BLOCKED
        else:
            stream.place = IDLE
            if stream.shut:
                parts.append(_pack(_FIN_WORD, stream.id))
                used += HEADER_SIZE
                stream.fin_sent = True
                self._session.retire(stream)
        return used


def cut(stream: Stream, size: int, parts: Parts) -> int:
    """Append frames for the first `size` queued bytes, sliced without a copy; the bytes appended."""
    queue = stream.queue
    number = stream.id
    offset = stream.offset
    index = 0
    used = size
    while size:
        room = size if size < MAX_PAYLOAD else MAX_PAYLOAD
        parts.append(_pack(room, number))
        used += HEADER_SIZE
        size -= room
        while room:
            chunk = queue[index]
            available = len(chunk) - offset
            if available <= room:
                parts.append(memoryview(chunk)[offset:] if offset else chunk)
                index += 1
                offset = 0
                room -= available
            else:
                parts.append(memoryview(chunk)[offset : offset + room])
                offset += room
                room = 0
    del queue[:index]
    stream.offset = offset
    return used
