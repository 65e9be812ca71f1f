"""connector.toml: tables into a `ConnectorConfig`, with the rules between services.

Invariant: no two services of a configuration that comes out ask for the same public address.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.access.reach import opened_by, parse_rule
from tunnelgw.config import values
from tunnelgw.config.acme import check_home, read_acme
from tunnelgw.config.model import ConnectorConfig
from tunnelgw.config.names import endpoint, reach_network
from tunnelgw.config.paths import CONNECTOR, default_state_dir
from tunnelgw.config.problems import WARNING, Section, dotted, kind_of
from tunnelgw.config.secret import Secret
from tunnelgw.config.service import read_service
from tunnelgw.config.tls import read_tls

if TYPE_CHECKING:
    from pathlib import Path

    from tunnelgw.config.lines import Key
    from tunnelgw.config.model import Endpoint, PortRange, ServiceConfig
    from tunnelgw.config.problems import Report

EDGE_KEYS = (
    *("domain", "address", "listen", "listen_http", "port_bind", "workers", "trusted_proxies", "proxy_protocol"),
    *("resume_seconds", "park_seconds", "access_log", "limits", "metrics", "admin"),
)
# control.Services carries at most so many.
_MAX_SERVICES = 4096


def read_connector(path: Path, data: dict[str, object], report: Report) -> ConnectorConfig | None:
    """The configuration; None if there is a problem (reported)."""
    top = Section(report, data)
    beside = values.path_beside(path.parent)
    config = ConnectorConfig(
        path=path,
        state_dir=top.get("state_dir", beside, None) or default_state_dir(CONNECTOR),
        edge=top.many("edge", _edge, single=True),
        networks=top.many("networks", values.parsed(reach_network)),
        exit=top.get("exit", values.boolean, False),
        services=_services(top, path.parent),
        invitation=top.get("invitation", _secret, None),
        invitation_file=top.get("invitation_file", beside, None),
        tls=read_tls(top.table("tls"), path.parent, otherwise="acme", issuers=("acme", "files")),
        acme=read_acme(top.table("acme"), path.parent),
    )
    top.finish(elsewhere=EDGE_KEYS, where="edge.toml")
    _networks(top, config)
    if config.invitation is not None and config.invitation_file is not None:
        top.bad("invitation", "and invitation_file are both given; keep one")
    _collisions(config.services, report)
    _certificates(top, config)
    return config if report.usable else None


def _networks(top: Section, config: ConnectorConfig) -> None:
    """What is offered on purpose, and what is more often a mistake."""
    for index, text in enumerate(config.networks):
        rule = parse_rule(text)
        opened = opened_by(rule)
        if opened is not None:
            what = f"{text} opens a part of {opened}, which is closed otherwise (this machine itself, metadata, groups)"
            text = f"{what}: visitors with a grant for it reach that"
            top.report.add(("networks", index), text, severity=WARNING)
        elif rule.network is not None and not rule.network.prefixlen and not config.exit:
            text = f"{text} is every address of this machine's world; for the internet alone say exit = true"
            top.report.add(("networks", index), text, severity=WARNING)


def _edge(value: object) -> Endpoint:
    return endpoint(values.text(value), default_port=443)


def _secret(value: object) -> Secret:
    return Secret(values.short_text(value))


def _services(top: Section, folder: Path) -> tuple[ServiceConfig, ...]:
    """All of `[services]` whose public addresses could be read."""
    tables = top.table("services")
    if len(tables.data) > _MAX_SERVICES:
        top.bad("services", f"are {len(tables.data)}; at most {_MAX_SERVICES} are possible")
        return ()
    found: list[ServiceConfig] = []
    for name, table in tables.data.items():
        if not isinstance(table, dict):
            tables.bad(name, f"must be a table, not {kind_of(table)}; write [{dotted((*tables.key, name))}]")
            continue
        service = read_service(Section(top.report, table, (*tables.key, name)), folder)
        if service is not None:
            found.append(service)
    return tuple(found)


def _collisions(services: tuple[ServiceConfig, ...], report: Report) -> None:
    """Two services with the same host and path, or the same port; a `group` joins connectors, so it is no excuse."""
    routes: dict[tuple[str, str], ServiceConfig] = {}
    whole: dict[str, ServiceConfig] = {}  # hosts of which not only a path is taken
    hosts: dict[str, ServiceConfig] = {}
    ports: list[tuple[PortRange, ServiceConfig]] = []
    for service in services:
        key: Key = ("services", service.name)
        for host in service.host if not service.protocol else ():
            other = routes.setdefault((host, service.path), service)
            if other is not service:
                what = host if service.path == "/" else host + service.path
                report.add((*key, "host"), f'{what} is a host of "{other.name}" ({_at(other, report)}) too')
            elif service.target.is_http and host in hosts and _mixed(service, hosts[host]):
                other = hosts[host]
                text = f'TLS of {host} ends {_where(other)} for "{other.name}" ({_at(other, report)}) and '
                report.add(
                    (*key, "tls" if service.tls else "host"), f"{text}{_where(service)} here; let both say the same"
                )
            elif host in whole or (not service.target.is_http and host in hosts):
                other = whole.get(host) or hosts[host]
                text = f'{host} is a host of "{other.name}" ({_at(other, report)}) too, and '
                report.add((*key, "host"), text + "a tls or tcp target takes a host as a whole")
            hosts.setdefault(host, service)
            if not service.target.is_http:
                whole.setdefault(host, service)
        for mine in service.port:
            for theirs, owner in ports:
                if owner is not service and _meet(mine, theirs) and not _share(service, owner):
                    text = f'{mine} overlaps port {theirs} of "{owner.name}" ({_at(owner, report)})'
                    report.add((*key, "port"), text)
                    break
            ports.append((mine, service))


def _meet(one: PortRange, other: PortRange) -> bool:
    return one.first <= other.last and other.first <= one.last


def _share(one: ServiceConfig, other: ServiceConfig) -> bool:
    """Two services over TCP and UDP, or whose visitors say different names in the same protocol."""
    if (one.target.kind == "udp") is not (other.target.kind == "udp"):
        return True
    return one.protocol != "" and one.protocol == other.protocol and not set(one.host) & set(other.host)


def _mixed(one: ServiceConfig, other: ServiceConfig) -> bool:
    """Two HTTP services whose TLS ends in different places: who ends it must do so for the host as a whole."""
    return other.target.is_http and one.tls != other.tls


def _where(service: ServiceConfig) -> str:
    return "at home" if service.tls == "home" else "at the edge"


def _certificates(top: Section, config: ConnectorConfig) -> None:
    """Where TLS ends at home there must be a way to a certificate."""
    if not config.ends_tls:
        for name in ("tls", "acme"):
            if top.has(name):
                top.bad(name, 'has no effect: no service here says tls = "home"', severity=WARNING)
    elif config.tls.issuer == "acme":
        check_home(top, config)


def _at(service: ServiceConfig, report: Report) -> str:
    return f"line {report.line(('services', service.name))}"
