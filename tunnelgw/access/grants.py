"""What a connector may claim: hosts and ports. Decisions only; who holds what is the routing table's knowledge.

Without `hosts`, a connector may claim `<service>.<domain>` for each of its services and no other name; without `ports`
no port. Naming hosts or ports replaces that.
What must never break: nobody is ever granted the edge's own name, and a wildcard is claimed only where that very
wildcard was granted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunnelgw.errors import Refused
from tunnelgw.routing.hostname import matches

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

Range = tuple[int, int]  # inclusive

ANY_HOST = "*"  # as a grant's pattern: every name and every wildcard


@dataclass(frozen=True, slots=True)
class Grant:
    """What one identity may do; () means the default of that kind."""

    hosts: tuple[str, ...] = ()  # names, wildcards (exactly one label) or ANY_HOST; normalised
    ports: tuple[Range, ...] = ()
    services: tuple[str, ...] = ()  # of others, "service" or "connector/service": what a visitor may reach
    networks: tuple[str, ...] = ()  # behind connectors: what a visitor may reach
    exits: tuple[str, ...] = ()  # connectors, or "edge", that a visitor may leave through


def check_host(grant: Grant, host: str, *, service: str, domain: str, edge_names: Collection[str]) -> None:
    """`Refused(CLAIM_NOT_GRANTED)` unless the grant covers this normalised host or wildcard for this service."""
    if host in edge_names:
        raise Refused(f"{host} is the edge's own name")
    if grant.hosts:
        if not any(pattern in (ANY_HOST, host) or matches(pattern, host) for pattern in grant.hosts):
            raise Refused(f"{host} is not among the granted hosts ({', '.join(grant.hosts)})")
    elif not domain or host != f"{service.lower()}.{domain}":
        raise Refused(f"{host} is not granted; without a grant only {service.lower()}.{domain} is")


def check_ports(grant: Grant, ports: Range) -> None:
    """`Refused(CLAIM_NOT_GRANTED)` unless the grant covers every port of this inclusive range."""
    first, last = ports
    missing: list[Range] = []
    needed = first
    for low, high in sorted(grant.ports):
        if low > last:
            break
        if low > needed:
            missing.append((needed, low - 1))
        needed = max(needed, high + 1)
    if needed <= last or last < first:
        missing.append((needed, last))
    if missing:
        lacking = ", ".join(map(port_text, missing))
        of = "" if missing == [ports] else f" of the range {port_text(ports)}"
        raise Refused(f"port {lacking}{of} is not granted")


def may_visit(grant: Grant, *, connector: str, service: str) -> bool:
    """Whether this service of this connector was granted by name."""
    return service in grant.services or f"{connector}/{service}" in grant.services


def port_text(ports: Range) -> str:
    """A range as commands take it: `2222` or `30000-30100`."""
    first, last = ports
    return str(first) if first == last else f"{first}-{last}"


def ranges_of(ports: Iterable[int]) -> list[Range]:
    """Ports as the fewest ranges, in order."""
    found: list[Range] = []
    for port in sorted(set(ports)):
        if found and found[-1][1] == port - 1:
            found[-1] = (found[-1][0], port)
        else:
            found.append((port, port))
    return found


def grant_command(connector: str, grant: Grant, *, hosts: Iterable[str] = (), ports: Iterable[Range] = ()) -> str:
    """The command that would allow these as well.

    A grant replaces what it names, so what is granted already is named again. For a connector under the default rule
    give every host that it uses, or it would lose the others.
    """
    words = ["tunnelgw", "edge", "grant", connector]
    new_hosts, new_ports = list(hosts), list(ports)
    if new_hosts:
        for host in dict.fromkeys((*grant.hosts, *new_hosts)):
            words += ["--allow-host", f"'{host}'" if "*" in host else host]
    if new_ports:
        for item in dict.fromkeys((*grant.ports, *new_ports)):
            words += ["--allow-port", port_text(item)]
    return " ".join(words)
