"""What the edge's operator can ask for: one implementation for the running edge and for commands on its state.

`EdgeDesk.answer` takes the requests of the control socket. A running edge gives it a `Live`, through which a change
reaches tunnels at once; without an edge the same desk works on the store alone, with `Offline`.

Requests: {"command": "invite", "name", "role", "ttl": seconds, "allow": {"hosts", "ports", "services", "networks",
"exits": lists of text as typed}}; {"command": "grant", "name", "allow"}; {"command": "revoke", "name"};
{"command": "rotate-ca", "overlap": seconds}; {"command": "status"}; {"command": "reload"};
{"command": "certificate"} with what certificates.py says.

Invariant: what an operator typed is checked here, before anything is stored; secrets leave only as the invitation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tunnelgw import __version__
from tunnelgw.access.grants import ANY_HOST, Grant, port_text
from tunnelgw.admin import certificates
from tunnelgw.config.names import Bad, host_name, port_range, reach_rule, service_name
from tunnelgw.errors import LocalError
from tunnelgw.identity.records import CONNECTOR, VISITOR
from tunnelgw.identity.rotation import SHORTEST_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.admin.shapes import (
        ConnectorState,
        EdgeStatus,
        PrivateService,
        PublicAddress,
        RefusedService,
        VisitorState,
    )
    from tunnelgw.config.model import EdgeConfig
    from tunnelgw.identity.records import Connector
    from tunnelgw.identity.registry import Registry

T = TypeVar("T")

# A pattern for each of a few hundred names is already generous, and keeps a request within its line.
_MAX_ITEMS = 256
# Longer than any sensible delivery of a secret: a year.
_MAX_TTL = 366 * 86400.0
# Both steps of a change of the authority end well before the new one does.
_MAX_OVERLAP = 730 * 86400.0


# Which --allow options a role can have.
_CONNECTORS = {"hosts": "--allow-host", "ports": "--allow-port"}
_VISITORS = {"services": "--allow-service", "networks": "--allow-network", "exits": "--allow-exit"}


class Live(Protocol):
    """What only the running edge knows, and who passes changes on to tunnels."""

    running: bool

    def addresses(self) -> list[PublicAddress]:
        """Every public address with its service."""

    def connector(self, name: str) -> dict[str, Any]:
        """`state`, `since`, `tunnels`, `rtt` and `address` of a connector; empty if it was never seen."""

    def visitor(self, name: str) -> dict[str, Any]:
        """The same of a visitor, with `streams`."""

    def private(self) -> list[PrivateService]:
        """Every private service."""

    def refused(self) -> list[RefusedService]:
        """Every service that is not served, or only in part."""

    async def grant_changed(self, name: str) -> None:
        """Decide again about everything that this connector claims."""

    async def revoked(self, name: str) -> None:
        """Cut its live tunnel."""

    async def rotate(self, seconds: int) -> None:
        """As `Registry.rotate_authority`; in a child where an edge would keep the library for it."""

    def hosts(self) -> set[str]:
        """Hosts of routes whose TLS ends at the edge."""

    async def certificates_changed(self) -> None:
        """Look at the certificates again."""

    async def reload(self) -> list[str]:
        """Read the configuration again; what changed. ConfigError if the file is not usable."""


def _address_of(claim: str) -> str:
    """What a claim is of, as far as the store knows it."""
    kind, _, what = claim.partition(":")
    if kind == "name":
        port, protocol, host = what.split(":")
        return f"{protocol}://{host}:{port}"
    return f"https://{what}" if kind == "host" else f"tcp port {what}"


class Offline:
    """No edge runs: nothing is up, and the next start reads the store anyway."""

    running = False

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def addresses(self) -> list[PublicAddress]:
        """What connectors hold, while nobody serves it."""
        return [
            {
                "address": _address_of(claim),
                "service": "",
                "connector": holder,
                "state": "away",
                "since": 0.0,
                "certificate_expiry": 0.0,
                "certificate_problem": "",
                "tls": "",
                "group": "",
                "priority": 0,
                "health": "",
            }
            for claim, holders in sorted(self._registry.claims().items())
            for holder in holders
        ]

    def connector(self, name: str) -> dict[str, Any]:  # noqa: ARG002 - nobody of any name is seen
        """Nothing."""
        return {}

    def visitor(self, name: str) -> dict[str, Any]:  # noqa: ARG002 - as `connector`
        """Nothing."""
        return {}

    def private(self) -> list[PrivateService]:
        """Nothing is offered."""
        return []

    def refused(self) -> list[RefusedService]:
        """As `private`."""
        return []

    async def grant_changed(self, name: str) -> None:
        """Nobody to tell."""

    async def revoked(self, name: str) -> None:
        """Nobody to tell."""

    async def rotate(self, seconds: int) -> None:
        """In this process, which ends soon."""
        self._registry.rotate_authority(seconds)

    def hosts(self) -> set[str]:
        """Nothing is served."""
        return set()

    async def certificates_changed(self) -> None:
        """Nobody to tell."""

    async def reload(self) -> list[str]:
        """Nothing to reload."""
        return []


class EdgeDesk:
    """Answers control requests for one edge. `config` is asked for anew each time, since it can be reloaded."""

    def __init__(self, *, registry: Registry, config: Callable[[], EdgeConfig], live: Live) -> None:
        self._registry = registry
        self._config = config
        self._live = live
        self._commands = {
            "invite": self._invite,
            "grant": self._grant,
            "revoke": self._revoke,
            "rotate-ca": self._rotate,
            "status": self._status,
            "reload": self._reload,
            "certificate": self._certificate,
        }

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The response to one request. LocalError for what cannot be done."""
        command = self._commands.get(request.get("command", ""))
        if command is None:
            raise LocalError(f"the edge does not know the command {request.get('command')!r}", exit_code=2)
        return await command(request)

    async def _invite(self, request: dict[str, Any]) -> dict[str, Any]:
        name, role = _text(request, "name"), _text(request, "role")
        ttl = request.get("ttl")
        if not isinstance(ttl, int | float) or not 0 < ttl <= _MAX_TTL:
            raise LocalError("--ttl must be between a second and 366 days", exit_code=2)
        known = self._registry.get(name)
        if known is not None and not known.revoked and known.role != role:
            text = f"{name} has joined as a {known.role}: revoke it first, or take another name for the {role}"
            raise LocalError(text, exit_code=2)
        address = str(self._config().address)
        grant = fitting(parse_allow(request), name, role)
        made = self._registry.invite(name, address=address, role=role, grant=grant, ttl=float(ttl))
        messages = [f"invitation for {name} ({role}) to {address}, for one use within {_span(ttl)}"]
        if known is not None and not known.revoked:
            messages.append(f"{name} has joined already: its key is replaced when this is used")
        if role == VISITOR and grant == Grant():
            messages.append("it may reach nothing yet: allow something with --allow-service, or edge grant")
        where = "on the visiting machine" if role == VISITOR else "at home"
        messages.append(f"{where}, run: tunnelgw join INVITATION")
        return {"invitation": made.encode(), "messages": messages}

    async def _grant(self, request: dict[str, Any]) -> dict[str, Any]:
        name, grant = _text(request, "name"), parse_allow(request)
        if grant == Grant():
            raise LocalError("name what to grant, for example with --allow-host or --allow-service", exit_code=2)
        known = self._registry.get(name)
        if known is not None:
            fitting(grant, name, known.role)
        connector = self._registry.set_grant(name, grant)
        await self._live.grant_changed(name)
        if connector.role == VISITOR:
            return {"messages": [f"{name} may now reach: {reach(connector.grant)}"]}
        return {"messages": [f"{name} may now claim: {describe(connector.grant, self._config().domain)}"]}

    async def _revoke(self, request: dict[str, Any]) -> dict[str, Any]:
        name = _text(request, "name")
        changed = self._registry.revoke(name)
        await self._live.revoked(name)
        if not changed:
            return {"messages": [f"{name} was revoked before"]}
        cut = "its tunnel is cut, and " if self._live.running else ""
        return {"messages": [f"{name} is revoked: {cut}it needs a new invitation to come back"]}

    async def _rotate(self, request: dict[str, Any]) -> dict[str, Any]:
        overlap = request.get("overlap")
        if not isinstance(overlap, int | float) or not SHORTEST_SECONDS <= overlap <= _MAX_OVERLAP:
            raise LocalError("--overlap must be between a minute and two years", exit_code=2)
        await self._live.rotate(int(overlap))
        made = f"a new authority for tunnels was made: {self._registry.authority_state()['text']}"
        rest = f"a connector that stays away until then needs a new invitation; after {_span(overlap)} more the old "
        return {"messages": [made, rest + "authority is trusted no more"]}

    async def _reload(self, _request: dict[str, Any]) -> dict[str, Any]:
        return {"messages": await self._live.reload()}

    async def _certificate(self, request: dict[str, Any]) -> dict[str, Any]:
        return await certificates.answer(request, self._config(), self._live)

    async def _status(self, _request: dict[str, Any]) -> dict[str, Any]:
        config = self._config()
        status: EdgeStatus = {
            "running": self._live.running,
            "version": __version__,
            "domain": config.domain,
            "address": str(config.address),
            "authority": self._registry.authority_state(),
            "addresses": self._live.addresses(),
            "private_services": self._live.private(),
            "refused_services": self._live.refused(),
            "connectors": [self._connector(known) for known in self._registry.connectors() if known.role == CONNECTOR],
            "visitors": [self._visitor(known) for known in self._registry.connectors() if known.role == VISITOR],
            "invitations": [
                {"name": pending.name, "role": pending.role, "expires": pending.expires}
                for pending in self._registry.invitations()
            ],
        }
        return {"status": status}

    def _connector(self, known: Connector) -> ConnectorState:
        return self._state(known, self._live.connector(known.name))

    def _visitor(self, known: Connector) -> VisitorState:
        live = self._live.visitor(known.name)
        return {**self._state(known, live), "streams": live.get("streams", 0)}

    def _state(self, known: Connector, live: dict[str, Any]) -> ConnectorState:
        grant = known.grant
        named = {
            "hosts": grant.hosts,
            "ports": [port_text(ports) for ports in grant.ports],
            "services": grant.services,
            "networks": grant.networks,
            "exits": grant.exits,
        }
        return {
            "name": known.name,
            "role": known.role,
            "state": "revoked" if known.revoked else live.get("state", "away"),
            "since": live.get("since", 0.0),
            "tunnels": live.get("tunnels", 0),
            "rtt": live.get("rtt", 0.0),
            "address": live.get("address", ""),
            "certificate_expiry": float(known.expires),
            "grant": {kind: list(items) for kind, items in named.items() if items},
        }


def parse_allow(request: dict[str, Any]) -> Grant:
    """The grant that the --allow options name. LocalError (exit 2) names the option that is wrong."""
    given = request.get("allow") or {}
    return Grant(
        hosts=_parse(given, "hosts", "--allow-host", _host),
        ports=tuple((item.first, item.last) for item in _parse(given, "ports", "--allow-port", port_range)),
        services=_parse(given, "services", "--allow-service", _service),
        networks=_parse(given, "networks", "--allow-network", reach_rule),
        exits=_parse(given, "exits", "--allow-exit", service_name),
    )


def _parse(given: dict[str, Any], key: str, option: str, read: Callable[[str], T]) -> tuple[T, ...]:
    items = given.get(key, [])
    if not isinstance(items, list) or len(items) > _MAX_ITEMS:
        raise LocalError(f"{option}: give at most {_MAX_ITEMS}", exit_code=2)
    try:
        return tuple(dict.fromkeys(read(str(item)) for item in items))
    except Bad as error:
        raise LocalError(f"{option}: {error}", exit_code=2) from None


def _host(text: str) -> str:
    return text if text == ANY_HOST else host_name(text, wildcard=True)


def _service(text: str) -> str:
    connector, slash, service = text.rpartition("/")
    return f"{service_name(connector)}/{service_name(service)}" if slash else service_name(service)


def describe(grant: Grant, domain: str) -> str:
    """A connector's grant in words."""
    parts = [", ".join(grant.hosts) if grant.hosts else f"<service>.{domain}"]
    if grant.ports:
        parts.append("ports " + ", ".join(map(port_text, grant.ports)))
    return "; ".join(parts)


def reach(grant: Grant) -> str:
    """A visitor's grant in words."""
    named = (("services", grant.services), ("networks", grant.networks), ("exits", grant.exits))
    return "; ".join(f"{kind} {', '.join(items)}" for kind, items in named if items) or "nothing"


def fitting(grant: Grant, name: str, role: str) -> Grant:
    """The grant, if it names what this role can have. LocalError (exit 2) says which option is another role's."""
    others = _VISITORS if role == CONNECTOR else _CONNECTORS
    for kind, option in others.items():
        if getattr(grant, kind):
            other = VISITOR if role == CONNECTOR else CONNECTOR
            text = f"{option} is for {other}s, and {name} is a {role}"
            raise LocalError(f"{text}; a {other} has its own name and invitation (--role {other})", exit_code=2)
    return grant


def _text(request: dict[str, Any], key: str) -> str:
    value = request.get(key, CONNECTOR if key == "role" else None)
    if not isinstance(value, str):
        raise LocalError(f"the request names no {key}", exit_code=2)
    return value


def _span(seconds: float) -> str:
    for unit, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= unit:
            count = seconds / unit
            return f"{count:g} {name}" + ("" if count == 1 else "s")
    return f"{seconds:g} seconds"
