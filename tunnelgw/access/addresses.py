"""Networks and addresses: may this one come in, and who counts as one visitor.

An IPv4 address inside IPv6 (`::ffff:192.0.2.1`) is that IPv4 address everywhere, or a dual-stack socket would go round
every rule. What must never break: what is not an address is in no network.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address, IPv4 where it is mapped into IPv6, a zone dropped; `ValueError`."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def normalise_network(text: str) -> str:
    """The one spelling of a network or single address (`192.0.2.0/24`, `2001:db8::/32`); `ValueError`.

    Host bits must be zero: `192.168.1.7/16` is more often a mistake than meant.
    """
    network = ipaddress.ip_network(text.strip())
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped and network.prefixlen >= 96:
        return f"{network.network_address.ipv4_mapped}/{network.prefixlen - 96}"
    return str(network)


class Networks:
    """A set of networks; a look-up costs one dict per prefix length in use, however many networks there are."""

    __slots__ = ("_by_length",)

    def __init__(self, networks: Iterable[str]) -> None:
        by_length: dict[tuple[int, int], set[int]] = {}  # (version, bits to drop): network numbers
        for text in networks:
            network = ipaddress.ip_network(normalise_network(text))
            drop = network.max_prefixlen - network.prefixlen
            by_length.setdefault((network.version, drop), set()).add(int(network.network_address) >> drop)
        self._by_length = tuple((version, drop, numbers) for (version, drop), numbers in by_length.items())

    def __bool__(self) -> bool:
        return bool(self._by_length)

    def __contains__(self, address: str) -> bool:
        if not self._by_length:
            return False
        try:
            parsed = parse_address(address)
        except ValueError:
            return False
        version, number = parsed.version, int(parsed)
        return any(v == version and number >> drop in numbers for v, drop, numbers in self._by_length)


@lru_cache(maxsize=1024)
def networks_of(texts: tuple[str, ...]) -> Networks:
    """The set for a tuple of networks, as routes carry it in `allow_from`; built once."""
    return Networks(texts)


def allowed_from(allow_from: tuple[str, ...], address: str) -> bool:
    """Whether a route with this `allow_from` lets this address in; an empty list lets everybody in."""
    return not allow_from or address in networks_of(allow_from)


def address_key(address: str) -> str:
    """Who counts as one: an IPv4 address, or the /64 of an IPv6 address, which one household has to itself."""
    if ":" not in address:
        return address
    try:
        parsed = parse_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    return f"{ipaddress.IPv6Address(int(parsed) >> 64 << 64)}/64"
