"""The kernel passes packets on between interfaces only where it is told to: told here, and put back afterwards.

Forwarding of IPv6 has a price: the kernel then ignores routers' advertisements, by which most machines have their
routes, unless an interface is told to hear them all the same (accept_ra 2).

Invariant: only what we switched on is switched off again. What a killed process switched on is known from its nftables
table, which lives as long as the kernel's switches do.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tunnelgw.access.nftables import HOME, OFF
from tunnelgw.net.commands import SYSCTL, attempt, switch, switch_back

if TYPE_CHECKING:
    from collections.abc import Collection

SWITCHES = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}


class Forwarding:
    """What is to be put back: families that were off, interfaces that heard advertisements."""

    __slots__ = ("hears", "off")

    def __init__(self) -> None:
        self.off: set[int] = set()
        self.hears: set[str] = set()

    async def recall(self) -> None:
        """What a process before us left behind, if one did."""
        text = await attempt("nft", "-j", "list", "table", "inet", HOME)
        self.off, self.hears = recalled(json.loads(text)["nftables"] if text else [])

    def look(self, families: Collection[int]) -> None:
        """Note what will have to be switched on for these families; nothing is switched yet."""
        self.off |= {family for family in families if switch(SWITCHES[family]) == "0"}
        if 6 in self.off:
            names = [path.name for path in (SYSCTL / "ipv6/conf").iterdir() if path.name not in ("all", "lo")]
            self.hears |= {name for name in names if switch(f"ipv6/conf/{name}/accept_ra") == "1"}

    def switch_on(self) -> None:
        """`LocalError` where it may not."""
        for name in self.hears:
            switch(f"ipv6/conf/{name}/accept_ra", "2")
        for family in self.off:
            switch(SWITCHES[family], "1")

    def switch_back(self) -> None:
        """As it was. Idempotent."""
        for family in self.off:
            switch_back(SWITCHES[family], "0")
        for name in self.hears:
            switch_back(f"ipv6/conf/{name}/accept_ra", "1")
        self.off, self.hears = set(), set()


def recalled(items: Collection[dict[str, Any]]) -> tuple[set[int], set[str]]:
    """Families and interfaces that the objects of a table (`nft -j`) name."""
    chains = [item["chain"]["name"] for item in items if "chain" in item]
    off = {int(name.removeprefix(OFF)) for name in chains if name.startswith(OFF)}
    sets = [item["set"] for item in items if "set" in item and item["set"]["name"] == "hears"]
    return off, {str(name) for one in sets for name in one.get("elem", [])}
