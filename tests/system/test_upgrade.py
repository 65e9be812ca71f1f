"""A new version of the edge takes over while visitors of every kind are served, and none of them notices."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest
from websockets.asyncio.client import connect

from tests.ports import free_port
from tests.system.crowd import HOST, Crowd, context
from tests.system.harness import TUNNELGW, Process, World, wait_until
from tests.system.service import pattern
from tests.system.targets import RawTarget
from tests.system.upgrading import Upgrading, activated_by, echo, ended, home

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.system


@pytest.fixture(params=[1, 2], ids=["one", "two workers"])
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Upgrading]:
    with Upgrading(tmp_path, workers=request.param) as world:
        world.start_edge()
        yield world


class Operator:
    """Asks for numbers and status without a pause, as monitoring does: each answer must come."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.failures: list[str] = []
        self.answers = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def _ask(self) -> None:
        from tunnelgw.admin.call import call

        while not self._stopping.is_set():
            try:
                assert "tunnelgw_build_info" in self.world.metrics()
                assert call(self.world.state, {"command": "status"})["status"]
                self.answers += 1
            except Exception as error:
                self.failures.append(repr(error))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(60)


@pytest.mark.parametrize("how", ["command", "signal"])
def test_no_visitor_notices(world: Upgrading, how: str) -> None:
    """Two upgrades in a row, so that three processes serve at once: what lasts goes on in the first."""
    port = free_port()
    with RawTarget(echo) as target:
        home(world, raw=target.port, port=port)
        first = world.voice
        with Operator(world) as operator, Crowd(world, raw_port=port) as crowd:
            second = world.upgrade(how)
            crowd.await_each()
            third = world.upgrade(how)
            crowd.await_each()
            assert len({first.pid, second, third}) == 3
            assert first.popen.poll() is None  # it has what lasts
            done = crowd.stop()
        assert first.popen.wait(30) == 0
        wait_until(lambda: ended(second), seconds=30, what="the second process ends")
        assert not ended(third)
    assert not operator.failures, operator.failures
    assert operator.answers
    assert min(done[name] for name in ("kept 1", "h2 1", "new", "raw new", "raw", "websocket")) > 10
    assert world.metrics("/readyz") == "ready\n"


def test_a_new_version_that_cannot_start_changes_nothing(world: Upgrading) -> None:
    """It says why, and the edge goes on: by its file, by an address that is taken, by a crash before it is ready."""
    home(world)
    first, good = world.voice, world.config.read_text()
    with Crowd(world) as crowd:
        world.config.write_text(good.replace("[tls]", "nonsense = 1\n[tls]"))
        first.wait_for("not reloaded.*nonsense")
        bad = world.ask()
        said = first.wait_for(rf"process {bad} has ended before it served, and said why; this one goes on").start()
        assert "nonsense" in first.text()[:said]  # in the same log
        command = world.command()
        assert command.popen.wait(30) == 2
        assert "nonsense" in command.text()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            number = taken.getsockname()[1]
            world.config.write_text(good.replace(f"127.0.0.1:{world.metrics_port}", f"127.0.0.1:{number}"))
            command = world.command()
            assert command.popen.wait(30) == 1
            assert f"metrics: cannot listen on 127.0.0.1:{number}" in command.text()
        first.wait_for(rf"process {command.pid} does not take over: metrics: cannot listen.*this one goes on")
        world.config.write_text(good)
        crowd.await_each()
        assert first.popen.poll() is None
        assert world.upgrade("signal") != first.pid
        crowd.await_each()
        crowd.stop()
    assert first.popen.wait(30) == 0


def park(world: World) -> subprocess.Popen[bytes]:
    """A request for a connector that is away."""
    number = re.compile(r"(?m)^tunnelgw_parked_requests (\d+)")
    command = ["curl", "-sk", "--max-time", "60", "--resolve", f"{HOST}:{world.port}:127.0.0.1",
               f"https://{HOST}:{world.port}/"]  # fmt: skip
    parked = world.aside(command, stdout=subprocess.PIPE)

    def waits() -> bool:
        found = number.search(world.metrics())
        return found is not None and float(found[1]) > 0

    wait_until(waits, what="a request is parked", logs=world.logs)
    return parked


def test_parked_requests_are_served_before_anybody_leaves(world: Upgrading) -> None:
    """A connector that is away for a moment comes back to the process that holds its requests."""
    home(world)
    at_home = world.connectors["home"]
    assert at_home.process is not None
    at_home.process.stop()
    parked = park(world)
    new = world.command()
    new.wait_for("accepting as soon as nothing waits for a link")
    at_home.start()
    new.wait_for("(?m)^ready")
    assert parked.communicate(timeout=60)[0] == b"hello from web\n"
    assert world.voice.popen.wait(30) == 0
    assert world.curl(f"https://{HOST}/").stdout == b"hello from web\n"


def test_a_new_process_that_is_killed_while_it_waits(world: Upgrading) -> None:
    home(world)
    at_home = world.connectors["home"]
    assert at_home.process is not None
    at_home.process.stop()
    parked = park(world)
    new = world.command()
    new.wait_for("accepting as soon as nothing waits for a link")
    other = world.command()
    assert other.popen.wait(30) == 1
    assert "another upgrade is under way" in other.text()
    new.kill()
    world.voice.wait_for(rf"process {new.pid} does not take over: it ended.*this one goes on")
    at_home.start()
    assert parked.communicate(timeout=60)[0] == b"hello from web\n"
    assert world.upgrade("command")
    assert world.curl(f"https://{HOST}/").stdout == b"hello from web\n"


def test_who_stops_the_newest_stops_those_before(world: Upgrading) -> None:
    """What is in progress in older processes ends as at a stop: systemd, which knows one process, kills nobody."""
    home(world)
    first = world.voice

    async def talk() -> None:
        url = f"wss://{HOST}:{world.port}/ws"
        async with connect(url, ssl=context(), host="127.0.0.1", port=world.port, server_hostname=HOST) as connection:
            loop = asyncio.get_running_loop()
            second = await loop.run_in_executor(None, world.upgrade, "command")
            third = await loop.run_in_executor(None, world.upgrade, "command")
            await connection.send("still")
            assert await connection.recv() == "echo still"
            assert first.popen.poll() is None
            assert not ended(second)  # it has nothing of its own, and waits for the first
            began = time.monotonic()
            assert await loop.run_in_executor(None, lambda: world.voice.stop(seconds=40)) == 0
            assert first.popen.wait(10) == 0
            wait_until(lambda: ended(second), what="the second process ends")
            assert third == world.voice.pid
            assert time.monotonic() - began < 30
            await connection.wait_closed()

    asyncio.run(asyncio.wait_for(talk(), 120))


def test_revoked_in_the_old_process_too(world: Upgrading) -> None:
    home(world)

    async def talk() -> None:
        url = f"wss://{HOST}:{world.port}/ws"
        async with connect(url, ssl=context(), host="127.0.0.1", port=world.port, server_hostname=HOST) as connection:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, world.upgrade, "signal")
            await connection.send("still")
            assert await connection.recv() == "echo still"
            await loop.run_in_executor(None, world.edge_command, "revoke", "home")
            await connection.wait_closed()

    first = world.voice
    asyncio.run(asyncio.wait_for(talk(), 120))
    assert first.popen.wait(30) == 0


def test_claims_are_the_new_process_business(world: Upgrading) -> None:
    """What a connector changes after an upgrade counts, though the old process remembers what it said before."""
    home(world)
    at_home = world.connectors["home"]
    target = world.service("other")

    async def talk() -> None:
        url = f"wss://{HOST}:{world.port}/ws"
        async with connect(url, ssl=context(), host="127.0.0.1", port=world.port, server_hostname=HOST) as connection:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, world.upgrade, "command")
            at_home.write(f"[services.web]\ntarget = {target}\n[services.more]\ntarget = {target}")
            await loop.run_in_executor(None, lambda: wait_until(served, what="a new service"))
            await loop.run_in_executor(None, world.edge_command, "grant", "home", "--allow-host", "more.example.com")
            await connection.send("still")
            assert await connection.recv() == "echo still"
            await loop.run_in_executor(None, lambda: wait_until(only_more, what="the grant is in force"))

    def served() -> bool:
        return world.curl("https://more.example.com/", check=False).stdout == b"hello from other\n"

    def claimed() -> set[str]:
        return {one["address"].split(f":{world.port}")[0] for one in world.status()["addresses"]}

    def only_more() -> bool:
        return claimed() == {"https://more.example.com"}

    asyncio.run(asyncio.wait_for(talk(), 120))
    assert only_more()


def test_a_port_that_opens_while_an_upgrade_waits(world: Upgrading) -> None:
    """It goes to the new process with all the others: nobody who knocks is refused at any moment."""
    home(world)
    away = world.connectors["home"]
    assert away.process is not None
    away.process.stop()
    parked = park(world)
    new = world.command()
    new.wait_for("accepting as soon as nothing waits for a link")
    port = free_port()
    refused: list[str] = []
    stopping = threading.Event()

    def knock() -> None:
        while not stopping.is_set():
            try:
                socket.create_connection(("127.0.0.1", port), timeout=10).close()
            except OSError as error:
                refused.append(repr(error))
            time.sleep(0.002)

    with RawTarget(echo) as target:
        services = f'[services.raw]\ntarget = "tcp://127.0.0.1:{target.port}"\nport = {port}'
        world.connector("other", services, allow=("--allow-port", str(port)))
        knocking = threading.Thread(target=knock)
        knocking.start()
        try:
            away.start()
            new.wait_for("(?m)^ready")
            assert world.voice.popen.wait(30) == 0
            with socket.create_connection(("127.0.0.1", port), timeout=30) as visitor:
                visitor.sendall(b"through the new process")
                assert visitor.recv(100) == b"through the new process"
        finally:
            stopping.set()
            knocking.join(30)
    assert not refused
    assert "another program" not in new.text()
    assert parked.communicate(timeout=60)[0] == b"hello from web\n"


def test_without_an_edge_there_is_nothing_to_take_over(tmp_path: Path) -> None:
    with Upgrading(tmp_path) as world:
        new = world.command()
        assert new.popen.wait(30) == 1
        assert f"no edge runs on {world.state}: start this one without --upgrade" in new.text()


def test_an_edge_that_knows_no_upgrade(tmp_path: Path) -> None:
    def answer() -> None:
        with listener.accept()[0] as sock:
            assert b"upgrade" in sock.recv(1000)
            text = "the edge does not know the command 'upgrade'"
            sock.sendall(json.dumps({"ok": False, "error": text, "exit": 2}).encode() + b"\n")

    with Upgrading(tmp_path) as world, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(world.state / "control.sock"))
        listener.listen()
        listener.settimeout(30)
        old = threading.Thread(target=answer)
        old.start()
        new = world.command()
        assert new.popen.wait(30) == 1
        old.join()
        assert "of a version that cannot hand over; restart it this once" in new.text()


def test_systemd_learns_of_the_new_process(tmp_path: Path) -> None:
    """And of nobody who was started beside its unit, whom it would not know."""
    with Upgrading(tmp_path) as world, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        first = world.start_edge(env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert manager.recv(1000).startswith(b"READY=1\nSTATUS=ready")
        stranger = world.command()
        assert stranger.popen.wait(30) == 1
        assert "systemctl kill --kill-whom=main --signal=SIGUSR2 tunnelgw-edge" in stranger.text()
        second = world.upgrade("signal")
        stat = Path(f"/proc/{second}/stat").read_text()
        assert int(stat.rpartition(")")[2].split()[1]) != first.pid  # whose child systemd could not wait for
        assert manager.recv(1000) == f"MAINPID={second}".encode()
        assert manager.recv(1000).startswith(b"READY=1\nSTATUS=ready")
        assert first.popen.wait(30) == 0  # without a word: it is the service no more
        os.kill(second, signal.SIGTERM)
        assert manager.recv(1000).startswith(b"STOPPING=1")


def test_a_connector_restart_fails_no_request(world: Upgrading) -> None:
    """It drains as the edge does: what crossed its goodbye is served, what comes later waits for the next process."""
    home(world)
    at_home = world.connectors["home"]
    with Crowd(world, lasting=False) as crowd:
        for _ in range(3):
            assert at_home.process is not None
            assert at_home.process.stop() == 0
            at_home.start()
            crowd.await_each()
        crowd.stop()


def test_a_connector_that_stops_lets_what_is_in_progress_end(world: Upgrading) -> None:
    """Whatever ends within its grace is whole; a download that does not is visibly cut."""
    home(world)
    at_home = world.connectors["home"]
    assert at_home.process is not None
    size = 30 << 20
    fast, slow = (
        world.aside(
            ["curl", "-sk", "--limit-rate", rate, "--resolve", f"{HOST}:{world.port}:127.0.0.1",
             f"https://{HOST}:{world.port}/bytes/{size}"],
            stdout=subprocess.PIPE,
        )
        for rate in ("6M", "1M")
    )  # fmt: skip
    both = {}
    readers = [threading.Thread(target=lambda p=p: both.setdefault(p, p.communicate()[0])) for p in (fast, slow)]
    for reader in readers:
        reader.start()
    wait_until(lambda: 'streams": 2' in at_home.command("status", "--json").stdout, what="both downloads run")
    assert at_home.process.stop(seconds=30) == 0
    for reader in readers:
        reader.join(60)
    assert fast.returncode == 0
    assert hashlib.sha256(both[fast]).digest() == hashlib.sha256(pattern(size)).digest()
    assert slow.returncode in (18, 56, 92)  # curl: a transfer that is shorter than promised
    assert len(both[slow]) < size


@pytest.mark.parametrize("workers", [1, 2])
def test_with_socket_activation_nobody_is_refused_even_by_a_kill(tmp_path: Path, workers: int) -> None:
    """The test is systemd: it holds the sockets, passes them to each edge, and starts another one after a SIGKILL."""
    with contextlib.ExitStack() as held:
        port, http_port = free_port(), free_port()
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", one))) for one in (port, http_port)]
        # Well above the numbers that they get.
        passed = [fcntl.fcntl(one.fileno(), fcntl.F_DUPFD, 100) for one in sockets]
        for one in passed:
            held.callback(os.close, one)
        activated = Upgrading(tmp_path, workers=workers, ports=(port, http_port))
        held.enter_context(activated)

        def start() -> None:
            command = activated_by(passed, [*TUNNELGW, "edge", "run", "--config", str(activated.config)])
            activated.voice = Process("edge", command, activated.folder, pass_fds=passed)
            activated.children.append(activated.voice)
            activated.newest = activated.voice.pid

        start()
        activated.voice.wait_for("(?m)^ready")
        home(activated)
        refused, answered = Counter(), Counter()
        stopping = threading.Event()

        def knock() -> None:
            """New connections without a pause: each must be accepted; one on which the edge was killed may break."""
            while not stopping.is_set():
                try:
                    sock = socket.create_connection(("127.0.0.1", port), timeout=30)
                except OSError as error:
                    refused[repr(error)] += 1
                    continue
                with sock, contextlib.suppress(OSError):
                    secure = context().wrap_socket(sock, server_hostname=HOST)
                    with secure:
                        secure.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
                        answered[secure.recv(65536)[:15]] += 1

        knocking = [threading.Thread(target=knock) for _ in range(4)]
        for thread in knocking:
            thread.start()
        try:
            for how in ("kill", "stop", "upgrade", "kill"):
                before = answered[b"HTTP/1.1 200 OK"]
                if how == "upgrade":
                    activated.upgrade("signal")
                else:
                    os.kill(activated.newest, signal.SIGKILL if how == "kill" else signal.SIGTERM)
                    wait_until(lambda: ended(activated.newest), seconds=30, what="the edge has ended")
                    start()
                wait_until(
                    lambda n=before: answered[b"HTTP/1.1 200 OK"] > n + 5, seconds=60, what="visitors are served"
                )
        finally:
            stopping.set()
            for thread in knocking:
                thread.join(60)
        assert not refused
