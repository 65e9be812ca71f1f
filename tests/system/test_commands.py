"""The commands and files that people touch, against running processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import resource
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.ports import free_port
from tests.system.harness import TUNNELGW, Process, World, run, wait_until
from tests.system.service import pattern
from tests.system.targets import read_exactly, read_head

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.system
PROMTOOL = shutil.which("promtool")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, extra='port_bind = "127.0.0.1"') as world:
        world.start_edge()
        yield world


# expose, unexpose, status.


def test_expose_and_unexpose(world: World) -> None:
    home = world.connector("home", "# what I share\n")
    port = world.service("web")
    done = home.command("expose", "web", str(port))
    assert done.stdout == f"https://web.example.com:{world.port}/\n", "the public address alone"
    assert str(home.config) in done.stderr, "which file was written"
    assert world.curl("https://web.example.com/").stdout == b"hello from web\n", "at once"
    assert "# what I share" in home.config.read_text(), "comments are kept"

    done = home.command(
        "expose", "wiki", f"http://127.0.0.1:{port}", "--path", "/headers", "--host", "wiki.example.com"
    )
    assert done.stdout == f"https://wiki.example.com:{world.port}/headers\n"
    assert world.code("https://wiki.example.com/headers/x") == 200

    assert home.command("unexpose", "web").returncode == 0
    wait_until(lambda: world.curl("https://web.example.com/", check=False).returncode == 35, what="no longer published")
    assert world.code("https://wiki.example.com/headers/x") == 200
    assert home.command("unexpose", "web", check=False).returncode in (1, 2)
    for wrong in (["expose", "Bad_Name", "80"], ["expose", "x", "gopher://y"], ["expose", "x"]):
        done = home.command(*wrong, check=False)
        assert done.returncode == 2, wrong
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_expose_without_a_running_connector(world: World) -> None:
    home = world.connector("home", "", start=False)
    done = home.command("expose", "web", str(world.service("web")))
    assert "tunnelgw connect" in done.stderr
    home.start()
    assert world.curl("https://web.example.com/").stdout == b"hello from web\n"


def test_status_on_both_sides(world: World) -> None:
    home = world.connector(
        "home", f"[services.web]\ntarget = {world.service('web')}\n[services.x]\ntarget = 1\nhost = 'x.org'"
    )
    world.edge_command("invite", "guest")
    world.curl("https://web.example.com/")
    now = time.time()
    status = world.status()
    assert status["running"] is True
    address = next(item for item in status["addresses"] if item["service"] == "web")
    assert address["address"] == f"https://web.example.com:{world.port}/"
    assert (address["connector"], address["state"]) == ("home", "up")
    assert now - 60 < address["since"] <= now + 1
    assert address["certificate_expiry"] > now
    connector = next(item for item in status["connectors"] if item["name"] == "home")
    assert (connector["state"], connector["tunnels"]) == ("up", 1)
    assert connector["certificate_expiry"] > now
    assert [item["name"] for item in status["invitations"]] == ["guest"]
    text = world.edge_command("status").stdout
    for word in ("https://web.example.com", "home", "up", "guest"):
        assert word in text

    status = json.loads(home.command("status", "--json").stdout)
    assert status["running"] is True
    assert status["edges"][0]["state"] == "up"
    services = {item["name"]: item for item in status["services"]}
    assert services["web"]["addresses"] == [f"https://web.example.com:{world.port}/"]
    assert (services["x"]["state"], services["x"]["reason"]) == ("refused", "claim_not_granted")
    text = home.command("status").stdout
    assert "https://web.example.com" in text
    assert "tunnelgw edge grant home" in text

    assert home.process is not None
    home.process.stop()
    wait_until(lambda: world.status()["connectors"][0]["state"] != "up", what="the edge noticed")
    assert json.loads(home.command("status", "--json").stdout)["running"] is False


# check and doctor.


def test_check_names_every_problem_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "connector.toml"
    lines = [
        "[services.web]",
        'target = "gopher://x"',
        'hots = "a.example.com"',
        "",
        "[services.Bad_Name]",
        "target = 80",
    ]
    file.write_text("\n".join([*lines, "[services.ssh]", 'target = "tcp://127.0.0.1:22"', "port = 70000", ""]))
    done = run("check", str(file), check=False)
    assert done.returncode == 2
    output = done.stdout + done.stderr
    for line in (2, 3, 5, 9):
        assert re.search(rf"connector\.toml:{line}\b", output), (line, output)
    assert "host" in output, "did you mean"
    file.write_text("[services.web]\ntarget = 80\n")
    assert run("check", str(file)).returncode == 0


def test_doctor_names_the_broken_hop(world: World) -> None:
    home = world.connector("home", f"[services.web]\ntarget = {world.service('web')}")
    done = home.command("doctor", check=False)
    assert "FAIL" not in done.stdout, done.stdout
    assert done.returncode == 0
    home.command("expose", "down", str(free_port()))
    done = home.command("doctor", check=False)
    assert done.returncode == 1
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 1, done.stdout
    assert "down" in failed[0]
    assert world.edge is not None
    world.edge.stop()
    failed = [line for line in home.command("doctor", check=False).stdout.splitlines() if line.startswith("FAIL")]
    assert any(f"127.0.0.1:{world.port}" in line for line in failed), failed


def test_doctor_on_the_edge(world: World) -> None:
    done = run("doctor", "--config", str(world.config), check=False)
    assert "Traceback" not in done.stderr
    assert f"127.0.0.1:{world.port}" in done.stdout, done.stdout + done.stderr


# Reload.


def reloaded(world: World, *, by_signal: bool) -> None:
    """Tell the edge to look at its file: by SIGHUP, or by the change of the file alone."""
    if by_signal:
        assert world.edge is not None
        world.edge.signal(signal.SIGHUP)


@pytest.mark.parametrize("by_signal", [True, False])
def test_reload_touches_no_download(world: World, by_signal: bool) -> None:
    """Good and bad files on both sides while a download is under way: it arrives complete and equal."""
    size = 30_000_000
    port = world.service("web")
    web = f"[services.web]\ntarget = {port}\n"
    home = world.connector("home", web)
    assert home.process is not None
    assert world.edge is not None
    with world.tls("web.example.com") as visitor:
        visitor.sendall(f"GET /bytes/{size} HTTP/1.1\r\nHost: web.example.com\r\n\r\n".encode())
        assert b" 200 " in read_head(visitor)
        got = hashlib.sha256(read_exactly(visitor, 1_000_000))

        home.write(web + f"[services.more]\ntarget = {port}\n")
        if by_signal:
            home.process.signal(signal.SIGHUP)
        wait_until(lambda: world.curl("https://more.example.com/", check=False).returncode == 0, what="a new service")
        got.update(read_exactly(visitor, 1_000_000))

        world.extra = 'port_bind = "127.0.0.1"\naccess_log = "text"'
        world.write_config()
        reloaded(world, by_signal=by_signal)
        world.edge.wait_for("reload: ")
        got.update(read_exactly(visitor, 1_000_000))

        good = world.config.read_text()
        world.config.write_text(good + "[limits]\nidle_seconds = 'soon'\nidel_seconds = 3\n")
        reloaded(world, by_signal=by_signal)
        world.edge.wait_for("idel_seconds")
        world.edge.wait_for("idle_seconds")
        before = len(home.process.text())
        home.write(web + "[services.broken]\ntarget = 'gopher://x'\n[services.worse]\nport = 1\n")
        if by_signal:
            home.process.signal(signal.SIGHUP)
        home.process.wait_for("services.broken", after=before)
        home.process.wait_for("services.worse", after=before)
        assert world.curl("https://more.example.com/").stdout == b"hello from web\n", "a bad file changes nothing"
        got.update(read_exactly(visitor, size - 3_000_000))
    assert got.hexdigest() == hashlib.sha256(pattern(size)).hexdigest()


def test_a_changed_target_is_used_at_once(world: World) -> None:
    first, second = world.service("first"), world.service("second")
    home = world.connector("home", f"[services.web]\ntarget = {first}")
    assert world.curl("https://web.example.com/").stdout == b"hello from first\n"
    home.write(f"[services.web]\ntarget = {second}")
    wait_until(lambda: world.curl("https://web.example.com/").stdout == b"hello from second\n", what="the new target")


def test_limits_are_reloaded(world: World) -> None:
    world.connector("home", f"[services.web]\ntarget = {world.service('web')}")
    field = ["-H", "X-Large: " + "x" * 5000, "--http1.1"]
    assert world.code("https://web.example.com/", *field) == 200
    world.tables = "[limits]\nrequest_head_bytes = 4096"
    world.write_config()
    wait_until(lambda: world.code("https://web.example.com/", *field) == 431, what="the new limit")


# Metrics and logs.


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
@pytest.mark.parametrize("workers", [1, 2])
def test_metrics(tmp_path: Path, workers: int) -> None:
    with World(tmp_path, workers=workers) as world:
        world.start_edge()
        world.connector("home", f"[services.web]\ntarget = {world.service('web')}")
        for _ in range(5):
            world.curl("https://web.example.com/bytes/1000")
        world.code("https://web.example.com/status/418")
        world.s_client("nobody.example.com")
        everything = [  # a worker that is slow for once is left out
            'tunnelgw_requests_total{code="200",route="web.example.com/"} 5.0',
            'tunnelgw_refused_total{reason="name_unknown"} 1.0',
            f'tunnelgw_tunnels{{connector="home",state="up"}} {workers}.0',
        ]
        text = ""

        def told() -> bool:
            nonlocal text
            text = world.metrics()
            return all(line in text for line in everything)

        wait_until(told, what="all workers tell", logs=world.logs)
        checked = subprocess.run(
            [str(PROMTOOL), "check", "metrics"], input=text, capture_output=True, text=True, check=False
        )
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, ""), checked.stderr
        values = dict(re.findall(r"^(tunnelgw_\S+) ([0-9.e+-]+)$", text, re.MULTILINE))
        assert float(values['tunnelgw_requests_total{code="200",route="web.example.com/"}']) == 5
        assert float(values['tunnelgw_requests_total{code="418",route="web.example.com/"}']) == 1
        assert float(values['tunnelgw_request_duration_seconds_count{route="web.example.com/"}']) == 6
        assert float(values['tunnelgw_bytes_total{direction="out",route="web.example.com/"}']) >= 5000
        assert float(values['tunnelgw_refused_total{reason="name_unknown"}']) == 1
        assert float(values['tunnelgw_tunnels{connector="home",state="up"}']) == workers
        assert float(values['tunnelgw_certificate_expiry_timestamp_seconds{host="web.example.com"}']) > time.time()
        for name in ("build_info", "tunnel_rtt_seconds", "tunnel_reconnects_total", "tunnel_resumes_total", "streams",
                     "connections", "parked_requests", "parked_requests_total", "buffered_bytes"):  # fmt: skip
            assert f"\ntunnelgw_{name}" in text, name
        assert "nobody" not in text, "no label comes from a visitor"
        assert world.metrics("/livez").strip()
        assert world.metrics("/readyz").strip()


def test_the_access_log_as_text(tmp_path: Path) -> None:
    with World(tmp_path, extra='access_log = "text"') as world:
        edge = world.start_edge()
        world.connector("home", f"[services.web]\ntarget = {world.service('web')}")
        world.curl("https://web.example.com/status/418?a=%22%1b", "--http1.1", "-A", "agent")
        line = edge.wait_for(r'127\.0\.0\.1 \[[^]]+\] "GET web\.example\.com(:\d+)?/status/418\?a=%22%1b" 1\.1 418 .*')[
            0
        ]
        assert line.endswith(" web.example.com/")


def test_the_access_log_as_json(tmp_path: Path) -> None:
    with World(tmp_path, extra='access_log = "json"') as world:
        edge = world.start_edge()
        world.connector("home", f"[services.web]\ntarget = {world.service('web')}")
        world.curl("https://web.example.com/bytes/12345", "-H", "X-Request-Id: abc-123")
        world.curl("https://web.example.com/upload", "-d", "x", "-o", "/dev/null")
        entry = json.loads(edge.wait_for(r'\{"time": [0-9.]+, "address".*12345.*\}')[0])
        assert entry["method"] == "GET"
        assert entry["path"] == "/bytes/12345"
        assert (entry["status"], entry["version"], entry["route"]) == (200, 2.0, "web.example.com/")
        assert entry["bytes"] >= 12345
        assert 0 < entry["seconds"] < 60
        assert entry["request_id"] == "abc-123"


# The whole, at once.


def test_the_demo(tmp_path: Path) -> None:
    port = free_port()
    demo = Process("demo", [*TUNNELGW, "demo", "--port", str(port)], tmp_path, env={"TMPDIR": str(tmp_path)})
    try:
        demo.wait_for("curl ", seconds=60)
        command = demo.wait_for(r"(?m)^\s*(curl .*)$")[1]
        got = subprocess.run(["sh", "-c", f"{command} -s --max-time 30"], capture_output=True, text=True, check=False)
        assert got.returncode == 0, got.stderr
        assert got.stdout
        demo.wait_for(r'"GET \S+/" ', seconds=20)
        demo.signal(signal.SIGINT)
        assert demo.popen.wait(30) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            demo.kill()
    assert [path.name for path in tmp_path.iterdir()] == [demo.log.name], "nothing is left behind"


def test_signals_end_both_sides_cleanly(world: World) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        home = world.connector(f"home-{number}", f"[services.web-{number}]\ntarget = 1")
        assert home.process is not None
        home.process.signal(number)
        assert home.process.popen.wait(20) == 0
    assert world.edge is not None
    started = time.monotonic()
    assert world.edge.stop() == 0
    assert time.monotonic() - started < 9, "an idle edge does not use its grace"


def test_help_is_fast() -> None:
    """The best of five in processor time, since the machine may be busy."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    seconds = []
    for _ in range(5):
        before = spent()
        assert "edge" in run("--help").stdout
        seconds.append(spent() - before)
    assert min(seconds) < 0.3
