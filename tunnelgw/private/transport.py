"""A stream as an asyncio transport, for protocols that were written for sockets.

Invariants: the protocol hears `connection_made` first and `connection_lost` last, once; what arrives while reading is
paused waits uncredited, bounded by the stream's window.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from tunnelgw.wire.events import StreamEnd


class StreamTransport(asyncio.Transport):
    """The stream's sink from here on; give it `early`, what came before."""

    def __init__(self, stream: StreamEnd, protocol: asyncio.Protocol, *, peer: tuple[str, int]) -> None:
        super().__init__({"peername": peer})
        self._loop = asyncio.get_running_loop()
        self._stream = stream
        self._protocol: Any = protocol
        self._waiting: list[bytes] = []
        self._paused = False
        self._closing = False
        self._ended = False  # the far side's half
        self._lost = False
        self._failure: Exception | None = None
        stream.sink = self
        protocol.connection_made(self)

    # The stream's sink.

    def stream_data(self, data: bytes) -> None:
        if self._closing:
            self._stream.consumed(len(data))
        elif self._paused or self._waiting:
            self._waiting.append(data)
        else:
            self._protocol.data_received(data)
            self._stream.consumed(len(data))

    def stream_finished(self) -> None:
        self._ended = True
        if not self._waiting:
            self._tell_end()

    def stream_reset(self, reason: Reason) -> None:
        self._failure = ConnectionResetError(reason.text)
        self._lose()

    def pause_sending(self) -> None:
        if not self._lost:
            self._protocol.pause_writing()

    def resume_sending(self) -> None:
        if not self._lost:
            self._protocol.resume_writing()

    # The protocol's side.

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol  # type: ignore[no-any-return]

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return not self._paused

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self._loop.call_soon(self._go_on)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not (self._closing or self._stream.closed):
            self._stream.write(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._stream.finish()
        if self._ended:
            self._lose()

    def get_write_buffer_size(self) -> int:
        return self._stream.queued

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The stream's own."""

    def close(self) -> None:
        """Both halves: what was written goes out, what still comes is thrown away."""
        if not self._closing:
            self._closing = True
            for data in self._waiting:
                self._stream.consumed(len(data))
            self._waiting.clear()
            self._stream.finish()
            self._lose()

    def abort(self) -> None:
        if not self._lost:
            self._closing = True
            self._stream.reset(Reason.CANCELLED)
            self._lose()

    # Inside.

    def _go_on(self) -> None:
        while self._waiting and not self._paused and not self._closing:
            data = self._waiting.pop(0)
            self._protocol.data_received(data)
            self._stream.consumed(len(data))
        if self._ended and not self._waiting and not self._closing:
            self._tell_end()

    def _tell_end(self) -> None:
        if self._lost or self._closing:
            return
        if not self._protocol.eof_received():
            self.close()

    def _lose(self) -> None:
        if not self._lost:
            self._lost = True
            self._closing = True
            self._loop.call_soon(self._protocol.connection_lost, self._failure)
