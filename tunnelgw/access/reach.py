"""What a visitor may reach behind a connector or an exit: addresses and ports, decided for resolved addresses only.

Allowed is what the connector offers (`networks`) and the grant names too, or, where both sides say exit, every address
of the public internet. Never allowed, whoever grants it, is what means the machine itself or hands out its secrets:
loopback, link-local with the clouds' metadata addresses, multicast, broadcast, the connector's own addresses. The
connector's file alone can open one of those, by a network that lies within it: `0.0.0.0/0` opens none.

What must never break: an address inside another (mapped, NAT64, 6to4, Teredo and the like) is judged as both; a host
text is an address in its one spelling, or a name that nothing reads as an address (`0x7f.1`, `2130706433`).
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, NamedTuple

from tunnelgw.errors import Refused
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

ALL_PORTS = (1, 65535)
NAME_MAX = 253  # RFC 1035 section 2.3.4


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


# Where clouds hand credentials, or a machine's set-up, to whoever asks from the machine itself.
METADATA = _networks(
    *("169.254.169.254/32", "169.254.170.2/32", "169.254.170.23/32"),
    "100.100.100.200/32",  # Alibaba
    "192.0.0.192/32",  # Oracle
    "168.63.129.16/32",  # Azure's own agent, which answers with secrets
    *("fd00:ec2::254/128", "fd00:ec2::23/128", "fd20:ce::254/128"),  # Amazon and Google
)
# Never, unless the connector's file lists a network within: RFC 6890 and its successors, and the clouds' habits.
NEVER = (
    *_networks("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4"),
    *_networks("::/128", "::1/128", "fe80::/10", "fec0::/10", "ff00::/8"),
    *METADATA,
)
# Not the public internet: an exit leads to none of them. Networks for documentation are not here: nobody lives there.
PRIVATE = _networks(
    *("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15"),
)
PUBLIC6 = ipaddress.IPv6Network("2000::/3")  # all that IANA gives out; what leads inwards shows by what it carries
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052
LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")  # RFC 8215: whatever the operator's translator makes of it
TEREDO = ipaddress.IPv6Network("2001::/32")
SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")
COMPATIBLE = ipaddress.IPv6Network("::/96")  # RFC 4291 2.5.5.1, deprecated; some kernels still route it
TRANSLATED = ipaddress.IPv6Network("::ffff:0:0:0/96")  # RFC 2765
_ISATAP = (0x00005EFE, 0x02005EFE)  # RFC 5214: the middle of the interface identifier

_NAME = re.compile(r"(?:(?!-)[a-z0-9_-]{1,63}(?<!-)\.)*(?!-)[a-z0-9_-]{1,63}(?<!-)")
_ENDS_IN_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


class Rule(NamedTuple):
    """A network and ports of it; `network` None: every address."""

    network: Network | None
    first: int = ALL_PORTS[0]
    last: int = ALL_PORTS[1]

    def __str__(self) -> str:
        where = str(self.network) if self.network is not None else ""
        if (self.first, self.last) == ALL_PORTS:
            return where
        ports = f"{self.first}-{self.last}" if self.first != self.last else str(self.first)
        return f"[{where}]:{ports}" if self.network is not None and self.network.version == 6 else f"{where}:{ports}"

    def covers(self, address: Address, port: int) -> bool:
        """Whether this address and port are in it."""
        inside = self.network is None or (address.version == self.network.version and address in self.network)
        return inside and self.first <= port <= self.last


def parse_rule(text: str) -> Rule:
    """As in `192.168.1.0/24`, `192.168.1.5:22`, `[fd00::/64]:443`, `:5000-5010`; `ValueError` says what is wrong."""
    found = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", text.strip())
    if found is not None:
        where, ports = found[1], found[2]
    elif text.count(":") > 1:
        where, ports = text.strip(), None
    else:
        where, colon, rest = text.strip().partition(":")
        ports = rest if colon else None
    if not where and ports is None:
        raise ValueError('"" names neither a network nor a port')
    network = _network(where) if where else None
    if ports is None:
        return Rule(network)
    numbers = _PORTS.fullmatch(ports)
    if numbers is None:
        raise ValueError(f'"{ports[:20]}" is no port: write 22, or 5000-5010')
    first, last = int(numbers[1]), int(numbers[2] or numbers[1])
    if not 1 <= first <= last <= ALL_PORTS[1]:
        raise ValueError(f'"{ports}": ports are 1 to 65535, the lower one first')
    return Rule(network, first, last)


def _network(text: str) -> Network:
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        try:
            wide = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f'"{text[:50]}" is not a network; write for example "192.168.1.0/24"') from None
        raise ValueError(f'"{text[:50]}" has bits behind its mask; write "{wide}"') from None
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped and network.prefixlen >= 96:
        return ipaddress.IPv4Network((int(network.network_address.ipv4_mapped), network.prefixlen - 96))
    return network


def opened_by(rule: Rule) -> Network | None:
    """The part of `NEVER` that this rule of a connector opens, if it does."""
    network = rule.network
    for never in NEVER:
        if network is not None and network.version == never.version and network.subnet_of(never):  # type: ignore[arg-type]
            return never
    return None


def parse_host(text: str) -> Address | str:
    """An address, or a name in lower case without its final dot; `ValueError` for anything that is neither.

    Only the one spelling of an address is one: `inet_aton` and browsers read `0x7f.1` and `127.1` as loopback, a name
    that ends in a number is therefore no name either. A zone names an interface of some machine, and is refused.
    """
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if "%" in inner or not inner.isascii():
        raise ValueError("neither an address nor a host name")
    try:
        return ipaddress.ip_address(inner)
    except ValueError:
        pass
    name = inner.lower().removesuffix(".")
    if len(name) > NAME_MAX or _NAME.fullmatch(name) is None or _ENDS_IN_NUMBER.fullmatch(name) is not None:
        raise ValueError("neither an address nor a host name")
    return name


def carried(address: Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses that this one leads to or may lead to, by any way of writing one into another."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    number = int(address)
    last = ipaddress.IPv4Address(number & 0xFFFFFFFF)
    found: list[ipaddress.IPv4Address] = []
    if address.ipv4_mapped is not None or address in NAT64 or address in TRANSLATED or address in LOCAL_NAT64:
        found.append(last)
    if address in COMPATIBLE and number > 1:
        found.append(last)
    if address in SIX_TO_FOUR:
        found.append(ipaddress.IPv4Address(number >> 80 & 0xFFFFFFFF))
    if address in TEREDO:
        found += [ipaddress.IPv4Address(number >> 64 & 0xFFFFFFFF), ipaddress.IPv4Address(int(last) ^ 0xFFFFFFFF)]
    if number >> 32 & 0xFFFFFFFF in _ISATAP:
        found.append(last)
    return found


def is_public(address: Address) -> bool:
    """Whether this is a unicast address of the public internet, and every address that it carries is one."""
    if _in(address, NEVER) or _in(address, PRIVATE):
        return False
    if address.version == 6 and address not in PUBLIC6 and address not in NAT64:
        return False
    return all(is_public(inner) for inner in carried(address))


def is_metadata(text: str) -> bool:
    """Whether an address is in `METADATA`, by itself or by what it carries. `ValueError` for what is no address."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        address = ipaddress.IPv6Address(address.packed)  # without its zone
    return any(_in(inner, METADATA) for inner in (address, *carried(address)))


def _in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


class Policy:
    """What one visitor may reach from one place. `offered`: the connector's rules; `granted`: the grant's.

    `exit`: the place is an exit and the grant says so. Both lists may be empty.
    """

    __slots__ = ("_granted", "_listed", "_offered", "exit")

    def __init__(self, offered: Iterable[str], granted: Iterable[str], *, exit: bool = False) -> None:  # noqa: A002
        self._offered = tuple(map(parse_rule, offered))
        self._granted = tuple(map(parse_rule, granted))
        # What may open a part of NEVER, and an own address: named on purpose, so never the whole of a family.
        self._listed = tuple(rule for rule in self._offered if rule.network is not None and rule.network.prefixlen)
        self.exit = exit

    def check(
        self,
        address: Address,
        port: int,
        *,
        is_own: Callable[[Address], bool] = lambda _: False,
        is_near: Callable[[Address], bool] = lambda _: False,
    ) -> None:
        """`Refused(ADDRESS_REFUSED)` unless this resolved address and port may be reached.

        `is_own` says whether the machine would reach itself there, `is_near` whether a neighbour: with IPv6 a home's
        addresses are public, and an exit leads out, not into home.
        """
        if isinstance(address, ipaddress.IPv6Address):
            if address.scope_id is not None:
                raise _refused(f"{address} has a zone")
            address = address.ipv4_mapped or address  # to any socket they are the same
        if not 1 <= port <= ALL_PORTS[1]:
            raise _refused(f"port {port} does not exist")
        for inner in (address, *carried(address)):
            if _in(inner, NEVER) and not self._opens(inner, port):
                raise _refused(f"{address} is never reached for a visitor")
            if is_own(inner) and not any(rule.covers(inner, port) for rule in self._listed):
                raise _refused(f"{address} is this machine's own address, which is in none of its networks")
        offered = any(rule.covers(address, port) for rule in self._offered)
        if offered and any(rule.covers(address, port) for rule in self._granted):
            return
        if self.exit and is_public(address):
            if is_near(address):
                raise _refused(f"{address} is in a network of the exit's own, which is in none of its networks")
            return
        raise _refused(f"{address} port {port} is not among what is {'granted' if offered else 'offered'}")

    def passes(
        self,
        address: Address,
        *,
        whole: bool,
        is_own: Callable[[Address], bool] = lambda _: False,
        is_near: Callable[[Address], bool] = lambda _: False,
    ) -> bool:
        """Whether every port of this address may be reached (`whole`), or any: for what has no port."""
        rules = (*self._offered, *self._granted)
        ends = {port for rule in rules for port in (rule.first, rule.last, rule.first - 1, rule.last + 1)}
        ports = sorted(port for port in {*ALL_PORTS, *ends} if 1 <= port <= ALL_PORTS[1])  # each stretch has one
        return (all if whole else any)(self._passes(address, port, is_own, is_near) for port in ports)

    def _passes(
        self, address: Address, port: int, is_own: Callable[[Address], bool], is_near: Callable[[Address], bool]
    ) -> bool:
        try:
            self.check(address, port, is_own=is_own, is_near=is_near)
        except Refused:
            return False
        return True

    def networks(self) -> list[str]:
        """The networks of which something may be reached, for a person or a browser's settings; not a decision."""
        found = {
            str(_narrower(mine.network, theirs.network))
            for mine in self._offered
            for theirs in self._granted
            if _meet(mine.network, theirs.network) and not (mine.network is None and theirs.network is None)
        }
        return sorted(found)

    def _opens(self, address: Address, port: int) -> bool:
        return any(opened_by(rule) is not None and rule.covers(address, port) for rule in self._listed)


def _meet(one: Network | None, other: Network | None) -> bool:
    return one is None or other is None or (one.version == other.version and one.overlaps(other))


def _narrower(one: Network | None, other: Network | None) -> Network | None:
    if one is None or other is None:
        return other if one is None else one
    return one if one.prefixlen >= other.prefixlen else other


def _refused(text: str) -> Refused:
    return Refused(text, reason=Reason.ADDRESS_REFUSED)
