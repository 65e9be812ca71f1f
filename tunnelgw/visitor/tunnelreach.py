"""`Reach` through the tunnel: each connection and each flow of datagrams is a private stream of its own.

The far side is a connector, by its networks ("via") or as an exit, or the edge as one. Nothing is
looked up here: a name travels as it is, inside the encryption.

Invariant: what a caller gives up (cancelled, timed out) leaves no stream behind.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal, cast

from tunnelgw.access.reach import parse_host
from tunnelgw.errors import OriginError, Refused
from tunnelgw.obs.reasons import Reason
from tunnelgw.private.addressed import split_address, with_address
from tunnelgw.private.messages import WantTcp, WantUdp
from tunnelgw.private.transport import StreamTransport
from tunnelgw.visitor.call import Call
from tunnelgw.wire.control import Open
from tunnelgw.wire.flow import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.errors import TunnelgwError
    from tunnelgw.private.datagrams import Opener, Sealer
    from tunnelgw.private.messages import Ready, Want
    from tunnelgw.private.sealed import Sealed
    from tunnelgw.visitor.machine import Machine
    from tunnelgw.visitor.reach import DatagramFlow
    from tunnelgw.wire.stream import Stream

CONNECT_SECONDS = 30.0  # the far side's own dial ends before that; what is left is two links that may be away


# The edge takes twice as many, and cuts a tunnel that goes on asking: a port scan must not come to that.
OPENS_PER_SECOND, OPENS_BURST = 50.0, 512


class TunnelReach:
    """Out at `place`: a connector, or "edge" for kind "exit"."""

    def __init__(self, machine: Machine, kind: Literal["via", "exit"], place: str) -> None:
        self._machine = machine
        self._kind = kind
        self.place = place
        self._opens = TokenBucket(rate=OPENS_PER_SECOND, burst=OPENS_BURST, now=asyncio.get_running_loop().time())

    @property
    def networks(self) -> list[str]:
        """What the grant names, as the edge said last; for a browser's settings."""
        reachable = self._machine.reachable
        return list(reachable.networks) if reachable is not None and self._kind == "via" else []

    async def connect(self, factory: Callable[[], asyncio.Protocol], host: str, port: int) -> asyncio.Transport:
        """As `Reach.connect`."""
        try:
            want = WantTcp(host=str(parse_host(host)), port=port)
        except ValueError as error:
            raise Refused(str(error), reason=Reason.ADDRESS_REFUSED) from None
        made: list[StreamTransport] = []

        def begin(stream: Sealed) -> None:
            made.append(StreamTransport(stream, factory(), peer=(host, port)))

        try:
            await self.call(want, begin)
        except asyncio.CancelledError:
            for transport in made:  # it was there in the same moment
                transport.abort()
            raise
        return made[0]

    async def datagrams(
        self, received: Callable[[bytes, str, int], None], ended: Callable[[], None] | None = None
    ) -> DatagramFlow:
        """As `Reach.datagrams`."""
        new_key, sealer, opener = await asyncio.get_running_loop().run_in_executor(None, _sealing)
        outwards, inwards = new_key(), new_key()
        flow = Flow(sealer(outwards), opener(inwards), received, ended)
        try:
            await self.call(WantUdp(outwards=outwards, inwards=inwards), flow.begin)
        except asyncio.CancelledError:
            flow.close()
            raise
        return flow

    async def call(self, want: Want, begin: Callable[[Sealed], None]) -> Ready:
        """Say what is wanted in a private stream; `begin` gives it its sink, before its first byte.

        Raises as `connect`.
        """
        session = await self._machine.session()
        loop = asyncio.get_running_loop()
        if not self._opens.take(loop.time()):
            raise Refused("more connections a second than a tunnel takes", reason=Reason.RATE_LIMIT)
        answered: asyncio.Future[Ready] = loop.create_future()

        def ready(answer: Ready) -> None:
            if answered.done():
                call.stream.reset(Reason.CANCELLED)
                return
            begin(call.stream)
            answered.set_result(answer)

        def refused(error: TunnelgwError) -> None:
            if not answered.done():
                answered.set_exception(error)

        request = Open(service=self.place, kind=self._kind)
        call = Call(
            self._machine, session, request, want, connector=self.place, now=loop.time(), ready=ready, refused=refused
        )
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await answered
        except TimeoutError:
            call.stream.reset(Reason.CANCELLED)
            raise OriginError("the far side did not answer in time", reason=Reason.TARGET_TIMEOUT) from None
        except asyncio.CancelledError:
            call.stream.reset(Reason.CANCELLED)
            raise


class Flow:
    """Datagrams beside a private stream, whose sink it is: what comes on that means nothing, its end ends the flow."""

    __slots__ = ("_ended", "_opener", "_outer", "_received", "_sealer", "_stream")

    def __init__(
        self,
        sealer: Sealer,
        opener: Opener,
        received: Callable[[bytes, str, int], None],
        ended: Callable[[], None] | None,
    ) -> None:
        self._sealer, self._opener = sealer, opener
        self._received = received
        self._ended = ended
        self._stream: Sealed | None = None
        self._outer: Stream | None = None

    def begin(self, stream: Sealed) -> None:
        """Use this stream."""
        self._stream, self._outer = stream, cast("Stream", stream.outer)
        stream.sink = self
        self._outer.on_datagram = self._arrived

    def send(self, data: bytes, host: str, port: int) -> None:
        """As `DatagramFlow.send`."""
        addressed = with_address(host, port, data)
        if addressed is not None and self._outer is not None:
            self._outer.send_datagram(self._sealer.seal(addressed), asyncio.get_running_loop().time())

    def close(self) -> None:
        """As `DatagramFlow.close`."""
        self._ended = None
        stream = self._stream
        self._over()
        if stream is not None:
            stream.reset(Reason.CANCELLED)

    def _arrived(self, sealed: bytes) -> None:
        data = self._opener.open(sealed)
        found = split_address(data) if data is not None else None
        if found is not None:
            host, port, payload = found
            self._received(payload, host, port)

    def _over(self) -> None:
        if self._outer is not None:
            self._outer.on_datagram = None
        self._stream = self._outer = None
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()

    # The stream's sink.

    def stream_data(self, data: bytes) -> None:
        if self._stream is not None:
            self._stream.consumed(len(data))

    def stream_finished(self) -> None:
        if self._stream is not None:
            self._stream.finish()
        self._over()

    def stream_reset(self, reason: Reason) -> None:  # noqa: ARG002 - whatever it was
        self._over()

    def pause_sending(self) -> None:
        """Nothing is sent on the stream."""

    def resume_sending(self) -> None:
        """Nothing is sent on the stream."""


def _sealing() -> tuple[Callable[[], str], type[Sealer], type[Opener]]:
    """Imports `cryptography`, for who needs it; in a thread, so that streams go on meanwhile."""
    from tunnelgw.private.datagrams import Opener, Sealer, new_key

    return new_key, Sealer, Opener
