"""rathole with its TLS transport, and nginx before it for visitors' TLS."""

from __future__ import annotations

import secrets
import subprocess
from typing import TYPE_CHECKING

from loadtest.contenders.base import Contender, through
from loadtest.contenders.nginx import start_proxy
from loadtest.scenario import Kind
from tests.ports import free_port

if TYPE_CHECKING:
    from loadtest.processes import Group
    from loadtest.scenario import Setup


class Rathole(Contender):
    """A server and a client as in its examples/tls; one TLS connection for each visitor's."""

    name = "rathole"
    programs = {
        "rathole": "https://github.com/rathole-org/rathole",
        "nginx": "Debian: nginx",
        "openssl": "Debian: openssl",
    }
    kinds = {
        Kind.WEB: "transport tls; nginx ends visitors' TLS before the server's port, connections kept",
        Kind.TCP: "transport tls",
        Kind.PASS: "transport tls, a port of its own; no choice by name",
        Kind.UDP: "transport tls, type udp",
    }
    parts = ("server", "client")

    def launch(self, group: Group, setup: Setup, service: int) -> tuple[int, tuple[str, ...]]:
        """Server, client, and nginx for visitors of the web."""
        folder, (port, remote, front) = group.folder, (free_port(), free_port(), free_port())
        word = secrets.token_hex(8)
        subprocess.run(
            ["openssl", "pkcs12", "-export", "-out", "identity.pfx", "-inkey", "key.pem", "-in", "cert.pem",
             "-passout", f"pass:{word}"], cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
        kind = 'type = "udp"\n' if setup.kind is Kind.UDP else ""
        (folder / "server.toml").write_text(f"""
[server]
bind_addr = "127.0.0.1:{port}"
default_token = "{word}"
[server.transport]
type = "tls"
[server.transport.tls]
pkcs12 = "{folder}/identity.pfx"
pkcs12_password = "{word}"
[server.services.bench]
{kind}bind_addr = "127.0.0.1:{remote}"
""")
        group.start("server", ["rathole", str(folder / "server.toml")], ready=port)
        (folder / "client.toml").write_text(f"""
[client]
remote_addr = "127.0.0.1:{through(group, setup, port, dialled_by="home")}"
default_token = "{word}"
[client.transport]
type = "tls"
[client.transport.tls]
trusted_root = "{folder}/cert.pem"
hostname = "localhost"
[client.services.bench]
{kind}local_addr = "127.0.0.1:{service}"
""")
        ready: int | str = "Control channel established" if kind else remote
        group.start("client", ["rathole", str(folder / "client.toml")], ready=ready)
        if setup.kind is not Kind.WEB:
            return remote, ()
        start_proxy(group, "nginx", front, remote)
        return front, ("nginx", *self.parts)
