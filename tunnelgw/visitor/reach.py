"""What local ports, proxies and TUN interfaces are built on: connections that begin at the far side.

The far side is a connector (its networks, or anything where it is an exit) or the edge as an exit. Whatever listens
locally knows only this interface, so it is tested without a tunnel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class DatagramFlow(Protocol):
    """UDP from one port of the far side. May lose what it is given, as UDP does."""

    def send(self, data: bytes, host: str, port: int) -> None:
        """Send to this name or address. What is refused there is dropped."""

    def close(self) -> None:
        """Nothing is received any more. Idempotent."""


class Reach(Protocol):
    """A way out at the far side."""

    async def connect(self, factory: Callable[[], asyncio.Protocol], host: str, port: int) -> asyncio.Transport:
        """As `loop.create_connection`, but from the far side; names are resolved there.

        Returns once the far side has connected. Raises `Refused` (policy) and `OriginError` (the target failed), with
        the reason in them.
        """

    async def datagrams(
        self, received: Callable[[bytes, str, int], None], ended: Callable[[], None] | None = None
    ) -> DatagramFlow:
        """UDP from the far side; `received(data, address, port)` is called for each datagram. Raises `Refused`.

        `ended` is called once if the far side ends it.
        """
