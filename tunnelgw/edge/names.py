"""Which names are the edge's own, and for which visitors' TLS ends here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.routing.hostname import is_address
from tunnelgw.routing.protocols import PROTOCOLS

if TYPE_CHECKING:
    from tunnelgw.config.model import EdgeConfig
    from tunnelgw.routing.table import Route, RouteTable

_PASSED = ("tls", "home")  # kinds of routes whose TLS ends at home


def ended_hosts(table: RouteTable) -> set[str]:
    """Names whose TLS ends here; those that are passed through have their certificate at home."""
    return {route.host for route in table.routes() if route.host and _ends_here(route)}


def ends_here(table: RouteTable, host: str) -> bool:
    """Is there a route for this very host, a name or wildcard, whose TLS ends here?"""
    entry = table.find_name(host) if host else None
    if entry is not None and entry.host == host and entry.kind not in _PASSED:
        return True
    return any(_ends_here(route) for route in table.named(host))


def _ends_here(route: Route) -> bool:
    return route.kind not in _PASSED and (not route.protocol or PROTOCOLS[route.protocol].ends_tls)


def edge_names(config: EdgeConfig) -> frozenset[str]:
    """The edge's own names, which no connector may claim."""
    names = {f"edge.{config.domain}"}
    if not is_address(config.address.host):
        names.add(config.address.host)
    return frozenset(names)
