"""A real ACME server for tests (Debian's pebble) with the DNS that it asks, both on loopback.

Its own certificate comes from a throw-away authority; names resolve to 127.0.0.1; challenges are looked for on the
ports that the test names.
"""

from __future__ import annotations

import json
import shutil
import ssl
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from tests.net.certs import Authority
from tests.ports import free_port
from tests.system.harness import Process, port_answers, wait_until

if TYPE_CHECKING:
    from tests.system.harness import World

needs_pebble = pytest.mark.skipif(
    shutil.which("pebble") is None or shutil.which("pebble-challtestsrv") is None,
    reason="pebble and pebble-challtestsrv are not installed (Debian: apt-get install pebble)",
)


class Pebble:
    """`dns`: a DNS server (host:port) to ask instead of pebble's own stub."""

    def __init__(self, world: World, *, dns: str = "", environment: dict[str, str] | None = None, **extra: Any) -> None:
        self.world = world
        self.folder = world.folder
        self.port, self.manager, self.stub_port, self.dns_port = (free_port() for _ in range(4))
        self.directory = f"https://localhost:{self.port}/dir"
        certificate, key = Authority("acme").write(self.folder, "localhost", stem="pebble")
        authority = Authority("acme server")
        certificate, key = authority.write(self.folder, "localhost", stem="pebble")
        self.ca_file = self.folder / "pebble-ca.pem"
        self.ca_file.write_text(authority.pem)
        self.context = ssl.create_default_context(cadata=authority.pem)
        self.config = self.folder / "pebble.json"
        listen = {
            "listenAddress": f"127.0.0.1:{self.port}",
            "managementListenAddress": f"127.0.0.1:{self.manager}",
            "certificate": str(certificate),
            "privateKey": str(key),
            "httpPort": world.http_port,
            "tlsPort": world.port,
            "externalAccountBindingRequired": False,
        }
        self.config.write_text(json.dumps({"pebble": {**listen, **extra}}))
        self.environment = {
            "PEBBLE_VA_NOSLEEP": "1",
            "PEBBLE_WFE_NONCEREJECT": "0",
            "PEBBLE_AUTHZREUSE": "0",
            **(environment or {}),
        }
        self.dns = dns
        self.process: Process | None = None

    def start(self) -> None:
        if not self.dns:
            stub = ["pebble-challtestsrv", "-dns01", f"127.0.0.1:{self.dns_port}", "-http01", "", "-https01", "",
                    "-tlsalpn01", "", "-management", f"127.0.0.1:{self.stub_port}", "-defaultIPv6", ""]  # fmt: skip
            self.world.add("dns-stub", stub, port=self.stub_port)
            self.dns = f"127.0.0.1:{self.dns_port}"
        self.again()

    def again(self) -> None:
        """Start the server itself (after `stop`: it has forgotten everything)."""
        command = ["pebble", "-strict", "-config", str(self.config), "-dnsserver", self.dns]
        self.process = self.world.add("pebble", command, port=self.port, env=self.environment)
        wait_until(lambda: port_answers(self.manager), what="its management interface")

    def stop(self) -> None:
        assert self.process is not None
        self.process.kill()

    def tell_dns(self, path: str, body: dict[str, Any]) -> None:
        """The stub's management interface."""
        data = json.dumps(body).encode()
        urllib.request.urlopen(f"http://127.0.0.1:{self.stub_port}/{path}", data, timeout=10).close()

    def manage(self, path: str) -> bytes:
        url = f"https://localhost:{self.manager}/{path}"
        with urllib.request.urlopen(url, timeout=10, context=self.context) as answer:
            return bytes(answer.read())

    def root(self) -> str:
        """What certificates of this server lead to."""
        return self.manage("roots/0").decode()

    def status(self, certificate: dict[str, Any]) -> str:
        """Of a certificate, as `getpeercert` describes it: "Valid" or "Revoked"."""
        serial = certificate["serialNumber"].lower()
        return str(json.loads(self.manage(f"cert-status-by-serial/{serial}"))["Status"])

    @property
    def tables(self) -> str:
        return f'[acme]\ndirectory = "{self.directory}"\nca_file = "{self.ca_file}"\nemail = "me@example.com"\n'


def shown(world: World, pebble: Pebble, name: str) -> dict[str, Any]:
    """The certificate that a visitor of this name gets, verified against the server's root."""
    import socket

    context = ssl.create_default_context(cadata=pebble.root())
    with (
        socket.create_connection(("127.0.0.1", world.port), timeout=30) as raw,
        context.wrap_socket(raw, server_hostname=name) as tls,
    ):
        return dict(tls.getpeercert() or {})


def has_certificate(world: World, pebble: Pebble, name: str) -> bool:
    try:
        return bool(shown(world, pebble, name))
    except OSError:
        return False


__all__ = ["Pebble", "has_certificate", "needs_pebble", "shown", "wait_until"]
