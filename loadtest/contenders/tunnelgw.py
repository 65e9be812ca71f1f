"""This project: an edge and a connector, set up by their own commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest.contenders.base import Contender, through
from loadtest.contenders.laptop import away
from loadtest.home import make_certificate, start_nginx
from loadtest.processes import wait_port
from loadtest.scenario import ADDRESS, Kind, Setup
from tests.ports import free_port

if TYPE_CHECKING:
    from loadtest.processes import Group
    from loadtest.scenario import Target

COMMAND = [sys.executable, "-m", "tunnelgw"]
RELAY = Path(__file__).parents[2] / "tests" / "system" / "relay.py"


class Tunnelgw(Contender):
    """One edge worker and one connector with their defaults, but for connections per address, and idle ones."""

    name = "tunnelgw"
    kinds = {
        Kind.WEB: "a service with an http:// target",
        Kind.TCP: "a service with a tcp:// target and a public port",
        Kind.PASS: "a service with a tls:// target",
        Kind.UDP: "a service with a udp:// target and a public port",
        Kind.TUN: "`visit --tun --via home` on another machine",
    }
    parts = ("edge", "connector")
    workers = True

    def start(self, folder: Path, setup: Setup, service: int) -> Target:
        """Start it; for packets, on machines of their own."""
        return away(self.name, folder, setup) if setup.kind is Kind.TUN else super().start(folder, setup, service)

    def launch(self, group: Group, setup: Setup, service: int) -> tuple[int, tuple[str, ...]]:
        """Invite, join, run."""
        port = free_port()
        front = start(group, services=service_table(setup.kind, service, port), setup=setup)
        return (port if setup.kind in (Kind.TCP, Kind.UDP) else front), ()


def service_table(kind: Kind, service: int, port: int) -> str:
    """The [services.bench] table for a job."""
    scheme = {Kind.WEB: "http", Kind.TCP: "tcp", Kind.PASS: "tls", Kind.UDP: "udp"}[kind]
    public = f"\nport = {port}" if kind in (Kind.TCP, Kind.UDP) else ""
    return f'[services.bench]\ntarget = "{scheme}://127.0.0.1:{service}"{public}'


def start(
    group: Group,
    service: int = 0,
    *,
    services: str = "",
    setup: Setup | None = None,
    delay: float = 0.0,
    namespaces: list[list[str]] | None = None,
    address: str = ADDRESS,
) -> int:
    """Invite, join, run members `edge` and `connector`; returns the edge's port.

    service: the port that bench.example.com leads to; 0: an nginx is started, unless `services` (tables of the
    connector's file) says otherwise. delay: round trip in seconds added to the link by a relay. namespaces: command
    prefixes for the edge and for home; `address` is the edge's.
    """
    setup = setup or Setup()
    folder, front = make_certificate(group.folder), free_port()
    at_edge, at_home = namespaces or [[], []]
    if not services:
        services = service_table(Kind.WEB, service or start_nginx(group, at_home), 0)
    write_edge(folder, address=f"{address}:{front}", workers=setup.workers)
    (folder / "connector.toml").write_text(f'state_dir = "{folder}/connector"\n{services}\n')
    edge, home = ["--config", str(folder / "edge.toml")], ["--config", str(folder / "connector.toml")]
    group.start("edge", [*at_edge, *COMMAND, "edge", "run", *edge], ready="ready")
    join(group, "home", edge=edge, home=[*at_home, *COMMAND, "join", "-", *home], delay=delay, setup=setup, front=front)
    group.start("connector", [*at_home, *COMMAND, "connect", *home], ready="ready")
    return front


def write_edge(folder: Path, *, address: str, workers: int = 1) -> None:
    """The edge's file and its empty state."""
    from tunnelgw.admin.setup import create_state

    (folder / "edge.toml").write_text(f"""
domain = "example.com"
address = "{address}"
listen = ["{address}"]
listen_http = []
port_bind = "{ADDRESS}"
workers = {workers}
state_dir = "{folder}/edge"
[tls]
issuer = "files"
certificates = [{{ cert = "{folder}/cert.pem", key = "{folder}/key.pem" }}]
[limits]
connections_per_address = 20000
idle_seconds = 300
""")
    create_state(folder / "edge")


def join(group: Group, name: str, *, edge: list[str], home: list[str], front: int, delay: float, setup: Setup) -> None:
    """An invitation from the running edge, used by a connector, through what lies between them."""
    allow = ["--allow-port", "1024-65535"] if setup.kind in (Kind.TCP, Kind.UDP) else []
    invite = subprocess.run([*COMMAND, "edge", "invite", name, *allow, *edge], check=True, capture_output=True)
    dialled = through(group, setup, front, dialled_by="home")
    if delay:
        dialled = free_port()
        group.start("relay", [sys.executable, str(RELAY), str(dialled), str(front), "--delay", str(delay / 2)])
        wait_port(dialled)
    by = ["--edge", f"{ADDRESS}:{dialled}"] if dialled != front else []
    subprocess.run([*home, *by], input=invite.stdout, check=True, capture_output=True)
