"""What was sent and not yet acknowledged, kept for a resume.

Kept are the very objects that `pull` handed out: joined once, never copied for this. An object may begin with
uncounted frames (`skip` bytes of ACK, PING, datagrams), which are not sent again.

Invariant: every count that a peer may tell lies between `acked` and `sent`, and what is kept covers exactly the
counted bytes between the two.
"""

from __future__ import annotations

from collections import deque

from tunnelgw.errors import RemoteError
from tunnelgw.wire.frames import HEADER, HEADER_SIZE, MAX_FRAME

OVERHEAD = 128  # what one kept object costs beside its bytes; counted, or one-byte frames would cost five times the cap


class Retained:
    """Counted bytes in flight. `size` is memory, overhead included, and stays at or below the cap."""

    __slots__ = ("_cap", "_kept", "_again", "acked", "sent", "size")

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._kept: deque[tuple[int, bytes, int]] = deque()  # (count after it, object, skip)
        self._again: deque[bytes | memoryview] = deque()
        self.size = 0
        self.sent = 0
        self.acked = 0

    @property
    def room(self) -> int:
        """Bytes that may still be sent; a last frame may overshoot by its own size, which is set aside here."""
        return self._cap - self.size - OVERHEAD - MAX_FRAME

    @property
    def resending(self) -> bool:
        """True while what a former link lost is sent again: nothing new may be counted before that."""
        return bool(self._again)

    def keep(self, data: bytes, skip: int) -> None:
        """`data` was handed out; its first `skip` bytes are not counted."""
        self.sent += len(data) - skip
        self.size += len(data) + OVERHEAD
        self._kept.append((self.sent, data, skip))

    def acknowledge(self, count: int) -> None:
        """The peer has `count` counted bytes; `RemoteError` outside [acked, sent]."""
        if not self.acked <= count <= self.sent:
            raise RemoteError(f"acknowledged {count} bytes, outside of {self.acked} to {self.sent}")
        self.acked = count
        kept = self._kept
        while kept and kept[0][0] <= count:
            self.size -= len(kept.popleft()[1]) + OVERHEAD

    def rewind(self, count: int) -> None:
        """A new link: everything after `count` goes out again. `RemoteError` if no frame ends there."""
        self.acknowledge(count)
        again = self._again
        again.clear()
        for end, data, skip in self._kept:
            start = skip
            missing = end - count
            if missing < len(data) - skip:
                start = len(data) - missing
                self._check_boundary(data, skip, start)
            again.append(data if start == 0 else memoryview(data)[start:])

    def take_again(self, limit: int) -> list[bytes | memoryview]:
        """The next pieces to send again, about `limit` bytes."""
        again = self._again
        pieces = [again.popleft()]
        size = len(pieces[0])
        while again and size + len(again[0]) <= limit:
            size += len(again[0])
            pieces.append(again.popleft())
        return pieces

    def clear(self) -> None:
        """The session is over."""
        self._kept.clear()
        self._again.clear()
        self.size = 0

    @staticmethod
    def _check_boundary(data: bytes, offset: int, start: int) -> None:
        while offset < start:
            offset += HEADER_SIZE + (HEADER.unpack_from(data, offset)[0] & 0xFFFFFF)
        if offset != start:
            raise RemoteError("the peer's count is not at the end of a frame")
