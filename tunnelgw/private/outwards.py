"""A private stream whose visitor wants to leave here: to a home network, or out to the internet.

Both ends that can be left through use it: a connector and the edge. A connection is dialled by way of an `Egress` and
spliced; a flow of datagrams lives beside the stream, for as long as that does. What fails is said inside, where nobody
in between can read it.

Invariant: `ended` is called exactly once, whatever happens to the stream, the dial or the target.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from tunnelgw.errors import TunnelgwError
from tunnelgw.net.tasks import spawn
from tunnelgw.obs.reasons import Reason
from tunnelgw.private import messages
from tunnelgw.private.addressed import split_address, with_address
from tunnelgw.private.messages import Ready, WantTcp, WantUdp
from tunnelgw.private.opening import refuse_inside
from tunnelgw.private.splice import ReadySplice
from tunnelgw.private.udp import EgressFlow

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.private.datagrams import Opener, Sealer
    from tunnelgw.private.egress import Egress
    from tunnelgw.private.messages import Want
    from tunnelgw.private.sealed import Sealed
    from tunnelgw.wire.stream import Stream


class Leaving:
    """What left here by one stream. `cut` ends it now."""

    def cut(self, reason: Reason) -> None:
        """End it, whoever is in the middle of what."""
        raise NotImplementedError


def leave(stream: Sealed, egress: Egress, want: Want, ended: Callable[[], None]) -> Leaving | None:
    """Serve what is wanted; None where that is not TCP or UDP, and it was refused."""
    if isinstance(want, WantTcp):
        return OutwardsTcp(stream, egress, want, ended)
    if isinstance(want, WantUdp):
        return OutwardsUdp(stream, egress, want, ended)
    refuse_inside(stream, Reason.NOT_IMPLEMENTED, ended=ended)
    return None


class OutwardsTcp(Leaving):
    """One TCP connection: its dial, then its splice."""

    __slots__ = ("_dial", "_ended", "_splice", "_stream")

    def __init__(self, stream: Sealed, egress: Egress, want: WantTcp, ended: Callable[[], None]) -> None:
        self._stream = stream
        self._ended: Callable[[], None] | None = ended
        self._splice = ReadySplice(stream, lost=Reason.TARGET_RESET, on_end=self._over)
        stream.sink = self._splice
        self._dial: asyncio.Task[None] | None = spawn(self._connect(egress, want), name="outwards")

    def cut(self, reason: Reason) -> None:
        stream, splice = self._stream, self._splice
        if not stream.closed:
            stream.reset(reason)
            splice.stream_reset(reason)  # a reset of ours does not tell our own end: it closes the target
        self._over(0, 0)

    async def _connect(self, egress: Egress, want: WantTcp) -> None:
        try:
            await egress.connect(lambda: self._splice, want.host, want.port)
        except TunnelgwError as error:
            if self._ended is not None:
                self._splice.let_go()
                refuse_inside(self._stream, error.reason, ended=self._out)
        finally:
            self._dial = None

    def _over(self, sent: int, received: int) -> None:  # noqa: ARG002 - the splice's signature
        if self._dial is not None:  # reset while we dial: nobody waits for the target any more
            self._dial.cancel()
        self._out()

    def _out(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()


class OutwardsUdp(Leaving):
    """One flow of datagrams, and the sink of its stream: what comes on that means nothing, its end ends the flow."""

    __slots__ = ("_ended", "_flow", "_opener", "_outer", "_sealer", "_stream", "_task")

    def __init__(self, stream: Sealed, egress: Egress, want: WantUdp, ended: Callable[[], None]) -> None:
        self._stream = stream
        self._outer = cast("Stream", stream.outer)
        self._ended: Callable[[], None] | None = ended
        self._flow: EgressFlow | None = None
        self._opener: Opener
        self._sealer: Sealer
        stream.sink = self
        self._task: asyncio.Task[None] | None = spawn(self._begin(egress, want), name="outwards udp")

    async def _begin(self, egress: Egress, want: WantUdp) -> None:
        opener, sealer = await asyncio.get_running_loop().run_in_executor(None, _sealing)
        self._task = None
        self._opener, self._sealer = opener(want.outwards), sealer(want.inwards)
        self._flow = EgressFlow(egress, self._back, self._idle)
        self._outer.on_datagram = self._arrived
        self._stream.write(messages.encode(Ready()))

    def cut(self, reason: Reason) -> None:
        self._stream.reset(reason)
        self._out()

    def _arrived(self, sealed: bytes) -> None:
        data = self._opener.open(sealed)
        found = split_address(data) if data is not None else None
        if found is not None and self._flow is not None:
            host, port, payload = found
            self._flow.send(payload, host, port)

    def _back(self, data: bytes, host: str, port: int) -> None:
        addressed = with_address(host, port, data)
        if addressed is not None:
            self._outer.send_datagram(self._sealer.seal(addressed), asyncio.get_running_loop().time())

    def _idle(self) -> None:
        self._stream.reset(Reason.IDLE)
        self._out()

    # The stream's sink.

    def stream_data(self, data: bytes) -> None:
        self._stream.consumed(len(data))

    def stream_finished(self) -> None:
        self._stream.finish()
        self._out()

    def stream_reset(self, reason: Reason) -> None:  # noqa: ARG002 - whatever it was
        self._out()

    def pause_sending(self) -> None:
        """Nothing more is sent on the stream."""

    def resume_sending(self) -> None:
        """Nothing more is sent on the stream."""

    def _out(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._outer.on_datagram = None
        flow, self._flow = self._flow, None
        if flow is not None:
            flow.close()
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()


def _sealing() -> tuple[type[Opener], type[Sealer]]:
    """Imports `cryptography`, for who needs it; in a thread, so that streams go on meanwhile."""
    from tunnelgw.private.datagrams import Opener, Sealer

    return Opener, Sealer
