"""The kernel passes packets on between interfaces only where it is told to: told here, and put back afterwards.

Forwarding of IPv6 has a price: the kernel then ignores routers' advertisements, by which most machines have their
routes, unless an interface is told to hear them all the same (accept_ra 2).

Others need forwarding too, and switch on what is on already without a trace (Docker, libvirt). What they leave is
rules about what passes through: where there are more of those than when we switched it on, it is theirs by now.

Invariants: only what we switched on is switched off again, and only while it is nobody else's. What a killed process
switched on is known from its nftables table, which lives as long as the kernel's switches do.
"""

from __future__ import annotations

import json
import logging
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunnelgw.access.nftables import HOME, OFF, VISIT, removed
from tunnelgw.errors import LocalError, TunnelgwError
from tunnelgw.net.commands import SYSCTL, attempt, nft, only_one, switch, switch_back
from tunnelgw.net.marked import may_set_up

if TYPE_CHECKING:
    from collections.abc import Collection

log = logging.getLogger(__name__)

SWITCHES = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}
_FAMILIES = {"ip": (4,), "ip6": (6,), "inet": (4, 6)}  # of nftables, and those whose packets they see
_LEGACY = {4: Path("/proc/net/ip_tables_names"), 6: Path("/proc/net/ip6_tables_names")}  # nft does not list these
_NETLINK_NETFILTER = 12
_GET_TABLE = 10 << 8 | 1  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE
_REQUEST = 1


class Forwarding:
    """What is to be put back: families that were off, interfaces that heard advertisements."""

    __slots__ = ("hears", "off")

    def __init__(self) -> None:
        self.off: dict[int, int] = {}  # family: what others had to say about packets that pass, see `others`
        self.hears: set[str] = set()

    async def recall(self) -> None:
        """What a process before us left behind, if one did."""
        text = await attempt("nft", "-j", "list", "table", "inet", HOME)
        self.off, self.hears = recalled(json.loads(text)["nftables"] if text else [])
        await self.review()

    async def look(self, families: Collection[int]) -> None:
        """Note what will have to be switched on for these families; nothing is switched yet."""
        new = [family for family in families if family not in self.off and switch(SWITCHES[family]) == "0"]
        if new:
            now = await _others_now()
            self.off |= {family: now[family] for family in new}
        if 6 in self.off:
            names = [path.name for path in (SYSCTL / "ipv6/conf").iterdir() if path.name not in ("all", "lo")]
            self.hears |= {name for name in names if switch(f"ipv6/conf/{name}/accept_ra") == "1"}

    def switch_on(self) -> None:
        """`LocalError` where it may not."""
        for name in self.hears:
            switch(f"ipv6/conf/{name}/accept_ra", "2")
        for family in self.off:
            switch(SWITCHES[family], "1")

    async def review(self) -> bool:
        """Whether a family became somebody else's: it is none of ours any more."""
        if not self.off:
            return False
        now = await _others_now()
        used = [family for family, before in self.off.items() if now[family] > before]
        for family in used:
            del self.off[family]
            log.info("IPv%d forwarding stays on: another program has rules for what passes through by now", family)
        if 6 in used:
            self.hears = set()  # as long as it forwards, routers are heard with accept_ra 2 only
        return bool(used)

    def switch_back(self) -> None:
        """As it was. Idempotent."""
        for family in self.off:
            switch_back(SWITCHES[family], "0")
        for name in self.hears:
            switch_back(f"ipv6/conf/{name}/accept_ra", "1")
        self.off, self.hears = {}, set()


def recalled(items: Collection[dict[str, Any]]) -> tuple[dict[int, int], set[str]]:
    """Families and interfaces that the objects of a table (`nft -j`) name."""
    names = [item["chain"]["name"].removeprefix(OFF) for item in items
             if "chain" in item and item["chain"]["name"].startswith(OFF)]  # fmt: skip
    off = {int(family): int(before or 0) for family, _, before in (name.partition("_beside_") for name in names)}
    sets = [item["set"] for item in items if "set" in item and item["set"]["name"] == "hears"]
    return off, {str(name) for one in sets for name in one.get("elem", [])}


def others(items: Collection[dict[str, Any]]) -> dict[int, int]:
    """How many chains and rules the ruleset (`nft -j`) has about packets that pass through, but for ours; by family."""
    chains = [item["chain"] for item in items if item.get("chain", {}).get("hook") == "forward"]
    theirs = {(one["family"], one["table"], one["name"]) for one in chains if one["table"] not in (HOME, VISIT)}
    rules = [item["rule"] for item in items if "rule" in item]
    found = [*theirs, *(place for one in rules if (place := (one["family"], one["table"], one["chain"])) in theirs)]
    return {family: sum(family in _FAMILIES.get(one[0], ()) for one in found) for family in SWITCHES}


async def _others_now() -> dict[int, int]:
    text = await attempt("nft", "-j", "-t", "list", "ruleset")
    found = others(json.loads(text)["nftables"] if text else [])
    return {family: count + _legacy(family) for family, count in found.items()}


def _legacy(family: int) -> int:
    """How many tables the older iptables uses."""
    try:
        return len(_LEGACY[family].read_text().split())
    except OSError:
        return 0


def lock() -> socket.socket:
    """Of whoever passes visitors' packets on; see `only_one`."""
    return only_one("tunnelgw-packets", "lets visitors' packets in")


async def take_back() -> None:
    """Undo what a process left that was killed while it passed packets on. Silent where there is nothing, or no right
    to undo it, or where somebody else of us is at it."""
    if not (may_set_up() and is_there(HOME)):
        return
    try:
        one = lock()
    except LocalError:
        return
    try:
        forwarding = Forwarding()
        await forwarding.recall()
        forwarding.switch_back()
        await nft(removed(HOME))
        log.info("removed the rules of a process that was killed while it let visitors' packets in")
    except TunnelgwError as error:
        log.warning("the rules of a process that was killed stay: %s", error.text)
    finally:
        one.close()


def is_there(table: str) -> bool:
    """Whether nftables has this table; asked without a program, since every start asks. False without the right."""
    name = table.encode() + b"\0"
    attribute = struct.pack("=HH", 4 + len(name), 1) + name + bytes(-len(name) % 4)  # NFTA_TABLE_NAME
    body = struct.pack("=BBH", 1, 0, 0) + attribute  # nfgenmsg: NFPROTO_INET
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
            sock.setblocking(False)  # the kernel answers within the call that asks
            sock.send(struct.pack("=IHHII", 16 + len(body), _GET_TABLE, _REQUEST, 1, 0) + body)
            answer = sock.recv(4096)
    except OSError:  # no netlink here, or a kernel without nftables
        return False
    kind = struct.unpack_from("=H", answer, 4)[0]
    return bool(kind == _GET_TABLE & ~0xFF)  # NFT_MSG_NEWTABLE; else an error
