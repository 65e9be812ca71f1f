"""Commands at home: join, connect, expose, unexpose, status."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tunnelgw import __version__
from tunnelgw.admin.call import NotRunningError, call
from tunnelgw.cli.common import option, say
from tunnelgw.config.load import load_connector
from tunnelgw.config.paths import CONNECTOR, config_path, default_state_dir
from tunnelgw.errors import LocalError

if TYPE_CHECKING:
    from argparse import Namespace

    from tunnelgw.admin.shapes import ConnectorStatus, JoinedEdgeState, ServiceState, VisitState
    from tunnelgw.config.model import ConnectorConfig
    from tunnelgw.private.pins import Keys

# How long `expose` waits for the edge's answer; a connector that is up has it within a round trip.
CLAIM_SECONDS = 10.0
_NO_KEYS: Keys = {"fingerprint": "", "known_keys": {}, "known_keys_error": ""}


def connect(arguments: Namespace) -> int:
    """Run the connector until a signal ends it."""
    from tunnelgw.admin.run import run_connector
    from tunnelgw.obs import log

    log.setup()
    path = config_path(CONNECTOR, arguments.config)
    if not path.exists() and os.environ.get("TUNNELGW_INVITATION"):
        # A container that got nothing but an invitation: `expose` adds services to this file.
        from tunnelgw.config import edit

        edit.create(path, edit.initial_connector(path, state_dir=str(default_state_dir(CONNECTOR))), role=CONNECTOR)
        say(f"wrote {path}")
    run_connector(load_connector(path))
    return 0


def expose(arguments: Namespace) -> int:
    """Write the service, wait for the edge's answer, print the public addresses."""
    from tunnelgw.config import edit
    from tunnelgw.config.names import Bad
    from tunnelgw.config.targets import parse_target

    path = config_path(CONNECTOR, arguments.config)
    try:
        values: dict[str, object] = {"target": str(parse_target(arguments.target))}
    except Bad as error:
        raise LocalError(f"TARGET {error}", exit_code=2) from None
    if arguments.host:
        values["host"] = arguments.host[0] if len(arguments.host) == 1 else arguments.host
    if arguments.path is not None:
        values["path"] = arguments.path
    if arguments.port is not None:
        values["port"] = int(arguments.port) if arguments.port.isdecimal() else arguments.port
    if arguments.protocol is not None:
        values["protocol"] = arguments.protocol
    if arguments.tls is not None:
        values["tls"] = arguments.tls
    written = edit.add_service(path, arguments.name, values)
    say(f"wrote {written}")
    config = load_connector(path)
    try:
        call(config.state_dir, {"command": "reload"})
    except NotRunningError:
        say(f"the connector is not running; start it with: {_start(path)}")
        return 0
    request = {"command": "claim", "name": arguments.name, "timeout": CLAIM_SECONDS}
    answer = call(config.state_dir, request, timeout=CLAIM_SECONDS + 5)
    return _report_claim(arguments.name, answer, path)


def _report_claim(name: str, answer: dict[str, object], path: Path) -> int:
    """Print the edge's answer; exit status."""
    addresses = answer.get("addresses", [])
    for address in addresses if isinstance(addresses, list) else []:
        print(address)
    if answer["state"] == "accepted":
        if not addresses:
            say(f"{name} is offered and has no public address")
        return 0
    message = answer.get("message") or answer.get("reason") or "no answer from the edge"
    if answer["state"] in ("refused", "partly"):
        hint = answer.get("hint")
        how = "refused in part" if answer["state"] == "partly" else "refused"
        raise LocalError(f"{name}: {how} by the edge: {message}" + (f"; on the edge, run: {hint}" if hint else ""))
    raise LocalError(f"{name}: written, not confirmed: {message}; see: tunnelgw status{option(path, CONNECTOR)}")


def unexpose(arguments: Namespace) -> int:
    """Remove the service from the file and from the running connector."""
    from tunnelgw.config import edit

    path = config_path(CONNECTOR, arguments.config)
    state_dir = load_connector(path).state_dir
    written = edit.remove_service(path, arguments.name)
    say(f"wrote {written}")
    try:
        call(state_dir, {"command": "reload"})
    except NotRunningError:
        say("the connector is not running: nothing was published")
        return 0
    say(f"{arguments.name} is no longer published")
    return 0


def status(arguments: Namespace) -> int:
    """Edges, services and their public addresses."""
    from tunnelgw.admin.status import connector_text

    config = load_connector(config_path(CONNECTOR, arguments.config))
    try:
        report: ConnectorStatus = call(config.state_dir, {"command": "status"})["status"]
        report["running"] = True
    except NotRunningError:
        report = _offline(config)
    report["visits"] = _visits(config)
    print(json.dumps(report, indent=2) if arguments.json else connector_text(report))
    return 0


def _offline(config: ConnectorConfig) -> ConnectorStatus:
    """What is known without a running connector: the file and the identities."""
    from tunnelgw.identity.home import load_all
    from tunnelgw.private.pins import keys_of

    identities = {identity.edge: identity for identity in load_all(config.state_dir)}
    edges: list[JoinedEdgeState] = []
    for edge in dict.fromkeys((*map(str, config.edge), *identities)):
        joined = identities.get(edge)
        edges.append(
            {
                "address": edge,
                "name": joined.name if joined else "",
                "domain": joined.domain if joined else "",
                "state": "away",
                "error": "the connector is not running" if joined else "not joined",
                "certificate_expires": joined.expires if joined else 0.0,
                "tunnels": [],
                **(keys_of(joined) if joined else _NO_KEYS),
            }
        )
    services: list[ServiceState] = [
        {"name": service.name, "target": str(service.target), "state": "waiting", "private": service.private}
        for service in config.services
    ]
    return {"running": False, "version": __version__, "edges": edges, "services": services}


def _visits(config: ConnectorConfig) -> list[VisitState]:
    """Edges where this machine is a visitor, and the keys that it remembers; `visit` itself runs as its own process."""
    from tunnelgw.identity.home import load_all
    from tunnelgw.identity.records import VISITOR
    from tunnelgw.private.pins import keys_of

    return [
        {
            "address": identity.edge,
            "name": identity.name,
            "certificate_expires": identity.expires,
            **keys_of(identity),
        }
        for identity in load_all(config.state_dir, VISITOR)
    ]


def _start(path: Path) -> str:
    """The command that starts the connector of this file."""
    unit = Path("/etc/systemd/system/tunnelgw-connector.service")
    if unit.exists() and str(path) in unit.read_text():
        return "sudo systemctl start tunnelgw-connector"
    return f"tunnelgw connect{option(path, CONNECTOR)}"
