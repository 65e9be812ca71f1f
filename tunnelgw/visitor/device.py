"""This machine's side of a TUN tunnel: interface, routes, names, and rules that let nothing out beside it.

`prepare` makes the interface, and the kill switch if everything is to go through the tunnel: from then on nothing
leaves past it, whether the tunnel is up or not. `configure` follows each time the far side has said which addresses and
routes it gives. `remove` puts everything back. After a SIGKILL the interface and its routes are gone with the process;
what stays is the kill switch, on purpose, and a changed resolv.conf that still works. `repair` removes both: at each
start, and by `tunnelgw visit --cleanup`. In between, what another program removes is made anew, and what depends on
this place (its routers and name servers) follows when the machine moves to another one.

Invariant: whatever was changed is put back by `remove`, in any state; nothing that the far side says reaches a command
before it was parsed as an address or network.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
from typing import TYPE_CHECKING

from tunnelgw.access import nftables
from tunnelgw.access.addresses import Networks
from tunnelgw.access.nftables import VISIT, VISIT_TUN
from tunnelgw.access.packets import ICMP, ICMP6, Gate
from tunnelgw.access.pools import packed
from tunnelgw.errors import LocalError, RemoteError, TunnelgwError
from tunnelgw.net import resolvconf
from tunnelgw.net.commands import SYSCTL, attempt, ip, nft, only_one, run, switch, switch_back
from tunnelgw.net.forwarding import is_there
from tunnelgw.net.tun import Tun, open_tun
from tunnelgw.net.upkeep import Upkeep
from tunnelgw.private.packets import link_lines
from tunnelgw.visitor import routes as routing

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from tunnelgw.visitor.names import Names

log = logging.getLogger(__name__)

_SOURCE_CHECK = "ipv4/conf/all/src_valid_mark"  # strict reverse path filters heed the mark, as wg-quick needs it too
ROUTES_MAX = 64


class Device:
    """One machine's interface. `send` takes its packets, and answers False for "no more for now"; see `resume`."""

    def __init__(self, send: Callable[[bytes], bool], *, exit: bool, names: Names) -> None:  # noqa: A002
        self.exit = exit
        self.tun: Tun | None = None
        self.gate: Gate | None = None
        self.names = names
        self._send = send
        self._lock: socket.socket | None = None
        self._unmarked = False  # src_valid_mark was off
        self._given: tuple[list[str], list[str], list[str]] | None = None  # addresses, routes, servers
        self._led: dict[int, tuple[list[str], set[str]]] = {}  # by family: lines that were run, what came of them
        self._many = False  # segments of UDP are read at once
        self._changing = asyncio.Lock()
        self._upkeep = Upkeep(self._look)

    async def prepare(self) -> None:
        """The interface, and the kill switch; before the tunnel is dialled. `LocalError`."""
        self._lock = only_one("tunnelgw-visit-tun", "runs tunnelgw visit --tun")
        try:
            self.tun = open_tun(VISIT_TUN)
            await self._repair()
            self._unmarked = await _was_unmarked() or switch(_SOURCE_CHECK) == "0"
            await self._write_rules()
            switch(_SOURCE_CHECK, "1")
            await ip(4, *link_lines(VISIT_TUN))
            self._upkeep.start()
        except BaseException:
            await self.remove()
            raise

    async def configure(
        self, addresses: Sequence[str], routes: Sequence[str], servers: Sequence[str], *, udp_segments: bool = False
    ) -> None:
        """What the far side gives: our addresses, its networks, its name servers. `RemoteError`, `LocalError`.

        udp_segments: whether its kernel takes UDP in many segments.
        """
        try:
            given = routing.parsed(routes)[:ROUTES_MAX]
            own, gateways = ([str(one) for one in _addresses(texts)] for texts in (addresses, servers))
        except ValueError as error:
            raise RemoteError(f"the far side gives what is no address: {error}") from None
        if self.exit and not routing.is_exit(given):
            raise RemoteError("the far side leads to its networks, not to the internet")
        if not self.exit:
            given = [text for text in given if text not in routing.DEFAULTS.values()]
        async with self._changing:
            tun = await self._mend()
            self._many = udp_segments
            tun.segment_udp(wanted=udp_segments)
            if self._given != (own, given, gateways):
                await self._take(own, given, gateways)
            self.names.look()
            await self._lead()
            await self.names.begin(gateways, exit=self.exit)
            tun.start(self._send, loop=asyncio.get_running_loop())

    async def _take(self, own: list[str], given: list[str], gateways: list[str]) -> None:
        """What the far side gives is something else than before."""
        reached = Networks([*given, *gateways])
        self.gate = Gate(
            packed(own), lambda address, protocol, _: _comes(reached, address, protocol), own_is_source=False
        )
        await self._write_rules(own)
        self._led.clear()
        self._given = own, given, gateways

    async def _write_rules(self, own: Sequence[str] = ()) -> None:
        await nft(nftables.visit(own, exit=self.exit, unmarked=self._unmarked))

    async def _lead(self) -> None:
        """Addresses, routes and rules as they should be, at this place; what is so already is not touched."""
        assert self._given is not None
        own, given, gateways = self._given
        stay = [*await _routers(), *self.names.local]
        for family in _families():
            wanted = routing.lines(family, given, own, gateways, stay)
            led = self._led.get(family)
            if led is None or led[0] != wanted or not led[1] <= await _routes(family):
                if led is not None and led[0] == wanted:
                    log.warning("another program removed routes of %s: they are made anew", VISIT_TUN)
                await _flush(family)
                mine = routing.addresses(family, own, alone=led is None)
                await ip(family, f"link set dev {VISIT_TUN} up", *mine, *wanted)
                self._led[family] = wanted, await _routes(family)
            if str(routing.TABLE) not in await attempt("ip", f"-{family}", "rule", "show", "table", str(routing.TABLE)):
                if led is not None:
                    log.warning("another program removed the rule that leads to %s: it is made anew", VISIT_TUN)
                await ip(family, routing.rule())

    async def _look(self) -> None:
        """Something changed in this machine's network."""
        async with self._changing:
            if self.tun is None:
                return
            await self._mend()
            if self._given is not None:
                self.names.look()
                await self._lead()

    async def _mend(self) -> Tun:
        """The interface and the rules, made anew if they are gone. `LocalError`."""
        assert self.tun is not None
        if not is_there(VISIT):
            log.warning("another program removed the rules of %s: they are made anew", VISIT_TUN)
            await self._write_rules(self._given[0] if self._given is not None else ())
        if not self.tun.is_there():
            log.warning("another program removed %s: it is made anew", VISIT_TUN)
            self.tun.close()
            self._led.clear()
            tun = self.tun = open_tun(VISIT_TUN)
            try:
                await ip(4, *link_lines(VISIT_TUN))
                if self._given is not None:
                    tun.segment_udp(wanted=self._many)
                    await self.names.renew()
                    tun.start(self._send, loop=asyncio.get_running_loop())
            except BaseException:
                tun.close()  # half made, it would pass for whole at the next look
                raise
        return self.tun

    def receive(self, data: bytes) -> None:
        """A parcel of the far side: to the kernel, or dropped."""
        if self.gate is not None and self.tun is not None:
            parcel = self.gate.admit(data)
            if parcel is not None:
                self.tun.write(parcel.header, data)

    def described(self) -> str:
        """The interface and our addresses, for a person."""
        return " ".join([VISIT_TUN, *(self._given[0] if self._given is not None else ())])

    def resume(self) -> None:
        """There is room again where `send` said that there is none."""
        if self.tun is not None:
            self.tun.resume()

    async def remove(self) -> None:
        """Put everything back, the rules last. Idempotent, never raises but when it is cancelled."""
        await self._upkeep.close()  # first: nothing is made anew from here on
        await self.names.end()
        await _unroute()
        if self.tun is not None:
            self.tun.close()
            self.tun = None
            try:
                await nft(nftables.removed(VISIT))
            except TunnelgwError as error:
                log.error("the rules stay: %s", error.text)
        if self._unmarked:
            self._unmarked = False
            switch_back(_SOURCE_CHECK, "0")
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def _repair(self) -> None:
        """What a killed process left, but for the kill switch, which is replaced."""
        if resolvconf.restore():
            log.info("%s is as it was before a process that was killed", resolvconf.RESOLV_CONF)
        await _unroute()


async def _unroute() -> None:
    for family in _families():
        for _ in range(8):
            try:
                await run("ip", f"-{family}", "rule", "delete", "priority", str(routing.PRIORITY))
            except LocalError:
                break
        await _flush(family)


async def _flush(family: int) -> None:
    await attempt("ip", f"-{family}", "route", "flush", "table", str(routing.TABLE))


async def _routes(family: int) -> set[str]:
    """What the kernel has in our table."""
    return set((await attempt("ip", f"-{family}", "route", "show", "table", str(routing.TABLE))).splitlines())


async def repair() -> list[str]:
    """Remove whatever a killed process left; what there was. `LocalError` while one runs, or without the right."""
    lock = only_one("tunnelgw-visit-tun", "runs tunnelgw visit --tun")
    try:
        found = []
        if resolvconf.restore():
            found.append(f"{resolvconf.RESOLV_CONF} is as it was")
        if VISIT in await run("nft", "list", "tables"):
            if await _was_unmarked():
                switch(_SOURCE_CHECK, "0")
            await nft(nftables.removed(VISIT))
            found.append("the kill switch and the other rules are gone")
        await _unroute()
        return found
    except OSError as error:
        raise LocalError(f"{resolvconf.RESOLV_CONF} cannot be put back: {error.strerror}") from None
    finally:
        lock.close()


async def _was_unmarked() -> bool:
    """Whether a process that was killed switched the checks of sources."""
    return nftables.UNMARKED in await attempt("nft", "list", "table", "inet", VISIT)


def _addresses(texts: Sequence[str]) -> list[object]:
    return [ipaddress.ip_address(text) for text in texts]


def _comes(reached: Networks, address: bytes, protocol: int) -> bool:
    """What may come from there; errors come from any router on the way, and the kernel knows what they are about."""
    return protocol in (ICMP, ICMP6) or str(ipaddress.ip_address(address)) in reached


def _families() -> tuple[int, ...]:
    return routing.FAMILIES if (SYSCTL / "ipv6").exists() else (4,)


async def _routers() -> list[str]:
    """The routers of this place."""
    found = []
    for family in _families():
        text = await attempt("ip", "-j", f"-{family}", "route", "show", "default")
        found += [route["gateway"] for route in json.loads(text or "[]") if "gateway" in route]
    return [text for text in found if not text.startswith("fe80:")]
