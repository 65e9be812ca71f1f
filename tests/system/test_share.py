"""`tunnelgw http` and `tunnelgw tcp` as whole processes: beside a connector and alone, and gone with their command."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.ports import free_port
from tests.system.harness import TUNNELGW, Connector, Process, World, run, wait_until
from tests.system.targets import RawTarget, read_exactly
from tests.system.test_tcp import echo

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.system
GONE_SECONDS = 15.0  # less than a request may wait for a connector that is away


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, extra='port_bind = "127.0.0.1"') as world:
        world.start_edge()
        yield world


def joined(world: World, *, running: bool, allow: tuple[str, ...] = ()) -> Connector:
    """A home whose file has one service."""
    return world.connector("home", f"[services.web]\ntarget = {world.service('web')}", start=running, allow=allow)


def share(home: Connector, *arguments: object) -> Process:
    command = [*TUNNELGW, *map(str, arguments), "--config", str(home.config)]
    process = Process("share", command, home.folder)
    home.world.children.append(process)
    return process


def address_of(process: Process) -> str:
    """What it printed first, as `World.curl` takes it."""
    process.wait_for("leads to")
    first = process.text().splitlines()[0]
    return re.sub(r":\d+/$", "/", first)


def wait_gone(world: World, url: str) -> None:
    gone = "the edge knows the name no more"
    wait_until(lambda: world.curl(url, check=False).returncode != 0, seconds=GONE_SECONDS, what=gone)


def children_of(process: Process) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def claims_of(world: World) -> set[str]:
    return {entry["service"] for entry in world.status()["addresses"]}


def test_beside_a_connector_it_comes_and_goes_with_its_command(world: World) -> None:
    home = joined(world, running=True)
    port = world.service("other")
    for number, status in ((signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGKILL, -9)):
        before = home.config.read_text()
        process = share(home, "http", port)
        url = address_of(process)
        assert re.fullmatch(r"https://[a-z0-9]{10}\.example\.com/", url)
        assert world.curl(url).stdout == b"hello from other\n"
        assert world.curl("https://web.example.com/").stdout == b"hello from web\n"
        text = home.command("status").stdout
        assert "accepted, temporary" in text
        assert home.config.read_text() == before
        process.signal(number)
        assert process.popen.wait(10) == status
        wait_gone(world, url)
        assert claims_of(world) == {"web"}
    assert world.curl("https://web.example.com/").stdout == b"hello from web\n"


def test_it_survives_a_reload_of_the_file(world: World) -> None:
    home = joined(world, running=True)
    process = share(home, "http", world.service("other"), "--name", "preview")
    url = address_of(process)
    home.write(f"[services.more]\ntarget = {world.service('more')}")
    wait_until(lambda: claims_of(world) == {"more", "preview"}, what="the file was read again")
    assert world.curl(url).stdout == b"hello from other\n"
    assert process.popen.poll() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_alone_it_serves_that_one_thing_and_leaves_nothing(world: World, number: int) -> None:
    home = joined(world, running=False)
    process = share(home, "http", world.service("other"), "--name", "preview")
    url = address_of(process)
    process.wait_for("services of its file are not served")
    assert world.curl(url).stdout == b"hello from other\n"
    assert claims_of(world) == {"preview"}
    (child,) = children_of(process)
    second = share(home, "http", world.service("third"), "--name", "third")
    third = address_of(second)
    assert children_of(second) == []
    process.signal(number)
    process.popen.wait(10)  # the second command's use of its connector keeps nobody's terminal
    wait_gone(world, url)
    assert world.curl(third).stdout == b"hello from third\n", "the connector stays for the second command"
    second.signal(signal.SIGINT)
    assert second.popen.wait(20) == 0
    wait_gone(world, third)
    wait_until(lambda: not Path(f"/proc/{child}").exists(), what="the connector of the command ended")
    home.start()
    assert world.curl("https://web.example.com/").stdout == b"hello from web\n"


def test_its_time_ends_it(world: World) -> None:
    home = joined(world, running=True)
    begun = time.time()
    process = share(home, "http", world.service("other"), "--for", "2s", "--json")
    process.wait_for(r"leads to .* for [0-2] s")
    facts = json.loads(process.text().splitlines()[0])
    assert begun + 2 < facts["ends"] < time.time() + 2.2
    assert process.popen.wait(10) == 0
    assert "the time is over" in process.text()
    wait_gone(world, f"https://{facts['name']}.example.com/")


def test_a_password_is_asked_for_and_seen_nowhere(world: World) -> None:
    home = joined(world, running=True)
    process = share(home, "http", world.service("other"), "--basic", "ann:plain-secret")
    url = address_of(process)
    assert world.code(url) == 401
    assert world.code(url, "-u", "ann:wrong") == 401
    assert world.code(url, "-u", "ann:plain-secret") == 200
    assert b"plain-secret" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    assert b"plain-secret" not in Path(f"/proc/{process.pid}/environ").read_bytes()
    assert "plain-secret" not in world.logs()


def test_only_from_some_networks(world: World) -> None:
    home = joined(world, running=True)
    url = address_of(share(home, "http", world.service("other"), "--allow-from", "192.0.2.0/24"))
    assert world.code(url) == 403


def test_a_target_that_does_not_listen_yet_is_shared_all_the_same(world: World) -> None:
    home = joined(world, running=True)
    port = free_port()
    process = share(home, "http", port, "--name", "soon")
    url = address_of(process)
    process.wait_for("warning: the target does not answer")
    assert world.code(url) == 502
    process.wait_for(r"\d\d:\d\d:\d\d the target does not answer: http://127\.0\.0\.1:")
    world.service("late", port)
    assert world.curl(url).stdout == b"hello from late\n"


def test_names_that_cannot_be_had(world: World) -> None:
    home = joined(world, running=True)
    other = world.connector("other", f"[services.taken]\ntarget = {world.service('taken')}", allow=())
    done = home.command("http", "1", "--name", "taken", check=False)
    assert done.returncode == 1
    assert "held by connector other" in done.stderr
    assert "on the edge, run: tunnelgw edge revoke other" in done.stderr
    done = home.command("http", "1", "--name", "web", check=False)
    assert done.returncode == 2
    assert "has a service web already" in done.stderr
    done = home.command("http", "1", "--host", "else.example.org", "--name", "mine", check=False)
    assert done.returncode == 1
    command = re.search(r"on the edge, run: tunnelgw edge (grant .*)", done.stderr)
    assert command is not None, done.stderr
    world.edge_command(*command[1].split())
    process = share(home, "http", world.service("mine"), "--host", "else.example.org", "--name", "mine")
    assert world.curl(address_of(process)).stdout == b"hello from mine\n"
    assert claims_of(world) >= {"web", "taken", "mine"}
    assert other.process is not None


def test_a_twin_on_another_machine_is_left_alone(world: World) -> None:
    home = joined(world, running=True)
    copy = Connector(world, "copy", "")
    subprocess.run(["cp", "-a", str(home.state), str(copy.state)], check=True)
    (copy.state / "control.sock").unlink(missing_ok=True)
    done = copy.command("http", "1", check=False)
    assert done.returncode == 1
    assert "another process with the identity of home is connected, from 127.0.0.1" in done.stderr
    assert world.curl("https://web.example.com/").stdout == b"hello from web\n"
    assert home.process is not None
    assert "took over" not in home.process.text() + world.logs()


def test_who_has_not_joined_or_has_no_edge(world: World) -> None:
    stranger = Connector(world, "stranger", "")
    done = stranger.command("http", "1", check=False)
    assert done.returncode == 1
    assert "tunnelgw join" in done.stderr
    home = joined(world, running=True)
    process = share(home, "http", world.service("other"), "--name", "preview")
    address_of(process)
    assert world.edge is not None
    world.edge.stop()
    process.wait_for("the edge is away")
    world.start_edge()
    process.wait_for("public again", seconds=40)
    assert world.curl("https://preview.example.com/").stdout == b"hello from other\n"
    assert home.process is not None
    home.process.stop()
    assert process.popen.wait(20) == 1
    assert "no longer shared: the connector stops" in process.text()


def talk(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(b"ping")
        assert read_exactly(sock, 4) == b"ping"


@pytest.mark.parametrize("running", [True, False], ids=["beside", "alone"])
def test_a_raw_port_from_the_grant(world: World, running: bool) -> None:
    first, taken = free_port(), free_port()
    home = joined(world, running=running, allow=("--allow-port", str(first), "--allow-port", str(taken)))
    with RawTarget(echo) as target, socket.create_server(("127.0.0.1", taken)):  # somebody else's
        process = share(home, "tcp", target.port)
        assert address_of(process) == f"tcp://127.0.0.1:{first}"
        process.wait_for(f"from anywhere: 127.0.0.1 port {first}")
        talk(first)
        process.wait_for(r"127\.0\.0\.1 connected")
        process.wait_for(r"127\.0\.0\.1 4 B in, 4 B out")
        process.signal(signal.SIGKILL)
        wait_until(lambda: refused(first), seconds=GONE_SECONDS, what="the port is closed")


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_raw_port_that_is_not_granted(world: World) -> None:
    home = joined(world, running=True)
    done = home.command("tcp", "22", check=False)
    assert done.returncode == 1
    assert "name one with --port N" in done.stderr
    port = free_port()
    done = home.command("tcp", "22", "--port", str(port), check=False)
    assert done.returncode == 1
    assert f"on the edge, run: tunnelgw edge grant home --allow-port {port}\n" in done.stderr
    world.edge_command("grant", "home", "--allow-port", str(port))
    with RawTarget(echo) as target:
        share(home, "tcp", target.port, "--port", port).wait_for("leads to")
        talk(port)


def test_a_code_to_scan_on_a_terminal_only(world: World) -> None:
    home = joined(world, running=True)
    port = world.service("other")
    master, slave = pty.openpty()
    command = [*TUNNELGW, "http", str(port), "--name", "preview", "--config", str(home.config)]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    shown = b""
    try:
        while b"Ctrl-C" not in shown:
            assert select.select([master], [], [], 60)[0], shown
            shown += os.read(master, 65536)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, shown
    finally:
        process.kill()  # a test that failed is not to wait for it
        process.wait()
        os.close(master)
    assert shown.startswith(f"https://preview.example.com:{world.port}/".encode())
    assert shown.count("\N{LOWER HALF BLOCK}".encode()) > 20
    plain = share(home, "http", port, "--name", "preview")
    address_of(plain)
    assert "\N{LOWER HALF BLOCK}" not in plain.text()


def test_a_running_command_can_be_found_by_scripts(world: World) -> None:
    """The address is there before anything else happens, also into a pipe."""
    home = joined(world, running=True)
    command: list[Any] = [*TUNNELGW, "http", world.service("other"), "--config", home.config]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        line = process.stdout.readline().decode().strip()
        assert world.curl(re.sub(r":\d+/$", "/", line)).returncode == 0
        process.terminate()
        assert process.wait(10) == 0
    assert run("http", "--help").stdout.count("tunnelgw http ") >= 4
