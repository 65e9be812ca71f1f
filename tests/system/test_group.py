"""Several connectors serve one route: who is chosen, and what visitors notice when one of them dies."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.system.control import ask
from tests.system.harness import Connector, World, wait_until
from tests.system.load import Load, visitor
from tests.system.upgrading import Upgrading

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(240)]
HERE = Path(__file__).parent
HOST = "web.example.com"
NAMES = ("left", "right")


def table(port: int, more: str = "", *, service: str = "web", scheme: str = "http") -> str:
    return f'[services.{service}]\ntarget = "{scheme}://127.0.0.1:{port}"\ngroup = "pair"\n{more}\n'


def pair(world: World, more: str = "", *, left: str = "", right: str = "", edge: str = "") -> dict[str, Connector]:
    """Two homes with a service each, which answers with its home's name; both serve one host."""
    world.start_edge()
    homes = {}
    for name, own in (("left", left), ("right", right)):
        port = world.service(name)
        home = Connector(world, name, table(port, f"{more}\n{own}"))
        options = ("--edge", edge) if edge and name == "left" else ()
        home.join(*options, allow=("--allow-host", HOST))
        home.start()
        homes[name] = home
    wait_until(lambda: serving(world) == {*NAMES}, what="both serve", logs=world.logs)
    return homes


def members(world: World) -> dict[str, dict]:
    return {entry["connector"]: entry for entry in world.status()["addresses"] if HOST in entry["address"]}


def serving(world: World) -> set[str]:
    return {name for name, entry in members(world).items() if entry["state"] == "up" and not entry["health"]}


def who(world: World, *options: str, host: str = HOST) -> str:
    """The home that answers a new visitor."""
    return world.curl(f"https://{host}/", *options).stdout.decode().strip().removeprefix("hello from ")


def report(what: str, load: Load) -> None:
    print(f"\n{what}: {len(load.answers)} requests, {len(load.failures())} failed, slowest {load.slowest():.3f} s")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_killed_connector_costs_no_request(tmp_path: Path, number: signal.Signals) -> None:
    """Half of the requests under way were asked of the one that is killed: the other one answers them at once."""
    with World(tmp_path) as world:
        homes = pair(world)
        with Load(world, HOST, "/slow?seconds=0.05", each=4) as load:
            wait_until(lambda: len(load.answers) > 100, what="the load runs")
            process = homes["left"].process
            assert process is not None
            killed = time.monotonic()
            process.signal(number)
            process.popen.wait(20)
            wait_until(lambda: len(load.since(killed)) > 200, seconds=60, what="it goes on")
        report(f"{number.name} of one of two connectors", load)
        assert not load.failures()
        under_way = [one for one in load.answers if one.begun < killed < one.begun + one.seconds]
        recovery = max((one.begun + one.seconds for one in under_way), default=killed) - killed
        print(f"{len(under_way)} were under way; all of them were answered within {recovery:.3f} s")
        assert recovery < 10.0
        assert who(world) == "right"
        metrics = world.metrics()
        assert f'tunnelgw_member_ready{{connector="left",route="{HOST}/"}} 0.0' in metrics
        assert f'tunnelgw_member_ready{{connector="right",route="{HOST}/"}} 1.0' in metrics
        assert len(re.findall(r"^tunnelgw_requests_total\{.*\}", metrics, re.MULTILINE)) == 1, "one label for both"
        homes["left"].start()
        wait_until(lambda: {who(world) for _ in range(4)} == {*NAMES}, what="both serve again")


def test_a_silently_dead_link_is_left_alone(tmp_path: Path) -> None:
    """A link that freezes under load: within seconds what was asked there is asked elsewhere, and nothing fails."""
    with World(tmp_path) as world:
        port, control = free_port(), tmp_path / "relay.sock"
        command = [sys.executable, str(HERE / "relay.py"), str(port), str(world.port), "--control", str(control)]
        world.add("relay", command, port=port)
        pair(world, edge=f"127.0.0.1:{port}")
        with Load(world, HOST, each=3) as load:
            wait_until(lambda: len(load.answers) > 100, what="the load runs")
            frozen = time.monotonic()
            ask(control, "freeze")
            wait_until(lambda: len(load.since(frozen + 1.5)) > 200, seconds=60, what="it goes on")
        report("one of two links frozen", load)
        assert not load.failures()
        assert load.slowest() < 15.0  # three seconds until the link is given up, on a machine that may be busy


def test_who_is_back_first_answers_what_was_asked_of_another(tmp_path: Path) -> None:
    """All members lose their links; the one that was asked does not come back, but another one does: it answers."""
    with World(tmp_path) as world:
        port, control = free_port(), tmp_path / "relay.sock"
        command = [sys.executable, str(HERE / "relay.py"), str(port), str(world.port), "--control", str(control)]
        world.add("relay", command, port=port)
        homes = pair(world, left="priority = 1", right="priority = 2", edge=f"127.0.0.1:{port}")
        left, right = (homes[name].process for name in NAMES)
        assert left is not None
        assert right is not None
        left.signal(signal.SIGSTOP)
        ask(control, "reset")
        wait_until(lambda: members(world)["left"]["state"] != "up", what="the edge noticed")
        right.signal(signal.SIGSTOP)
        url = f"https://{HOST}:{world.port}/"
        command = ["curl", "-sk", "--max-time", "40", "--resolve", f"{HOST}:{world.port}:127.0.0.1", url]
        asked = world.aside(command, stdout=subprocess.PIPE)
        wait_until(lambda: 'tunnelgw_streams{connector="right"} 1.0' in world.metrics(), what="it is under way")
        wait_until(lambda: members(world)["right"]["state"] != "up", what="its silence is a death")
        left.signal(signal.SIGCONT)
        assert asked.communicate(timeout=60)[0] == b"hello from left\n"
        assert 'tunnelgw_failovers_total{reason="connector_away"} 1.0' in world.metrics()
        right.signal(signal.SIGCONT)


def test_what_may_have_been_done_waits_for_its_link(tmp_path: Path) -> None:
    """The link of the member that was asked is reset: a GET moves at once, a POST is answered over the next link."""
    with World(tmp_path) as world:
        port, control = free_port(), tmp_path / "relay.sock"
        command = [sys.executable, str(HERE / "relay.py"), str(port), str(world.port), "--control", str(control)]
        world.add("relay", command, port=port)
        pair(world, left="priority = 1", right="priority = 2", edge=f"127.0.0.1:{port}")
        url = f"https://{HOST}:{world.port}/slow?seconds=10"
        asked = [
            world.aside(
                ["curl", "-sk", *options, "--resolve", f"{HOST}:{world.port}:127.0.0.1", url], stdout=subprocess.PIPE
            )
            for options in ([], ["-d", "x"], ["-X", "DELETE"])
        ]
        wait_until(lambda: 'tunnelgw_streams{connector="left"} 3.0' in world.metrics(), what="they are under way")
        ask(control, "reset")
        assert [one.communicate(timeout=60)[0] for one in asked] == [b"at last\n"] * 3
        metrics = world.metrics()
        assert 'tunnelgw_failovers_total{reason="connector_away"} 1.0' in metrics, "the GET alone"
        assert 'tunnelgw_tunnel_resumes_total{connector="left"} 1.0' in metrics


def test_priority_and_failback(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        homes = pair(world, left="priority = 1", right="priority = 2")
        assert {who(world) for _ in range(6)} == {"left"}
        with visitor(world, HOST) as kept, visitor(world, HOST, h2=True) as kept2:
            assert kept.get("/")[1] == kept2.get("/")[1] == "hello from left\n"
            assert homes["left"].process is not None
            homes["left"].process.kill()
            assert kept.get("/")[1] == kept2.get("/")[1] == "hello from right\n"
            homes["left"].start()
            wait_until(lambda: kept.get("/")[1] == "hello from left\n", what="a connection in use goes back too")
            assert kept2.get("/")[1] == "hello from left\n"
        entries = [entry for entry in world.status()["addresses"] if HOST in entry["address"]]
        assert [(entry["connector"], entry["priority"], entry["group"]) for entry in entries] == [
            ("left", 1, "pair"),
            ("right", 2, "pair"),
        ]
        text = world.edge_command("status").stdout
        assert re.search(r"left +up .* pair +1 +-\n.*right +up .* pair +2", text), text


def test_streams_are_spread_by_load(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        pair(world)
        long = [
            world.aside(
                [
                    "curl",
                    "-sk",
                    "-N",
                    "--resolve",
                    f"{HOST}:{world.port}:127.0.0.1",
                    f"https://{HOST}:{world.port}/events?count=2&pause=60",
                ],
                stdout=subprocess.PIPE,
            )
            for _ in range(12)
        ]
        try:
            for one in long:
                assert one.stdout is not None
                assert one.stdout.readline() == b"data: 0\n"
            streams = dict(re.findall(r'^tunnelgw_streams\{connector="(\w+)"\} ([\d.]+)', world.metrics(), re.M))
            assert {float(count) for count in streams.values()} == {6.0}, streams
        finally:
            for one in long:
                one.kill()
                one.communicate()


def test_a_cookie_keeps_a_visitor(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        homes = pair(world, 'affinity = "cookie"')
        jar = tmp_path / "jar"
        headers = world.curl(f"https://{HOST}/", "-D", "-", "-o", "/dev/null", "-c", str(jar)).stdout.decode()
        found = re.search(
            r"(?im)^set-cookie: tgw_affinity=([0-9a-f]{32}); Path=/; HttpOnly; Secure; SameSite=Lax\r$", headers
        )
        assert found, headers
        first = who(world, "-b", str(jar))
        assert {who(world, "-b", str(jar)) for _ in range(8)} == {first}
        again = world.curl(f"https://{HOST}/", "-D", "-", "-o", "/dev/null", "-b", str(jar)).stdout.lower()
        assert b"set-cookie" not in again
        for odd in ("tgw_affinity=" + "0" * 32, f"tgw_affinity={found[1]}0", "tgw_affinity=", "tgw_affinity=left"):
            answer = world.curl(f"https://{HOST}/", "--http2", "-D", "-", "-H", f"cookie: {odd}").stdout.lower()
            assert b"200" in answer.split(b"\r\n")[0]
            assert b"set-cookie: tgw_affinity=" in answer, odd
        assert {who(world) for _ in range(8)} == {*NAMES}
        assert homes[first].process is not None
        homes[first].process.kill()
        other = next(name for name in NAMES if name != first)
        moved = world.curl(f"https://{HOST}/", "-i", "-b", str(jar), "-c", str(jar)).stdout
        assert f"hello from {other}".encode() in moved
        assert b"set-cookie: tgw_affinity=" in moved.lower()
        homes[first].start()
        wait_until(lambda: {who(world) for _ in range(4)} == {*NAMES}, what="both serve again")
        assert {who(world, "-b", str(jar)) for _ in range(8)} == {other}, "it stays where it went"
        # The token outlives the edge.
        assert world.edge is not None
        world.edge.stop()
        world.start_edge()
        wait_until(lambda: {who(world) for _ in range(4)} == {*NAMES}, what="both serve after the restart")
        assert {who(world, "-b", str(jar)) for _ in range(8)} == {other}


def test_an_address_keeps_its_home(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        pair(world, 'affinity = "address"')
        sources = [f"127.0.0.{number}" for number in range(2, 26)]
        before = {source: who(world, "--interface", source) for source in sources}
        assert set(before.values()) == {*NAMES}
        assert {source: who(world, "--interface", source) for source in sources} == before


def test_a_health_check_turns_a_member_out_and_in(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        switch = tmp_path / "ill"
        program = (
            "import http.server, os, sys\n"
            "class H(http.server.BaseHTTPRequestHandler):\n"
            "    protocol_version = 'HTTP/1.1'\n"
            "    def do_GET(self):\n"
            "        body = b'hello from left\\n'\n"
            "        self.send_response(500 if os.path.exists(sys.argv[2]) else 200)\n"
            "        self.send_header('content-length', str(len(body)))\n"
            "        self.end_headers()\n"
            "        self.wfile.write(body)\n"
            "    def log_message(self, *_): pass\n"
            "http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()\n"
        )
        port = free_port()
        world.add("web", [sys.executable, "-c", program, str(port), str(switch)], port=port)
        world.start_edge()
        check = 'priority = {}\nhealth = { path = "/", interval = 1, threshold = 2 }'
        for name, where in (("left", port), ("right", world.service("right"))):
            home = Connector(world, name, table(where, check.replace("{}", str(NAMES.index(name)))))
            home.join(allow=("--allow-host", HOST))
            home.start()
        wait_until(lambda: serving(world) == {*NAMES}, what="both are healthy", logs=world.logs)
        with visitor(world, HOST) as kept:
            wait_until(lambda: kept.get("/") == (200, "hello from left\n"), what="the preferred one serves")
            switch.touch()
            wait_until(lambda: members(world)["left"]["health"] == "unhealthy", what="the edge hears of it")
            assert kept.get("/") == (200, "hello from right\n")
            assert {who(world) for _ in range(4)} == {"right"}
            status = json.loads(world.homes[0].command("status", "--json").stdout)
            assert status["services"][0]["health"] == "unhealthy: answered 500"
            assert "answered 500" in world.homes[0].command("status").stdout
            switch.unlink()
            wait_until(lambda: kept.get("/") == (200, "hello from left\n"), what="it is back")


def test_a_target_that_refuses_is_left_out_and_nobody_notices(tmp_path: Path) -> None:
    """Without any health check: requests move on, and after some failures nobody asks there for a while."""
    with World(tmp_path) as world:
        world.start_edge()
        for name, port in (("left", free_port()), ("right", world.service("right"))):
            home = Connector(world, name, table(port, f"priority = {NAMES.index(name)}"))
            home.join(allow=("--allow-host", HOST))
            home.start()
        wait_until(lambda: len(members(world)) == 2, what="both are members")
        for number, method in enumerate(["GET", "DELETE"] * 4, 1):
            assert world.code(f"https://{HOST}/headers", "-X", method) == 200
            if number == 3:
                assert members(world)["left"]["health"] == "failing"
        metrics = world.metrics()
        assert 'tunnelgw_members_left_out_total{reason="target_refused"} 1.0' in metrics
        moved = re.search(r'tunnelgw_failovers_total\{reason="target_refused"\} ([\d.]+)', metrics)
        assert moved is not None
        assert float(moved[1]) == 3
        assert world.edge is not None
        world.edge.wait_for("connector left, service web: left out for 10 s")


def test_a_raw_port_of_two(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        public = free_port()
        world.start_edge()

        def home_of(_number: int) -> str:
            data = b""
            with (
                contextlib.suppress(ConnectionRefusedError),  # until the port is open
                socket.create_connection(("127.0.0.1", public), timeout=20) as sock,
            ):
                sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                while part := sock.recv(65536):
                    data += part
            return data.rpartition(b"hello from ")[2].decode().strip()

        homes = {}
        for name in NAMES:
            homes[name] = Connector(world, name, table(world.service(name), f"port = {public}", scheme="tcp"))
            homes[name].join(allow=("--allow-port", str(public)))
            homes[name].start()
        wait_until(lambda: {home_of(n) for n in range(4)} == {*NAMES}, what="both serve", logs=world.logs)
        assert homes["left"].process is not None
        homes["left"].process.stop()
        assert {home_of(n) for n in range(6)} == {"right"}, "the port stays open"
        metrics = world.metrics()
        assert f'tunnelgw_member_ready{{connector="left",route="tcp:{public}"}} 0.0' in metrics


TLS_SERVICE = """
import http.server, ssl, sys
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"hello from {sys.argv[2]}\\n".encode())
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), H)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[3], sys.argv[4])
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


@pytest.mark.parametrize("where", ["connector", "target"])
def test_tls_that_does_not_end_at_the_edge(tmp_path: Path, where: str) -> None:
    """TLS that ends in each connector with a certificate from files, and at the targets (tls://)."""
    with World(tmp_path) as world:
        world.start_edge()
        key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
             "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}", "-keyout", str(key), "-out",
             str(certificate)], check=True, capture_output=True,
        )  # fmt: skip
        tls = f'[tls]\nissuer = "files"\ncertificates = [{{ cert = "{certificate}", key = "{key}" }}]\n'
        homes = {}
        for name in NAMES:
            if where == "connector":
                services = table(world.service(name), 'tls = "home"') + tls
            else:
                port = free_port()
                program = [sys.executable, "-c", TLS_SERVICE, str(port), name, str(certificate), str(key)]
                world.add(f"https-{name}", program, port=port)
                services = table(port, scheme="tls")
            homes[name] = Connector(world, name, services)
            homes[name].join(allow=("--allow-host", HOST))
            homes[name].start()
        wait_until(lambda: {who(world) for _ in range(4)} == {*NAMES}, what="both serve", logs=world.logs)
        assert homes["left"].process is not None
        homes["left"].process.kill()
        wait_until(lambda: serving(world) == {"right"}, what="the edge noticed")
        assert {who(world) for _ in range(4)} == {"right"}


def test_all_away_then_whoever_is_first_serves(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        homes = pair(world)
        for home in homes.values():
            assert home.process is not None
            home.process.kill()
        wait_until(lambda: serving(world) == set(), what="the edge noticed")
        waiting = [
            world.aside(
                [
                    "curl",
                    "-sk",
                    *options,
                    "--resolve",
                    f"{HOST}:{world.port}:127.0.0.1",
                    f"https://{HOST}:{world.port}/",
                ],
                stdout=subprocess.PIPE,
            )
            for options in (["--http1.1"], ["--http2"], ["-X", "POST", "-d", "x", "--http1.1"])
        ]
        parked = "tunnelgw_parked_requests 3.0"
        wait_until(lambda: parked in world.metrics(), what="they wait", logs=world.logs)
        homes["right"].start()
        answers = [one.communicate(timeout=60)[0] for one in waiting]
        assert answers[:2] == [b"hello from right\n"] * 2
        assert b"405" in answers[2]


def test_who_may_not_share_is_refused_until_it_is_granted(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        world.start_edge()
        left = Connector(world, "left", table(world.service("left")))
        left.join()  # the default grant: web.example.com is its own
        left.start()
        right = Connector(world, "right", table(world.service("right")))
        right.join()
        process = right.start()
        command = "tunnelgw edge grant right --allow-host web.example.com"
        process.wait_for(f"refused it.*held by connector left in the same group.*run on the edge: {command}")
        assert world.edge is not None
        world.edge.wait_for(f"connector right, service web refused .*to allow it: {command}")
        assert left.process is not None
        left.process.wait_for("connector right claimed web.example.com, which is ours; it was refused")
        assert {who(world) for _ in range(4)} == {"left"}
        world.edge_command(*command.split()[2:])
        wait_until(lambda: {who(world) for _ in range(4)} == {*NAMES}, what="both serve")
        # Other rules than the others' put a member out; the rest goes on.
        said = len(process.text())
        right.write(right.services + 'allow_from = ["10.0.0.0/8"]\n')
        process.wait_for("which says otherwise about allow_from: let all members say the same", after=said)
        assert {who(world) for _ in range(4)} == {"left"}
        left.write(left.services + 'allow_from = ["10.0.0.0/8"]\n')
        wait_until(lambda: len(members(world)) == 2 or world.code(f"https://{HOST}/") == 403, what="both say the same")
        # A member that is revoked goes alone.
        world.edge_command("revoke", "left")
        wait_until(lambda: set(members(world)) == {"right"}, what="right alone")
        assert world.code(f"https://{HOST}/") == 403


def test_members_are_known_after_a_restart_of_the_edge(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        homes = pair(world)
        assert world.edge is not None
        for home in homes.values():
            assert home.process is not None
            home.process.stop()
        world.edge.stop()
        world.start_edge()
        assert set(members(world)) == {*NAMES}
        request = world.aside(
            ["curl", "-sk", "--resolve", f"{HOST}:{world.port}:127.0.0.1", f"https://{HOST}:{world.port}/"],
            stdout=subprocess.PIPE,
        )
        wait_until(lambda: "tunnelgw_parked_requests 1.0" in world.metrics(), what="it waits")
        homes["right"].start()
        assert request.communicate(timeout=60)[0] == b"hello from right\n"


def test_workers_share_what_members_are(tmp_path: Path) -> None:
    with World(tmp_path, workers=2) as world:
        homes = pair(world)
        wait_until(lambda: {who(world) for _ in range(8)} == {*NAMES}, what="both serve")
        assert homes["left"].process is not None
        homes["left"].process.kill()
        assert Counter(who(world) for _ in range(12)) == {"right": 12}


def test_an_upgrade_of_the_edge_with_members(tmp_path: Path) -> None:
    """New connections, one after another, while the edge is replaced and both members move to the new process."""
    with Upgrading(tmp_path) as world:
        pair(world)
        got: list[tuple[int, str]] = []
        stopping = threading.Event()

        def visit() -> None:
            while not stopping.is_set():
                with visitor(world, HOST) as one:
                    got.append(one.get("/"))

        visiting = threading.Thread(target=visit)
        visiting.start()
        try:
            wait_until(lambda: len(got) > 20, what="visitors come")
            world.upgrade("command")
            wait_until(lambda: serving(world) == {*NAMES}, what="both are members in the new process")
            seen = len(got)
            wait_until(lambda: len(got) > seen + 40, what="visitors come to the new process")
        finally:
            stopping.set()
            visiting.join(60)
        assert {status for status, _ in got} == {200}
        assert {body for _, body in got[seen:]} == {f"hello from {name}\n" for name in NAMES}


def test_one_connector_at_two_edges(tmp_path: Path) -> None:
    """Each link on its own: one edge dies and comes back, and the other one's visitors notice nothing."""

    def served(world: World) -> bool:
        return world.curl(f"https://{HOST}/", check=False).stdout == b"hello from home\n"

    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with World(tmp_path / "one") as one, World(tmp_path / "two") as two:
        one.start_edge()
        two.start_edge()
        home = Connector(one, "home", f'[services.web]\ntarget = "http://127.0.0.1:{one.service("home")}"\n')
        home.join()
        home.world = two
        home.join()
        home.start()
        for world in (one, two):  # the connector is ready when one of them has answered
            wait_until(lambda world=world: served(world), what="served at both edges")
        states = json.loads(home.command("status", "--json").stdout)["edges"]
        assert [edge["state"] for edge in states] == ["up", "up"]
        with Load(two, HOST, each=2) as load:
            wait_until(lambda: len(load.answers) > 50, what="the load runs")
            assert one.edge is not None
            one.edge.kill()
            killed = time.monotonic()
            wait_until(lambda: len(load.since(killed)) > 200, seconds=60, what="the other edge serves")
            one.start_edge()
            wait_until(lambda: served(one), seconds=60, what="the edge that was killed serves")
        report("one of two edges killed, seen at the other", load)
        assert not load.failures()
        resumes = 'tunnelgw_tunnel_reconnects_total{connector="home"} 0.0'
        assert resumes in two.metrics(), "its tunnel was never touched"
