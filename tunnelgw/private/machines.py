"""Visitors whose whole machine comes in: their private streams, and the interface that takes their packets.

The stream says that somebody is there and carries the keys; the packets are its datagrams. What a visitor may reach is
decided as for its connections, by the policy of whoever it leaves from (a connector, or the edge), for each packet.

Invariant: a place at the interface lives exactly as long as its stream.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tunnelgw.access.packets import FRAGMENT, ICMP, ICMP6, TCP, UDP
from tunnelgw.errors import TunnelgwError
from tunnelgw.net.route import is_near, is_own
from tunnelgw.net.tasks import spawn
from tunnelgw.obs.reasons import Reason
from tunnelgw.private import messages
from tunnelgw.private.messages import Ready
from tunnelgw.private.names import PORT as NAMES
from tunnelgw.private.opening import refuse_inside
from tunnelgw.private.outwards import Leaving
from tunnelgw.private.packets import PacketHost
from tunnelgw.private.steady import Steady, sealing

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.access.reach import Policy
    from tunnelgw.private.messages import WantPackets
    from tunnelgw.private.packets import Guest
    from tunnelgw.private.sealed import Sealed
    from tunnelgw.wire.control import Open
    from tunnelgw.wire.stream import Stream

log = logging.getLogger(__name__)


def machine_name() -> str:
    """A name of this machine that stays: its addresses in the tunnel are made from it."""
    try:
        return Path("/etc/machine-id").read_text().strip() + socket.gethostname()
    except OSError:
        return socket.gethostname()


class Machines:
    """All that leave from one process. Inputs: `take`, `change`, `cut`, `close`."""

    def __init__(self, networks: tuple[str, ...], *, exit: bool) -> None:  # noqa: A002
        self._host = PacketHost(machine_name(), _plain(networks), exit=exit)
        self._stays: dict[str, Stay] = {}  # by visitor

    def take(self, stream: Sealed, request: Open, want: WantPackets, policy: Policy, ended: Callable[[], None]) -> Stay:
        """A visitor whose key was checked."""
        # With its key: another edge may know somebody else by that name.
        stay = Stay(stream, f"{request.by} {request.key}", ended, self._over)
        before = self._stays.get(stay.visitor)
        self._stays[stay.visitor] = stay
        if before is not None:
            before.cut(Reason.SUPERSEDED)
        spawn(self._open(stay, want, policy), name="a visitor's packets")
        return stay

    async def _open(self, stay: Stay, want: WantPackets, policy: Policy) -> None:
        host = self._host
        steady: Steady | None = None

        def send(data: bytes) -> bool:
            return steady is None or steady.offer(data, host.resume)

        _, seals, opens = await sealing()
        try:
            guest = await host.open(stay.visitor, lambda *packet: self._allowed(policy, *packet), send)
        except TunnelgwError as error:
            self._over(stay)  # nothing to take back; the stream ends when the visitor has read why
            log.warning("visitor %s wants to send packets: %s", stay.visitor.split()[0], error.text)
            refuse_inside(stay.stream, Reason.NOT_IMPLEMENTED, text=error.text, ended=stay.end)
            return
        if stay.over:  # it left meanwhile, or came again
            guest.close()
            return
        outer = cast("Stream", stay.stream.outer)
        sealer, opener = seals(want.inwards), opens(want.outwards)
        steady = Steady(outer, sealer, opener, guest.receive, loop=asyncio.get_running_loop())
        stay.begin(guest, steady)
        pool = host.pool
        assert pool is not None
        answer = Ready(
            addresses=guest.addresses,
            routes=host.routes(policy.networks(), exit=policy.exit)[:64],
            dns=[str(pool.gateway4)],
            udp_segments=host.udp_segments,
        )
        stay.stream.write(messages.encode(answer))

    def _allowed(self, policy: Policy, packed: bytes, protocol: int, port: int) -> bool:
        address, pool = ipaddress.ip_address(packed), self._host.pool
        if pool is not None and address in (pool.gateway4, pool.gateway6):
            return protocol in (ICMP, ICMP6) or port == NAMES
        if protocol in (TCP, UDP) and port != FRAGMENT:
            try:
                policy.check(address, port, is_own=is_own, is_near=is_near)
            except TunnelgwError:
                return False
            return True
        return policy.passes(address, whole=port == FRAGMENT, is_own=is_own, is_near=is_near)

    def change(self, networks: tuple[str, ...], *, exit: bool) -> None:  # noqa: A002
        """The file offers something else: what is open under the old one is cut, and comes again."""
        self.cut(Reason.WITHDRAWN)
        spawn(self._host.change(_plain(networks), exit=exit), name="change what packets reach")

    def cut(self, reason: Reason) -> None:
        """End what is open."""
        for stay in list(self._stays.values()):
            stay.cut(reason)

    async def close(self) -> None:
        """Remove the interface, with all that belongs to it."""
        self.cut(Reason.CONNECTOR_STOPPING)
        await self._host.close()

    def _over(self, stay: Stay) -> None:
        if self._stays.get(stay.visitor) is stay:
            del self._stays[stay.visitor]


class Stay(Leaving):
    """One visitor's stream, while its packets come. The stream's sink once it began."""

    __slots__ = ("over", "stream", "visitor", "_ended", "_flow", "_guest", "_left")

    def __init__(self, stream: Sealed, visitor: str, ended: Callable[[], None], left: Callable[[Stay], None]) -> None:
        self.over = False
        self.stream = stream
        self.visitor = visitor
        self._ended: Callable[[], None] | None = ended
        self._guest: Guest | None = None
        self._flow: Steady | None = None
        self._left = left
        stream.sink = self

    def begin(self, guest: Guest, flow: Steady) -> None:
        """It has its place."""
        self._guest, self._flow = guest, flow

    def cut(self, reason: Reason) -> None:
        if not self.stream.closed:
            self.stream.reset(reason)
        self.end()

    def end(self) -> None:
        """Give everything back. Idempotent."""
        self.over = True
        if self._flow is not None:
            self._flow.close()
        if self._guest is not None:
            self._guest.close()
        self._left(self)
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()

    def stream_data(self, data: bytes) -> None:
        """Nothing is said after the `Want`."""
        self.stream.consumed(len(data))

    def stream_finished(self) -> None:
        self.stream.finish()
        self.end()

    def stream_reset(self, reason: Reason) -> None:  # noqa: ARG002 - it left, for whatever reason
        self.end()

    def pause_sending(self) -> None:
        """One answer is all that is sent."""

    def resume_sending(self) -> None:
        """One answer is all that is sent."""


def _plain(rules: tuple[str, ...]) -> list[str]:
    """The networks of rules, without ports: what the kernel lets through; ports are checked before."""
    from tunnelgw.access.reach import parse_rule

    found = (parse_rule(rule).network for rule in rules)
    return sorted({str(network) for network in found if network is not None})
