"""Which public address leads to which service of which connector.

A host is looked up in one dict, exact before wildcard (exactly one label), and the host that was found decides alone.
The paths of a host are few, sorted longest first and matched by whole segments. A host and a port are held by one
connector; its routes are swapped as a whole, at the cost of its own routes and no other's.
What must never break: the router and the target see the same path, and a held address never changes hands silently.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tunnelgw.errors import Refused, RemoteError
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.hostname import wildcard_of
from tunnelgw.routing.paths import careful, doubtful, eager, normalise_path, without_segments

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunnelgw.obs.counters import RouteCounters


@dataclass(frozen=True, slots=True)
class Route:
    """A public address and where it leads."""

    kind: str  # "http", "h2c", "tls" (passed through), "home" (passed through to a connector that ends TLS), "tcp"
    host: str  # "a.example.com" or "*.example.com", normalised; "" for a port
    connector: str
    service: str
    counters: RouteCounters
    path: str = "/"
    strip_path: bool = False
    plain_http: bool = False
    response_seconds: float = 60.0
    allow_from: tuple[str, ...] = ()
    users: tuple[str, ...] = field(default=(), repr=False)  # "name:bcrypt hash" each; empty: nobody is asked
    label: str = ""  # the metric label: configured host and path, or "tcp:PORT"
    port: int = 0
    since: float = 0.0  # unix time


@dataclass(frozen=True, slots=True)
class NameEntry:
    """What a server name leads to, known before any HTTP: `route` is None for kind "http" (the path decides)."""

    kind: str  # "tls", "home", "tcp" or "http"
    host: str  # the name or wildcard of the table that matched
    route: Route | None


class _Host:
    """One host's routes; rebuilt, never changed."""

    __slots__ = ("entry", "only", "paths", "routes")

    def __init__(self, host: str, routes: tuple[Route, ...]) -> None:
        first = routes[0]
        terminated = first.kind in ("http", "h2c")
        self.routes = routes
        self.entry = NameEntry("http", host, None) if terminated else NameEntry(first.kind, host, first)
        # Longest first: (path, path and slash, route), escapes decoded.
        paths = sorted(((_prefix(route), route) for route in routes), key=lambda item: -len(item[0]))
        self.paths = tuple((prefix, prefix + b"/", route) for prefix, route in paths) if terminated else ()
        self.only = first if terminated and len(paths) == 1 and not paths[0][0] else None

    def match(self, path: bytes) -> Route | None:
        """The longest path that covers this one by whole segments."""
        for prefix, beneath, route in self.paths:
            if path.startswith(beneath) or path == prefix:
                return route
        return None


def _prefix(route: Route) -> bytes:
    return careful(normalise_path(route.path).encode("ascii")).rstrip(b"/")


class RouteTable:
    """All routes of one edge. `reserved`: the edge's own names, which nobody can hold and no wildcard covers."""

    __slots__ = ("_by_connector", "_hosts", "_ports", "_reserved")

    def __init__(self, *, reserved: Iterable[str] = ()) -> None:
        self._hosts: dict[str, _Host] = {}
        self._ports: dict[int, Route] = {}
        self._by_connector: dict[str, tuple[Route, ...]] = {}
        self._reserved = frozenset(reserved)

    def replace(self, connector: str, routes: Iterable[Route]) -> None:
        """Swap one connector's whole set; `Refused(CLAIM_HELD)` and no change if another holds any of it."""
        wanted = tuple(routes)
        by_host = self._checked(connector, wanted)
        built = {host: _Host(host, tuple(group)) for host, group in by_host.items()}
        for old in self._by_connector.pop(connector, ()):
            if old.port:
                del self._ports[old.port]
            else:
                self._hosts.pop(old.host, None)
        self._hosts.update(built)
        self._ports.update((route.port, route) for route in wanted if route.port)
        if wanted:
            self._by_connector[connector] = wanted

    def _checked(self, connector: str, wanted: tuple[Route, ...]) -> dict[str, list[Route]]:
        by_host: dict[str, list[Route]] = {}
        ports: set[int] = set()
        for route in wanted:
            if route.port:
                holder = self.port_holder(route.port)
                if route.port in ports or holder not in (None, connector):
                    raise Refused(f"port {route.port} is held by {holder or connector}", reason=Reason.CLAIM_HELD)
                ports.add(route.port)
                continue
            holder = self.holder(route.host, route.path)
            if holder not in (None, connector):
                raise Refused(f"{route.host} is held by {holder or 'the edge'}", reason=Reason.CLAIM_HELD)
            group = by_host.setdefault(route.host, [])
            for other in group:
                shared = sharing(other.kind) == sharing(route.kind) != ""
                if not shared or _prefix(other) == _prefix(route):
                    address = route.host + (route.path if shared else "")
                    raise Refused(f"{address} is held by service {other.service}", reason=Reason.CLAIM_HELD)
            group.append(route)
        return by_host

    def _host(self, host: str) -> _Host | None:
        found = self._hosts.get(host)
        if found is None and host not in self._reserved:
            found = self._hosts.get(wildcard_of(host))
        return found

    def find_http(self, host: str, path: bytes) -> Route | None:
        """The route for a request; `RemoteError` for a path that router and target could read differently."""
        found = self._hosts.get(host) or self._host(host)
        if found is None:
            return None
        if found.only is not None:
            return found.only
        plain = path.partition(b"?")[0]
        if plain == b"*":
            return found.match(b"")
        if not doubtful(plain):
            return found.match(plain)
        route = found.match(careful(plain))
        if route is not found.match(eager(plain)):
            raise RemoteError("the path could be read as another service's", reason=Reason.BAD_REQUEST)
        return route

    def find_name(self, host: str) -> NameEntry | None:
        """How a connection for this server name ends, exact before wildcard."""
        found = self._host(host)
        return None if found is None else found.entry

    def find_port(self, port: int) -> Route | None:
        """The route of a raw TCP port."""
        return self._ports.get(port)

    def hosts(self) -> list[str]:
        """Every host and wildcard that is held."""
        return list(self._hosts)

    def ports(self) -> list[int]:
        """Every raw TCP port that is held."""
        return list(self._ports)

    def routes(self) -> list[Route]:
        """Every route."""
        return [route for routes in self._by_connector.values() for route in routes]

    def routes_of(self, connector: str) -> tuple[Route, ...]:
        """One connector's routes."""
        return self._by_connector.get(connector, ())

    def holder(self, host: str, path: str = "/") -> str | None:  # noqa: ARG002 - a host is held with all its paths
        """The connector that holds this very host, with every path of it; "" for the edge's own names."""
        if host in self._reserved:
            return ""
        found = self._hosts.get(host)
        return None if found is None else found.routes[0].connector

    def port_holder(self, port: int) -> str | None:
        """The connector that holds this raw TCP port."""
        route = self._ports.get(port)
        return None if route is None else route.connector


def sharing(kind: str) -> str:
    """Where TLS ends for this kind of route; routes of one host that agree on it share it by path. "": never shared."""
    return {"http": "edge", "h2c": "edge", "home": "home"}.get(kind, "")


def target_path(route: Route, path: bytes) -> bytes:
    """The path that the target sees: without the route's segments where it says `strip_path`."""
    if not route.strip_path or route.path == "/" or path == b"*":
        return path
    return without_segments(path, route.path.rstrip("/").count("/"))
