"""Which addresses the two ends of a TUN tunnel get: private ones that nobody near them uses.

A connector has a /24 and a /64, made from its name, so that they are the same after a restart and connections through
them go on. They are taken from 10.0.0.0/8 and not from 100.64.0.0/10: carriers give out addresses of the latter to
home routers and phones, and Tailscale drops what comes from there by another interface.

Pure. Invariant: an address is of one visitor at a time; the first of each pool is the connector's own.
"""

from __future__ import annotations

import hashlib
import ipaddress
from typing import TYPE_CHECKING

from tunnelgw.errors import Refused
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

POOL4 = ipaddress.IPv4Network("10.0.0.0/8")
POOL6_PREFIX = 0xFD7467  # a unique local prefix (RFC 4193): fd, then "tg"
TRIES = 256
COMMON = 64  # 10.0 to 10.63: where people, routers and clusters begin to count


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


class Pool:
    """The addresses of one connector and its visitors. `used`: networks that this machine has a route to."""

    __slots__ = ("gateway4", "gateway6", "network4", "network6", "_taken")

    def __init__(self, name: str, used: Iterable[str]) -> None:
        taken = [ipaddress.ip_network(text, strict=False) for text in used]
        for attempt in range(TRIES):
            number = _number(f"{name} {attempt}")
            second, third = COMMON + number % (256 - COMMON), number >> 8 & 255
            network4 = ipaddress.IPv4Network(f"10.{second}.{third}.0/24")
            if not any(isinstance(one, ipaddress.IPv4Network) and one.overlaps(network4) for one in taken):
                break
        else:
            raise Refused("every private network is in use on this machine", reason=Reason.PORT_UNAVAILABLE)
        self.network4 = network4
        self.network6 = ipaddress.IPv6Network((POOL6_PREFIX << 104 | (_number(name) & (1 << 40) - 1) << 64, 64))
        self.gateway4, self.gateway6 = network4[1], self.network6[1]
        self._taken: dict[int, str] = {}

    def take(self, visitor: str) -> tuple[ipaddress.IPv4Address, ipaddress.IPv6Address]:
        """The addresses of a visitor, where possible those that it had before. `Refused` when there are none left."""
        first = _number(visitor)
        for attempt in range(253):
            last = 2 + (first + attempt) % 253
            if self._taken.setdefault(last, visitor) == visitor:
                return self.network4[last], self.network6[last]
        raise Refused("too many visitors have a TUN interface open", reason=Reason.STREAM_LIMIT)

    def give_back(self, visitor: str) -> None:
        """The visitor is gone."""
        self._taken = {last: name for last, name in self._taken.items() if name != visitor}


def packed(addresses: Iterable[str]) -> list[bytes]:
    """Addresses as they are in packets; `ValueError`."""
    return [ipaddress.ip_address(text).packed for text in addresses]


def conflicts(networks: Iterable[str], local: Iterable[str]) -> list[str]:
    """Those of `networks` that overlap with one of `local`."""
    mine = [ipaddress.ip_network(text, strict=False) for text in local]
    found = []
    for text in networks:
        network = ipaddress.ip_network(text)
        if any(one.version == network.version and one.overlaps(network) for one in mine):
            found.append(text)
    return found


def of_version(networks: Collection[str], version: int) -> list[str]:
    """Networks and addresses of one family, what lies within another one left out."""
    parsed = [ipaddress.ip_network(text) for text in networks if (":" in text) == (version == 6)]
    return [str(one) for one in ipaddress.collapse_addresses(parsed)]  # type: ignore[type-var]
