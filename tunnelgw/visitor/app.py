"""`tunnelgw visit`: composition root of the visiting machine.

Strategy: one tunnel, and beside it whatever was asked for: local ports onto private services, proxies, or standard
input and output onto one service. It runs until a signal, or until the one stream of `--stdio` is over.

Invariant: with `--stdio` nothing is printed but the service's bytes.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunnelgw.config.model import Endpoint
from tunnelgw.errors import LocalError, Refused, TunnelgwError
from tunnelgw.net import systemd
from tunnelgw.net.tasks import cancel, spawn
from tunnelgw.obs.reasons import Reason
from tunnelgw.visitor.forward import Forward, bind
from tunnelgw.visitor.machine import Machine, identity_of, settled
from tunnelgw.visitor.proxies import Proxies, ProxyWish
from tunnelgw.visitor.stdio import Stdio

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.config.model import ConnectorConfig
    from tunnelgw.visitor.packets import Packets, TunWish

log = logging.getLogger(__name__)

TURN = 1.0  # seconds between two looks at the clock
SLEPT = 8.0  # a turn that comes so late means: stopped or suspended, and the link is dead or about to be


@dataclass(frozen=True, slots=True)
class Wish:
    """A private service, SERVICE or CONNECTOR/SERVICE, and where it is wanted; None: a free port on loopback."""

    name: str
    listen: Endpoint | None = None


class Visiting:
    """One `tunnelgw visit`. `say` is given the lines for standard output."""

    def __init__(self, config: ConnectorConfig, *, say: Callable[[str], None]) -> None:
        self.machine = Machine(config, identity_of(config))
        self._say = say
        self._forwards: list[Forward] = []
        self._proxies: Proxies | None = None
        self._packets: Packets | None = None
        self._stopping = asyncio.Event()
        self._turn_handle: asyncio.TimerHandle | None = None
        self._last_turn = _clock()

    async def run(
        self, wishes: list[Wish], *, stdio: bool = False, proxies: ProxyWish | None = None, tun: TunWish | None = None
    ) -> None:
        """Until SIGTERM, SIGINT, SIGHUP, or the end of `stdio`. LocalError where it comes to nothing."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                loop.add_signal_handler(number, self._stopping.set)
        if tun is not None:
            from tunnelgw.visitor.packets import Packets  # for who needs it

            self._packets = Packets(self.machine, tun)
            await self._packets.prepare()  # before anything is dialled
        self._turn()
        self.machine.start()
        if proxies is not None:
            self._proxies = Proxies(self.machine, proxies)
        work = spawn(self._work(wishes, stdio=stdio), name="visit")
        stop = spawn(self._stopping.wait(), name="stop")
        try:
            await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
            if work.done() and (failure := work.result()) is not None:
                raise failure
        finally:
            for task in (work, stop):
                if not task.done():
                    await cancel(task)
            systemd.stopping()
            if self._turn_handle is not None:
                self._turn_handle.cancel()
            for forward in self._forwards:
                forward.close()
            if self._proxies is not None:
                self._proxies.close()
            if self._packets is not None:
                await self._packets.close()
            await self.machine.stop()

    async def _work(self, wishes: list[Wish], *, stdio: bool) -> LocalError | None:
        """What was asked for, until it is over; why it came to nothing."""
        try:
            await (self._pipe(wishes[0]) if stdio else self._listen(wishes))
        except LocalError as error:
            return error
        return None

    async def _listen(self, wishes: list[Wish]) -> None:
        for wish in wishes:
            # Bound first: a port that is taken is known at once, whatever the edge says.
            sock = bind(wish.listen or Endpoint("127.0.0.1", 0))
            try:
                forward = await self._forward(wish)
            except LocalError:
                sock.close()
                raise
            self._forwards.append(forward)
            forward.listen(sock)
            address = sock.getsockname()
            line = f"ready {Endpoint(address[0], address[1])} -> {forward.name}"
            self._say(line)
        if self._proxies is not None:
            await self._proxies.start(self._say)
        systemd.ready("visiting")
        if self._proxies is not None:
            await self._proxies.check()
        if self._packets is not None:
            await self._packets.run(self._say)
        await self._stopping.wait()

    async def _pipe(self, wish: Wish) -> None:
        forward = await self._forward(wish)
        errors: list[TunnelgwError] = []
        ends = Stdio()
        session = await forward.take(ends.sock, failed=errors.append)
        await ends.done()
        if session is not None and not errors and not await settled(session):
            errors.append(Refused("the tunnel ended before all was sent", reason=Reason.CONNECTOR_AWAY))
        if errors:
            raise LocalError(f"{forward.name}: {errors[0].text}", reason=errors[0].reason)

    async def _forward(self, wish: Wish) -> Forward:
        try:
            connector, service = await self.machine.find(wish.name)
        except Refused as refusal:
            raise LocalError(refusal.text, reason=refusal.reason) from None
        return Forward(self.machine, connector, service)

    def _turn(self) -> None:
        """Once a second: notice that we slept, and whether the certificate is to be renewed."""
        self._turn_handle = asyncio.get_running_loop().call_later(TURN, self._turn)
        now = _clock()
        if now - self._last_turn > SLEPT:
            for supervisor in self.machine.edge.supervisors():
                supervisor.woke()
        self._last_turn = now
        self.machine.renew_if_due()


async def visit(
    config: ConnectorConfig,
    wishes: list[Wish],
    *,
    stdio: bool,
    say: Callable[[str], None],
    proxies: ProxyWish | None = None,
    tun: TunWish | None = None,
) -> None:
    """As `Visiting.run`."""
    await Visiting(config, say=say).run(wishes, stdio=stdio, proxies=proxies, tun=tun)


def _clock() -> float:
    """Seconds that also pass while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
