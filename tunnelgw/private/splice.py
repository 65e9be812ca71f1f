"""The far end's splice of a private stream: says `Ready` when the target is there, before its first byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.net.splice import Splice
from tunnelgw.private import messages
from tunnelgw.private.messages import Ready

if TYPE_CHECKING:
    import asyncio


class ReadySplice(Splice):
    """As `Splice`."""

    __slots__ = ()

    def connection_made(self, made: asyncio.BaseTransport) -> None:
        if not self._stream.closed:
            self._stream.write(messages.encode(Ready()))
        super().connection_made(made)
