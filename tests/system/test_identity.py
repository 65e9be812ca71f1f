"""Who may offer what: invitations, grants, held names, revocation; and coming back after every kind of end."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import signal
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from tests.ports import free_port
from tests.system.harness import TUNNELGW, Connector, Process, World, port_answers, run, wait_until
from tests.system.targets import RawTarget, read_all, read_exactly

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.system


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, extra='port_bind = "127.0.0.1"') as world:
        world.start_edge()
        yield world


def invite(world: World, name: str, *options: str) -> str:
    done = world.edge_command("invite", name, *options)
    assert re.fullmatch(r"tgw1_[A-Za-z0-9_-]+\n", done.stdout), "the invitation alone, one line"
    return done.stdout.strip()


def join(connector: Connector, invitation: str, *, stdin: str = "") -> subprocess.CompletedProcess[str]:
    options = ["--config", str(connector.config), "--state-dir", str(connector.state)]
    return run("join", invitation, *options, stdin=stdin, check=False)


def one_line_error(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1, done.stderr
    *before, line = done.stderr.strip().splitlines()
    assert all(text.startswith("wrote ") for text in before), done.stderr
    for word in words:
        assert word in line, done.stderr


def state_of(world: World, name: str) -> str:
    return next(item["state"] for item in world.status()["connectors"] if item["name"] == name)


def grant_command(text: str) -> list[str]:
    """The words after `tunnelgw edge` of the command that a refusal prints."""
    found = re.search(r"tunnelgw edge (grant [^;\"\n]*)", text)
    assert found is not None, text
    return shlex.split(found[1])


def test_an_invitation_works_once(world: World) -> None:
    home, thief = Connector(world, "home", ""), Connector(world, "thief", "")
    invitation = invite(world, "home")
    assert [item["name"] for item in world.status()["invitations"]] == ["home"]
    assert join(home, "-", stdin=f"{invitation}\n").returncode == 0, "read from standard input"
    assert world.status()["invitations"] == []
    one_line_error(join(thief, invitation), "invitation")
    assert [item["name"] for item in world.status()["connectors"]] == ["home"]


def test_an_invitation_expires(world: World) -> None:
    home = Connector(world, "home", "")
    invitation = invite(world, "home", "--ttl", "1s")
    wait_until(lambda: not world.status()["invitations"], what="the invitation has expired")
    one_line_error(join(home, invitation), "invitation")


def test_a_mistyped_invitation(world: World) -> None:
    home = Connector(world, "home", "")
    invitation = invite(world, "home")
    middle = len(invitation) // 2
    other = "A" if invitation[middle] != "A" else "B"
    for wrong in (invitation[:middle] + other + invitation[middle + 1 :], invitation[:-3], "tgw1_", "hello"):
        done = join(home, wrong)
        assert done.returncode in (1, 2)
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert invitation[5:] not in done.stderr
    assert join(home, invitation).returncode == 0, "none of them used it up"


def test_another_edge_with_another_authority_is_not_joined(world: World, tmp_path: Path) -> None:
    """The invitation pins the edge's authority: whoever answers at its address cannot take the secret."""
    (tmp_path / "fake").mkdir()
    with World(tmp_path / "fake") as fake:
        fake.start_edge()
        invitation = invite(world, "home")
        home = Connector(world, "home", "")
        options = ["--config", str(home.config), "--state-dir", str(home.state), "--edge", f"127.0.0.1:{fake.port}"]
        one_line_error(run("join", invitation, *options, check=False))
        assert fake.status()["connectors"] == []
        assert join(home, invitation).returncode == 0, "the secret was not said"


def test_a_refused_claim_names_the_command_that_allows_it(world: World) -> None:
    port = free_port()
    with RawTarget(lambda sock: sock.sendall(b"raw\n")) as raw:
        services = f"""
            [services.web]
            target = "http://127.0.0.1:{world.service("web")}"
            host = ["www.example.com", "web.example.com"]
            [services.raw]
            target = "tcp://127.0.0.1:{raw.port}"
            port = {port}
        """
        home = world.connector("home", services)
        assert home.process is not None
        assert world.edge is not None
        assert not port_answers(port)
        command = home.command("expose", "more", "80", "--host", "more.example.org", check=False)
        one_line_error(command, "more.example.org", "tunnelgw edge grant home --allow-host")
        for log in (home.process, world.edge):
            log.wait_for("claim_not_granted")
            log.wait_for(rf"tunnelgw edge grant home --allow-port {port}")
            log.wait_for("tunnelgw edge grant home --allow-host .*www.example.com")
        world.edge_command(*grant_command(home.process.wait_for(f"tunnelgw edge grant home --allow-port {port}")[0]))
        wait_until(lambda: port_answers(port), what="the port is open")
        with socket.create_connection(("127.0.0.1", port), timeout=30) as visitor:
            assert read_all(visitor) == b"raw\n"
        world.edge_command(*grant_command(command.stderr))
        wait_until(lambda: world.curl("https://more.example.org/", check=False).returncode == 0, what="granted")
        # Decided again under the new grant, so the command for what is still refused keeps what is allowed now.
        again = home.process.wait_for("tunnelgw edge grant home .*more.example.org --allow-host www.example.com")
        world.edge_command(*grant_command(again[0]))
        wait_until(
            lambda: world.curl("https://www.example.com/", check=False).stdout == b"hello from web\n", what="granted"
        )
        assert world.curl("https://web.example.com/").stdout == b"hello from web\n", "what was allowed before still is"
        world.edge_command("grant", "home", "--allow-host", "web.example.com")
        wait_until(
            lambda: world.curl("https://www.example.com/", check=False).returncode == 35, what="taken back, live"
        )
        assert world.curl("https://web.example.com/").stdout == b"hello from web\n"


def test_a_held_name_is_refused_and_both_logs_say_so(world: World) -> None:
    first, second = world.service("first"), world.service("second")
    allow = ("--allow-host", "web.example.com", "--allow-host", "own.example.com")
    home = world.connector("home", f'[services.web]\ntarget = "http://127.0.0.1:{first}"', allow=allow)
    services = f"""
        [services.web]
        target = "http://127.0.0.1:{second}"
        [services.web-path]
        target = "http://127.0.0.1:{second}"
        host = "web.example.com"
        path = "/headers"
        [services.own]
        target = "http://127.0.0.1:{second}"
    """
    other = world.connector("other", services, allow=allow)
    assert home.process is not None
    assert other.process is not None
    assert world.edge is not None
    world.edge.wait_for("web.example.com.* is held by connector home")
    other.process.wait_for("web.example.com.* is held by connector home")
    home.process.wait_for("connector other claimed web.example.com")
    assert world.curl("https://web.example.com/").stdout == b"hello from first\n"
    assert b'"first"' in world.curl("https://web.example.com/headers").stdout, "a path of it neither"
    assert world.curl("https://own.example.com/").stdout == b"hello from second\n"
    world.edge_command("revoke", "home")
    wait_until(
        lambda: world.curl("https://web.example.com/", check=False).stdout == b"hello from second\n",
        what="free again once its holder is revoked",
    )


def test_the_edges_own_name_cannot_be_claimed(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        world.config.write_text(world.config.read_text().replace("address = ", "# address = "))
        world.start_edge()
        services = '[services.a]\ntarget = 80\nhost = "edge.example.com"'
        invitation = invite(world, "home", "--allow-host", "*")
        home = Connector(world, "home", services)
        options = ["--config", str(home.config), "--state-dir", str(home.state), "--edge", f"127.0.0.1:{world.port}"]
        run("join", invitation, *options)
        home.start(wait=False).wait_for("edge.example.com is the edge's own name")


def test_revoking_cuts_and_refuses(world: World) -> None:
    port = free_port()

    def echo(sock: socket.socket) -> None:
        while data := sock.recv(1000):
            sock.sendall(data)

    with RawTarget(echo) as raw:
        services = f"""
            [services.raw]
            target = "tcp://127.0.0.1:{raw.port}"
            port = {port}
            [services.web]
            target = {world.service("web")}
        """
        home = world.connector("home", services, allow=("--allow-port", str(port)))
        assert home.process is not None
        unused = invite(world, "home")
        with socket.create_connection(("127.0.0.1", port), timeout=30) as visitor:
            visitor.sendall(b"live")
            assert read_exactly(visitor, 4) == b"live"
            world.edge_command("revoke", "home")
            with contextlib.suppress(ConnectionError):
                assert read_all(visitor) == b"", "the live stream is cut"
        assert state_of(world, "home") == "revoked"
        assert not port_answers(port)
        assert world.curl("https://web.example.com/", check=False).returncode == 35
        home.process.wait_for("revoked")
        assert world.status()["invitations"] == []
        one_line_error(join(Connector(world, "again", ""), unused), "invitation")
        if home.process.popen.poll() is None:
            home.process.stop()
        log = home.start(wait=False)
        log.wait_for("revoked")
        assert state_of(world, "home") == "revoked"
        assert not port_answers(port)
        log.kill()


def test_a_new_invitation_brings_a_revoked_name_back(world: World) -> None:
    port = world.service("web")
    home = world.connector("home", f"[services.web]\ntarget = {port}")
    world.edge_command("revoke", "home")
    assert home.process is not None
    home.process.kill()
    home.join()
    home.start()
    assert world.curl("https://web.example.com/").stdout == b"hello from web\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_same_identity_is_back_at_once(world: World, number: int) -> None:
    """The dead or frozen twin holds neither name nor port: nothing waits for a timeout."""
    port = free_port()
    with RawTarget(lambda sock: sock.sendall(b"raw\n")) as raw:
        services = f"""
            [services.raw]
            target = "tcp://127.0.0.1:{raw.port}"
            port = {port}
            [services.web]
            target = {world.service("web")}
        """
        home = world.connector("home", services, allow=("--allow-port", str(port)), start=False)
        # Another machine with the same disk, since two processes do not share one folder.
        twin = Connector(world, "twin", services)
        shutil.copytree(home.state, twin.state)
        home.start()
        assert home.process is not None
        home.process.signal(number)
        twin.start()
        assert world.curl("https://web.example.com/", seconds=15).stdout == b"hello from web\n"
        with socket.create_connection(("127.0.0.1", port), timeout=15) as visitor:
            assert read_all(visitor) == b"raw\n"
        assert state_of(world, "home") == "up"


def test_two_processes_do_not_share_a_folder(world: World) -> None:
    home = world.connector("home", "")
    assert home.process is not None
    second = home.command("connect", check=False)
    one_line_error(second, "another process", str(home.state))
    assert home.process.stop() == 0
    home.start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_edge_that_restarts_gets_its_connectors_back(world: World, number: int) -> None:
    port = free_port()
    with RawTarget(lambda sock: sock.sendall(b"raw\n")) as raw:
        services = f"""
            [services.raw]
            target = "tcp://127.0.0.1:{raw.port}"
            port = {port}
            [services.web]
            target = {world.service("web")}
        """
        world.connector("home", services, allow=("--allow-port", str(port)))
        assert world.edge is not None
        if number == signal.SIGTERM:
            assert world.edge.stop() == 0
        else:
            world.edge.kill()
        world.start_edge()
        # Whether the connector is back already or not: the request waits for it.
        assert world.curl("https://web.example.com/", seconds=20).stdout == b"hello from web\n"
        with socket.create_connection(("127.0.0.1", port), timeout=20) as visitor:
            assert read_all(visitor) == b"raw\n"
        wait_until(lambda: state_of(world, "home") == "up", what="the connector is up")


def test_requests_wait_for_their_connector(world: World) -> None:
    home = world.connector("home", f"[services.web]\ntarget = {world.service('web')}")
    assert home.process is not None
    home.process.stop()
    wait_until(lambda: state_of(world, "home") != "up", what="the connector is gone")
    answers: list[bytes] = []

    def ask(version: str) -> None:
        answers.append(world.curl("https://web.example.com/", version).stdout)

    threads = [threading.Thread(target=ask, args=(version,)) for version in ("--http1.1", "--http2", "--http2")]
    for thread in threads:
        thread.start()
    wait_until(lambda: "tunnelgw_parked_requests 3.0" in world.metrics(), what="three requests wait")
    home.start()
    for thread in threads:
        thread.join(30)
    assert answers == [b"hello from web\n"] * 3
    assert "tunnelgw_parked_requests 0.0" in world.metrics()


def test_a_request_does_not_wait_for_ever(tmp_path: Path) -> None:
    with World(tmp_path, extra="park_seconds = 5\nresume_seconds = 6") as world:
        world.start_edge()
        home = world.connector("home", f"[services.web]\ntarget = {world.service('web')}")
        assert home.process is not None
        home.process.kill()
        wait_until(lambda: state_of(world, "home") != "up", what="the edge noticed")
        accept = ["-H", "Accept: text/html", "-w", "%{http_code}"]
        page = world.curl("https://web.example.com/", *accept).stdout.decode()
        assert page.endswith("503")
        assert "Home is away" in page
        wait_until(lambda: state_of(world, "home") == "away", what="away for longer than resume_seconds")
        page = world.curl("https://web.example.com/", *accept, "-w", "%{http_code} %{time_total}").stdout.decode()
        code, _, seconds = page.rpartition("</html>\n")[2].partition(" ")
        assert (code, float(seconds) < 4.0) == ("503", True)
        home.start()
        assert world.code("https://web.example.com/") == 200


def test_an_invitation_in_the_environment(world: World) -> None:
    """A container joins by itself at its first start, and the second start needs no invitation."""
    home = Connector(world, "home", f"[services.web]\ntarget = {world.service('web')}")
    command = [*TUNNELGW, "connect", "--config", str(home.config)]
    for environment in ({"TUNNELGW_INVITATION": invite(world, "home")}, {}):
        process = Process("home", command, home.folder, env=environment)
        world.children.append(process)
        process.wait_for("ready")
        assert world.curl("https://web.example.com/").stdout == b"hello from web\n"
        assert process.stop() == 0


def test_private_files(world: World) -> None:
    home = world.connector("home", "", start=False)
    for folder in (world.state, home.state):
        for path in (folder, *folder.rglob("*")):
            if path.suffix != ".crt":
                assert path.stat().st_mode & 0o077 == 0 or not path.exists(), path
