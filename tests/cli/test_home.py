"""The commands at home against a connector that is played by the test."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.test_main import one_line
from tunnelgw.admin.control import ControlServer
from tunnelgw.admin.status import connector_text
from tunnelgw.config.load import load_connector

if TYPE_CHECKING:
    from pathlib import Path

    from tunnelgw.admin.shapes import ConnectorStatus, JoinedEdgeState, VisitState

Run = Callable[..., subprocess.CompletedProcess[str]]

FILE = """\
# my connector
edge = "edge.example.com:443"
state_dir = "{state}"

[services.wiki]  # the wiki
target = "http://127.0.0.1:3000"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir(mode=0o700)
    path = tmp_path / "connector.toml"
    path.write_text(FILE.format(state=tmp_path / "state"))
    return path


def with_connector(
    tmp_path: Path, run: Callable[[], subprocess.CompletedProcess[str]], answers: dict[str, dict[str, Any]]
) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    """Run a command while a connector answers; what it was asked."""
    asked: list[dict[str, Any]] = []

    async def handle(request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request)
        return answers.get(request["command"], {})

    async def main() -> subprocess.CompletedProcess[str]:
        server = ControlServer(tmp_path / "state", handle)
        await server.start()
        try:
            return await asyncio.to_thread(run)
        finally:
            await server.close()

    return asyncio.run(main()), asked


def test_expose_keeps_comments_and_prints_the_address(tunnelgw: Run, tmp_path: Path, file: Path) -> None:
    claim = {"state": "accepted", "addresses": ["https://jellyfin.example.com/"]}
    done, asked = with_connector(
        tmp_path, lambda: tunnelgw("expose", "jellyfin", "8096", "--config", str(file)), {"claim": claim}
    )
    assert (done.returncode, done.stdout) == (0, "https://jellyfin.example.com/\n")
    assert str(file) in done.stderr
    assert [request["command"] for request in asked] == ["reload", "claim"]
    assert asked[1] == {"command": "claim", "name": "jellyfin", "timeout": 10.0}
    text = file.read_text()
    assert "# my connector" in text
    assert "# the wiki" in text
    assert 'target = "http://127.0.0.1:8096"' in text


def test_expose_with_keys_only_at_home(tunnelgw: Run, file: Path) -> None:
    assert tunnelgw("expose", "photos", "2283", "--tls", "home", "--config", str(file)).returncode == 0
    assert load_connector(file).ends_tls
    before = file.read_text()
    tcp = ("expose", "photos", "tcp://127.0.0.1:1", "--host", "h.example.com")
    assert "only for HTTP targets" in one_line(tunnelgw(*tcp, "--config", str(file)), 2)
    assert file.read_text() == before
    assert tunnelgw("expose", "photos", "2283", "--tls", "edge", "--config", str(file)).returncode == 0
    assert not load_connector(file).ends_tls


def test_expose_a_host_on_a_port_that_hosts_share(tunnelgw: Run, file: Path) -> None:
    options = ("--host", "mc.example.org", "--port", "25565", "--config", str(file))
    done = tunnelgw("expose", "mc", "tcp://127.0.0.1:25565", "--protocol", "minecraft", *options)
    assert done.returncode == 0, done.stderr
    (service,) = [one for one in load_connector(file).services if one.name == "mc"]
    assert (service.protocol, service.host) == ("minecraft", ("mc.example.org",))
    before = file.read_text()
    done = tunnelgw("expose", "db", "tcp://127.0.0.1:3306", "--protocol", "mysql", *options)
    assert done.returncode == 2
    assert "a MySQL server speaks first" in done.stderr
    assert file.read_text() == before


def test_a_refused_claim_prints_the_command_that_would_allow_it(tunnelgw: Run, tmp_path: Path, file: Path) -> None:
    command = "tunnelgw edge grant home --allow-port 2222"
    claim = {"state": "refused", "reason": "claim_not_granted", "message": "port 2222 is not granted", "hint": command}
    arguments = ("expose", "ssh", "tcp://127.0.0.1:22", "--port", "2222", "--config", str(file))
    done, _ = with_connector(tmp_path, lambda: tunnelgw(*arguments), {"claim": claim})
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].endswith(command)
    assert "port = 2222" in file.read_text()


def test_what_is_refused_in_part_is_printed_and_is_not_success(tunnelgw: Run, tmp_path: Path, file: Path) -> None:
    claim = {"state": "partly", "addresses": ["tcp://e:30000"], "reason": "claim_held", "message": "port 30001 is held"}
    arguments = ("expose", "x", "tcp://127.0.0.1:22", "--port", "30000-30001", "--config", str(file))
    done, _ = with_connector(tmp_path, lambda: tunnelgw(*arguments), {"claim": claim})
    assert (done.returncode, done.stdout) == (1, "tcp://e:30000\n")
    assert "refused in part by the edge: port 30001 is held" in done.stderr


def test_status_and_doctor_name_what_is_refused(tunnelgw: Run, tmp_path: Path, file: Path) -> None:
    why = {"reason": "port_unavailable", "message": "udp port 30002: another program", "hint": ""}
    services: list[dict[str, object]] = [
        {"name": "game", "target": "udp://h:1", "state": "partly", "addresses": ["udp://e:30000-30001"], **why},
        {"name": "ssh", "target": "tcp://h:1", "state": "refused", **why, "hint": "tunnelgw edge grant home x"},
    ]
    status = {"status": {"version": "1", "edges": [], "services": services}}
    done, _ = with_connector(tmp_path, lambda: tunnelgw("status", "--config", str(file)), {"status": status})
    assert re.search("(?m)^game +udp://h:1 +partly +udp://e:30000-30001$", done.stdout)
    assert "game is served in part: udp port 30002: another program" in done.stdout
    done, _ = with_connector(tmp_path, lambda: tunnelgw("doctor", "--config", str(file)), {"status": status})
    assert "service game: refused in part by the edge: udp port 30002: another program" in done.stdout
    assert "service ssh: refused by the edge" in done.stdout
    assert "tunnelgw edge grant home x" in done.stdout


def test_no_answer_in_time_is_not_success(tunnelgw: Run, tmp_path: Path, file: Path) -> None:
    claim = {"state": "waiting", "message": "cannot connect to edge.example.com:443"}
    done, _ = with_connector(tmp_path, lambda: tunnelgw("expose", "a", "80", "--config", str(file)), {"claim": claim})
    assert done.returncode == 1
    assert "cannot connect" in done.stderr


def test_expose_without_a_connector_says_how_to_start(tunnelgw: Run, file: Path) -> None:
    done = tunnelgw("expose", "a", "80", "--host", "a.example.org", "--path", "/x", "--config", str(file))
    assert (done.returncode, done.stdout) == (0, "")
    assert f"tunnelgw connect --config {file}" in done.stderr
    assert 'host = "a.example.org"' in file.read_text()


@pytest.mark.parametrize(
    "arguments",
    [("Bad_Name", "80"), ("a", "ftp://127.0.0.1"), ("a", "http://169.254.169.254"),
     ("a", "tcp://127.0.0.1:22", "--port", "99999"), ("a", "80", "--path", "x"), ("a", "80", "--host", "a b")],
    ids=" ".join,
)  # fmt: skip
def test_expose_refuses_what_cannot_be_and_changes_nothing(
    tunnelgw: Run, file: Path, arguments: tuple[str, ...]
) -> None:
    before = file.read_bytes()
    one_line(tunnelgw("expose", *arguments, "--config", str(file)), 2)
    assert file.read_bytes() == before


def test_unexpose(tunnelgw: Run, tmp_path: Path, file: Path) -> None:
    done, asked = with_connector(tmp_path, lambda: tunnelgw("unexpose", "wiki", "--config", str(file)), {})
    assert done.returncode == 0
    assert [request["command"] for request in asked] == ["reload"]
    assert "services" not in file.read_text()
    assert "has no service" in one_line(tunnelgw("unexpose", "wiki", "--config", str(file)), 2)


def test_status_without_a_connector(tunnelgw: Run, file: Path) -> None:
    report = json.loads(tunnelgw("status", "--json", "--config", str(file)).stdout)
    assert not report["running"]
    assert report["edges"][0]["error"] == "not joined"
    assert [service["name"] for service in report["services"]] == ["wiki"]
    assert "tunnelgw connect" in tunnelgw("status", "--config", str(file)).stdout


def test_status_of_a_machine_that_only_visits() -> None:
    visit: VisitState = {
        "address": "edge.example.com:443", "name": "laptop", "certificate_expires": 0.0, "fingerprint": "ab" * 32,
        "known_keys": {"home": "cd" * 32}, "known_keys_error": "",
    }  # fmt: skip
    edge: JoinedEdgeState = {
        "address": "edge.example.com:443", "name": "", "domain": "", "state": "away", "error": "not joined",
        "certificate_expires": 0.0, "tunnels": [], "fingerprint": "", "known_keys": {}, "known_keys_error": "",
    }  # fmt: skip
    status: ConnectorStatus = {"running": False, "version": "1", "edges": [edge], "services": [], "visits": [visit]}
    text = connector_text(status)
    assert "tunnelgw visit NAME" in text
    assert "not joined" not in text
    assert "tunnelgw connect" not in text
    assert "cd" * 32 in text
    edge["name"] = "home"
    assert "tunnelgw connect" in connector_text(status)


def test_connect_without_an_identity_says_how_to_join(tunnelgw: Run, file: Path) -> None:
    done = tunnelgw("connect", "--config", str(file))
    assert done.returncode == 1
    assert "tunnelgw join" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("invitation", ["", "tgw1_", "tgw1_AAAA", "hello", "tgw9_AAAA"])
def test_join_refuses_junk_before_anything_is_written(tunnelgw: Run, tmp_path: Path, invitation: str) -> None:
    done = tunnelgw("join", "-", "--config", "new.toml", "--state-dir", "new", stdin=f"{invitation}\n")
    assert "the invitation" in one_line(done, 2)
    assert not (tmp_path / "new.toml").exists()
    assert not (tmp_path / "new").exists()


def test_a_join_that_fails_leaves_no_file(tunnelgw: Run, tmp_path: Path) -> None:
    with socket.socket() as sock:  # bound, not listening: nobody else can answer there
        sock.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{sock.getsockname()[1]}"
        assert tunnelgw("edge", "init", "--domain", "example.com", "--address", place, "--config", "edge.toml",
                        "--state-dir", "edge").returncode == 0  # fmt: skip
        invitation = tunnelgw("edge", "invite", "home", "--config", "edge.toml").stdout
        done = tunnelgw("join", "-", "--config", "new.toml", "--state-dir", "new", stdin=invitation)
    assert place in one_line(done, 1)
    assert not (tmp_path / "new.toml").exists()


def test_doctor_names_what_is_missing(tunnelgw: Run, file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as service:
        port = service.getsockname()[1]
        file.write_text(
            file.read_text().replace("3000", str(port)) + '\n[services.off]\ntarget = "http+unix:/nowhere"\n'
        )
        done = tunnelgw("doctor", "--config", str(file))
    assert done.returncode == 1
    lines = {line.split(":")[0].split(maxsplit=1)[1]: line for line in done.stdout.splitlines() if ":" in line}
    assert lines["configuration"].startswith("ok")
    assert lines["identity"].startswith("FAIL")
    assert "tunnelgw join" in lines["identity"]
    assert lines["tunnel"].startswith("FAIL")
    assert lines["service wiki"].startswith("ok")
    assert lines["service off"].startswith("FAIL")


def test_connect_with_nothing_but_an_invitation_makes_its_file(tunnelgw: Run, tmp_path: Path) -> None:
    given = {"TUNNELGW_INVITATION": "tgw1_junk", "STATE_DIRECTORY": str(tmp_path / "s")}
    done = tunnelgw("connect", "--config", "new.toml", **given)
    assert done.returncode == 2
    assert "the invitation" in done.stderr
    assert f'state_dir = "{tmp_path / "s"}"' in (tmp_path / "new.toml").read_text()
