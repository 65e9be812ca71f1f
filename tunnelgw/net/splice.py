"""A splice joins one stream to one transport: bytes, pauses, ends and resets, both ways, with no buffer of its own.

It is the transport's protocol and the stream's sink in one object. The owner makes it with the stream, gives it to the
loop as protocol, and from then on the splice owns both: it closes the transport and ends the stream.

Invariants: each half ends once; an orderly end never overtakes bytes; after `connection_lost` nothing is written.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from tunnelgw.net.flow import WRITE_HIGH, WRITE_LOW, Outlet
from tunnelgw.net.sockets import cut
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire.stream import HIGH_WATER

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.wire.events import StreamEnd


# All splices read into this one buffer, and lend it: what the link does not take at once is copied. Half of the cost
# of a read is its fixed part (callbacks, pausing and resuming), so it is large where the link keeps up; where bytes
# wait already it is smaller, so that a stream never holds more than one large read (with 256 KiB each a thousand
# visitors who stand still held as many megabytes).
_ARRIVALS = memoryview(bytearray(160 * 1024))
_FEWER = _ARRIVALS[: len(_ARRIVALS) - HIGH_WATER]


class Splice(asyncio.BufferedProtocol):
    """Stream to transport and back. `first` is written to the transport before any byte of the stream.

    `lost` is the reason the stream is reset with when the transport breaks; `on_reset` is called with the reason if the
    stream is reset; `on_end` is called once at the end with (bytes to the transport, bytes from it).
    """

    __slots__ = (
        "_early", "_first", "_lost", "_on_end", "_on_reset", "_out", "_reading_paused", "_stream", "_transport",
        "ended_in", "ended_out", "received", "sent",
    )  # fmt: skip

    def __init__(
        self,
        stream: StreamEnd,
        *,
        first: bytes = b"",
        lost: Reason = Reason.CANCELLED,
        on_reset: Callable[[Reason], object] | None = None,
        on_end: Callable[[int, int], None] | None = None,
    ) -> None:
        self._stream = stream
        self._transport: asyncio.Transport | None = None
        self._out = Outlet(stream)
        self._early: list[bytes] = []  # arrived before the transport; bounded by the stream's window
        self._first = first
        self._lost = lost
        self._on_reset = on_reset
        self._on_end = on_end
        self._reading_paused = False
        self.ended_in = False  # the stream's peer sent FIN
        self.ended_out = False  # the transport's peer sent EOF
        self.sent = 0
        self.received = 0

    # The transport's side.

    def connection_made(self, made: asyncio.BaseTransport) -> None:
        self._transport = transport = cast("asyncio.Transport", made)  # uvloop's is no subclass
        if self._stream.closed:  # reset while the transport was being made
            cut(transport)
            return
        transport.set_write_buffer_limits(WRITE_HIGH, WRITE_LOW)
        self._out.transport = transport
        if self._first:
            transport.write(self._first)
            self._first = b""
        for data in self._early:
            self._out.write(data, len(data))
        self._early.clear()
        if self.ended_in:
            self._end_transport()
        if self._reading_paused:
            # uvloop ignores pause_reading() inside connection_made on plain TCP; the next turn is early enough.
            asyncio.get_running_loop().call_soon(self._pause_if_still)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the loop's interface
        return _FEWER if self._stream.queued else _ARRIVALS

    def buffer_updated(self, nbytes: int) -> None:
        self.received += nbytes
        self._stream.lend(_ARRIVALS[:nbytes])

    def eof_received(self) -> bool:
        self.ended_out = True
        self._stream.finish()
        if self.ended_in and self._transport is not None:
            self._transport.close()
        # Keep our half open: the stream may still have bytes for this peer. TLS cannot (and would warn).
        return self._transport is not None and self._transport.can_write_eof()

    def pause_writing(self) -> None:
        self._out.pause()

    def resume_writing(self) -> None:
        self._out.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._out.transport = None
        self._out.resume()
        stream = self._stream
        if not stream.closed and not self.ended_out:
            if self.ended_in and exc is None:
                stream.finish()
            else:
                stream.reset(self._lost)
        # With our FIN sent, bytes that wait in the stream must still arrive: see stream_data for the rest.
        self._end()

    def let_go(self) -> None:
        """There will be no transport: give back what came for it. The stream gets another sink."""
        count = sum(map(len, self._early))
        self._early.clear()
        self._stream.consumed(count)

    # The stream's side.

    def stream_data(self, data: bytes) -> None:
        count = len(data)
        self.sent += count
        if self._out.transport is not None:
            self._out.write(data, count)
        elif self._transport is None and self.ended_out:
            # The peer of the transport sent all it had and left: nobody reads this any more.
            if self._stream.queued:
                self._stream.consumed(count)
            else:
                self._stream.reset(Reason.CANCELLED)
        else:
            self._early.append(data)

    def stream_finished(self) -> None:
        self.ended_in = True
        if self._out.transport is not None:
            self._end_transport()

    def stream_reset(self, reason: Reason) -> None:
        if self._on_reset is not None:
            self._on_reset(reason)  # the transport cannot say why
        transport = self._transport
        if transport is None:
            self._early.clear()
            self._end()
        elif self.ended_in:
            transport.close()  # everything arrived in order: let it drain
        else:
            cut(transport)

    def pause_sending(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            if self._transport is not None:
                self._transport.pause_reading()

    def resume_sending(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            if self._transport is not None:
                self._transport.resume_reading()

    def _pause_if_still(self) -> None:
        if self._reading_paused and self._transport is not None:
            self._transport.pause_reading()

    def _end_transport(self) -> None:
        transport = self._transport
        assert transport is not None
        if self.ended_out or not transport.can_write_eof():
            transport.close()  # TLS has no half-close: this flushes, then says close_notify
        else:
            transport.write_eof()

    def _end(self) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(self.sent, self.received)
