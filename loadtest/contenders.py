"""Who is compared: each does the same job on loopback, from TLS at the front to plain HTTP at one local nginx.

    visitor -- TLS --> front -- TLS --> back -- plain HTTP --> nginx

Every front shows the same ECDSA P-256 certificate, keeps connections alive everywhere and runs one thread.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from loadtest.processes import Group, wait_port
from tests.ports import free_port

HOST = "bench.example.com"


def make_certificate(folder: Path) -> Path:
    """cert.pem, key.pem and both.pem for HOST; returns the folder."""
    if not (folder / "cert.pem").exists():
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", "7", "-keyout", "key.pem", "-out", "cert.pem", "-subj", f"/CN={HOST}",
             "-addext", f"subjectAltName=DNS:{HOST}"], cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
        (folder / "both.pem").write_text((folder / "cert.pem").read_text() + (folder / "key.pem").read_text())
    return folder


def start_nginx(group: Group, inside: list[str] | None = None, *, listen: str = "") -> int:
    """The local service: bodies of 13 bytes to 1 GiB over plain HTTP with keep-alive. Returns its port.

    listen: further parameters of nginx's directive.
    """
    folder, port = group.folder, free_port()
    pages = folder / "pages"
    pages.mkdir(exist_ok=True)
    for name, size in {
        "small": 13,
        "10k": 10 * 1024,
        "1m": 1024 * 1024,
        "256m": 256 * 1024 * 1024,
        "1g": 1024**3,
    }.items():
        with (pages / name).open("wb") as file:
            file.truncate(size)
    (folder / "nginx.conf").write_text(f"""
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx-error.log; user root;
events {{ worker_connections 8192; }}
http {{ access_log off; sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_requests 100000000;
  keepalive_timeout 300s;
  client_body_temp_path {folder}/tmp; proxy_temp_path {folder}/tmp; fastcgi_temp_path {folder}/tmp;
  uwsgi_temp_path {folder}/tmp; scgi_temp_path {folder}/tmp; open_file_cache max=100;
  server {{ listen 127.0.0.1:{port} backlog=4096 {listen}; root {pages}; }} }}
""")
    group.start("nginx", [*(inside or []), "nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")])
    if not inside:
        wait_port(port)
    return port


class HaproxyChain:
    """Two HAProxy processes: TLS in, TLS between them, plain HTTP to the service."""

    name = "haproxy-chain"
    parts = ("front", "back")

    @staticmethod
    def missing() -> str:
        """Why it cannot run here; "" if it can."""
        return "" if shutil.which("haproxy") else "haproxy is not on PATH"

    @staticmethod
    def start(group: Group, service: int) -> int:
        """Start both; returns the front's port."""
        folder = make_certificate(group.folder)
        front, back = free_port(), free_port()
        common = """global
  nbthread 1
  maxconn 4000
  ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  http-reuse always
"""
        (folder / "front.cfg").write_text(f"""{common}
frontend f
  bind 127.0.0.1:{front} ssl crt {folder}/both.pem alpn h2,http/1.1 backlog 4096
  option forwardfor
  http-request set-header X-Forwarded-Proto https
  default_backend b
backend b
  server back 127.0.0.1:{back} ssl verify none alpn http/1.1
""")
        (folder / "back.cfg").write_text(f"""{common}
frontend f
  bind 127.0.0.1:{back} ssl crt {folder}/both.pem alpn http/1.1 backlog 4096
  default_backend b
backend b
  server service 127.0.0.1:{service}
""")
        for part in ("back", "front"):
            group.start(part, ["haproxy", "-db", "-f", str(folder / f"{part}.cfg")])
        wait_port(back)
        wait_port(front)
        return front


class Tunnelgw:
    """An edge and a connector, set up by their own commands."""

    name = "tunnelgw"
    parts = ("edge", "connector")

    @staticmethod
    def missing() -> str:
        """Never: it is this project."""
        return ""

    @staticmethod
    def start(
        group: Group,
        service: int,
        *,
        delay: float = 0.0,
        namespaces: list[list[str]] | None = None,
        address: str = "127.0.0.1",
    ) -> int:
        """Invite, join, run; returns the edge's port.

        delay: round trip in seconds added to the link by a relay. namespaces: command prefixes for the edge and for
        home, where nginx is then started too; `address` is the edge's.
        """
        folder = make_certificate(group.folder)
        front = free_port()
        at_edge, at_home = namespaces or [[], []]
        service = service or start_nginx(group, at_home)
        tunnelgw = [sys.executable, "-m", "tunnelgw"]
        (folder / "edge.toml").write_text(f"""
domain = "example.com"
address = "{address}:{front}"
listen = ["{address}:{front}"]
listen_http = []
state_dir = "{folder}/edge"
[tls]
issuer = "files"
certificates = [{{ cert = "{folder}/cert.pem", key = "{folder}/key.pem" }}]
[limits]
connections_per_address = 20000
""")
        (folder / "connector.toml").write_text(f"""
state_dir = "{folder}/connector"
[services.bench]
target = "http://127.0.0.1:{service}"
""")
        edge = ["--config", str(folder / "edge.toml")]
        home = ["--config", str(folder / "connector.toml")]
        from tunnelgw.admin.setup import create_state

        create_state(folder / "edge")
        group.start("edge", [*at_edge, *tunnelgw, "edge", "run", *edge])
        group.wait_for("edge", "ready")
        invite = subprocess.run([*tunnelgw, "edge", "invite", "home", *edge], check=True, capture_output=True)
        through = []
        if delay:
            relay = free_port()
            script = Path(__file__).parent.parent / "tests" / "system" / "relay.py"
            group.start("relay", [sys.executable, str(script), str(relay), str(front), "--delay", str(delay / 2)])
            wait_port(relay)
            through = ["--edge", f"127.0.0.1:{relay}"]
        subprocess.run(
            [*at_home, *tunnelgw, "join", "-", *home, *through], input=invite.stdout, check=True, capture_output=True
        )
        group.start("connector", [*at_home, *tunnelgw, "connect", *home])
        group.wait_for("connector", "ready")
        return front


CONTENDERS = {contender.name: contender for contender in (HaproxyChain, Tunnelgw)}
