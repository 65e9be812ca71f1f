"""Edge and connector of different versions: those that were released work with this one, in both directions.

The older programs come out of the history of this checkout and run with today's libraries.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.ports import free_port
from tests.system.crowd import HOST, Crowd
from tests.system.harness import World, wait_until
from tests.system.service import pattern
from tests.system.targets import RawTarget
from tests.system.upgrading import Upgrading, echo, home

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.system
ROOT = Path(__file__).parents[2]
# Version 1 of the tunnel protocol: when it was first whole, and before an edge could hand over to another.
OLD = {
    "first": "138d0a92e8387437e1e88b45fd7c661c177ff2e2",
    "before hand-over": "ee4385bbf82e3d67f40b90e3381c7c0d4e2334a3",
}


@pytest.fixture(scope="module", params=OLD.values(), ids=OLD)
def old(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which `python -m tunnelgw` is that version."""
    commit = request.param
    git = ["git", "-C", str(ROOT)]
    known = subprocess.run([*git, "cat-file", "-e", f"{commit}^{{commit}}"], capture_output=True, check=False)
    if known.returncode != 0:
        pytest.skip(f"this checkout has no history: commit {commit[:7]} is not in it (git fetch --unshallow)")
    folder = tmp_path_factory.mktemp("old")
    archive = subprocess.run([*git, "archive", commit, "tunnelgw"], capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    env = {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}  # and not from the folder that a command runs in
    where = subprocess.run(
        [sys.executable, "-c", "import tunnelgw; print(tunnelgw.__file__)"],
        env={**os.environ, **env}, cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(folder))
    return env


@pytest.fixture
def raw() -> Iterator[tuple[int, int]]:
    """A raw target, and a public port for it."""
    with RawTarget(echo) as target:
        yield target.port, free_port()


def large_download(world: World) -> None:
    size = 20 << 20
    body = world.curl(f"https://{HOST}/bytes/{size}").stdout
    assert hashlib.sha256(body).digest() == hashlib.sha256(pattern(size)).digest()


def test_an_old_connector_with_this_edge(old: dict[str, str], tmp_path: Path, raw: tuple[int, int]) -> None:
    """Also through an upgrade of the edge: it goes on elsewhere when it is asked to."""
    with Upgrading(tmp_path) as world:
        world.start_edge()
        home(world, raw=raw[0], port=raw[1], env=old)
        large_download(world)
        with Crowd(world, raw_port=raw[1]) as crowd:
            world.upgrade("command")
            crowd.await_each()
            crowd.stop()
        assert world.connectors["home"].process.stop() == 0
        world.connectors["home"].start()
        large_download(world)


def test_this_connector_with_an_old_edge(old: dict[str, str], tmp_path: Path, raw: tuple[int, int]) -> None:
    """Then the edge is upgraded: this time, since it cannot hand over, by a restart on the same state."""
    with Upgrading(tmp_path, env=old) as world:
        world.start_edge()
        home(world, raw=raw[0], port=raw[1])
        large_download(world)
        with Crowd(world, raw_port=raw[1]) as crowd:
            crowd.await_each()
            crowd.stop()
        early = world.command()
        assert early.popen.wait(30) == 1
        assert "of a version that cannot hand over; restart it this once" in early.text()
        large_download(world)
        assert world.voice.stop() == 0
        world.env = None
        world.start_edge()
        wait_until(lambda: world.curl(f"https://{HOST}/", check=False).stdout == b"hello from web\n", what="it is back")
        large_download(world)
        with Crowd(world, raw_port=raw[1]) as crowd:
            world.upgrade("command")
            crowd.await_each()
            crowd.stop()


# A program whose tunnel protocol has other versions, in every respect but that this one.
OTHER = """
import sys
from tunnelgw.wire import hello
hello.VERSIONS = ({version},)
from tunnelgw.cli.main import main
sys.exit(main())
"""


@pytest.mark.parametrize(("version", "older"), [(7, "edge"), (0, "connector")])
def test_without_a_common_version_both_sides_say_what_to_upgrade(tmp_path: Path, version: int, older: str) -> None:
    said = f"the connector speaks version {version} of the tunnel protocol, the edge 1: upgrade the {older}"
    with World(tmp_path) as world:
        edge = world.start_edge()
        connector = world.connector("home", f"[services.web]\ntarget = {free_port()}", start=False)
        command = [sys.executable, "-c", OTHER.format(version=version), "connect", "--config", str(connector.config)]
        process = world.add("home", command)
        edge.wait_for(f"version_mismatch.*{said}")
        process.wait_for(f"version_mismatch.*{said}")
        assert said in connector.command("status").stdout
        invitation = world.edge_command("invite", "other").stdout.strip()
        joining = subprocess.run(
            [sys.executable, "-c", OTHER.format(version=version), "join", invitation, "--config",
             str(tmp_path / "other.toml"), "--state-dir", str(tmp_path / "other")],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert joining.returncode == 1
        assert said in joining.stderr
