"""`tunnelgw doctor`: every hop in order, a line each; the first FAIL is the one to mend."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING

from tunnelgw.admin import doctor
from tunnelgw.admin.call import NotRunningError, call
from tunnelgw.config.acme import challenges
from tunnelgw.config.load import load_connector, load_edge
from tunnelgw.config.paths import CONNECTOR, EDGE, config_path
from tunnelgw.errors import LocalError, TunnelgwError

if TYPE_CHECKING:
    import ssl
    from argparse import Namespace
    from collections.abc import Iterator

    from tunnelgw.admin.doctor import Check
    from tunnelgw.config.model import ConnectorConfig, EdgeConfig, Endpoint


def run(arguments: Namespace) -> int:
    """1 if anything failed."""
    failed = 0
    for check in _checks(arguments.config):
        print(check, flush=True)
        failed += not check.ok
    if failed:
        print(f"\n{failed} failed; mend the first one and run this again")
    return 1 if failed else 0


def _checks(given: str | None) -> Iterator[Check]:
    """Those of the file that was named, or of every role that this machine has."""
    if given is not None:
        path = Path(given)
        yield from _edge(path) if _is_edge(path) else _home(path)
        return
    found = False
    for role, checks in ((EDGE, _edge), (CONNECTOR, _home)):
        path = config_path(role)
        if path.exists():
            found = True
            yield from checks(path)
    if not found:
        paths = " nor ".join(str(config_path(role)) for role in (EDGE, CONNECTOR))
        raise LocalError(f"there is neither {paths}; name the file with --config", exit_code=2)


def _is_edge(path: Path) -> bool:
    import tomllib

    from tunnelgw.config.load import role_of

    try:
        return role_of(path, tomllib.loads(path.read_text("utf-8-sig"))) == EDGE
    except (ValueError, OSError):
        return role_of(path, {}) == EDGE


def _home(path: Path) -> Iterator[Check]:
    """From home: configuration, each edge, the tunnel, each target."""
    config = load_connector(path)
    yield doctor.Check("configuration", True, str(path))
    yield from _identities(config)
    yield doctor.lossy_lines()
    running = True
    try:
        status = call(config.state_dir, {"command": "status"})["status"]
    except NotRunningError:
        running = False
        yield doctor.Check("tunnel", False, "the connector does not run", "start it with: tunnelgw connect")
    except TunnelgwError as error:
        yield doctor.Check("tunnel", False, error.text)
    else:
        yield from doctor.tunnel(status["edges"], start="tunnelgw connect")
        for entry in status["services"]:
            if entry["state"] in ("refused", "partly"):
                yield doctor.claim(entry["name"], entry)
            if entry.get("tls") == "home" and entry["state"] == "accepted":
                yield doctor.home_certificate(entry)
    if any(service.transparent for service in config.services):
        yield doctor.transparent(running=running)
    for service in config.services:
        yield doctor.target(service)


def _identities(config: ConnectorConfig) -> Iterator[Check]:
    from tunnelgw.config.names import endpoint
    from tunnelgw.identity import home
    from tunnelgw.net.tls import tunnel_client_context

    try:
        identities = home.load_all(config.state_dir)
    except TunnelgwError as error:
        yield doctor.Check("identity", False, error.text)
        return
    if not identities:
        advice = "get an invitation on the edge (tunnelgw edge invite NAME), then run: tunnelgw join INVITATION"
        yield doctor.Check("identity", False, f"{config.state_dir} holds none", advice)
        return
    yield doctor.private(config.state_dir)
    moved = len(config.edge) == 1 and len(identities) == 1  # the file names where the edge is now
    for identity in identities:
        edge = config.edge[0] if moved else endpoint(identity.edge)
        pair = identity.certificate_path
        context = tunnel_client_context(pair, pair, authority=identity.authority)
        yield from _reach_edge(edge, context)
        yield doctor.certificate(identity.expires, renew="it renews itself over the tunnel; see what failed above")


def _reach_edge(edge: Endpoint, context: ssl.SSLContext) -> Iterator[Check]:
    """DNS, TCP, TLS and clock of one edge."""
    name, addresses = edge.host, [edge.host]
    if _is_address(edge.host):
        name = "tgw.invalid"
    else:
        check, addresses = doctor.resolve(edge.host)
        yield check
    reached = []
    for address in addresses:
        check = doctor.reach(address, edge.port)
        if check.ok:
            reached.append(address)
        else:
            yield check
    for address in reached[:1]:
        yield doctor.Check("TCP", True, f"{edge} accepts")
        yield doctor.shake_hands(address, edge.port, server_name=name, context=context)
        yield doctor.clock([address], host=edge.host)


def _edge(path: Path) -> Iterator[Check]:
    """On the VPS: configuration, state, listeners, the way in from outside, certificates."""
    from tunnelgw.admin.setup import open_state
    from tunnelgw.identity.ca import Authorities
    from tunnelgw.net.tls import tunnel_client_context

    config = load_edge(path)
    yield doctor.Check("configuration", True, str(path))
    yield doctor.private(config.state_dir)
    try:
        store = open_state(config.state_dir)
    except TunnelgwError as error:
        yield doctor.Check("state", False, error.text)
        return
    try:
        authority = Authorities(store).trusted()
    finally:
        store.close()
    yield from doctor.listening((*config.listen, *config.listen_http))
    # No certificate of our own: TLS with the pinned authority is what is looked at, not who we are.
    yield from _reach_edge(config.address, tunnel_client_context(None, None, authority=authority))
    _, addresses = doctor.resolve(config.address.host)
    yield doctor.points_here(config.domain, addresses)
    yield doctor.lossy_lines()
    yield from _served(config)


def _served(config: EdgeConfig) -> Iterator[Check]:
    """What the running edge says of connectors and certificates."""
    try:
        status = call(config.state_dir, {"command": "status"})["status"]
    except NotRunningError:
        yield doctor.Check("edge", False, "does not run", "start it with: tunnelgw edge run")
        return
    except TunnelgwError as error:
        yield doctor.Check("edge", False, error.text)
        return
    yield doctor.Check("edge", True, "runs")
    for connector in status["connectors"]:
        if connector["state"] != "revoked":
            advice = "run tunnelgw doctor at home"
            text = f"{connector['name']} is {connector['state']}"
            yield doctor.Check("tunnel", connector["state"] == "up", text, advice)
    for refused in status.get("refused_services", ()):  # an edge of before an upgrade does not say
        yield doctor.claim(f"{refused['connector']}/{refused['service']}", refused)
    for address in status["addresses"]:
        name, expires = f"certificate of {address['address']}", address["certificate_expiry"]
        acme = config.tls.issuer == "acme"
        if address["certificate_problem"]:
            yield doctor.orders(address["certificate_problem"], name=name, kinds=challenges(config) if acme else ())
        elif expires and acme:  # may live for days only: what matters is whether it could be renewed
            yield doctor.certificate(expires, name=name, soon=0.0)
        elif expires:
            yield doctor.certificate(expires, name=name)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
