"""A stream as an asyncio transport, for protocols that know no streams: the proxies' relays and exchanges.

Bytes are handed on at once; while the protocol has paused reading they wait here, uncredited, so they are bounded by
the stream's window. After `close` our half ends in order, and the stream is reset if more comes, as a kernel would.

Invariant: `connection_lost` is called once, after everything else; an error in it means that the stream was reset.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunnelgw.wire.events import StreamEnd

# After close: until the other side's half has ended, too. As long as Linux keeps a socket in FIN-WAIT-2.
LINGER_SECONDS = 60.0


class StreamTransport(asyncio.Transport):
    """The transport of `stream`, and its sink from now on. `peer`: where the far side connected to."""

    def __init__(self, stream: StreamEnd, protocol: asyncio.Protocol, *, peer: tuple[str, int]) -> None:
        super().__init__({"peername": peer})
        self._stream = stream
        self._protocol: asyncio.Protocol = protocol
        self._held: list[bytes] = []  # arrived while reading was paused
        self._reading = True
        self._ended = False  # the peer's half
        self._told_end = False
        self._shut = False  # our half
        self._closing = False
        self._lost = False
        self._timer: asyncio.TimerHandle | None = None
        stream.sink = self
        protocol.connection_made(self)

    # asyncio's transport.

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def is_closing(self) -> bool:
        return self._closing or self._lost

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if self._reading or self._lost:
            return
        self._reading = True
        while self._held and self._reading and not self._closing:
            self._give(self._held.pop(0))
        self._tell_end()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The stream has its own."""

    def get_write_buffer_size(self) -> int:
        return self._stream.queued

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._shut or self._lost or not data:
            return
        self._stream.write(bytes(data))
        self._stream.hurry()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self._shut and not self._lost:
            self._shut = True
            self._stream.finish()
            if self._told_end:
                self.close()  # both halves are over

    def close(self) -> None:
        if self._closing or self._lost:
            return
        self._closing = True
        self.write_eof()
        held, self._held = self._held, []
        loop = asyncio.get_running_loop()
        if held:
            self._stream.reset(Reason.CANCELLED)  # bytes that nobody reads any more: the peer has to know
        elif not self._stream.closed:
            self._timer = loop.call_later(LINGER_SECONDS, self._stream.reset, Reason.CANCELLED)
        loop.call_soon(self._lose, None)

    def abort(self) -> None:
        if self._lost:
            return
        self._closing = True
        self._stream.reset(Reason.CANCELLED)
        self._held.clear()
        asyncio.get_running_loop().call_soon(self._lose, None)

    # The stream's sink.

    def stream_data(self, data: bytes) -> None:
        if self._closing or self._lost:
            self._stream.reset(Reason.CANCELLED)
            self._stop_waiting()
        elif self._reading:
            self._give(data)
        else:
            self._held.append(data)

    def stream_finished(self) -> None:
        self._ended = True
        self._stop_waiting()
        self._tell_end()

    def stream_reset(self, reason: Reason) -> None:
        self._stop_waiting()
        self._held.clear()
        self._closing = True
        self._lose(ConnectionResetError(reason.text))

    def pause_sending(self) -> None:
        if not self._closing and not self._lost:
            self._protocol.pause_writing()

    def resume_sending(self) -> None:
        if not self._closing and not self._lost:
            self._protocol.resume_writing()

    # Inside.

    def _give(self, data: bytes) -> None:
        self._protocol.data_received(data)
        self._stream.consumed(len(data))

    def _tell_end(self) -> None:
        if not self._ended or self._told_end or self._held or not self._reading or self._closing or self._lost:
            return
        self._told_end = True
        if not self._protocol.eof_received():
            self.close()
        elif self._shut:
            self.close()  # both halves are over

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _lose(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = True
            self._protocol.connection_lost(error)
