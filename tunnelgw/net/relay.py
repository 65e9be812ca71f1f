"""Two transports joined: bytes, pauses, ends and breaks, both ways, with no buffer of its own.

Each `Half` is one transport's protocol and writes what arrives to the other's. One exists already (whoever asked), the
other one is being dialled: its `made` is called before any byte of it arrives, to answer and to link the two.

Invariants: an orderly end never overtakes bytes; a break never looks like an end; both transports end, each once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from tunnelgw.net.flow import WRITE_HIGH, WRITE_LOW
from tunnelgw.net.sockets import cut

if TYPE_CHECKING:
    from collections.abc import Callable


class Half(asyncio.Protocol):
    """One side. `made` is called with this half once it has its transport; `ended` once when it is lost."""

    __slots__ = ("_ended", "_far", "_made", "shut", "transport")

    def __init__(self, *, made: Callable[[Half], None] | None = None, ended: Callable[[], None] | None = None) -> None:
        self.transport: asyncio.Transport | None = None
        self.shut = False  # the peer of this transport sent its last byte
        self._far: Half | None = None
        self._made = made
        self._ended = ended

    def adopt(self, transport: asyncio.Transport) -> None:
        """Take over a connected transport, whose next bytes come here."""
        self.transport = transport
        transport.set_write_buffer_limits(WRITE_HIGH, WRITE_LOW)
        transport.set_protocol(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = made = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        made.set_write_buffer_limits(WRITE_HIGH, WRITE_LOW)
        if self._made is not None:
            self._made(self)

    def data_received(self, data: bytes) -> None:
        far = self._far
        if far is not None and far.transport is not None:
            far.transport.write(data)

    def eof_received(self) -> bool:
        self.shut = True
        far = self._far
        if far is None or far.transport is None:
            return False
        if far.shut or not far.transport.can_write_eof():
            far.transport.close()  # flushes
            return False
        far.transport.write_eof()
        return self.transport is not None and self.transport.can_write_eof()

    def pause_writing(self) -> None:
        far = self._far
        if far is not None and far.transport is not None and not far.transport.is_closing():
            far.transport.pause_reading()

    def resume_writing(self) -> None:
        far = self._far
        if far is not None and far.transport is not None and not far.transport.is_closing():
            far.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        far = self._far
        if far is not None and far.transport is not None:
            if exc is None:
                far.transport.close()
            else:
                cut(far.transport)
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()


def link(one: Half, other: Half) -> None:
    """From now on what one receives goes to the other. Both have their transports."""
    one._far, other._far = other, one
