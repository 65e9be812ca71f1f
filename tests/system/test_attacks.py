"""A short form of loadtest/attacks.py: while a flood is on, another visitor is served and the connector stays."""

from __future__ import annotations

import json
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


def start(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "loadtest.attackers", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)


@pytest.mark.parametrize(("flood", "sources"), [("stalled", 256), ("halfway", 1), ("tunnels", 64)])
def test_others_are_served(world: World, flood: str, sources: int) -> None:
    port = str(world.port)
    attacker = start(flood, port, "--sources", str(sources), "--width", "600", "--seconds", SECONDS)
    bystander = start("bystander", port, "--seconds", SECONDS)
    seen = json.loads(bystander.communicate(timeout=60)[0])
    attacker.communicate(timeout=60)
    for kind in ("kept", "fresh"):
        # The loop of a busy test machine may be slow; being refused, or forgotten, is another thing.
        assert not seen[kind]["failures"], (seen, world.logs())
    connector = world.status()["connectors"][0]
    assert connector["state"] == "up"
    assert 'tunnelgw_tunnel_reconnects_total{connector="home"} 0.0' in world.metrics()
