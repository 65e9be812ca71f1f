"""Private services with whole processes: ssh and scp through `visit --stdio`, ports by `--listen`, grants and cuts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.ports import free_port
from tests.system.control import ask
from tests.system.harness import Connector, World, run, wait_until
from tests.system.sshd import SSHD, configure
from tests.system.targets import RawTarget, read_all
from tests.system.test_tls_home import memory_holds
from tests.system.upgrading import Upgrading
from tests.system.visiting import Laptop, ports

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.system
HERE = Path(__file__).parent
MB = 1024 * 1024


def echo(sock: socket.socket) -> None:
    """Sends back what came, in turn, until the other side ends its half; then says so and ends its own."""
    while data := sock.recv(65536):
        sock.sendall(data)
    sock.sendall(b"bye")


def digest(sock: socket.socket) -> None:
    """Answers the end of all that came with its length and digest: only a half-close gets an answer."""
    data = read_all(sock)
    sock.sendall(f"{len(data)} {hashlib.sha256(data).hexdigest()}".encode())


def say(sock: socket.socket, data: bytes) -> None:
    """All of it, and the end; or not, where the other side has cut it."""
    with contextlib.suppress(OSError):
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)


def talk(port: int, data: bytes, *, seconds: float = 60) -> bytes:
    """Sends, ends that half, and reads to the end; b"" if the connection is cut, which may be before it is used."""
    with contextlib.suppress(ConnectionResetError), socket.create_connection(("127.0.0.1", port), seconds) as sock:
        writing = threading.Thread(target=say, args=(sock, data))
        writing.start()
        try:
            return read_all(sock)
        finally:
            writing.join()
    return b""


def cut(sock: socket.socket) -> bool:
    """Whether the other side ends it, in order or not."""
    try:
        return sock.recv(100) == b""
    except ConnectionResetError:
        return True


class Home:
    """An edge, a home with private services, and a laptop that may reach some."""

    def __init__(self, folder: Path, *, workers: int = 1) -> None:
        self.world = World(folder, workers=workers)
        self.targets = [RawTarget(echo), RawTarget(digest)]
        self.world.start_edge()
        web = self.world.service("web")
        echoing, digesting = (target.port for target in self.targets)
        self.home = self.world.connector(
            "home",
            f"""
            [services.echo]
            target = "tcp://127.0.0.1:{echoing}"
            private = true
            [services.digest]
            target = "tcp://127.0.0.1:{digesting}"
            private = true
            [services.wiki]
            target = {web}
            private = true
            [services.nobody]
            target = "tcp://127.0.0.1:{free_port()}"
            private = true
            [services.site]
            target = {web}
            """,
        )
        self.laptop = Laptop(self.world, "laptop", "echo", "home/digest", "wiki", "nobody", "edge-metrics")

    def end(self) -> None:
        for target in self.targets:
            target.__exit__()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    home = Home(tmp_path_factory.mktemp("visit"))
    with home.world:
        yield home
        home.end()


def test_a_private_service_by_a_local_port(place: Home) -> None:
    world, laptop = place.world, place.laptop
    process = laptop.visit("wiki", "echo", "digest")
    assert "-> home/wiki\n" in process.text()
    wiki, echoing, digesting = ports(process)
    done = subprocess.run(
        ["curl", "-s", f"http://127.0.0.1:{wiki}/headers?a"], capture_output=True, timeout=30, check=True
    )
    assert json.loads(done.stdout)["path"] == "/headers?a"
    large = os.urandom(4 * MB)
    assert talk(echoing, large) == large + b"bye"
    assert talk(digesting, large).decode() == f"{len(large)} {hashlib.sha256(large).hexdigest()}"
    with socket.create_connection(("127.0.0.1", echoing), timeout=30) as sock:  # as psql talks: in turns
        for number in range(20):
            sock.sendall(b"%d;" % number)
            assert sock.recv(100) == b"%d;" % number
    assert world.code("https://site.example.com/") == 200
    status = world.status()
    assert [entry["service"] for entry in status["addresses"]] == ["site"]
    assert {"service": "wiki", "connector": "home", "state": "up"} in status["private_services"]
    (visitor,) = status["visitors"]
    assert (visitor["name"], visitor["state"], visitor["tunnels"]) == ("laptop", "up", 1)
    assert visitor["grant"]["services"] == ["echo", "home/digest", "wiki", "nobody", "edge-metrics"]
    text = world.edge_command("status").stdout
    assert "PRIVATE SERVICE" in text
    assert "home/digest" in text
    assert "private: tunnelgw visit wiki" in place.home.command("status").stdout
    assert process.stop() == 0
    wait_until(lambda: world.status()["visitors"][0]["state"] == "away", what="the edge keeps nothing of it")
    process = laptop.visit("wiki")
    process.signal(signal.SIGHUP)  # a closed terminal; ssh says it to its ProxyCommand
    assert process.popen.wait(20) == 0
    wait_until(lambda: world.status()["visitors"][0]["state"] == "away", what="nor of this one")


def test_both_ends_show_the_same_fingerprints(place: Home) -> None:
    assert place.laptop.stdio("echo", b"x").stdout == b"xbye"
    home = json.loads(place.home.command("status", "--json").stdout)["edges"][0]
    laptop = json.loads(place.laptop.command("status", "--json").stdout)["visits"][0]
    assert home["known_keys"] == {"laptop": laptop["fingerprint"]}
    assert laptop["known_keys"] == {"home": home["fingerprint"]}
    assert home["fingerprint"] in place.laptop.command("status").stdout
    assert laptop["fingerprint"] in place.home.command("status").stdout


@pytest.mark.skipif(SSHD is None, reason="sshd is not installed")
def test_ssh_and_scp_through_standard_input_and_output(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        world.start_edge()
        port = free_port()
        world.add("sshd", configure(tmp_path, port), port=port)
        world.connector("home", f'[services.ssh]\ntarget = "tcp://127.0.0.1:{port}"\nprivate = true')
        laptop = Laptop(world, "laptop", "ssh")
        options = ["-F", str(tmp_path / "ssh_config"), "-o", laptop.proxy_command("ssh")]

        def run_ssh(program: str, *arguments: str) -> str:
            done = subprocess.run(
                [program, *options, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
                check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr + world.logs()
            return done.stdout

        assert run_ssh("ssh", "machine", "echo $((6 * 7))") == "42\n"
        content = os.urandom(8 * MB)
        (tmp_path / "up").write_bytes(content)
        run_ssh("scp", "-q", str(tmp_path / "up"), f"machine:{tmp_path}/there")
        assert (tmp_path / "there").read_bytes() == content
        run_ssh("scp", "-q", f"machine:{tmp_path}/there", str(tmp_path / "back"))
        assert (tmp_path / "back").read_bytes() == content


def test_standard_output_carries_the_bytes_alone(place: Home) -> None:
    done = place.laptop.stdio("digest", b"abc")
    assert done.stdout.decode() == f"3 {hashlib.sha256(b'abc').hexdigest()}"
    assert (done.returncode, done.stderr) == (0, b"")
    large = os.urandom(3 * MB)
    done = place.laptop.stdio("home/echo", large)
    assert done.stdout == large + b"bye"
    done = place.laptop.stdio("nobody", b"x")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"home/nobody: the service at home refused the connection" in done.stderr


def test_what_is_not_granted_and_what_is_no_private_service(place: Home) -> None:
    world = place.world
    phone = Laptop(world, "phone", "echo")
    for name in ("wiki", "site", "attic/echo"):
        text = phone.refused("visit", name)
        assert f"{name} is not granted to phone" in text
        assert "home/echo" in text
        assert "edge grant phone --allow-service" in text
    assert phone.stdio("wiki").returncode == 1
    process = phone.visit("echo")
    (port,) = ports(process)
    assert talk(port, b"one") == b"onebye"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as held:
        held.sendall(b"here")
        assert held.recv(10) == b"here"
        world.edge_command("grant", "phone", "--allow-service", "wiki")
        assert cut(held), "a stream that the grant covers no more is cut"
    assert talk(port, b"two") == b"", "closed without a word"
    process.wait_for("visit_not_granted")
    (wiki,) = ports(phone.visit("wiki"))
    assert subprocess.run(
        ["curl", "-s", f"http://127.0.0.1:{wiki}/"], capture_output=True, timeout=30, check=True
    ).stdout
    world.edge_command("grant", "phone", "--allow-service", "echo")
    assert talk(port, b"three") == b"threebye", "live, without a new tunnel"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as held:
        held.sendall(b"here")
        assert held.recv(10) == b"here"
        world.edge_command("revoke", "phone")
        assert cut(held)
    process.wait_for("revoked|was revoked")
    assert world.status()["visitors"][1]["state"] == "revoked"
    done = phone.stdio("echo", seconds=60)
    assert done.returncode == 1
    assert b"revoked" in done.stderr


def test_a_service_that_is_withdrawn_cuts_its_streams(place: Home) -> None:
    port = place.laptop.port("echo")
    with socket.create_connection(("127.0.0.1", port), timeout=30) as held:
        held.sendall(b"here")
        assert held.recv(10) == b"here"
        services = place.home.services
        place.home.write(services.replace("[services.echo]", "[services.echo2]"))
        assert cut(held)
        place.home.write(services)
    wait_until(lambda: talk(port, b"again") == b"againbye", what="it is offered again")


def test_roles(place: Home) -> None:
    world, laptop = place.world, place.laptop
    text = laptop.refused("connect")
    assert "joined as a visitor" in text
    assert "tunnelgw visit NAME" in text
    text = run("visit", "echo", "--config", str(place.home.config), check=False)
    assert text.returncode == 1
    assert "joined as a connector" in text.stderr
    assert "--role visitor" in text.stderr
    for arguments, said in (
        (("invite", "x", "--role", "visitor", "--allow-host", "a.example.com"), "--allow-host is for connectors"),
        (("invite", "x", "--allow-service", "echo"), "--allow-service is for visitors"),
        (("invite", "home", "--role", "visitor"), "home has joined as a connector"),
        (("grant", "laptop", "--allow-port", "22"), "--allow-port is for connectors, and laptop is a visitor"),
        (("grant", "home", "--allow-exit", "edge"), "--allow-exit is for visitors, and home is a connector"),
    ):
        done = world.edge_command(*arguments, check=False)
        assert done.returncode == 2
        assert said in done.stderr
    for arguments, said in (
        (("visit",), "name what to visit"),
        (("visit", "a", "b", "--stdio"), "--stdio is for one service"),
        (("visit", "a", "--listen", "1", "--listen", "2"), "one --listen for each NAME"),
        (("visit", "a/b/c"), "neither SERVICE nor CONNECTOR/SERVICE"),
        (("visit", "a", "--listen", "nowhere:x"), "--listen"),
    ):
        done = run(*arguments, "--config", str(laptop.config), check=False)
        assert done.returncode == 2, done
        assert said in done.stderr


def test_several_visits_of_one_identity(place: Home) -> None:
    first, second = place.laptop.visit("echo"), place.laptop.visit("echo")
    (one,), (other,) = ports(first), ports(second)
    assert talk(one, b"1") == b"1bye"
    assert talk(other, b"2") == b"2bye"
    assert place.laptop.stdio("echo", b"3").stdout == b"3bye"
    assert place.world.status()["visitors"][0]["tunnels"] >= 2
    first.kill()
    assert talk(other, b"4") == b"4bye"


def test_the_metrics_of_the_edge(place: Home) -> None:
    port = place.laptop.port("edge-metrics")
    done = subprocess.run(
        ["curl", "-s", f"http://127.0.0.1:{port}/metrics"], capture_output=True, timeout=30, check=True
    )
    assert b'tunnelgw_tunnels{connector="home",state="up"} 1.0' in done.stdout


def test_a_visitor_that_dies_leaves_no_stream_at_home(place: Home) -> None:
    process = place.laptop.visit("echo")
    (port,) = ports(process)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        before = json.loads(place.home.command("status", "--json").stdout)["streams"]
        assert before >= 1
        process.signal(signal.SIGTERM)
        wait_until(
            lambda: json.loads(place.home.command("status", "--json").stdout)["streams"] < before, what="it is reset"
        )


def test_a_machine_that_joined_anew_is_another_one_until_somebody_says_so(tmp_path: Path) -> None:
    """What an edge that was taken over could do best: a certificate of the same authority, and another key."""
    with World(tmp_path) as world, RawTarget(echo) as target:
        world.start_edge()
        services = f'[services.echo]\ntarget = "tcp://127.0.0.1:{target.port}"\nprivate = true'
        world.connector("home", services)
        laptop = Laptop(world, "laptop", "echo")
        assert laptop.stdio("echo", b"a secret").stdout == b"a secretbye"
        fake = Connector(world, "fake", services)
        invitation = world.edge_command("invite", "home").stdout.strip()
        run("join", invitation, "--config", str(fake.config), "--state-dir", str(fake.state))
        world.connectors["home"].process.stop()
        fake.start()
        done = laptop.stdio("echo", b"a secret")
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"home shows another key than before" in done.stderr
        assert b"tunnelgw forget home" in done.stderr
        laptop.command("forget", "home")
        assert laptop.stdio("echo", b"again").stdout == b"againbye"
        assert "known are: home" in laptop.refused("forget", "nobody")
        # The other way round: another key under the visitor's name.
        twin = Connector(world, "twin", "")
        invitation = world.edge_command("invite", "laptop", "--role", "visitor").stdout.strip()
        run("join", invitation, "--config", str(twin.config), "--state-dir", str(twin.state))
        twin.__class__ = Laptop
        done = twin.stdio("echo", b"let me in")  # type: ignore[attr-defined]
        assert (done.returncode, done.stdout) == (1, b"")
        fake.process.wait_for("visitor laptop was not let in: laptop shows another key than before")
        fake.command("forget", "laptop")
        assert twin.stdio("echo", b"let me in").stdout == b"let me inbye"  # type: ignore[attr-defined]


def test_the_edge_cannot_read_what_is_private(tmp_path: Path) -> None:
    with World(tmp_path) as world, RawTarget(echo) as target:
        edge = world.start_edge()
        world.connector("home", f'[services.echo]\ntarget = "tcp://127.0.0.1:{target.port}"\nprivate = true')
        laptop = Laptop(world, "laptop", "echo")
        process = laptop.visit("echo")
        (port,) = ports(process)
        secret = hashlib.sha256(os.urandom(32)).hexdigest().encode()
        with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
            for _ in range(50):
                sock.sendall(secret)
                received = b""
                while len(received) < len(secret):
                    received += sock.recv(65536)
                assert received == secret
            wanted = {"secret": secret}
            assert memory_holds(process.pid, wanted), "or the search below finds nothing anywhere"
            assert memory_holds(edge.pid, wanted) == set()


@pytest.mark.parametrize(("side", "workers"), [("visitor", 1), ("connector", 1), ("visitor", 2)])
def test_a_link_that_is_cut_in_the_middle(tmp_path: Path, side: str, workers: int) -> None:
    with World(tmp_path, workers=workers) as world, RawTarget(echo) as target:
        world.start_edge()
        relay, control = free_port(), tmp_path / "relay.sock"
        command = [sys.executable, str(HERE / "relay.py"), str(relay), str(world.port), "--control", str(control)]
        world.add("relay", command, port=relay)
        by_relay = f"127.0.0.1:{relay}"
        home = Connector(world, "home", f'[services.echo]\ntarget = "tcp://127.0.0.1:{target.port}"\nprivate = true')
        home.join(*(("--edge", by_relay) if side == "connector" else ()))
        home.start()
        laptop = Laptop(world, "laptop", "echo", edge=by_relay if side == "visitor" else "")
        port = laptop.port("echo")
        data = os.urandom(24 * MB)
        with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
            writing = threading.Thread(target=say, args=(sock, data))
            writing.start()
            received = bytearray()
            marks = [len(data) // 4 * number for number in (1, 2, 3)]
            while piece := sock.recv(65536):
                received += piece
                if marks and len(received) > marks[0]:
                    marks.pop(0)
                    ask(control, "reset")
            writing.join()
        assert not marks
        assert bytes(received) == data + b"bye"


def test_who_only_listens_gets_all_that_was_piped_in(tmp_path: Path) -> None:
    """Its half ended long before ours, so nothing but our own end is left to wait for."""
    taken = threading.Event()
    heard: list[str] = []

    def listen(sock: socket.socket) -> None:
        sock.shutdown(socket.SHUT_WR)
        assert taken.wait(30)
        heard.append(hashlib.sha256(read_all(sock)).hexdigest())

    data = os.urandom(30 * MB)
    with World(tmp_path) as world, RawTarget(listen) as target:
        world.start_edge()
        world.connector("home", f'[services.echo]\ntarget = "tcp://127.0.0.1:{target.port}"\nprivate = true')
        laptop = Laptop(world, "laptop", "echo")
        visit = world.aside(laptop.stdio_command("echo"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert visit.stdin is not None
        assert visit.stdout is not None
        assert visit.stdout.read() == b""
        taken.set()
        visit.stdin.write(data)
        visit.stdin.close()
        assert visit.wait(60) == 0
        wait_until(lambda: bool(heard), what="the end arrived")
        assert heard == [hashlib.sha256(data).hexdigest()]


def test_a_link_that_is_cut_when_all_is_nearly_over(tmp_path: Path) -> None:
    """The end of a stream, or the beginning of the next, is on the wire."""
    with World(tmp_path) as world, RawTarget(echo) as target:
        world.start_edge()
        relay, control = free_port(), tmp_path / "relay.sock"
        command = [sys.executable, str(HERE / "relay.py"), str(relay), str(world.port), "--control", str(control)]
        world.add("relay", command, port=relay)
        world.connector("home", f'[services.echo]\ntarget = "tcp://127.0.0.1:{target.port}"\nprivate = true')
        laptop = Laptop(world, "laptop", "echo", edge=f"127.0.0.1:{relay}")
        port = laptop.port("echo")
        data = os.urandom(MB)
        for before_the_end in range(0, 600_000, 60_000):
            with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
                writing = threading.Thread(target=say, args=(sock, data))
                writing.start()
                received = bytearray()
                while len(received) < len(data) - before_the_end and (piece := sock.recv(65536)):
                    received += piece
                ask(control, "reset")
                received += read_all(sock)
                writing.join()
            assert bytes(received) == data + b"bye", before_the_end


def test_with_two_workers(tmp_path: Path) -> None:
    home = Home(tmp_path, workers=2)
    with home.world as world:
        wait_until(lambda: world.status()["connectors"][0]["tunnels"] == 2, what="a tunnel to each worker")
        visits = [home.laptop.visit("echo") for _ in range(4)]
        for visit in visits:
            (port,) = ports(visit)
            assert talk(port, b"hello") == b"hellobye"
        wait_until(lambda: world.status()["visitors"][0]["tunnels"] == 4, what="both workers tell")
        port = home.laptop.port("edge-metrics")
        done = subprocess.run(
            ["curl", "-s", f"http://127.0.0.1:{port}/metrics"], capture_output=True, timeout=30, check=True
        )
        assert b"tunnelgw_tunnels" in done.stdout
        with socket.create_connection(("127.0.0.1", ports(visits[0])[0]), timeout=30) as held:
            held.sendall(b"x")
            assert held.recv(1) == b"x"
            world.edge_command("revoke", "laptop")
            assert cut(held)
        home.end()


def test_the_target_may_be_told_where_the_visitor_is(tmp_path: Path) -> None:
    with World(tmp_path) as world, RawTarget(echo) as target:
        world.start_edge()
        services = f"""
            [services.echo]
            target = "tcp://127.0.0.1:{target.port}"
            private = true
            proxy_protocol = "v1"
        """
        world.connector("home", services)
        answer = Laptop(world, "laptop", "echo").stdio("echo", b"x").stdout
        assert answer.startswith(b"PROXY TCP4 127.0.0.1 127.0.0.1 ")
        assert answer.endswith(f" {world.port}\r\nxbye".encode())


def test_an_edge_that_is_replaced_keeps_private_streams(tmp_path: Path) -> None:
    with Upgrading(tmp_path) as world, RawTarget(echo) as target:
        world.start_edge()
        world.connector("home", f'[services.echo]\ntarget = "tcp://127.0.0.1:{target.port}"\nprivate = true')
        laptop = Laptop(world, "laptop", "echo")
        port = laptop.port("echo")
        with socket.create_connection(("127.0.0.1", port), timeout=30) as held:
            held.sendall(b"before")
            assert held.recv(100) == b"before"
            world.upgrade("command")
            held.sendall(b"after")
            assert held.recv(100) == b"after"
            assert talk(port, b"new") == b"newbye"


def test_an_edge_that_restarts_gets_its_visitors_back(tmp_path: Path) -> None:
    with World(tmp_path) as world, RawTarget(echo) as target:
        edge = world.start_edge()
        world.connector("home", f'[services.echo]\ntarget = "tcp://127.0.0.1:{target.port}"\nprivate = true')
        laptop = Laptop(world, "laptop", "echo")
        port = laptop.port("echo")
        assert talk(port, b"1") == b"1bye"
        edge.kill()
        with socket.create_connection(("127.0.0.1", port), timeout=60) as waiting:
            say(waiting, b"while nobody is there")
            world.start_edge()
            assert read_all(waiting) == b"while nobody is therebye"
