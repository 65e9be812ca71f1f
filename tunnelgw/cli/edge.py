"""Commands on the VPS: edge init, run, invite, grant, revoke, rotate-ca, status."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunnelgw.admin.call import NotRunningError, call
from tunnelgw.cli.common import edge_config, option, say
from tunnelgw.config.paths import EDGE, config_path
from tunnelgw.errors import LocalError

if TYPE_CHECKING:
    from argparse import Namespace

    from tunnelgw.config.model import EdgeConfig

ORDER_SECONDS = 900.0  # dns-01 may wait for a hook and for slow servers; the edge itself ends what takes too long
_ALLOW = ("hosts", "ports", "services", "networks", "exits")


def init(arguments: Namespace) -> int:
    """Make configuration, state and authorities; print the DNS records to add and the next command."""
    from tunnelgw.admin import setup
    from tunnelgw.cli import service
    from tunnelgw.config.edit import create
    from tunnelgw.config.paths import default_state_dir

    path = config_path(EDGE, arguments.config)
    state_dir = Path(arguments.state_dir).absolute() if arguments.state_dir else default_state_dir(EDGE)
    if arguments.service:
        service.require()
    if path.exists():
        raise LocalError(f"{path} exists already; edit it, or name another file with --config", exit_code=2)
    if setup.state_exists(state_dir):
        raise LocalError(f"{state_dir} holds the state of an edge already; name another --state-dir", exit_code=2)
    create(path, _initial(arguments, path, state_dir), role=EDGE)
    say(f"wrote {path}")
    setup.create_state(state_dir)
    say(f"wrote {state_dir}")
    config = edge_config(str(path))
    print("Add these DNS records:\n")
    for line in setup.dns_records(config.domain, config.address.host):
        print(f"  {line}")
    if config.tls.issuer == "self-signed":
        say(
            "note: visitors get certificates of the edge's own authority, and browsers will warn; "
            f'for others set issuer = "acme" or "files" in {path}'
        )
    else:
        say(
            "note: certificates come from Let's Encrypt, as services need them; "
            "running the edge agrees to its terms of service (--self-signed does without)"
        )
    if arguments.service:
        say(f"wrote {service.install('edge', config=path, state_dir=state_dir)}")
        print("\nThe edge runs. Next:\n")
    else:
        print(f"\nThen start it, and invite a machine at home:\n\n  tunnelgw edge run{option(path, EDGE)}")
    print(f"  tunnelgw edge invite home{option(path, EDGE)}")
    return 0


def _initial(arguments: Namespace, path: Path, state_dir: Path) -> str:
    """The text of the new edge.toml; it listens on the port that invitations will name."""
    from tunnelgw.admin.setup import has_ipv6
    from tunnelgw.config.edit import initial_edge
    from tunnelgw.config.names import Bad, endpoint, host_name, is_private

    try:
        domain = host_name(arguments.domain, wildcard=False)
    except Bad as error:
        raise LocalError(f"--domain: {error}", exit_code=2) from None
    try:
        address = endpoint(arguments.address or f"edge.{domain}", default_port=443)
    except Bad as error:
        raise LocalError(f"--address: {error}", exit_code=2) from None
    listen = "" if address.port == 443 else f"0.0.0.0:{address.port}"
    text = initial_edge(
        path,
        domain=domain,
        address=str(address),
        state_dir=str(state_dir),
        email=arguments.email or "",
        issuer="self-signed" if arguments.self_signed or (is_private(domain) and not arguments.email) else "acme",
        listen=listen,
    )
    if listen and has_ipv6():
        text = text.replace(f'["{listen}"]', f'["{listen}", "[::]:{address.port}"]')
    return text


def run(arguments: Namespace) -> int:
    """Run the edge until a signal ends it."""
    from tunnelgw.admin.edge import run_edge
    from tunnelgw.obs import log

    log.setup()
    run_edge(edge_config(arguments.config), upgrade=arguments.upgrade)
    return 0


def invite(arguments: Namespace) -> int:
    """The invitation alone on stdout."""
    config = edge_config(arguments.config)
    request = {"command": "invite", "name": arguments.name, "role": arguments.role, "ttl": arguments.ttl}
    answer = _ask(config, {**request, "allow": _allowed(arguments)})
    say(*answer["messages"], _wrote(config))
    print(answer["invitation"])
    return 0


def grant(arguments: Namespace) -> int:
    """Replace what the options name."""
    config = edge_config(arguments.config)
    answer = _ask(config, {"command": "grant", "name": arguments.name, "allow": _allowed(arguments)})
    say(*answer["messages"], _wrote(config))
    return 0


def revoke(arguments: Namespace) -> int:
    """Cut off and refuse."""
    config = edge_config(arguments.config)
    answer = _ask(config, {"command": "revoke", "name": arguments.name})
    say(*answer["messages"], _wrote(config))
    return 0


def rotate_ca(arguments: Namespace) -> int:
    """Begin to replace the authority of tunnels."""
    config = edge_config(arguments.config)
    answer = _ask(config, {"command": "rotate-ca", "overlap": arguments.overlap})
    say(*answer["messages"], _wrote(config))
    return 0


def status(arguments: Namespace) -> int:
    """Public addresses, connectors, invitations."""
    from tunnelgw.admin.status import edge_text

    report = _ask(edge_config(arguments.config), {"command": "status"})["status"]
    print(json.dumps(report, indent=2) if arguments.json else edge_text(report))
    return 0


def certificate(arguments: Namespace) -> int:
    """List, order now, or revoke what the ACME server signed."""
    from tunnelgw.admin.status import certificates_text

    request = {"command": "certificate", "action": arguments.action}
    for key in ("host", "reason"):
        if getattr(arguments, key, None) is not None:
            request[key] = getattr(arguments, key)
    answer = _ask(edge_config(arguments.config), request, seconds=ORDER_SECONDS)
    if arguments.json:
        print(json.dumps(answer, indent=2))
    elif arguments.action == "list":
        print(certificates_text(answer["certificates"]))
    else:
        say(*answer["messages"])
    return 0


def _ask(config: EdgeConfig, request: dict[str, Any], *, seconds: float = 30.0) -> dict[str, Any]:
    """Ask the running edge; without one, do the same on its state."""
    try:
        return call(config.state_dir, request, timeout=seconds)
    except NotRunningError:
        from tunnelgw.admin.api import EdgeDesk, Offline
        from tunnelgw.admin.setup import open_state
        from tunnelgw.identity.registry import Registry

        store = open_state(config.state_dir)
        try:
            registry = Registry(store)
            desk = EdgeDesk(registry=registry, config=lambda: config, live=Offline(registry))
            return asyncio.run(desk.answer(request))
        finally:
            store.close()


def _allowed(arguments: Namespace) -> dict[str, list[str]]:
    given = {kind: getattr(arguments, f"allow_{kind[:-1]}") for kind in _ALLOW}
    return {kind: items for kind, items in given.items() if items is not None}


def _wrote(config: EdgeConfig) -> str:
    from tunnelgw.store.sqlite import FILE_NAME

    return f"wrote {config.state_dir / FILE_NAME}"
