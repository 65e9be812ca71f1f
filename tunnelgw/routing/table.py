"""Which public address leads to which service of which connector.

A host is looked up in one dict, exact before wildcard (exactly one label); the paths of that host are few, sorted
longest first and matched by whole segments. A connector's routes are swapped as a whole.
What must never break: the router and the target see the same path, and a held address never changes hands silently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunnelgw.obs.counters import RouteCounters


@dataclass(frozen=True, slots=True)
class Route:
    """A public address and where it leads."""

    kind: str  # "http", "h2c", "tls" (passed through), "tcp"
    host: str  # "a.example.com" or "*.example.com", normalised; "" for a port
    connector: str
    service: str
    counters: RouteCounters
    path: str = "/"
    strip_path: bool = False
    plain_http: bool = False
    response_seconds: float = 60.0
    allow_from: tuple[str, ...] = ()
    label: str = ""  # the metric label: configured host and path, or "tcp:PORT"
    port: int = 0
    since: float = 0.0  # unix time


@dataclass(frozen=True, slots=True)
class NameEntry:
    """What a server name leads to, known before any HTTP: `route` is None for kind "http" (the path decides)."""

    kind: str  # "tls", "tcp" or "http"
    host: str  # the name or wildcard of the table that matched
    route: Route | None


class RouteTable:
    """All routes of one edge."""

    def replace(self, connector: str, routes: Iterable[Route]) -> None:
        """Swap one connector's whole set; `Refused(CLAIM_HELD)` and no change if another holds any of it."""
        raise NotImplementedError

    def find_http(self, host: str, path: bytes) -> Route | None:
        """The route for a request; `RemoteError` for a path that router and target could read differently."""
        raise NotImplementedError

    def find_name(self, host: str) -> NameEntry | None:
        """How a connection for this server name ends, exact before wildcard."""
        raise NotImplementedError

    def find_port(self, port: int) -> Route | None:
        """The route of a raw TCP port."""
        raise NotImplementedError

    def hosts(self) -> list[str]:
        """Every host and wildcard."""
        raise NotImplementedError

    def routes_of(self, connector: str) -> tuple[Route, ...]:
        """One connector's routes."""
        raise NotImplementedError

    def holder(self, host: str, path: str) -> str | None:
        """The connector that holds this very address."""
        raise NotImplementedError


def strip(route: Route, path: bytes) -> bytes:
    """The path that the target sees: without the route's segments where it says `strip_path`."""
    raise NotImplementedError
