"""`tunnelgw http` and `tunnelgw tcp` against a connector that is played by the test."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import bcrypt
import pytest

from tests.cli.test_main import one_line
from tunnelgw.access.passwords import check_user
from tunnelgw.admin.control import ControlServer
from tunnelgw.admin.status import connector_text, span
from tunnelgw.cli.password import hashed
from tunnelgw.cli.share import size, target_of
from tunnelgw.errors import LocalError

if TYPE_CHECKING:
    from pathlib import Path

Run = Callable[..., subprocess.CompletedProcess[str]]
SHARED = {
    "event": "shared",
    "name": "preview",
    "target": "http://127.0.0.1:3000",
    "addresses": ["https://preview.example.com/", "https://other.example.com/"],
    "trouble": "",
    "seconds_left": 5400.0,
    "alone": False,
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir(mode=0o700)
    path = tmp_path / "connector.toml"
    path.write_text(f'edge = "edge.example.com:443"\nstate_dir = "{tmp_path / "state"}"\n')
    return path


def with_connector(
    tmp_path: Path,
    command: Callable[[], subprocess.CompletedProcess[str]],
    *events: dict[str, Any],
    ended: Any = "time",
) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    """Run a command while a connector says these lines; what it was asked."""
    asked: list[dict[str, Any]] = []

    async def share(request: dict[str, Any], say: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        asked.append(request)
        for event in events:
            say(event)
        if isinstance(ended, Exception):
            raise ended
        return {"ended": ended}

    async def nothing(request: dict[str, Any]) -> dict[str, Any]:
        raise LocalError(f"not asked for: {request}")

    async def main() -> subprocess.CompletedProcess[str]:
        server = ControlServer(tmp_path / "state", nothing, leases={"share": share})
        await server.start()
        try:
            return await asyncio.to_thread(command)
        finally:
            await server.close()

    return asyncio.run(main()), asked


def test_the_address_is_the_first_line_and_streams_are_told(tunnelgw: Run, tmp_path: Path, file: Path) -> None:
    done, asked = with_connector(
        tmp_path,
        lambda: tunnelgw("http", "3000", "--name", "preview", "--for", "90m", "--allow-from", "192.0.2.0/24",
                         "--allow-from", "2001:db8::/32", "--host", "preview.example.com", "--config", str(file)),
        SHARED,
        {"event": "began", "visitor": "192.0.2.1", "left_out": 0},
        {"event": "ended", "visitor": "192.0.2.1", "in": 1234, "out": 56_700_000, "seconds": 2.04, "left_out": 3},
        {"event": "failed", "message": "http://127.0.0.1:3000: refused\x1b[2J", "left_out": 0},
        {"event": "claim", "state": "waiting", "message": "the link was lost"},
        {"event": "claim", "state": "refused", "message": "no", "hint": "tunnelgw edge grant home"},
        {"event": "claim", "state": "accepted"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "https://preview.example.com/\nhttps://other.example.com/\n")
    service = {
        "target": "http://127.0.0.1:3000",
        "host": ["preview.example.com"],
        "allow_from": ["192.0.2.0/24", "2001:db8::/32"],
    }
    assert asked == [{"command": "share", "name": "preview", "service": service, "users": [], "seconds": 5400}]
    lines = [line.removeprefix(line[:9]) if line[2:3] == ":" else line for line in done.stderr.splitlines()]
    assert lines == [
        "leads to http://127.0.0.1:3000 for 1 h 30 min",
        "192.0.2.1 1.2 KB in, 56.7 MB out, 2.0 s (3 lines left out)",
        r"the target does not answer: http://127.0.0.1:3000: refused\x1b[2J",
        "the edge is away: the link was lost",
        "refused by the edge: no; on the edge, run: tunnelgw edge grant home",
        "public again",
        "no longer shared: the time is over",
    ]


def test_tcp(tunnelgw: Run, tmp_path: Path, file: Path) -> None:
    shared = {**SHARED, "addresses": ["tcp://edge.example.com:4000"], "target": "tcp://127.0.0.1:22"}
    warned = {**shared, "trouble": "refused", "alone": True, "seconds_left": None}
    began = {"event": "began", "visitor": "192.0.2.1", "left_out": 0}
    done, asked = with_connector(
        tmp_path, lambda: tunnelgw("tcp", "22", "--port", "4000", "--config", str(file)), warned, began
    )
    assert (done.returncode, done.stdout) == (0, "tcp://edge.example.com:4000\n")
    assert asked[0]["service"] == {"target": "tcp://127.0.0.1:22", "port": "4000"}
    assert asked[0]["seconds"] == 0
    for text in ("edge.example.com port 4000", "until Ctrl-C", "no connector runs here", "does not answer (refused)",
                 "192.0.2.1 connected"):  # fmt: skip
        assert text in done.stderr


def test_json(tunnelgw: Run, tmp_path: Path, file: Path) -> None:
    done, _ = with_connector(tmp_path, lambda: tunnelgw("http", "3000", "--json", "--config", str(file)), SHARED)
    facts = json.loads(done.stdout)
    assert facts["url"] == facts["addresses"][0] == "https://preview.example.com/"
    assert (facts["name"], facts["target"]) == ("preview", "http://127.0.0.1:3000")
    assert facts["ends"] > 1e9
    forever = {**SHARED, "seconds_left": None}
    done, _ = with_connector(tmp_path, lambda: tunnelgw("http", "3000", "--json", "--config", str(file)), forever)
    assert json.loads(done.stdout)["ends"] is None


@pytest.mark.parametrize("ended", ["the connector stops", LocalError("held by another", exit_code=1)])
def test_an_end_that_nobody_wanted_is_an_error(tunnelgw: Run, tmp_path: Path, file: Path, ended: Any) -> None:
    done, _ = with_connector(tmp_path, lambda: tunnelgw("http", "3000", "--config", str(file)), ended=ended)
    assert str(ended) in one_line(done, 1)


def test_only_hashes_leave_the_command(tunnelgw: Run, tmp_path: Path, file: Path) -> None:
    def users(*arguments: str, stdin: str = "") -> list[str]:
        command = lambda: tunnelgw("http", "3000", *arguments, "--config", str(file), stdin=stdin)  # noqa: E731
        done, asked = with_connector(tmp_path, command, SHARED)
        assert done.returncode == 0, done.stderr
        return asked[0]["users"]

    given = users("--basic", "ann:se:cret"), users("--basic=ann:se:cret"), users("--basic", "ann", stdin="se:cret\n")
    for lines in given:
        assert len(lines) == 1
        name, _, found = lines[0].partition(":")
        assert name == "ann"
        assert bcrypt.checkpw(b"se:cret", found.encode())
        check_user(lines[0])
    passwords = tmp_path / "users"
    passwords.write_text(f"# who\n{given[0][0]}\n")
    assert users("--basic-file", str(passwords)) == given[0]


def test_nothing_is_run_from_the_folder_that_a_command_is_started_in(tmp_path: Path, file: Path) -> None:
    (tmp_path / "tunnelgw").mkdir()
    ran = tmp_path / "ran"
    (tmp_path / "tunnelgw" / "__init__.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    for arguments in (["--basic", "ann:secret"], []):  # executes itself anew; starts a connector of its own
        command = [sys.executable, "-Pm", "tunnelgw", "http", "3000", *arguments, "--config", str(file)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert "joined" in done.stderr
    assert not ran.exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["http", "tcp://127.0.0.1:22"], "is not for tunnelgw http; use tunnelgw tcp"),
        (["tcp", "http://127.0.0.1:22"], "is not for tunnelgw tcp; use tunnelgw http"),
        (["tcp", "tls://127.0.0.1:22"], "use tunnelgw expose NAME"),
        (["http", "gopher://x"], "TARGET"),
        (["http", "70000"], "is not a port"),
        (["http", "1", "--for", "soon"], "is not a duration"),
        (["http", "1", "--for", "0"], "is not a duration"),
        (["http", "1", "--basic", ":x"], "--basic"),
        (["http", "1", "--basic", "ann:"], "1 to 72 bytes"),
        (["http", "1", "--basic", f"ann:{'x' * 73}"], "1 to 72 bytes"),
        (["http", "1", "--basic-file", "/nowhere/at/all"], "cannot read /nowhere/at/all"),
        (["http", "1", "--basic", "a:b", "--basic-file", "x"], "not allowed with"),
        (["http", "1", "--port", "1"], "unrecognized arguments"),
        (["http", "1", "--config", "/nowhere/connector.toml"], "no such file"),
    ],
)
def test_usage(tunnelgw: Run, file: Path, arguments: list[str], text: str) -> None:
    done = tunnelgw(*arguments, *([] if "--config" in arguments else ["--config", str(file)]))
    assert text in one_line(done, 2)


def test_who_has_not_joined_is_told_how(tunnelgw: Run, file: Path) -> None:
    done = tunnelgw("http", "3000", "--config", str(file))
    assert "no edge was joined yet" in one_line(done, 1)
    assert "tunnelgw join" in done.stderr


def test_targets_have_short_forms() -> None:
    assert str(target_of("http", "8096")) == "http://127.0.0.1:8096"
    assert str(target_of("http", "192.168.1.5:80")) == "http://192.168.1.5:80"
    assert str(target_of("http", "file:/srv/www")) == "file:/srv/www"
    assert str(target_of("tcp", "22")) == "tcp://127.0.0.1:22"
    assert str(target_of("tcp", "[2001:db8::1]:22")) == "tcp://[2001:db8::1]:22"
    assert str(target_of("tcp", "nas:5900")) == "tcp://nas:5900"
    assert str(target_of("tcp", "unix:/run/x.sock")) == "unix:/run/x.sock"


def test_amounts_are_short() -> None:
    assert [size(count) for count in (0, 999, 1000, 1_234_567, 999_960, 5 * 10**12)] == [
        "0 B", "999 B", "1.0 KB", "1.2 MB", "1.0 MB", "5000.0 GB",
    ]  # fmt: skip
    assert [span(seconds) for seconds in (0.2, 45, 90, 3600, 5400, 90000)] == [
        "0 s", "45 s", "1 min 30 s", "1 h", "1 h 30 min", "1 d 1 h",
    ]  # fmt: skip


def test_a_password_that_bcrypt_would_cut_is_refused() -> None:
    for password in ("", "x" * 73, "a\0b"):
        with pytest.raises(LocalError, match="bytes"):
            hashed("ann", password)


def test_status_says_what_is_temporary() -> None:
    services: Any = [
        {"name": "web", "target": "http://127.0.0.1:1", "state": "accepted", "addresses": ["https://web/"]},
        {"name": "one", "target": "t", "state": "accepted", "temporary": True, "seconds_left": 3599.9},
        {"name": "two", "target": "t", "state": "waiting", "temporary": True, "seconds_left": None},
    ]
    text = connector_text({"running": True, "version": "1", "edges": [], "services": services})
    assert "accepted, temporary: 1 h left" in text
    assert "waiting, temporary " in text
    assert text.count("temporary") == 2
