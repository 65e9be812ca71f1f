"""The far side of TUN tunnels: one interface for all visitors, from which the kernel passes their packets on.

A visitor's packet is checked twice. Here: it comes from the address that this visitor was given, and goes where its
grant leads. In the kernel: rules of our own (`access/nftables.py`) let nobody reach this machine itself beyond its
`networks`, or another visitor. Then it leaves with this machine's address, and what answers it comes back.

The interface is made when the first visitor comes and removed a while after the last one went, with rules, switches and
all. It needs CAP_NET_ADMIN; without it `open` says so.

Invariant: a packet reaches the kernel only with the source that was assigned to whoever sent it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING

from tunnelgw.access import nftables
from tunnelgw.access.nftables import HOME, HOME_TUN
from tunnelgw.access.packets import Gate
from tunnelgw.access.pools import Pool, of_version
from tunnelgw.errors import TunnelgwError
from tunnelgw.net import forwarding, resolvconf
from tunnelgw.net.commands import attempt, ip, nft, run
from tunnelgw.net.forwarding import Forwarding, is_there
from tunnelgw.net.tasks import spawn
from tunnelgw.net.tun import Tun, open_tun
from tunnelgw.net.upkeep import Upkeep
from tunnelgw.private.names import Forwarder

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Sequence

log = logging.getLogger(__name__)

LINGER_SECONDS = 30.0  # without a visitor, until the interface is removed: one that dials anew finds it
# Packets that wait in the kernel for us, behind each other; the newest beyond it are dropped (docs/vpn.md).
QUEUE = 128


def link_lines(name: str) -> tuple[str, str]:
    """Lines of `ip -batch` that bring an interface up, without an address that it makes up itself.

    Every packet then fits in a datagram (`access/packets.py`): the kernel cuts larger ones apart.
    """
    return (
        f"link set dev {name} mtu 1500 txqueuelen {QUEUE} gso_max_size 65500 addrgenmode none",
        f"link set dev {name} up",
    )


class Guest:
    """One visitor's place. `receive` takes what it sends; its packets go to `send`, which answers False when full."""

    __slots__ = ("addresses", "gate", "is_open", "send", "visitor", "_host")

    def __init__(
        self, host: PacketHost, visitor: str, addresses: list[str], gate: Gate, send: Callable[[bytes], bool]
    ) -> None:
        self.is_open = True  # until it is closed, or the visitor has another place
        self.visitor = visitor
        self.addresses = addresses
        self.gate = gate
        self.send = send
        self._host = host

    def receive(self, data: bytes) -> None:
        """A parcel of the visitor: to the kernel, or dropped."""
        tun = self._host.tun
        if tun is not None and self.is_open:
            parcel = self.gate.admit(data)
            if parcel is not None:
                tun.write(parcel.header, data)

    def close(self) -> None:
        """The visitor is gone. Idempotent."""
        self._host.leave(self)


class PacketHost:
    """All of it on one machine. `networks`: what is offered; `exit`: whether the internet is, too."""

    def __init__(self, name: str, networks: Collection[str], *, exit: bool) -> None:  # noqa: A002
        self.name = name
        self.tun: Tun | None = None
        self.pool: Pool | None = None
        self.families: frozenset[int] = frozenset()
        self._networks = tuple(networks)
        self._exit = exit
        self._guests: dict[bytes, Guest] = {}
        self._lock: socket.socket | None = None
        self._forwarding = Forwarding()
        self._names: Forwarder | None = None
        self._dns_port = 0
        self._changing = asyncio.Lock()
        self._upkeep: Upkeep | None = None
        self._linger: asyncio.TimerHandle | None = None

    # Visitors.

    async def open(
        self, visitor: str, allowed: Callable[[bytes, int, int], bool], send: Callable[[bytes], bool]
    ) -> Guest:
        """A place for this visitor, instead of the one that it had. `LocalError`, `Refused`."""
        async with self._changing:
            if self._linger is not None:
                self._linger.cancel()
                self._linger = None
            if self.tun is None:
                await self._set_up()
            assert self.pool is not None
            addresses = [one for one in self.pool.take(visitor) if one.version in self.families]
            gate = Gate([one.packed for one in addresses], allowed, own_is_source=True)
            guest = Guest(self, visitor, [str(one) for one in addresses], gate, send)
            for one in addresses:
                if one.packed in self._guests:
                    self._guests[one.packed].is_open = False
                self._guests[one.packed] = guest
            return guest

    def leave(self, guest: Guest) -> None:
        """Take its addresses back, unless the visitor has another place by now."""
        guest.is_open = False
        own = [key for key, one in self._guests.items() if one is guest]
        for key in own:
            del self._guests[key]
        if own and self.pool is not None:
            self.pool.give_back(guest.visitor)
        if not self._guests and self.tun is not None and self._linger is None:
            loop = asyncio.get_running_loop()
            self._linger = loop.call_later(LINGER_SECONDS, lambda: spawn(self._left(), name="remove the interface"))

    def routes(self, granted: Sequence[str], *, exit: bool) -> list[str]:  # noqa: A002
        """What a visitor with this grant may send here: networks, and the default routes of the families that work."""
        defaults = [{4: "0.0.0.0/0", 6: "::/0"}[family] for family in sorted(self.families)] if exit else []
        return [text for family in self.families for text in of_version(granted, family)] + defaults

    @property
    def udp_segments(self) -> bool:
        """Whether our kernel takes UDP in many segments (we never send them: another visitor's kernel may not)."""
        return self.tun is not None and self.tun.udp_segments

    def resume(self) -> None:
        """There is room again where `send` said that there is none."""
        if self.tun is not None:
            self.tun.resume()

    async def change(self, networks: Collection[str], *, exit: bool) -> None:  # noqa: A002
        """Another configuration, from now on: whoever has a place loses it, and the next one finds all made anew."""
        async with self._changing:
            self._networks, self._exit = tuple(networks), exit
            self._dismiss()
            await self._tear_down()

    async def close(self) -> None:
        """Remove everything. Idempotent."""
        async with self._changing:
            self._dismiss()
            await self._tear_down()

    def _dismiss(self) -> None:
        for guest in self._guests.values():
            guest.is_open = False
        self._guests.clear()

    # The kernel.

    def _received(self, data: bytes) -> bool:
        """A packet of the kernel, to whoever has its destination."""
        guest = self._guests.get(data[26:30] if data[10] >> 4 == 4 else data[34:50])
        return guest is None or guest.send(data)

    async def _set_up(self) -> None:
        self._lock = forwarding.lock()
        try:
            used = await networks_of_routes()
            self.pool = Pool(self.name, used)
            self.families = await self._families()
            self._names = Forwarder(lambda _: (resolvconf.servers(resolvconf.read())[:3], 0))
            await self._make_interface(self.pool)
            self._dns_port = await self._names.listen(str(self.pool.gateway4), 0)
            await self._forwarding.recall()
            await self._forwarding.look(self.families)
            await self._write_rules()
            self._forwarding.switch_on()
            self._upkeep = Upkeep(self._look)
            self._upkeep.start()
        except BaseException:
            await self._tear_down()
            raise
        log.info("%s lets visitors' packets in, from %s", HOME_TUN, self.pool.network4)
        if await _others_drop():
            log.warning(
                "another program (Docker, ufw, firewalld) drops what this machine passes on; if visitors reach "
                "nothing, see docs/vpn.md, 'Docker and firewalls'"
            )

    async def _make_interface(self, pool: Pool) -> None:
        tun = self.tun = open_tun(HOME_TUN)
        try:
            await ip(4, *link_lines(HOME_TUN), f"address add {pool.gateway4}/24 dev {HOME_TUN}")
            if 6 in self.families:
                await ip(6, f"address add {pool.gateway6}/64 dev {HOME_TUN} nodad")
            tun.start(self._received, loop=asyncio.get_running_loop())
        except BaseException:
            tun.close()  # half made, it would pass for whole at the next look
            raise

    async def _look(self) -> None:
        """Something changed in this machine's network."""
        async with self._changing:
            if self.tun is None or self.pool is None:
                return
            if not self.tun.is_there():
                log.warning("another program removed %s: it is made anew", HOME_TUN)
                self.tun.close()
                await self._make_interface(self.pool)
            gone = not is_there(HOME)
            if gone:
                log.warning("another program removed the rules of %s: they are made anew", HOME_TUN)
            if await self._forwarding.review() or gone:
                await self._write_rules()

    async def _families(self) -> frozenset[int]:
        """Those that lead anywhere from here."""
        six = of_version(self._networks, 6) or (self._exit and await attempt("ip", "-6", "route", "show", "default"))
        return frozenset((4, 6) if six else (4,))

    async def _write_rules(self) -> None:
        assert self.pool is not None
        switches = self._forwarding
        await nft(
            nftables.home(
                self.pool, self._networks, exit=self._exit, dns_port=self._dns_port, off=switches.off,
                hears=switches.hears,
            )
        )  # fmt: skip

    async def _left(self) -> None:
        async with self._changing:
            self._linger = None
            if not self._guests:
                await self._tear_down()

    async def _tear_down(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if self._upkeep is not None:
            await self._upkeep.close()  # first: nothing is made anew from here on
            self._upkeep = None
        if self._names is not None:
            await self._names.close()
            self._names = None
        if self.tun is None:
            self._release()
            return
        await self._forwarding.review()
        self._forwarding.switch_back()
        self.tun.close()
        self.tun = None
        try:
            await nft(nftables.removed(HOME))
        except TunnelgwError as error:
            log.warning("the rules of %s stay: %s", HOME_TUN, error.text)
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


async def _others_drop() -> bool:
    """Whether another program lets through only what is its own."""
    chain = await attempt("nft", "list", "chain", "ip", "filter", "FORWARD")
    return "policy drop" in chain or " firewalld" in await attempt("nft", "list", "tables")


async def networks_of_routes() -> list[str]:
    """Every network that this machine has a route to, but for the default ones."""
    routes = []
    for family in ("-4", "-6"):
        routes += json.loads(await run("ip", "-j", family, "route", "show", "table", "all") or "[]")
    return [
        route["dst"]
        for route in routes
        if route.get("type", "unicast") == "unicast" and route.get("dst", "default") != "default"
    ]
