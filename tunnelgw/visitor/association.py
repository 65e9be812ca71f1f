"""UDP ASSOCIATE: a local UDP port whose datagrams leave at the far side (RFC 1928 section 7).

Invariant: only the client that asked uses the port, from one port of its own; fragments are dropped, as the RFC
allows; what cannot be passed on at once is dropped; nothing outlives `close`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from tunnelgw.errors import RemoteError
from tunnelgw.visitor import sockswire as wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.visitor.reach import DatagramFlow, Reach


class Association(asyncio.DatagramProtocol):
    """One association. client: its address; port: its port, 0: whichever speaks first; broken: the port is gone."""

    __slots__ = ("_broken", "_client", "_flow", "_peer", "_port", "_transport", "dropped")

    def __init__(self, client: str, port: int, broken: Callable[[], None]) -> None:
        self._client = client
        self._port = port
        self._broken: Callable[[], None] | None = broken
        self._peer: tuple[object, ...] | None = None
        self._flow: DatagramFlow | None = None
        self._transport: asyncio.DatagramTransport | None = None
        self.dropped = 0

    async def open(self, reach: Reach, host: str) -> int:
        """Open both sides; the local port. Raises `Refused` and OSError, and then nothing is open."""
        try:
            flow = await reach.datagrams(self._received, self._lost)
            if self._broken is None:  # closed meanwhile
                flow.close()
                raise ConnectionAbortedError("the client left")
            self._flow = flow
            loop = asyncio.get_running_loop()
            await loop.create_datagram_endpoint(lambda: self, local_addr=(host, 0))
            if self._transport is None or self._broken is None:
                raise ConnectionAbortedError("the client left")
        except BaseException:
            self.close()
            raise
        port: int = self._transport.get_extra_info("sockname")[1]
        return port

    def close(self) -> None:
        """Close both sides. Idempotent."""
        self._broken = None
        flow, self._flow = self._flow, None
        if flow is not None:
            flow.close()
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    # What the local port says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)
        if self._broken is None:
            self.close()

    def datagram_received(self, data: bytes, address: tuple[object, ...]) -> None:
        if self._peer is None and address[0] == self._client and self._port in (0, address[1]):
            self._peer = address
        if address != self._peer or self._flow is None:
            self.dropped += 1
            return
        try:
            found = wire.read_datagram(data)
        except RemoteError:
            self.dropped += 1
            return
        if found.fragment or not found.port:
            self.dropped += 1
            return
        self._flow.send(found.data, found.host, found.port)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the loop's interface
        self._transport = None
        self._lost()

    def _lost(self) -> None:
        """One side is gone: the other one has no use, and the program should ask anew."""
        broken, self._broken = self._broken, None
        if broken is not None:
            broken()

    def error_received(self, exc: Exception) -> None:
        """An ICMP error, or a datagram that was too large: UDP's usual fate."""
        del exc
        self.dropped += 1

    # What the far side says.

    def _received(self, data: bytes, host: str, port: int) -> None:
        transport = self._transport
        if transport is None or self._peer is None:
            self.dropped += 1
            return
        transport.sendto(wire.datagram(host, port, data), self._peer)
