"""edge.toml: tables into an `EdgeConfig`, with the rules between keys.

Invariant: whatever the file holds, either a configuration that can be served comes out or at least one problem does.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tunnelgw.config import values
from tunnelgw.config.acme import check_acme, read_acme
from tunnelgw.config.model import (
    DEFAULT_LISTEN,
    DEFAULT_LISTEN_HTTP,
    AdminConfig,
    EdgeConfig,
    Endpoint,
    LimitsConfig,
    MetricsConfig,
)
from tunnelgw.config.names import Bad, endpoint, host_name, is_address, network, printable
from tunnelgw.config.paths import EDGE, default_state_dir
from tunnelgw.config.problems import WARNING, Section
from tunnelgw.config.tls import read_tls

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tunnelgw.config.problems import Report

CONNECTOR_KEYS = ("edge", "networks", "exit", "services", "invitation", "invitation_file")
_MAX_WORKERS = 64


def read_edge(path: Path, data: dict[str, object], report: Report) -> EdgeConfig | None:
    """The configuration; None if there is a problem (reported)."""
    top = Section(report, data)
    folder = path.parent
    domain = top.get("domain", values.parsed(lambda text: host_name(text, wildcard=False)), "")
    if not top.has("domain"):
        top.bad("domain", 'is missing; add the domain that services live under, as in domain = "example.com"')
    listen = top.many("listen", listen_endpoint, single=True) if top.has("listen") else DEFAULT_LISTEN
    web = top.many("listen_http", listen_endpoint, single=True) if top.has("listen_http") else DEFAULT_LISTEN_HTTP
    top.known.update(("listen", "listen_http"))
    config = EdgeConfig(
        path=path,
        domain=domain,
        address=_address(top, domain, listen),
        state_dir=top.get("state_dir", values.path_beside(folder), None) or default_state_dir(EDGE),
        listen=listen,
        listen_is_default=not top.has("listen"),
        listen_http=web,
        listen_http_is_default=not top.has("listen_http"),
        port_bind=top.get("port_bind", _bind_address, "::"),
        workers=top.get("workers", _workers, 1),
        trusted_proxies=top.many("trusted_proxies", values.parsed(network)),
        proxy_protocol=top.get("proxy_protocol", values.boolean, False),
        resume_seconds=top.get("resume_seconds", values.seconds(0, 86400), 120.0),
        park_seconds=top.get("park_seconds", values.seconds(0, 3600), 20.0),
        access_log=top.get("access_log", values.choice("off", "text", "json"), "off"),
        tls=read_tls(top.table("tls"), folder, otherwise="acme" if top.has("acme") else "self-signed"),
        acme=read_acme(top.table("acme"), folder),
        limits=_limits(top.table("limits")),
        metrics=MetricsConfig(_only_listen(top.table("metrics"))),
        admin=AdminConfig(_only_listen(top.table("admin"))),
    )
    top.finish(elsewhere=CONNECTOR_KEYS, where="connector.toml")
    _between(top, config)
    return config if report.usable else None


def listen_endpoint(value: object) -> Endpoint:
    """Where to listen: an address, not a name, since a name may mean several."""
    found = endpoint(values.text(value), listening=True)
    if found.host == "localhost":
        return Endpoint("127.0.0.1", found.port)
    if not is_address(found.host):
        raise Bad(f'"{printable(found.host)}" must be an address of this machine; "0.0.0.0" and "[::]" are all of them')
    return found


def _bind_address(value: object) -> str:
    text = values.text(value).strip("[]")
    if not is_address(text):
        raise Bad(f'"{printable(text)}" must be an address without port; "::" listens on both families')
    return text


def _workers(value: object) -> int:
    if value == "auto":
        return min(_MAX_WORKERS, len(os.sched_getaffinity(0)))
    if isinstance(value, str):
        raise Bad(f'"{printable(value)}" is not possible; write a number or "auto"')
    return values.whole(1, _MAX_WORKERS)(value)


def _address(top: Section, domain: str, listen: tuple[Endpoint, ...]) -> Endpoint:
    """What invitations carry: as given, else edge.<domain> and the port we listen on."""
    port = (listen[0].port if listen else 0) or 443
    default = Endpoint(f"edge.{domain}", port)
    return top.get("address", lambda value: endpoint(values.text(value), default_port=port), default)


def _limits(section: Section) -> LimitsConfig:
    default = LimitsConfig()
    seconds: Callable[[object], float] = values.seconds(1, 86400)
    found = LimitsConfig(
        connections_per_address=section.get(
            "connections_per_address", values.whole(1, 1_000_000), default.connections_per_address
        ),
        request_head_bytes=section.get("request_head_bytes", values.whole(1024, 1 << 20), default.request_head_bytes),
        request_head_seconds=section.get("request_head_seconds", seconds, default.request_head_seconds),
        idle_seconds=section.get("idle_seconds", seconds, default.idle_seconds),
        buffered_bytes=section.get("buffered_bytes", values.whole(16 << 20, 1 << 40), default.buffered_bytes),
    )
    section.finish()
    return found


def _only_listen(section: Section) -> Endpoint | None:
    """A table with nothing but `listen`."""
    found = section.get("listen", listen_endpoint, None)
    section.finish()
    return found


def _between(top: Section, config: EdgeConfig) -> None:
    """Rules that need more than one key."""
    if not config.listen and not config.listen_is_default and top.data["listen"] == []:
        top.bad("listen", "is empty; without it neither visitors nor tunnels can come in")
    if config.proxy_protocol and not config.trusted_proxies:
        top.bad("proxy_protocol", "needs trusted_proxies: the networks whose PROXY headers are believed")
    if config.tls.issuer == "acme":
        check_acme(top, config)
    for index, text in enumerate(config.trusted_proxies):
        if text.endswith("/0"):
            warning = f"{text} is everybody: any visitor can then claim any address"
            top.report.add(("trusted_proxies", index), warning, severity=WARNING)
    used: dict[Endpoint, str] = {}
    groups = {
        "listen": config.listen,
        "listen_http": config.listen_http,
        "metrics.listen": (config.metrics.listen,),
        "admin.listen": (config.admin.listen,),
    }
    for name, endpoints in groups.items():
        for item in endpoints:
            if item is None or not item.port:
                continue
            other = used.setdefault(item, name)
            if other != name:
                top.report.add(tuple(name.split(".")), f"{item} is in {other} too; one socket serves one of them")
    public = config.metrics.listen
    if public is not None and is_address(public.host) and public.host in ("0.0.0.0", "::"):
        text = f"{public} shows metrics to everybody who can reach this machine; 127.0.0.1 keeps them here"
        top.report.add(("metrics", "listen"), text, severity=WARNING)
