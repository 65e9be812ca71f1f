"""frp, as its own documentation sets it up: TLS between frps and frpc (checked), tcpMux and all else by default."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from loadtest.contenders.base import Contender, through
from loadtest.contenders.nginx import start_proxy
from loadtest.scenario import HOST, Kind
from tests.ports import free_port

if TYPE_CHECKING:
    from loadtest.processes import Group
    from loadtest.scenario import Setup

PLACE = "https://github.com/fatedier/frp"


class Frp(Contender):
    """frps and frpc."""

    name = "frp"
    programs = {"frps": PLACE, "frpc": PLACE}
    kinds = {
        Kind.WEB: "type https with the plugin https2http: visitors' TLS ends in frpc, at home",
        Kind.TCP: "type tcp",
        Kind.PASS: "type https: frps chooses by SNI",
        Kind.UDP: "type udp",
    }
    parts = ("frps", "frpc")

    def launch(self, group: Group, setup: Setup, service: int) -> tuple[int, tuple[str, ...]]:
        """frps, then frpc."""
        port, keys = free_port(), group.folder
        named = setup.kind in (Kind.WEB, Kind.PASS)
        proxy = {
            Kind.WEB: f'type = "https"\ncustomDomains = ["{HOST}"]\n[proxies.plugin]\ntype = "https2http"\n'
            f'localAddr = "127.0.0.1:{service}"\ncrtPath = "{keys}/cert.pem"\nkeyPath = "{keys}/key.pem"',
            Kind.PASS: f'type = "https"\ncustomDomains = ["{HOST}"]\nlocalPort = {service}',
            Kind.TCP: f'type = "tcp"\nlocalPort = {service}\nremotePort = {port}',
            Kind.UDP: f'type = "udp"\nlocalPort = {service}\nremotePort = {port}',
        }[setup.kind]
        start_frp(group, setup, f"vhostHTTPSPort = {port}" if named else "", proxy)
        return port, ()


class FrpNginx(Contender):
    """The same with visitors' TLS ended by nginx before frps, so that it is done where the others do it."""

    name = "frp-nginx"
    programs = {**Frp.programs, "nginx": "Debian: nginx"}
    kinds = {Kind.WEB: "type http behind nginx, which ends visitors' TLS"}
    parts = ("nginx", "frps", "frpc")

    def launch(self, group: Group, setup: Setup, service: int) -> tuple[int, tuple[str, ...]]:
        """frps, frpc, then nginx."""
        front, port = free_port(), free_port()
        proxy = f'type = "http"\ncustomDomains = ["{HOST}"]\nlocalPort = {service}'
        start_frp(group, setup, f"vhostHTTPPort = {port}", proxy)
        start_proxy(group, "nginx", front, port)
        return front, ()


def start_frp(group: Group, setup: Setup, vhost: str, proxy: str) -> None:
    """Members frps and frpc with one proxy."""
    folder, port, token = group.folder, free_port(), secrets.token_hex(16)
    (folder / "frps.toml").write_text(f"""
bindAddr = "127.0.0.1"
bindPort = {port}
{vhost}
auth.token = "{token}"
transport.tls.force = true
transport.tls.certFile = "{folder}/cert.pem"
transport.tls.keyFile = "{folder}/key.pem"
""")
    group.start("frps", ["frps", "-c", str(folder / "frps.toml")], ready="frps started successfully")
    (folder / "frpc.toml").write_text(f"""
serverAddr = "127.0.0.1"
serverPort = {through(group, setup, port, dialled_by="home")}
auth.token = "{token}"
transport.tls.trustedCaFile = "{folder}/cert.pem"
transport.tls.serverName = "localhost"

[[proxies]]
name = "bench"
{proxy}
""")
    group.start("frpc", ["frpc", "-c", str(folder / "frpc.toml")], ready="start proxy success")
