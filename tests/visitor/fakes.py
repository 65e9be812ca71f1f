"""A far side on this machine: it connects for real, resolves its own names, and can refuse, fail and wait."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tunnelgw.errors import OriginError
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.errors import TunnelgwError


class FakeFlow:
    """Says back in capitals what it is given."""

    def __init__(self, received: Callable[[bytes, str, int], None]) -> None:
        self.received = received
        self.sent: list[tuple[bytes, str, int]] = []
        self.closed = False
        self.ended: Callable[[], None] | None = None

    def send(self, data: bytes, host: str, port: int) -> None:
        self.sent.append((data, host, port))
        if not self.closed:
            self.received(data.upper(), "10.1.2.3", port)

    def close(self) -> None:
        self.closed = True


class FakeReach:
    """`error` is raised for everything; `gate` holds connections up until it is set."""

    def __init__(self, **names: tuple[str, int]) -> None:
        self.names = names  # first label: where it really is
        self.asked: list[tuple[str, int]] = []
        self.transports: list[asyncio.Transport] = []
        self.flows: list[FakeFlow] = []
        self.error: TunnelgwError | None = None
        self.gate: asyncio.Event | None = None
        self.cancelled = 0

    async def connect(self, factory: Callable[[], asyncio.Protocol], host: str, port: int) -> asyncio.Transport:
        self.asked.append((host, port))
        if self.error is not None:
            raise self.error
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        where = self.names.get(host.partition(".")[0], (host, port))
        try:
            transport, _ = await asyncio.get_running_loop().create_connection(factory, *where)
        except OSError as error:
            raise OriginError(str(error), reason=Reason.TARGET_REFUSED) from error
        self.transports.append(transport)
        return transport

    async def datagrams(
        self, received: Callable[[bytes, str, int], None], ended: Callable[[], None] | None = None
    ) -> FakeFlow:
        if self.error is not None:
            raise self.error
        flow = FakeFlow(received)
        flow.ended = ended
        self.flows.append(flow)
        return flow
