"""Which connectors may hold one public address together: what their offers agree on, and what to tell who is refused.

Members of a group serve one route, so everything that the edge does for a visitor of it must be the same whoever
answers; above all who may come in. An offer that says otherwise is refused: the other members go on as they did.
Invariant: equal terms mean equal routes, but for the connector and its priority.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

import msgspec

from tunnelgw.access.addresses import normalise_network
from tunnelgw.access.grants import grant_command
from tunnelgw.identity.claims import TERMS, UNNAMED, USED, Wish
from tunnelgw.obs.log import clean
from tunnelgw.routing.units import HostAt, port_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunnelgw.access.grants import Grant
    from tunnelgw.identity.claims import Held
    from tunnelgw.routing.units import PortUnit
    from tunnelgw.wire.control import Offer

_TOKEN_DIGITS = 32  # of a member in a cookie: 128 bits
_encode = msgspec.json.Encoder().encode


def agreement(offer: Offer) -> dict[str, object]:
    """What all members of a group must say alike, by the key of connector.toml. The offer was checked."""
    protocol = {"protocol": offer.protocol} if offer.protocol else {}
    return protocol | {
        "target": offer.kind,  # only what the bytes are; where it is, nobody asks
        "tls": offer.tls,
        "strip_path": offer.strip_path,
        "plain_http": offer.plain_http,
        "response_seconds": offer.response_seconds,
        "allow_from": sorted(normalise_network(network) for network in offer.allow_from),
        "basic_auth_file": list(offer.users),
        "affinity": offer.affinity,
    }


def terms_of(offer: Offer) -> str:
    """As `Wish.terms`: the group, the service, and a digest of what its members agree on; "" without a group."""
    if not offer.group:
        return ""
    digest = hashlib.sha256(_encode(agreement(offer))).hexdigest()[:32]
    return f"{offer.group} {offer.name} {digest}"


def wish_for_host(grant: Grant, host: str, terms: str) -> Wish:
    """The claim of a host. A pattern that merely covers it does not name it: it was granted for what nobody has."""
    return Wish(terms, named=host in grant.hosts)


def wish_for_port(offer: Offer, grant: Grant, unit: PortUnit | HostAt, terms: str) -> Wish:
    """The claim of a port, which is named by naming it or the very range that is offered; of a host on it: both."""
    number = port_number(unit)
    ranges = [(low, high) for low, high in offer.ports if low <= number <= high]
    named = (number, number) in grant.ports or any(item in grant.ports for item in ranges)
    return Wish(terms, named=named and (not isinstance(unit, HostAt) or unit.host in grant.hosts))


def explain(what: str, held: Held, wish: Wish, offer: Offer, theirs: Offer | None, *, command: str) -> tuple[str, str]:
    """The text of a refusal, and the command that would allow the claim ("" where none does). `theirs`: if known.

    What the holder offers is told to those alone whose grant names the address: they are meant to share it.
    """
    known = theirs is not None and wish.named and offer.ports and held.why != TERMS and not offer.group
    holder = f"{held.holder}/{clean(theirs.name)}" if known and theirs is not None else f"connector {held.holder}"
    text = f"{what} is held by {holder}"
    if held.why == USED:
        ours = f"for {offer.protocol}" if offer.protocol else "raw"
        return f"{text} for another use than {ours}: use another port", ""
    if held.why == UNNAMED or (held.why == TERMS and not wish.named):
        return f"{text} in the same group; to share it, the grant must name it", command
    if held.why == TERMS:
        other = agreement(theirs) if theirs is not None else {}
        keys = [key for key, value in agreement(offer).items() if key in other and other[key] != value]
        about = f" about {', '.join(keys)}" if keys else ""
        return f"{text} in the same group, which says otherwise{about}: let all members say the same", ""
    if offer.group and theirs is not None and wish.named:
        other_group = f"in group {theirs.group}" if theirs.group else "without a group"
        text += f", {other_group} as service {theirs.name}; members of a group offer the same service"
    return text, f"tunnelgw edge revoke {held.holder}"


def host_command(name: str, grant: Grant, host: str, used: Sequence[str]) -> str:
    """What names this host in the grant. `used`: those that the connector has by the default rule, not to be lost."""
    return grant_command(name, grant, hosts=[*(() if grant.hosts else used), host])


def port_command(name: str, grant: Grant, offer: Offer, unit: PortUnit | HostAt) -> str:
    """What names this port in the grant: as the range in which it is offered; and the host on it."""
    number = port_number(unit)
    hosts = [unit.host] if isinstance(unit, HostAt) else []
    return grant_command(name, grant, hosts=hosts, ports=[item for item in offer.ports if item[0] <= number <= item[1]])


def token_of(secret: bytes, connector: str, label: str) -> str:
    """What a cookie calls this member of this route: nobody without the secret learns the connector's name from it."""
    return hmac.new(secret, f"{connector} {label}".encode(), hashlib.sha256).hexdigest()[:_TOKEN_DIGITS]
