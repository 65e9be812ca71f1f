"""HAProxy at both ends: HTTP/1.1 or HTTP/2 between them over TLS, or TCP over TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadtest.contenders.base import Contender, through, which
from loadtest.scenario import Kind
from tests.ports import free_port

if TYPE_CHECKING:
    from loadtest.processes import Group
    from loadtest.scenario import Setup

COMMON = """global
  nbthread {threads}
  ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
  mode {mode}
  timeout connect 5s
  timeout client 300s
  timeout server 300s
"""


def front_bind(kind: Kind, port: int, folder: object) -> str:
    """How HAProxy listens for visitors of this kind."""
    tls = f"ssl crt {folder}/both.pem alpn h2,http/1.1" if kind is Kind.WEB else ""
    return f"bind 127.0.0.1:{port} {tls} backlog 4096"


class HaproxyChain(Contender):
    """Two HAProxy processes: TLS in, TLS between them, plain to the service."""

    name = "haproxy"
    programs = {"haproxy": "Debian: haproxy"}
    kinds = {
        Kind.WEB: "mode http at both ends, HTTP/1.1 over TLS between them, connections kept and shared",
        Kind.TCP: "mode tcp at both ends, one TLS connection for each visitor",
        Kind.PASS: "mode tcp at both ends, chosen by SNI, one TLS connection around the visitor's",
    }
    parts = ("front", "back")
    workers = True
    between = "alpn http/1.1"
    answers = ""

    def launch(self, group: Group, setup: Setup, service: int) -> tuple[int, tuple[str, ...]]:
        """Start the back, then the front."""
        folder, (front, back) = group.folder, (free_port(), free_port())
        web = setup.kind is Kind.WEB
        mode = "http" if web else "tcp"
        alpn = self.between if web else ""
        (folder / "back.cfg").write_text(f"""{COMMON.format(mode=mode, threads=1)}
frontend f
  bind 127.0.0.1:{back} ssl crt {folder}/both.pem {alpn} backlog 4096
  default_backend b
backend b
  {"http-reuse always" if web else ""}
  server service 127.0.0.1:{service}
""")
        group.start("back", [which("haproxy") or "haproxy", "-db", "-f", str(folder / "back.cfg")], ready=back)
        dialled = through(group, setup, back, dialled_by="edge")
        rules = {
            Kind.WEB: "option forwardfor\n  http-request set-header X-Forwarded-Proto https\n  default_backend b",
            Kind.TCP: "default_backend b",
            Kind.PASS: "tcp-request inspect-delay 5s\n  tcp-request content accept if { req.ssl_hello_type 1 }\n"
            "  use_backend b if { req.ssl_sni -i bench.example.com }",
        }[setup.kind]
        (folder / "front.cfg").write_text(f"""{COMMON.format(mode=mode, threads=setup.workers)}
frontend f
  {front_bind(setup.kind, front, folder)}
  {rules}
  {self.answers}
backend b
  {"http-reuse always" if web else ""}
  server back 127.0.0.1:{dialled} ssl verify required ca-file {folder}/cert.pem sni str(localhost) {alpn}
""")
        group.start("front", [which("haproxy") or "haproxy", "-db", "-f", str(folder / "front.cfg")], ready=front)
        return front, ()


class HaproxyH2(HaproxyChain):
    """The same with HTTP/2 between the two: many requests on one connection, as cloudflared has it."""

    name = "haproxy-h2"
    kinds = {Kind.WEB: "mode http at both ends, HTTP/2 over TLS between them, as cloudflared has it"}
    between = "alpn h2"
    # HTTP/2 has no reason phrase, and h2load takes an HTTP/1.1 answer without one for a failure.
    answers = "http-response set-status 200 reason OK if { status 200 }"
