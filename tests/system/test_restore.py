"""Backup and restore with real processes: live, on a second machine, after a kill, and onto a damaged store."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.ports import free_port
from tests.system.harness import Connector, World, run, wait_until
from tests.system.targets import RawTarget, read_exactly
from tunnelgw.config.load import load_edge

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.system


@pytest.fixture(params=[1, 2], ids=["one process", "two workers"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, extra='port_bind = "127.0.0.1"', workers=request.param) as world:
        world.start_edge()
        yield world


def fingerprint(world: World, host: str) -> bytes:
    """Of the certificate that a visitor of this host is shown."""
    with world.tls(host) as sock:
        return sock.getpeercert(binary_form=True) or b""


def everywhere(world: World, name: str, text: bytes) -> bool:
    """Whether each worker says so: they follow the store by themselves, within half a second."""
    url = f"https://{name}.example.com/"
    return all(world.curl(url, check=False).stdout == text for _ in range(20))


def states(world: World) -> dict[str, str]:
    return {item["name"]: item["state"] for item in world.status()["connectors"]}


def test_restore_while_the_edge_runs(world: World, tmp_path: Path) -> None:
    """Who is in the backup keeps even its open connections; who is not is cut; who was revoked since stays out."""

    def echo(sock: socket.socket) -> None:
        while data := sock.recv(1000):
            sock.sendall(data)

    port, file = free_port(), tmp_path / "edge.backup"
    with RawTarget(echo) as raw:
        home = world.connector(
            "home",
            f"[services.web]\ntarget = {world.service('web')}\n"
            f'[services.raw]\ntarget = "tcp://127.0.0.1:{raw.port}"\nport = {port}',
            allow=("--allow-host", "*.example.com", "--allow-port", str(port)),
        )
        stolen = world.connector("stolen", "")
        assert stolen.process is not None
        shown = fingerprint(world, "web.example.com")
        made = json.loads(world.edge_command("backup", str(file), "--json").stdout)
        assert file.stat().st_mode & 0o777 == 0o600
        assert (made["file"], made["domain"]) == (str(file), "example.com")

        world.edge_command("revoke", "stolen")
        world.edge_command("grant", "home", "--allow-host", "other.example.com")
        other = world.connector("other", f"[services.late]\ntarget = {world.service('late')}")
        assert other.process is not None
        assert world.curl("https://late.example.com/").stdout == b"hello from late\n"
        wait_until(lambda: everywhere(world, "web", b""), what="no longer granted")
        with socket.create_connection(("127.0.0.1", port), timeout=30) as visitor:
            visitor.sendall(b"before")
            assert read_exactly(visitor, 6) == b"before"
            done = world.edge_command("restore", str(file), "--json")
            told = json.loads(done.stdout)
            assert told["running"] is True
            assert told["connectors"] == ["home"]
            assert told["kept_revoked"] == ["stolen"]
            visitor.sendall(b"after")
            assert read_exactly(visitor, 5) == b"after", "its open connection stays"
        other.process.wait_for("revoked|not known")
        wait_until(lambda: everywhere(world, "late", b""), what="its name is gone")
        wait_until(lambda: everywhere(world, "web", b"hello from web\n"), what="the grant of the backup")
        assert fingerprint(world, "web.example.com") == shown
        assert states(world) == {"home": "up", "stolen": "revoked"}
        assert home.process is not None
        assert "resumed" not in home.process.text()

        world.edge_command("restore", told["previous"])
        wait_until(lambda: "other" in states(world), what="undone")
        assert states(world)["stolen"] == "revoked"


def second_machine(world: World, file: Path) -> World:
    """An edge with nothing but the backup, at the same address."""
    folder = world.folder / "second"
    folder.mkdir()
    other = object.__new__(World)
    other.__dict__.update(world.__dict__)
    other.folder, other.state, other.config = folder, folder / "edge-state", folder / "edge.toml"
    other.children, other.homes, other.secrets, other.edge = [], [], set(), None
    return other


def test_a_second_machine_takes_over(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        edge = world.start_edge()
        home = world.connector("home", f"[services.web]\ntarget = {world.service('web')}")
        assert home.process is not None
        world.curl("https://web.example.com/")
        shown, file = fingerprint(world, "web.example.com"), tmp_path / "edge.backup"
        world.edge_command("backup", str(file))
        edge.kill()
        with second_machine(world, file) as other:
            # On a new machine edge.toml is the backup's; here its folder must be another one.
            other.write_config()
            done = other.edge_command("restore", str(file))
            assert "start it: tunnelgw edge run" in done.stderr
            shutil.rmtree(world.state)
            other.start_edge()
            assert world.curl("https://web.example.com/", seconds=30).stdout == b"hello from web\n"
            assert fingerprint(world, "web.example.com") == shown
            wait_until(lambda: states(other) == {"home": "up"}, what="the connector is back")


def test_a_machine_without_a_configuration(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        file = tmp_path / "edge.backup"
        text = world.config.read_text()
        world.edge_command("backup", str(file))
        world.config.unlink()
        shutil.rmtree(world.state)
        done = world.edge_command("restore", str(file))
        assert f"wrote {world.config}" in done.stderr
        assert world.config.read_text() == text
        assert load_edge(world.config).state_dir == world.state
        world.start_edge()
        # Refused: then neither is there.
        world.config.unlink()
        bad = tmp_path / "bad"
        bad.write_bytes(file.read_bytes()[:-10240])
        done = world.edge_command("restore", str(bad), check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert not world.config.exists()


def test_a_restore_that_was_killed_is_finished_by_the_next_start(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        edge = world.start_edge()
        world.connector("home", f"[services.web]\ntarget = {world.service('web')}")
        file = tmp_path / "edge.backup"
        world.edge_command("backup", str(file))
        world.edge_command("revoke", "home")
        edge.stop()
        from tunnelgw.admin import restore

        shutil.rmtree(world.state / "certificates", ignore_errors=True)
        os.unlink(world.state / "store.db")  # as on another machine: nobody remembers that home was revoked
        with restore.staged(load_edge(world.config), file) as staged:
            staged.folder.rename(world.state / restore.PENDING)
        edge = world.start_edge()
        edge.wait_for("restore that was interrupted is finished")
        assert world.edge is edge
        assert list(states(world)) == ["home"]
        assert not (world.state / restore.PENDING).exists()


def test_a_damaged_store(tmp_path: Path) -> None:
    """One line that says what to do, and what it says works."""
    with World(tmp_path) as world:
        edge = world.start_edge()
        home = world.connector("home", f"[services.web]\ntarget = {world.service('web')}")
        assert home.process is not None
        file = tmp_path / "edge.backup"
        world.edge_command("backup", str(file))
        edge.stop()
        database = world.state / "store.db"
        whole = database.read_bytes()
        database.write_bytes(whole[:5000] + os.urandom(8000) + whole[13000:])
        for command in (("run",), ("status",), ("invite", "x"), ("backup", str(tmp_path / "other"))):
            done = world.edge_command(*command, check=False)
            assert done.returncode == 1, command
            (line,) = done.stderr.strip().splitlines()
            assert "store.db is damaged" in line
            assert "tunnelgw edge restore FILE" in line
        world.edge_command("restore", str(file))
        world.start_edge()
        assert world.curl("https://web.example.com/", seconds=30).stdout == b"hello from web\n"


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        from tunnelgw.store.schema import MIGRATIONS
        from tunnelgw.store.sqlite import SqliteStore

        database = world.state / "store.db"
        SqliteStore(database, migrations=(*MIGRATIONS, ("CREATE TABLE more (x)",))).close()
        kept = world.state / f"store.db.schema{len(MIGRATIONS)}"
        assert kept.stat().st_mode & 0o777 == 0o600, "what was there before the migration"
        for command in ("run", "status"):
            done = world.edge_command(command, check=False)
            assert done.returncode == 1
            (line,) = done.stderr.strip().splitlines()
            assert "written by a newer tunnelgw" in line
            assert "use the newer version" in line


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_harms_no_visitor(tmp_path: Path) -> None:
    """The edge serves on from its own copy, says so in log and metrics, and recovers by itself."""
    disk = tmp_path / "edge-state"  # the state alone: logs must still be written
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    with contextlib.ExitStack() as stack:
        stack.callback(subprocess.run, ["umount", "-l", disk], check=True)
        world = stack.enter_context(World(tmp_path, extra='port_bind = "127.0.0.1"'))
        edge = world.start_edge()
        home = world.connector("home", f"[services.web]\ntarget = {world.service('web')}")
        assert world.code("https://web.example.com/") == 200
        assert "\ntunnelgw_state_failing 0.0" in world.metrics()
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(65536))
        with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(16))
        refused = None
        for number in range(200):  # until the space that the store has in reserve is used up
            done = world.edge_command("invite", f"name-{number}", check=False)
            if done.returncode:
                refused = done
                break
        assert refused is not None
        (line,) = refused.stderr.strip().splitlines()
        assert "disk" in line
        edge.wait_for("state cannot be saved")
        assert "\ntunnelgw_state_failing 1.0" in world.metrics()
        assert world.code("https://web.example.com/") == 200
        done = world.edge_command("backup", str(disk / "x.backup"), check=False)
        assert done.returncode == 1
        assert "the disk is full" in done.stderr
        assert home.process is not None
        filler.unlink()
        edge.wait_for("state can be saved again", seconds=30)
        assert "\ntunnelgw_state_failing 0.0" in world.metrics()
        world.edge_command("invite", "again")
        assert world.code("https://web.example.com/") == 200


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_read_only_folder_harms_no_visitor(tmp_path: Path) -> None:
    """Who is there is served; who wants something new is refused, and told whose problem it is; then it works again."""
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(World(tmp_path))
        edge = world.start_edge()
        world.connector("home", f"[services.web]\ntarget = {world.service('web')}")
        assert world.code("https://web.example.com/") == 200
        second = Connector(world, "second", "")
        invitation = world.edge_command("invite", "second").stdout.strip()
        options = ["--config", str(second.config), "--state-dir", str(second.state)]
        if subprocess.run(["mount", "--bind", world.state, world.state], capture_output=True, check=False).returncode:
            pytest.skip("nothing can be mounted here")
        unmount = stack.enter_context(contextlib.ExitStack())
        unmount.callback(subprocess.run, ["umount", "-l", world.state], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", world.state], check=True)
        done = run("join", "-", *options, stdin=invitation, check=False)
        assert done.returncode == 1
        assert "the edge has a problem of its own" in done.stderr
        edge.wait_for("cannot be answered: .*(read-only|cannot be opened|cannot write)")
        assert world.code("https://web.example.com/") == 200
        other = run("edge", "run", "--config", str(world.config), check=False)
        assert (other.returncode, len(other.stderr.strip().splitlines())) == (1, 1)
        unmount.close()
        run("join", "-", *options, stdin=invitation)
        assert world.code("https://web.example.com/") == 200
        edge.stop()
        stack.callback(subprocess.run, ["umount", "-l", world.state], check=True)
        subprocess.run(["mount", "--bind", world.state, world.state], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", world.state], check=True)
        done = world.edge_command("run", check=False)
        assert done.returncode == 1
        (line,) = done.stderr.strip().splitlines()
        assert "read-only" in line or "cannot be opened" in line
