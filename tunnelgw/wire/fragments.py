"""Messages longer than a frame: CONTROL and DATAGRAM, cut into fragments with the MORE bit and put together again.

Invariant: a reassembly never holds more than its bound; a datagram queue never more than its own, and drops the
oldest.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from tunnelgw.errors import RemoteError
from tunnelgw.wire.frames import DATAGRAM, HEADER, HEADER_SIZE, MAX_PAYLOAD, MORE

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_DATAGRAM = 65535
OBJECT_COST = 16 * HEADER_SIZE  # objects cost memory too: empty datagrams are bounded as well
_DATAGRAM_WORD = DATAGRAM << 24
_pack = HEADER.pack


def split(kind: int, stream: int, message: bytes) -> list[bytes]:
    """The frames of one message."""
    frames = []
    size = len(message)
    for start in range(0, size or 1, MAX_PAYLOAD):
        piece = message[start : start + MAX_PAYLOAD]
        more = MORE if start + MAX_PAYLOAD < size else 0
        frames.append(HEADER.pack((kind | more) << 24 | len(piece), stream) + piece)
    return frames


class Assembler:
    """Puts fragments together; fragments of one message are contiguous among frames of their type."""

    __slots__ = ("_bound", "_parts", "_stream")

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._parts = bytearray()
        self._stream = -1  # of the message under way; -1: none

    def add(self, stream: int, payload: bytes, *, more: bool) -> bytes | None:
        """The whole message once its last fragment came; `RemoteError` beyond the bound or for two messages mixed."""
        if self._stream < 0:
            if not more:
                return payload
            self._stream = stream
        elif self._stream != stream:
            raise RemoteError("a message began before the last one ended")
        if len(self._parts) + len(payload) > self._bound:
            raise RemoteError(f"a message of more than {self._bound} bytes")
        self._parts += payload
        if more:
            return None
        whole = bytes(self._parts)
        self.clear()
        return whole

    def clear(self) -> None:
        """Forget a message under way."""
        self._parts.clear()
        self._stream = -1


class DatagramQueue:
    """Datagrams that wait for the link: bounded, oldest dropped first, since late ones are worth least."""

    __slots__ = ("_bound", "_held", "_queue", "_size", "dropped")

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._held: list[Callable[[], None]] = []  # sources that wait until the queue is short
        self._queue: deque[bytes] = deque()  # each as its frames, one after another
        self._size = 0
        self.dropped = 0

    def __bool__(self) -> bool:
        return bool(self._queue)

    def put(self, flow: int, data: bytes) -> None:
        """Queue one datagram of at most 65,535 bytes."""
        size = len(data)
        if size > MAX_DATAGRAM:
            raise ValueError(f"datagram of {size} bytes")
        if size <= MAX_PAYLOAD:
            whole = _pack(_DATAGRAM_WORD | size, flow) + data
        else:
            whole = b"".join(split(DATAGRAM, flow, data))
        self._queue.append(whole)
        self._size += len(whole) + OBJECT_COST
        while self._size > self._bound:
            self._size -= len(self._queue.popleft()) + OBJECT_COST
            self.dropped += 1

    def has_room(self, resume: Callable[[], None]) -> bool:
        """Whether a source that can wait may send more. If not, `resume` is called once: when the queue is short again,
        or gone with its link."""
        if self._size <= self._bound // 4:
            return True
        self._held.append(resume)
        return False

    def fill(self, parts: list[bytes | memoryview], room: int) -> int:
        """Append whole datagrams for about `room` bytes (at least one); the bytes appended."""
        used = 0
        queue = self._queue
        while queue:
            size = len(queue[0])
            if used and used + size > room:
                break
            parts.append(queue.popleft())
            self._size -= size + OBJECT_COST
            used += size
        if self._held and self._size <= self._bound // 8:
            self._release()
        return used

    def clear(self) -> None:
        """The link is gone, and with it what was in time for it."""
        self.dropped += len(self._queue)
        self._queue.clear()
        self._size = 0
        self._release()

    def _release(self) -> None:
        held, self._held = self._held, []
        for resume in held:
            resume()
