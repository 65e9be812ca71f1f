"""nginx at both ends, as the front of tunnels that have no TLS of their own for visitors, and alone as a yardstick."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadtest.contenders.base import Contender, through, which
from loadtest.home import start_nginx
from loadtest.scenario import Kind
from tests.ports import free_port

if TYPE_CHECKING:
    from pathlib import Path

    from loadtest.processes import Group
    from loadtest.scenario import Setup

# Bodies are passed on as they come: no buffering of requests, no temporary files.
TEMPLATE = """
daemon off; worker_processes {workers}; worker_rlimit_nofile 20000; pid {folder}/{name}.pid; user root;
error_log {folder}/{name}-error.log;
events {{ worker_connections 9990; }}
http {{ access_log off; tcp_nodelay on; keepalive_requests 100000000; keepalive_timeout 300s; client_max_body_size 0;
  client_body_temp_path {folder}/tmp; proxy_temp_path {folder}/tmp; fastcgi_temp_path {folder}/tmp;
  uwsgi_temp_path {folder}/tmp; scgi_temp_path {folder}/tmp;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream next {{ server 127.0.0.1:{to}; keepalive 256; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{port} ssl http2 backlog=4096;
    ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem; ssl_session_cache shared:s:10m;
    location / {{ proxy_pass {scheme}://next; proxy_http_version 1.1; proxy_request_buffering off;
      proxy_max_temp_file_size 0; proxy_read_timeout 300s; proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto https;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
      {extra} }} }} }}
"""
VERIFY = "proxy_ssl_verify on; proxy_ssl_trusted_certificate {}/cert.pem; proxy_ssl_name localhost;"


def start_proxy(group: Group, name: str, port: int, to: int, *, tls: bool = False, workers: int = 1) -> None:
    """A member that ends visitors' TLS on `port` and passes requests to `to`, over TLS or plain, connections kept."""
    folder: Path = group.folder
    scheme, extra = ("https", VERIFY.format(folder)) if tls else ("http", "")
    config = folder / f"{name}.conf"
    config.write_text(
        TEMPLATE.format(folder=folder, name=name, port=port, to=to, scheme=scheme, extra=extra, workers=workers)
    )
    group.start(name, [which("nginx") or "nginx", "-p", str(folder), "-c", str(config)], ready=port)


class NginxChain(Contender):
    """Two nginx processes: TLS in, TLS between them with kept connections, plain to the service."""

    name = "nginx"
    programs = {"nginx": "Debian: nginx"}
    kinds = {Kind.WEB: "proxy_pass over TLS at the front, keepalive pools of 256 at both ends"}
    parts = ("front", "back")
    workers = True

    def launch(self, group: Group, setup: Setup, service: int) -> tuple[int, tuple[str, ...]]:
        """Start the back, then the front."""
        front, back = free_port(), free_port()
        start_proxy(group, "back", back, service)
        dialled = through(group, setup, back, dialled_by="edge")
        start_proxy(group, "front", front, dialled, tls=True, workers=setup.workers)
        return front, ()


class NginxDirect(Contender):
    """No tunnel at all: what one nginx can do over TLS. A yardstick, not a peer."""

    name = "nginx-direct"
    programs = {"nginx": "Debian: nginx"}
    kinds = {Kind.WEB: "the local nginx itself with TLS (before another service than files: one proxying nginx)"}
    parts = ("nginx",)

    def refuses(self, setup: Setup) -> str:
        """Nothing lies between it and itself."""
        return "no link between edge and home" if setup.wire else super().refuses(setup)

    def launch(self, group: Group, setup: Setup, service: int) -> tuple[int, tuple[str, ...]]:
        """The front is the home."""
        port = free_port()
        if setup.home:
            start_proxy(group, "nginx", port, service)
        else:
            start_nginx(group, secure=port)
        return port, ()
