"""Flow control between a stream and the transport its bytes leave by.

The credit rule of the tunnel lives here and nowhere else: bytes that arrived on a stream are credited to its sender
when the next transport accepted them while it was not paused; what it accepted while paused is owed and credited when
it drains. So a slow reader holds at most one window of its own stream, and never the link.

Invariant: bytes given to `write` equal bytes credited plus bytes owed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from tunnelgw.wire.events import StreamEnd

# What a transport may hold before it pauses us: one TLS-record batch; more only hides memory from the windows.
WRITE_HIGH = 64 * 1024
WRITE_LOW = 16 * 1024


class Outlet:
    """Writes a stream's bytes to a transport and credits the stream. `pause`/`resume` are idempotent."""

    __slots__ = ("owed", "paused", "stream", "transport")

    def __init__(self, stream: StreamEnd | None = None, transport: asyncio.WriteTransport | None = None) -> None:
        self.stream = stream
        self.transport = transport
        self.owed = 0
        self.paused = False

    def write(self, data: bytes, count: int) -> None:
        """Pass `data` on; `count` is what it cost in the stream's window (differs where a head was rewritten)."""
        transport = self.transport
        if transport is not None:
            transport.write(data)
        if self.paused:
            self.owed += count
        elif self.stream is not None:
            self.stream.consumed(count)

    def pause(self) -> None:
        """The transport is above its high-water mark."""
        self.paused = True

    def resume(self) -> None:
        """The transport drained: credit what is owed."""
        self.paused = False
        owed = self.owed
        if owed:
            self.owed = 0
            if self.stream is not None:
                self.stream.consumed(owed)
