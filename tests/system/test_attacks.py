"""A short form of loadtest/attacks.py: while a flood is on, another visitor is served and the connector stays."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.system.harness import World, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.system
ROOT = Path(__file__).resolve().parents[2]
SECONDS = "3"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("attacks")) as world:
        world.start_edge()
        folder = world.folder / "pages"
        folder.mkdir()
        (folder / "small").write_bytes(bytes(13))
        world.connector("home", f'[services.bench]\ntarget = "file:{folder}"\n')
        wait_until(lambda: world.code("https://bench.example.com/small") == 200, what="the service is there")
        yield world


def start(world: World, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "loadtest.attackers", *arguments]
    return world.aside(command, cwd=ROOT, stdout=subprocess.PIPE)


def value(world: World, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} (\S+)$", world.metrics(), re.MULTILINE)
    assert found, series
    return float(found[1])


def test_a_flood_of_handshakes_leaves_operators_and_tunnels_served(world: World) -> None:
    """While the processor is full of handshakes: the control socket, metrics and the tunnel's pings are answered."""
    attacker = start(world, "handshakes", str(world.port), "--sources", "256", "--width", "600", "--seconds", "10")
    looks = 0
    while attacker.poll() is None:
        connector = world.status()["connectors"][0]  # over the control socket
        assert connector["state"] == "up"
        assert value(world, "tunnelgw_loop_lag_seconds") < 10
        looks += 1
    flood = json.loads(attacker.communicate(timeout=60)[0])
    assert looks >= 1
    assert sum(flood.values()) > 500, flood
    assert value(world, "tunnelgw_loop_lag_seconds") > 0
    for what in ("reconnects", "resumes"):
        assert value(world, f'tunnelgw_tunnel_{what}_total{{connector="home"}}') == 0, "the link was given up"


@pytest.mark.parametrize(("flood", "sources"), [("stalled", 256), ("halfway", 1), ("tunnels", 64)])
def test_others_are_served(world: World, flood: str, sources: int) -> None:
    port = str(world.port)
    attacker = start(world, flood, port, "--sources", str(sources), "--width", "600", "--seconds", SECONDS)
    bystander = start(world, "bystander", port, "--seconds", SECONDS, "--patience", "30")
    seen = json.loads(bystander.communicate(timeout=60)[0])
    attacker.communicate(timeout=60)
    for kind in ("kept", "fresh"):
        # The loop of a busy test machine may be slow; being refused, or forgotten, is another thing.
        assert not seen[kind]["failures"], (seen, world.logs())
    connector = world.status()["connectors"][0]
    assert connector["state"] == "up"
    assert 'tunnelgw_tunnel_reconnects_total{connector="home"} 0.0' in world.metrics()
