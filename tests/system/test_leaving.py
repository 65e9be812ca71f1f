"""Ends that must be quick and numbers that must be true while something lasts."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.ports import free_port
from tests.system.harness import World, port_answers, wait_until
from tests.system.targets import RawTarget, read_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.system
GRACE = 8.0  # seconds: who waited for it would take ten


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, extra='port_bind = "127.0.0.1"') as world:
        world.start_edge()
        yield world


def test_a_connector_does_not_wait_for_idle_streams(world: World) -> None:
    """A visitor's kept stream has nobody at its other end: the edge lets go of it when the connector leaves."""
    home = world.connector("home", f"[services.web]\ntarget = {world.service('web')}")
    assert home.process is not None
    with world.tls("web.example.com") as visitor:
        visitor.sendall(b"GET / HTTP/1.1\r\nHost: web.example.com\r\n\r\n")
        seen = b""
        while b"hello from web" not in seen:
            seen += visitor.recv(65536)
        began = time.monotonic()
        assert home.process.stop() == 0
        assert time.monotonic() - began < GRACE


@pytest.mark.parametrize("alpn", ["http/1.1", "h2"])
def test_an_edge_does_not_wait_for_idle_visitors(world: World, alpn: str) -> None:
    """Nor for their goodbye: one that keeps its connection open and says nothing must not delay a restart."""
    world.connector("home", f"[services.web]\ntarget = {world.service('web')}")
    assert world.edge is not None
    with world.tls("web.example.com", alpn=[alpn]) as visitor:
        if alpn == "h2":
            visitor.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        else:
            visitor.sendall(b"GET / HTTP/1.1\r\nHost: web.example.com\r\n\r\n")
        assert visitor.recv(65536)
        began = time.monotonic()
        assert world.edge.stop() == 0
        assert time.monotonic() - began < GRACE


def test_a_connector_that_left_is_not_waited_for(world: World) -> None:
    """It said that it leaves and its link is gone: its streams end now, not after resume_seconds."""
    home = world.connector("home", f"[services.web]\ntarget = {world.service('web')}")
    assert home.process is not None
    assert world.edge is not None
    url = f"https://web.example.com:{world.port}/bytes/400000000"
    resolve = f"web.example.com:{world.port}:127.0.0.1"
    command = ["curl", "-sk", "--limit-rate", "1M", "--resolve", resolve, "-o", "/dev/null", url]
    download = world.aside(command)
    wait_until(lambda: 'streams": 1' in home.command("status", "--json").stdout, what="the download runs")
    home.process.signal(signal.SIGTERM)
    world.edge.wait_for("home is leaving")
    home.process.kill()
    # What the kernels hold already is read at that rate before curl sees the end.
    assert download.wait(timeout=60) != 0


def test_bytes_of_a_connection_that_lasts(world: World) -> None:
    def echo(sock: socket.socket) -> None:
        while data := sock.recv(65536):
            sock.sendall(data)

    def counted(direction: str) -> int:
        found = re.search(rf'bytes_total{{direction="{direction}",route="tcp:{port}"}} (\d+)', world.metrics())
        return int(found[1]) if found else 0

    port = free_port()
    with RawTarget(echo) as target:
        services = f'[services.raw]\ntarget = "tcp://127.0.0.1:{target.port}"\nport = {port}'
        world.connector("home", services, allow=("--allow-port", str(port)))
        with socket.create_connection(("127.0.0.1", port), timeout=10) as visitor:
            for total in (1000, 2000):
                visitor.sendall(bytes(1000))
                visitor.recv(1000, socket.MSG_WAITALL)
                wait_until(lambda total=total: counted("out") == counted("in") == total, what=f"{total} bytes")
        wait_until(lambda: 'tunnelgw_connections{listener="tcp"} 0' in world.metrics(), what="the end is noticed")
        assert counted("out") == counted("in") == 2000


def test_status_does_not_claim_what_was_taken_back(world: World) -> None:
    home = world.connector("home", f"[services.web]\ntarget = {world.service('web')}")
    service = lambda: json.loads(home.command("status", "--json").stdout)["services"][0]  # noqa: E731
    assert service()["state"] == "accepted"
    world.edge_command("revoke", "home")
    wait_until(lambda: service()["state"] == "waiting", what="the connector knows")
    assert "revoked" in service()["message"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stopping_edge_refuses_new_visitors_at_once(tmp_path: Path, workers: int) -> None:
    """While something in progress has its grace, nobody new is left in a queue that nobody empties."""
    with World(tmp_path, workers=workers) as world:
        world.start_edge()
        world.connector("home", f"[services.web]\ntarget = {world.service('web')}")
        assert world.edge is not None
        with world.tls("web.example.com") as visitor:
            visitor.sendall(b"GET /slow?seconds=60 HTTP/1.1\r\nHost: web.example.com\r\n\r\n")
            wait_until(lambda: 'tunnelgw_streams{connector="home"} 1' in world.metrics(), what="it is asked")
            world.edge.signal(signal.SIGTERM)
            wait_until(lambda: not port_answers(world.port), seconds=GRACE - 1, what="new connections are refused")
            assert world.edge.popen.poll() is None
        assert world.edge.stop() == 0


def test_the_port_of_a_connector_that_restarts_stays_open(tmp_path: Path) -> None:
    """Who comes meanwhile waits, as a request does; once nobody would wait any more the port is closed."""
    port = free_port()
    extra = 'port_bind = "127.0.0.1"\nresume_seconds = 16\npark_seconds = 15'
    with World(tmp_path, extra=extra) as world, RawTarget(lambda sock: sock.sendall(b"raw\n")) as raw:
        world.start_edge()
        services = f'[services.raw]\ntarget = "tcp://127.0.0.1:{raw.port}"\nport = {port}'
        home = world.connector("home", services, allow=("--allow-port", str(port)))
        assert home.process is not None
        assert home.process.stop() == 0
        wait_until(lambda: world.status()["connectors"][0]["state"] == "away", what="the connector is away")
        with socket.create_connection(("127.0.0.1", port), timeout=30) as visitor:
            home.start()
            assert read_all(visitor) == b"raw\n"
        assert home.process.stop() == 0
        wait_until(lambda: not port_answers(port), seconds=45, what="the port is closed")
        home.start()
        wait_until(lambda: port_answers(port), what="the port is open")
