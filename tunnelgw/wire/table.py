"""The streams of a session by id, and what may still be said about ids that are over.

Each side opens ids of its own parity, always larger than any before. A frame for an id that was never opened breaks
the protocol; one for a stream that is over crossed our FIN or RESET on its way and is ignored. What a peer may
still send on a stream that was reset here stays charged to the window it had. Streams that are opened here count for
the address of their visitor, so that no one takes all (`access/shares.py`).

Invariant: memory is bounded by the live streams and `lingering`; an id that was once opened is never opened again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.access.shares import Shares
from tunnelgw.errors import Refused, RemoteError
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire.flow import SessionLimits, TokenBucket

if TYPE_CHECKING:
    from collections.abc import Hashable

    from tunnelgw.wire.stream import Stream

# The bit above is a datagram's: with it, its number is that of the stream that it belongs to (`PRIVATE_FLOW`).
LAST_ID = 2**31 - 2
# From here on the session's owner makes another one: half a million streams are left, which is a minute of the most
# that an edge can open, and a minute is long for an owner that looks every second.
WORN_ID = LAST_ID - 2**20


class StreamTable:
    """Live streams and the bookkeeping of ids."""

    __slots__ = (
        "live", "accepted", "opened",
        "_limits", "_opens", "_refusals", "_parity", "_last_opened", "_last_sent", "_last_accepted", "_lingering",
    )  # fmt: skip

    def __init__(self, *, opens_odd: bool, limits: SessionLimits, now: float) -> None:
        self.live: dict[int, Stream] = {}
        self.accepted = 0  # live streams that the peer opened
        self.opened = Shares(limits.streams)  # live streams that we opened, by their visitor
        self._limits = limits
        self._opens = TokenBucket(rate=limits.opens_per_second, burst=limits.accepted, now=now)
        self._refusals = TokenBucket(rate=limits.opens_per_second, burst=limits.accepted, now=now)
        self._parity = 1 if opens_odd else 0
        self._last_opened = -1 if opens_odd else 0
        self._last_sent = 0  # of ours, the newest whose OPEN left
        self._last_accepted = 0
        self._lingering: dict[int, int] = {}  # reset here, the peer's half open: what it may still send

    def next_id(self, visitor: Hashable | None) -> int:
        """The id of a new local stream for this visitor; `Refused` at the cap, and where one visitor wants too many."""
        number = self._last_opened + 2
        if not self.opened.room_for(visitor) or number > LAST_ID:
            raise Refused("too many streams are open in this tunnel", reason=Reason.STREAM_LIMIT)
        self._last_opened = number
        return number

    @property
    def worn(self) -> bool:
        """Whether the ids for our streams come to an end: it is time for another session."""
        return self._last_opened >= WORN_ID

    def announced(self, number: int) -> None:
        """The OPEN of a local stream left: from now on the peer may speak of it."""
        self._last_sent = number

    def accept(self, number: int) -> None:
        """The peer opens `number`; `RemoteError` for our parity, an id that does not grow, or one beyond the last."""
        if number & 1 == self._parity or not self._last_accepted < number <= LAST_ID:
            raise RemoteError(f"OPEN of stream {number} after {self._last_accepted}")
        self._last_accepted = number

    def crowded(self, now: float) -> bool:
        """Whether the peer opens too many streams, at once or per second (open and reset at full speed counts too).

        `RemoteError` for one that does not heed as many refusals: each costs us more than it costs the peer.
        """
        if self._opens.take(now):
            return self.accepted >= self._limits.accepted
        if not self._refusals.take(now):
            raise RemoteError("streams are opened faster than they are refused")
        return True

    def add(self, stream: Stream) -> None:
        """A stream begins."""
        self.live[stream.id] = stream
        if stream.id & 1 != self._parity:
            self.accepted += 1
        else:
            self.opened.take(stream.visitor)

    def remove(self, stream: Stream) -> bool:
        """A stream is over; whether it was live."""
        if self.live.pop(stream.id, None) is None:
            return False
        if stream.id & 1 != self._parity:
            self.accepted -= 1
        else:
            self.opened.give_back(stream.visitor)
        return True

    def lookup(self, number: int) -> Stream | None:
        """The stream of a frame; None if it is over; `RemoteError` if the peer cannot know of it."""
        stream = self.live.get(number)
        if stream is not None:
            if not stream.sent_anything:
                raise RemoteError(f"frame for stream {number}, which was not opened")
            return stream
        newest = self._last_sent if number & 1 == self._parity else self._last_accepted
        if not 0 < number <= newest:
            raise RemoteError(f"frame for stream {number}, which was not opened")
        return None

    def linger(self, number: int, granted: int) -> None:
        """A stream was reset here: its peer may still send `granted` bytes."""
        lingering = self._lingering
        if len(lingering) >= self._limits.lingering:
            del lingering[next(iter(lingering))]
        lingering[number] = granted

    def late_data(self, number: int, size: int) -> None:
        """DATA for a stream that is over: ignored, within the window it had."""
        if not size:
            raise RemoteError("empty DATA")
        self.lookup(number)
        granted = self._lingering.get(number)
        if granted is not None:
            if size > granted:
                raise RemoteError(f"DATA of {size} bytes for stream {number}: beyond its window or its end")
            self._lingering[number] = granted - size

    def late_end(self, number: int) -> None:
        """FIN or RESET for a stream that is over: of one that was reset here, no DATA may follow."""
        if number in self._lingering:
            self._lingering[number] = 0
