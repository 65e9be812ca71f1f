"""Which public address leads to which service of which connector.

A host is looked up in one dict, exact before wildcard (exactly one label), and the host that was found decides alone.
The paths of a host are few, sorted longest first and matched by whole segments. A port is raw, or it is shared by the
hosts of one protocol, which are looked up likewise. A host and a port are held by one connector, or by several whose
routes agree in everything that a visitor could notice (a `group`): then look-ups find one route with `members`. A
connector's routes are swapped as a whole, at the cost of the places they are at.
What must never break: the router and the target see the same path, and a held address never changes hands silently.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tunnelgw.errors import Refused, RemoteError
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.hostname import wildcard_of
from tunnelgw.routing.members import Members
from tunnelgw.routing.paths import careful, doubtful, eager, normalise_path, without_segments
from tunnelgw.routing.units import HostAt, PortUnit, Unit, port_unit, unit_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunnelgw.obs.counters import RouteCounters
    from tunnelgw.routing.members import Roster


Place = PortUnit | HostAt | tuple[str, bytes]  # a unit, but of a host on 443 one path as it is matched


@dataclass(frozen=True, slots=True)
class Route:
    """A public address and where it leads."""

    kind: str  # "http", "h2c", "tcp", "udp", "tls" (passed through), "home" (likewise, to a connector that ends TLS)
    host: str  # "a.example.com" or "*.example.com", normalised; "" for a raw port
    connector: str
    service: str
    counters: RouteCounters
    path: str = "/"
    strip_path: bool = False
    plain_http: bool = False
    response_seconds: float = 60.0
    allow_from: tuple[str, ...] = ()
    users: tuple[str, ...] = field(default=(), repr=False)  # "name:bcrypt hash" each; empty: nobody is asked
    label: str = ""  # the metric label: configured host and path, "tcp:PORT", "udp:PORT" or "tcp:PORT/HOST"
    port: int = 0
    protocol: str = ""  # by which visitors of this port say the host; "": the port is raw
    since: float = 0.0  # unix time
    group: str = ""  # connectors that name the same one may serve the route together
    priority: int = 0
    affinity: str = ""  # "cookie", "address" or ""
    token: str = field(default="", repr=False)  # of this member, in the cookie
    # Where the route has a group: who serves it. None in a connector's own route, which is what a stream is opened for.
    members: Members | None = field(default=None, compare=False, repr=False)

    @property
    def place(self) -> Place:
        """What of the address space it takes."""
        unit = self.unit
        return (unit, _prefix(self)) if isinstance(unit, str) else unit

    @property
    def port_unit(self) -> PortUnit:
        """The public port that it is at; 0 for a host on 443."""
        return port_unit(self.kind, self.port)

    @property
    def unit(self) -> Unit:
        """What of the address space is held as a whole."""
        return HostAt(self.port, self.host) if self.protocol else self.port_unit or self.host

    @property
    def terms(self) -> tuple[object, ...]:
        """What all members of a group must agree on; () for a route without one, which shares with nobody."""
        if not self.group:
            return ()
        return (
            self.group, self.service, self.kind, self.protocol, self.strip_path, self.plain_http, self.response_seconds,
            self.allow_from, self.users, self.affinity,
        )  # fmt: skip


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
    """All routes of one edge. `reserved`: the edge's own names, which nobody can hold and no wildcard covers.

    `roster`: what is known of connectors; without one no route can have a group.
    """

    __slots__ = ("_by_connector", "_held", "_hosts", "_members", "_named", "_ports", "_reserved", "_roster")

    def __init__(self, *, reserved: Iterable[str] = (), roster: Roster | None = None) -> None:
        self._hosts: dict[str, _Host] = {}
        self._ports: dict[PortUnit, Route] = {}
        self._named: dict[int, dict[str, Route]] = {}  # port → host → route
        self._held: dict[Unit, dict[str, list[Route]]] = {}  # unit → connector → its routes there
        self._by_connector: dict[str, tuple[Route, ...]] = {}
        self._members: dict[Place, Members] = {}
        self._reserved = frozenset(reserved)
        self._roster = roster

    def replace(self, connector: str, routes: Iterable[Route]) -> None:
        """Swap one connector's whole set; `Refused(CLAIM_HELD)` and no change if another holds any of it."""
        wanted = tuple(routes)
        by_unit = self._checked(connector, wanted)
        touched = dict.fromkeys(old.unit for old in self._by_connector.pop(connector, ()))
        for unit in touched:
            del self._held[unit][connector]
        for unit, own in by_unit.items():
            self._held.setdefault(unit, {})[connector] = own
        if wanted:
            self._by_connector[connector] = wanted
        for unit in {**touched, **by_unit}:
            self._build(unit)

    def _build(self, unit: Unit) -> None:
        """Make the look-ups of one unit anew."""
        held = self._held[unit]
        places: dict[Place, list[Route]] = {}
        for own in held.values():
            for route in own:
                places.setdefault(route.place, []).append(route)
        before = self._hosts[unit].routes if isinstance(unit, str) and unit in self._hosts else ()
        for place in [route.place for route in before] if isinstance(unit, str) else [unit]:
            if place not in places:
                self._disband(place)
        routes = tuple(self._visible(place, own) for place, own in places.items())
        if not routes:
            del self._held[unit]
        if isinstance(unit, str):
            self._hosts.pop(unit, None)
            if routes:
                self._hosts[unit] = _Host(unit, routes)
        elif isinstance(unit, HostAt):
            self._build_named(*unit, routes)
        else:
            self._ports.pop(unit, None)
            if routes:
                self._ports[unit] = routes[0]

    def _build_named(self, port: int, host: str, routes: tuple[Route, ...]) -> None:
        hosts = self._named.setdefault(port, {})
        hosts.pop(host, None)
        if routes:
            hosts[host] = routes[0]
        if not hosts:
            del self._named[port]

    def _visible(self, place: Place, own: list[Route]) -> Route:
        """What a look-up finds: a connector's own route, or that of a group with its members."""
        first = own[0]
        if not first.group or self._roster is None:
            self._disband(place)
            return first
        members = self._members.get(place)
        if members is None:
            members = self._members[place] = Members(self._roster)
        members.replace(own)
        return replace(members.routes[0], members=members, token="")

    def _disband(self, place: Place) -> None:
        """No group has it any more: whoever waits for one of its members waits for nobody."""
        members = self._members.pop(place, None)
        if members is not None:
            members.replace(())

    def _checked(self, connector: str, wanted: tuple[Route, ...]) -> dict[Unit, list[Route]]:
        by_unit: dict[Unit, list[Route]] = {}
        for route in wanted:
            if route.host in self._reserved:
                raise Refused(f"{route.host} is held by the edge", reason=Reason.CLAIM_HELD)
            own = by_unit.setdefault(route.unit, [])
            for other in own:
                shared = not route.port and sharing(other.kind) == sharing(route.kind) != ""
                if not shared or other.place == route.place:
                    address = unit_text(route.unit) + (route.path if shared else "")
                    raise Refused(f"{address} is held by service {other.service}", reason=Reason.CLAIM_HELD)
            own.append(route)
        for unit, own in by_unit.items():
            for holder, theirs in self._held.get(unit, {}).items():
                if holder != connector and not may_share(own, theirs):
                    raise Refused(f"{unit_text(unit)} is held by {holder}", reason=Reason.CLAIM_HELD)
        self._check_uses(connector, wanted)
        return by_unit

    def _check_uses(self, connector: str, wanted: tuple[Route, ...]) -> None:
        """A port is raw, or it is for one protocol, whoever holds it."""
        uses: dict[int, str] = {}
        for route in wanted:
            port = route.port_unit
            if not isinstance(port, int) or not port:
                continue
            raw = any(holder != connector for holder in self._held.get(port, ()))
            named = {
                other.protocol
                for host, other in self._named.get(port, {}).items()
                if any(holder != connector for holder in self._held[HostAt(port, host)])
            }
            if {uses.setdefault(port, route.protocol), *named, *([""] if raw else [])} != {route.protocol}:
                raise Refused(f"port {port} is used otherwise", reason=Reason.CLAIM_HELD)

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

    def find_udp(self, port: int) -> Route | None:
        """The route of a UDP port."""
        return self._ports.get(("udp", port))

    def protocol(self, port: int) -> str:
        """By which protocol visitors of this port say their host; "" where none shares it."""
        return next((route.protocol for route in self._named.get(port, {}).values()), "")

    def find_named(self, port: int, host: str) -> Route | None:
        """The route of a host on a port that hosts share, exact before wildcard."""
        hosts = self._named.get(port, {})
        found = hosts.get(host)
        return hosts.get(wildcard_of(host)) if found is None and host not in self._reserved else found

    def named(self, host: str) -> list[Route]:
        """The routes of this very host on ports that hosts share."""
        return [hosts[host] for hosts in self._named.values() if host in hosts]

    def find_alone(self, port: int) -> Route | None:
        """The route of a port that hosts could share, if there is only one."""
        hosts = self._named.get(port, {})
        return next(iter(hosts.values())) if len(hosts) == 1 else None

    def hosts(self) -> list[str]:
        """Every host and wildcard that is held, on 443."""
        return list(self._hosts)

    def ports(self) -> list[PortUnit]:
        """Every raw port that is held."""
        return list(self._ports)

    def visible(self) -> list[Route]:
        """Every route as look-ups find it: one for each place."""
        by_host = (route for host in self._hosts.values() for route in host.routes)
        return [*by_host, *self._ports.values(), *(route for hosts in self._named.values() for route in hosts.values())]

    def routes(self) -> list[Route]:
        """Every connector's own routes."""
        return [route for routes in self._by_connector.values() for route in routes]

    def routes_of(self, connector: str) -> tuple[Route, ...]:
        """One connector's routes."""
        return self._by_connector.get(connector, ())

    def holders(self, unit: Unit) -> tuple[str, ...]:
        """The connectors that hold this very host, with every path of it, or this port, with every host on it."""
        names = dict.fromkeys(self._held.get(unit, ()))
        if isinstance(unit, int):
            for host in self._named.get(unit, ()):
                names |= dict.fromkeys(self._held[HostAt(unit, host)])
        return tuple(names)


def may_share(own: Iterable[Route], theirs: Iterable[Route]) -> bool:
    """Whether two connectors may hold a host or port together: they meet at a place, and agree wherever they meet."""
    there = {route.place: route.terms for route in theirs}
    meetings = [(route.terms, there[route.place]) for route in own if route.place in there]
    return bool(meetings) and all(mine == others != () for mine, others in meetings)


def sharing(kind: str) -> str:
    """Where TLS ends for this kind of route; routes of one host that agree on it share it by path. "": never shared."""
    return {"http": "edge", "h2c": "edge", "home": "home"}.get(kind, "")


def target_path(route: Route, path: bytes) -> bytes:
    """The path that the target sees: without the route's segments where it says `strip_path`."""
    if not route.strip_path or route.path == "/" or path == b"*":
        return path
    return without_segments(path, route.path.rstrip("/").count("/"))
