"""Messages longer than a frame: CONTROL and DATAGRAM, cut into fragments with the MORE bit and put together again.

Invariant: a reassembly never holds more than its bound.
"""

from __future__ import annotations

from tunnelgw.errors import RemoteError
from tunnelgw.wire.frames import HEADER, MAX_PAYLOAD, MORE


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
