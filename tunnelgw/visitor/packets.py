"""`tunnelgw visit --tun`: this machine's packets, over a private stream's datagrams, for as long as it runs.

The interface and its rules stay while the tunnel is away, and the stream is opened again whenever it ended: a program
here notices a pause, and nothing leaves another way.

Invariant: `run` returns by an error or a cancellation only, and everything on this machine is as before then. With an
exit that was reached once, or that another machine took over, only by a cancellation: it would open the kill switch.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, cast

from tunnelgw.access.nftables import MARK
from tunnelgw.errors import LocalError, RemoteError, TunnelgwError
from tunnelgw.net import eyeballs, sockets
from tunnelgw.obs.reasons import Reason
from tunnelgw.private.messages import WantPackets
from tunnelgw.private.steady import Steady, sealing
from tunnelgw.visitor.call import Call
from tunnelgw.visitor.device import Device
from tunnelgw.visitor.names import Names
from tunnelgw.wire.control import Open

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.private.messages import Ready
    from tunnelgw.visitor.machine import Machine
    from tunnelgw.wire.stream import Stream

log = logging.getLogger(__name__)

PAUSE_LEAST, PAUSE_MOST = 0.5, 15.0  # between two attempts
ANSWER_SECONDS = 30.0
# What will not be better at the next attempt. Later on it may be: an operator changes a grant while we run.
FINAL = frozenset(
    (
        Reason.VISIT_NOT_GRANTED, Reason.SERVICE_UNKNOWN, Reason.NOT_IMPLEMENTED, Reason.ADDRESS_REFUSED,
        Reason.UNAUTHENTICATED, Reason.KEY_CHANGED, Reason.PROTOCOL_ERROR,
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TunWish:
    """kind: "via" or "exit"; place: the connector's name; domains: whose names are asked there."""

    kind: str
    place: str
    domains: tuple[str, ...] = ()


class Packets:
    """See the module's text. `prepare` before the tunnel is dialled, then `run`, and `close` at the end."""

    def __init__(self, machine: Machine, wish: TunWish) -> None:
        self._machine = machine
        self._wish = wish
        self._flow: Steady | None = None
        names = Names([machine.edge.endpoint.host], wish.domains)
        self._device = Device(self._send, exit=wish.kind == "exit", names=names)
        self._names = names

    async def prepare(self) -> None:
        """The interface; with an exit nothing leaves past it from now on. LocalError."""
        sockets.mark_all(MARK)
        eyeballs.ask_otherwise(self._names.addresses)
        await self._device.prepare()

    async def run(self, say: Callable[[str], None]) -> None:
        """Keep it up. LocalError where it comes to nothing at first, or where another machine took over."""
        pause, was_up = PAUSE_LEAST, False
        while True:
            try:
                lost = await self._open()
            except TunnelgwError as error:
                if error.reason is Reason.SUPERSEDED:
                    await self._superseded()
                if not was_up and isinstance(error, LocalError):
                    raise
                if not was_up and error.reason in FINAL:
                    raise LocalError(self._explained(error), reason=error.reason) from None
                log.warning("no packets to %s: %s", self._wish.place, error.text)
            except OSError as error:  # short of descriptors or memory: what keeps everything else in stays in force
                if not was_up:
                    raise
                log.warning("no packets to %s: %s", self._wish.place, error)
            else:
                if not was_up:
                    say(f"ready {self._device.described()} -> {self._wish.kind} {self._wish.place}")
                pause, was_up = PAUSE_LEAST, True
                reason = await lost
                self._drop()
                if reason is Reason.SUPERSEDED:
                    await self._superseded()
                log.warning("the packets to %s are interrupted: %s", self._wish.place, reason.text)
            await asyncio.sleep(pause)
            pause = min(2 * pause, PAUSE_MOST)

    async def _superseded(self) -> NoReturn:
        """Another machine came as the same visitor: to come again would only take it back and forth."""
        who = f"another machine that joined as {self._machine.identity.name} took over"
        if self._wish.kind != "exit":
            raise LocalError(who)
        log.error(
            "%s: nothing leaves this machine until this command is ended; begun again, it takes the exit back", who
        )
        await asyncio.Event().wait()
        raise AssertionError("it is never set")

    async def close(self) -> None:
        """Put everything back."""
        self._drop()
        await self._device.remove()

    async def _open(self) -> asyncio.Future[Reason]:
        """The interface works; what is returned says when it does no more. TunnelgwError."""
        new_key, seals, opens = await sealing()
        session = await self._machine.session()
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Ready] = loop.create_future()
        want = WantPackets(outwards=new_key(), inwards=new_key(), mtu=1500)

        def refused(error: TunnelgwError) -> None:
            if not answered.done():
                answered.set_exception(error)

        call = Call(
            self._machine, session, Open(service=self._wish.place, kind=self._wish.kind), want,
            connector=self._wish.place, now=loop.time(), ready=lambda answer: _settle(answered, answer),
            refused=refused,
        )  # fmt: skip
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await answered
            watch = Watch(loop)
            call.stream.sink = watch
            if call.stream.closed:
                raise RemoteError("the stream was cut")
            outer, sealer, opener = cast("Stream", call.stream.outer), seals(want.outwards), opens(want.inwards)
            self._flow = Steady(outer, sealer, opener, self._device.receive, loop=loop)
            await self._device.configure(answer.addresses, answer.routes, answer.dns, udp_segments=answer.udp_segments)
        except TimeoutError:
            call.stream.reset(Reason.CANCELLED)
            raise RemoteError(f"{self._wish.place} does not answer", reason=Reason.TARGET_TIMEOUT) from None
        except BaseException:
            self._drop()
            call.stream.reset(Reason.CANCELLED)
            raise
        self._device.resume()
        return watch.over

    def _send(self, data: bytes) -> bool:
        """While there is no tunnel packets are lost: an old one is worth nothing."""
        flow = self._flow
        if flow is None:
            return True
        flow.send(data)
        return flow.has_room(self._device.resume)

    def _drop(self) -> None:
        flow, self._flow = self._flow, None
        if flow is not None:
            flow.close()

    def _explained(self, error: TunnelgwError) -> str:
        name, place = self._machine.identity.name, self._wish.place
        option = f"--allow-exit {place}" if self._wish.kind == "exit" else "--allow-network CIDR"
        if error.reason is Reason.VISIT_NOT_GRANTED:
            return f"{place} is not granted to {name}; on the edge, run: tunnelgw edge grant {name} {option}"
        return f"{place}: {error.text}"


class Watch:
    """Sink of the stream while its datagrams flow: says when it ended."""

    __slots__ = ("over",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.over: asyncio.Future[Reason] = loop.create_future()

    def stream_data(self, data: bytes) -> None:
        """Nothing more is said."""

    def stream_finished(self) -> None:
        _settle(self.over, Reason.CONNECTOR_AWAY)

    def stream_reset(self, reason: Reason) -> None:
        _settle(self.over, reason)

    def pause_sending(self) -> None:
        """Nothing more is sent."""

    def resume_sending(self) -> None:
        """Nothing more is sent."""


def _settle(future: asyncio.Future[object] | asyncio.Future[Reason] | asyncio.Future[Ready], value: object) -> None:
    if not future.done():
        future.set_result(value)  # type: ignore[arg-type]
