"""`Reach` through the tunnel: connections that begin at a connector, or at the edge as an exit.

Each connection is a private stream of its own, whose `Want` names host and port. Datagrams are another part's.

Invariant: `connect` returns only once the far side has its connection, and raises what the far side said otherwise.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from tunnelgw.errors import Refused
from tunnelgw.obs.reasons import Reason
from tunnelgw.private.messages import WantTcp
from tunnelgw.private.transport import StreamTransport
from tunnelgw.visitor.call import Call
from tunnelgw.wire.control import Open

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.errors import TunnelgwError
    from tunnelgw.private.messages import Ready, Want
    from tunnelgw.private.sealed import Sealed
    from tunnelgw.visitor.machine import Machine
    from tunnelgw.visitor.reach import DatagramFlow

CONNECT_SECONDS = 30.0  # the far side's own dial ends before that; what is left is two links that may be away


class TunnelReach:
    """Out at `name`: a connector, or "edge" for kind "exit"."""

    def __init__(self, machine: Machine, kind: Literal["via", "exit"], name: str) -> None:
        self._machine = machine
        self._kind = kind
        self._name = name

    async def connect(self, factory: Callable[[], asyncio.Protocol], host: str, port: int) -> asyncio.Transport:
        """As `Reach.connect`."""
        made: list[StreamTransport] = []

        def arrived(stream: Sealed) -> None:
            made.append(StreamTransport(stream, factory(), peer=(host, port)))

        await self.call(WantTcp(host, port), arrived)
        return made[0]

    async def datagrams(self, received: Callable[[bytes, str, int], None]) -> DatagramFlow:  # noqa: ARG002
        """As `Reach.datagrams`."""
        raise Refused("datagrams are not carried yet", reason=Reason.NOT_IMPLEMENTED)

    async def call(self, want: Want, arrived: Callable[[Sealed], None]) -> Ready:
        """Open a private stream and say what is wanted; `arrived` gives it its sink, before its first byte."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Ready] = loop.create_future()

        def ready(message: Ready) -> None:
            if answer.done():
                call.stream.reset(Reason.CANCELLED)
                return
            arrived(call.stream)
            answer.set_result(message)

        def refused(error: TunnelgwError) -> None:
            if not answer.done():
                answer.set_exception(error)

        session = await self._machine.session()
        call = Call(
            self._machine,
            session,
            Open(service=self._name, kind=self._kind),
            want,
            connector=self._name,
            now=loop.time(),
            ready=ready,
            refused=refused,
        )
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await answer
        except TimeoutError:
            raise Refused("the far side did not answer in time", reason=Reason.TARGET_TIMEOUT) from None
        finally:
            if not answer.done() or answer.cancelled() or answer.exception() is not None:
                call.stream.reset(Reason.CANCELLED)
