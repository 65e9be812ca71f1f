"""`[services.NAME]`: one table into one `ServiceConfig`, with the rules between its keys.

Keys that only fit some kinds of target are refused for the others instead of being ignored, and so is what this
version cannot do yet. Invariant: a service that comes out can be offered to an edge as it is.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

from tunnelgw.access.passwords import USERS_MAX, check_user
from tunnelgw.config import values
from tunnelgw.config.model import HealthConfig, PortRange, ServiceConfig, Target
from tunnelgw.config.names import Bad, host_name, network, path_prefix, port_range, printable, service_name
from tunnelgw.config.problems import dotted
from tunnelgw.config.targets import parse_target
from tunnelgw.routing.protocols import PROTOCOLS

if TYPE_CHECKING:
    from pathlib import Path

    from tunnelgw.config.problems import Section

# Every public port is a listening socket at the edge.
_MAX_PORTS = 1024
_PASSWORD_BYTES = 1 << 20  # far more than so many users need
_ASKED_BYTES = 1024  # of a path that is asked for: none is longer
_NOTHING = Target("http", "127.0.0.1", 1)
_PUBLIC_ONLY = (
    "host", "port", "path", "strip_path", "plain_http", "response_seconds", "allow_from", "basic_auth_file", "tls",
    "group", "protocol", "transparent",
)  # fmt: skip
_NO_MYSQL = (
    '"mysql" is not possible: a MySQL server speaks first, and its first message is part of the login, so the edge '
    "cannot wait for a name; give the service a port of its own"
)
_ONLY_HERE = (
    "is only for TCP targets on this machine's loopback (localhost, 127.0.0.1, [::1]); elsewhere "
    'proxy_protocol = "v2" tells the target the address'
)
_NO_PRIVATE_UDP = (
    "is not possible for a udp target; name its address in networks = [...], and visitors with a grant for it "
    "reach it by visit --socks or --tun"
)
_HTTP_ONLY = ("path", "strip_path", "plain_http", "response_seconds", "basic_auth_file")


def read_service(section: Section, folder: Path) -> ServiceConfig | None:
    """The service of a table, every problem reported; None if not even its public addresses are known."""
    name = str(section.key[-1])
    try:
        service_name(name)
    except Bad as error:
        section.bad("", str(error))
    target = section.get("target", lambda value: parse_target(values.number_or_text(value)), _NOTHING)
    if not section.has("target"):
        section.bad("", 'has no target; add for example target = "http://127.0.0.1:8080"')
    service = ServiceConfig(
        name=name,
        target=target,
        host=section.many("host", values.parsed(lambda text: host_name(text, wildcard=True)), single=True),
        path=section.get("path", values.parsed(path_prefix), "/"),
        strip_path=section.get("strip_path", values.boolean, False),
        port=section.many("port", _ports, single=True),
        response_seconds=section.get("response_seconds", values.seconds(0.1, 86400), 60.0),
        plain_http=section.get("plain_http", values.boolean, False),
        verify=section.get("verify", values.boolean, True),
        proxy_protocol=section.get("proxy_protocol", values.choice("v1", "v2", "v2-first", "spp"), ""),
        allow_from=section.many("allow_from", values.parsed(network)),
        listing=section.get("listing", values.boolean, False),
        group=section.get("group", values.parsed(service_name), ""),
        priority=section.get("priority", values.whole(-1000, 1000), 0),
        affinity=section.get("affinity", values.choice("none", "cookie", "address"), "none"),
        health=_health(section, target),
        private=section.get("private", values.boolean, False),
        tls=section.get("tls", values.choice("edge", "home"), "").replace("edge", ""),
        protocol=section.get("protocol", values.choice("minecraft", "postgres", "mysql"), ""),
        transparent=section.get("transparent", values.boolean, False),
        basic_auth_file=(password_file := section.get("basic_auth_file", values.path_beside(folder), None)),
        users=() if password_file is None else _users(section, password_file),
    )
    section.finish()
    if section.has("allow_from") and section.data["allow_from"] == []:
        section.bad("allow_from", "is empty, so nobody could come in; name networks, or leave it out for everybody")
    if target is not _NOTHING:
        _fits_kind(section, service)
        _fits_group(section, service)
        if service.private:
            _fits_private(section, service)
        else:
            _addresses(section, service)
    wrong = {problem.field for problem in section.report.problems}
    return None if target is _NOTHING or dotted((*section.key, "path")) in wrong else service


def _health(section: Section, target: Target) -> HealthConfig | None:
    """`[services.NAME.health]`, or `health = { ... }`: an empty table is a check with every default."""
    table = section.table("health")
    if not section.has("health"):
        return None
    health = HealthConfig(
        path=table.get("path", values.parsed(_asked_path), "/"),
        interval=table.get("interval", values.seconds(1, 3600), 5.0),
        threshold=table.get("threshold", values.whole(1, 100), 2),
        expect=table.get("expect", values.whole(200, 599), 0),
    )
    table.finish()
    if target is not _NOTHING and not target.is_http:
        for name in ("path", "expect"):
            if table.has(name):
                table.bad(name, f"is only for HTTP targets; a {target.scheme} target is only connected to: remove it")
    return health


def _asked_path(text: str) -> str:
    """A path with its query, as it stands in a request."""
    if not re.fullmatch(r"/[A-Za-z0-9/._~!$&'()*+,;=:@%?-]*", text) or len(text) > _ASKED_BYTES:
        raise Bad(f'"{printable(text)}" is not a path to ask for: it begins with "/", other characters are %XX')
    return text


def _ports(value: object) -> PortRange:
    ports = port_range(values.number_or_text(value))
    if ports.last - ports.first >= _MAX_PORTS:
        raise Bad(f"{ports} are too many ports; at most {_MAX_PORTS} in a range")
    return ports


def _users(section: Section, path: Path) -> tuple[str, ...]:
    """The lines of a password file. What is wrong with it is a problem: without it everybody could come in."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_PASSWORD_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not text"
        section.bad("basic_auth_file", f"cannot read {path}: {cause}")
        return ()
    users: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            check_user(line)
        except ValueError as error:
            section.bad("basic_auth_file", f"{path} line {number} {error}")
            continue
        users.setdefault(line.partition(":")[0], line)
    if not users:
        section.bad("basic_auth_file", f"{path} names nobody; add a line with: htpasswd -B {path} NAME")
    if len(users) > USERS_MAX:
        section.bad("basic_auth_file", f"{path} names {len(users)} users; at most {USERS_MAX} are possible")
    return tuple(users.values())


def _fits_private(section: Section, service: ServiceConfig) -> None:
    """A private service has no public address, and nobody but joined visitors."""
    for name in _PUBLIC_ONLY:
        if section.has(name) and (name != "tls" or service.tls):
            section.bad(name, "is for public addresses, and a private service has none; remove one of the two")
    if service.target.kind == "udp":
        section.bad("private", _NO_PRIVATE_UDP)


def _fits_group(section: Section, service: ServiceConfig) -> None:
    """Keys that mean nothing without others."""
    if not service.group:
        for name in ("priority", "affinity"):
            if section.has(name):
                section.bad(name, 'has no effect without group; add group = "...", or remove it')
    if service.affinity == "cookie" and (not service.target.is_http or service.tls == "home"):
        where = 'with tls = "home"' if service.tls == "home" else f"for a {service.target.scheme} target"
        section.bad("affinity", f'"cookie" is not possible {where}: the edge reads no HTTP there; write "address"')


def _fits_kind(section: Section, service: ServiceConfig) -> None:
    """Keys that mean nothing for this kind of target."""
    target = service.target
    if not target.is_http:
        for name in _HTTP_ONLY:
            if section.has(name):
                section.bad(name, f"is only for HTTP targets, not for {target.scheme}; remove it")
    if service.tls == "home" and not target.is_http:
        hint = "it ends TLS itself" if target.kind == "tls" else "for its own TLS write tls://"
        section.bad("tls", f'"home" is only for HTTP targets, not for {target.scheme}; {hint}')
    if service.tls == "home" and service.plain_http:
        section.bad("plain_http", 'would show the edge what tls = "home" keeps from it; keep one of the two')
    if service.strip_path and service.path == "/" and target.is_http:
        section.bad("strip_path", 'removes nothing without path; add path = "/..."')
    if section.has("verify") and target.scheme != "https":
        section.bad("verify", f"is only for https targets, not for {target.scheme}; remove it")
    if section.has("listing") and target.scheme != "file":
        section.bad("listing", f"is only for file targets, not for {target.scheme}; remove it")
    if service.transparent and not _is_here(target):
        section.bad("transparent", _ONLY_HERE)
    if service.proxy_protocol and target.scheme == "file":
        section.bad("proxy_protocol", "is not possible for a file target; remove it")
    elif service.proxy_protocol == "v1" and target.kind == "udp":
        section.bad("proxy_protocol", '"v1" is not possible for a udp target; write "v2", "v2-first" or "spp"')
    elif service.proxy_protocol in ("v2-first", "spp") and target.kind != "udp":
        section.bad("proxy_protocol", f'"{service.proxy_protocol}" is only for udp targets; write "v2"')
    if target.kind == "udp" and section.has("health"):
        section.bad("health", "is not possible for a udp target: whether it works cannot be told; remove it")


def _is_here(target: Target) -> bool:
    """Whether a target is dialled over this machine's own loopback."""
    if target.scheme in ("file", "udp") or not target.host:
        return False
    try:
        return ipaddress.ip_address(target.host).is_loopback
    except ValueError:
        return target.host == "localhost"


def _shares_port(section: Section, service: ServiceConfig) -> None:
    """A protocol whose hosts share a port: what it needs, and what it cannot have."""
    known = PROTOCOLS.get(service.protocol)
    if known is None:
        section.bad("protocol", _NO_MYSQL)
        return
    if service.target.kind not in known.kinds:
        forms = " or ".join(f"{kind}://host:port" for kind in known.kinds)
        section.bad("target", f'protocol = "{service.protocol}" needs a target of the form {forms}')
    for name in ("host", "port"):
        if not section.has(name):
            section.bad("protocol", f"names the hosts that share a port, so it needs {name} as well")
    for ports in service.port:
        if ports.first != ports.last:
            section.bad("port", f"{ports} is a range; hosts share single ports")


def _addresses(section: Section, service: ServiceConfig) -> None:
    """Which public addresses fit this kind of target."""
    target, host, port = service.target, section.has("host"), section.has("port")
    if section.data.get("host") == []:
        section.bad("host", "is empty; name a host, or leave it out")
    if section.data.get("port") == []:
        section.bad("port", "is empty; name a port, or leave it out")
    if service.protocol:
        _shares_port(section, service)
    elif port and target.is_http:
        bare = f"tcp://{target.host}:{target.port}" if target.host else "tcp://..."
        section.bad("port", f'a {target.scheme} target is served on 443 by its host; for a raw port write "{bare}"')
    elif port and target.kind == "tls":
        section.bad(
            "port", f'a tls target is served on 443 by its host; for a raw port write "tcp://{target.host}:..."'
        )
    elif target.kind == "udp" and host:
        section.bad("host", "means nothing for a udp target, which has no names; remove it and give port = N")
    elif port and host:
        section.bad("host", "with port needs protocol; host alone ends TLS at the edge, port alone is a raw port")
    elif target.kind == "udp" and not (port or service.private):
        section.bad("", "a udp target needs port = N, its public port")
    elif target.kind == "tcp" and not (host or port or service.private):
        section.bad("", f"a {target.scheme} target needs port = N (a raw port) or host = ... (TLS ends at the edge)")
    for ports in service.port:
        if ports.first == ports.last:
            continue
        if target.scheme == "unix":
            section.bad("port", f"a range ({ports}) needs ports at the target too; a unix target has none")
        elif target.port + ports.last - ports.first > 65535:
            section.bad("port", f"{ports} maps one to one from port {target.port} on, which ends above 65535")
