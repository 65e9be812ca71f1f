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
from tunnelgw.config.names import Bad, host_name, network, port_range, service_name
from tunnelgw.errors import LocalError
from tunnelgw.identity.records import CONNECTOR
from tunnelgw.identity.rotation import SHORTEST_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.admin.status import ConnectorState, EdgeStatus, PublicAddress
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


class Live(Protocol):
    """What only the running edge knows, and who passes changes on to tunnels."""

    running: bool

    def addresses(self) -> list[PublicAddress]:
        """Every public address with its service."""

    def connector(self, name: str) -> dict[str, Any]:
        """`state`, `since`, `tunnels`, `rtt` and `address` of a connector; empty if it was never seen."""

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


class Offline:
    """No edge runs: nothing is up, and the next start reads the store anyway."""

    running = False

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def addresses(self) -> list[PublicAddress]:
        """What connectors hold, while nobody serves it."""
        return [
            {
                "address": f"https://{what}" if kind == "host" else f"tcp port {what}",
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
            for kind, _, what in (claim.partition(":"),)
        ]

    def connector(self, name: str) -> dict[str, Any]:  # noqa: ARG002 - nobody of any name is seen
        """Nothing."""
        return {}

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
        address = str(self._config().address)
        made = self._registry.invite(name, address=address, role=role, grant=parse_allow(request), ttl=float(ttl))
        messages = [f"invitation for {name} ({role}) to {address}, for one use within {_span(ttl)}"]
        if known is not None and not known.revoked:
            messages.append(f"{name} has joined already: its key is replaced when this is used")
        messages.append("at home, run: tunnelgw join INVITATION")
        return {"invitation": made.encode(), "messages": messages}

    async def _grant(self, request: dict[str, Any]) -> dict[str, Any]:
        name, grant = _text(request, "name"), parse_allow(request)
        if grant == Grant():
            raise LocalError("name what to grant, for example with --allow-host or --allow-port", exit_code=2)
        connector = self._registry.set_grant(name, grant)
        await self._live.grant_changed(name)
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
            "connectors": [self._connector(known) for known in self._registry.connectors()],
            "invitations": [
                {"name": pending.name, "role": pending.role, "expires": pending.expires}
                for pending in self._registry.invitations()
            ],
        }
        return {"status": status}

    def _connector(self, known: Connector) -> ConnectorState:
        live = self._live.connector(known.name)
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
        networks=_parse(given, "networks", "--allow-network", network),
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
    """A grant in words."""
    parts = [", ".join(grant.hosts) if grant.hosts else f"<service>.{domain}"]
    if grant.ports:
        parts.append("ports " + ", ".join(map(port_text, grant.ports)))
    named = (("services", grant.services), ("networks", grant.networks), ("exits", grant.exits))
    parts += [f"{kind} {', '.join(items)}" for kind, items in named if items]
    return "; ".join(parts)


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
