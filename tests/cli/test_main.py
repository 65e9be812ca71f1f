"""The command line as such: help, usage, errors of one line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tunnelgw.cli import main as main_module
from tunnelgw.cli.parser import build_parser, duration
from tunnelgw.errors import LocalError, RemoteError

if TYPE_CHECKING:
    from pathlib import Path

Run = Callable[..., subprocess.CompletedProcess[str]]

COMMANDS = [
    ["demo"], ["edge"], ["edge", "init"], ["edge", "run"], ["edge", "invite"], ["edge", "grant"], ["edge", "revoke"],
    ["edge", "status"], ["join"], ["connect"], ["expose"], ["unexpose"], ["status"], ["check"], ["doctor"],
]  # fmt: skip
HEAVY = {
    "asyncio", "ssl", "aiohttp", "prometheus_client", "cryptography", "msgspec", "uvloop", "tomlkit", "httptools",
    "ngh2", "sqlite3", "logging",
}  # fmt: skip


def one_line(done: subprocess.CompletedProcess[str], status: int) -> str:
    assert done.returncode == status, done
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from tunnelgw.cli.main import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "doctor" in done.stdout


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_and_a_function(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        build_parser().parse_args([*command, "--help"])
    assert end.value.code == 0
    assert "tunnelgw" in capsys.readouterr().out


def test_every_function_exists() -> None:
    import importlib

    found = set()

    def visit(parser: object) -> None:
        for action in getattr(parser, "_actions", ()):
            if action.__class__.__name__ == "_SubParsersAction":
                for child in set(action.choices.values()):
                    run = child.get_default("run")
                    if run:
                        found.add(run)
                    visit(child)

    visit(build_parser())
    assert len(found) == 21
    for run in found:
        module, _, name = run.partition(":")
        assert callable(getattr(importlib.import_module(module), name)), run


@pytest.mark.parametrize(
    "arguments",
    [(), ("nonsense",), ("edge",), ("edge", "init"), ("expose", "only-a-name"), ("check",), ("demo", "--port", "x"),
     ("edge", "invite", "home", "--ttl", "soon"), ("edge", "invite", "home", "--ttl", "0"), ("edge", "status", "--js")],
    ids=" ".join,
)  # fmt: skip
def test_usage_is_one_line_and_2(tunnelgw: Run, arguments: tuple[str, ...]) -> None:
    assert "--help" in one_line(tunnelgw(*arguments), 2)


def test_version(tunnelgw: Run) -> None:
    assert tunnelgw("--version").stdout.startswith("tunnelgw 0.")


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1h", 3600), ("7d", 604800)])
def test_duration(text: str, seconds: float) -> None:
    assert duration(text) == seconds


def report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
) -> tuple[int, str]:
    class Module:
        @staticmethod
        def run(_arguments: object) -> int:
            raise error

    monkeypatch.setattr(main_module.importlib, "import_module", lambda _name: Module)
    status = main_module.main(["check", "file"])
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (LocalError("the port is taken"), 1, "the port is taken"),
        (LocalError("bad option", exit_code=2), 2, "bad option"),
        (RemoteError("junk"), 1, "junk"),
        (PermissionError(13, "Permission denied", "/etc/x"), 1, "/etc/x: Permission denied; run this as root"),
        (ConnectionRefusedError(111, "Connection refused"), 1, "Connection refused"),
        (ZeroDivisionError("division"), 1, "TUNNELGW_DEBUG=1"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, status: int, words: str
) -> None:
    found, text = report(monkeypatch, capsys, error)
    assert (found, text.count("\n")) == (status, 1)
    assert text.startswith("tunnelgw: ")
    assert words in text


def test_an_error_cannot_write_to_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, text = report(monkeypatch, capsys, RemoteError("a\r\n\x1b[2Jb tgw1_secret"))
    assert text == "tunnelgw: a\\x0d\\x0a\\x1b[2Jb tgw1_[hidden]\n"


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TUNNELGW_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        report(monkeypatch, capsys, ZeroDivisionError())


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(monkeypatch, capsys, KeyboardInterrupt()) == (130, "")


def test_a_reader_that_left_is_no_error_to_talk_about(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "edge.toml").write_text('domain = "example.com"\n')
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "tunnelgw", "check", str(tmp_path / "edge.toml")]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_check_lists_every_problem(tunnelgw: Run, tmp_path: Path) -> None:
    (tmp_path / "edge.toml").write_text('domain = "example.com"\nworkers = -1\nnonsense = 1\n')
    done = tunnelgw("check", "edge.toml")
    assert done.returncode == 2
    assert "edge.toml:2: workers" in done.stderr
    assert "edge.toml:3: nonsense" in done.stderr
    (tmp_path / "edge.toml").write_text('domain = "example.com"\n')
    assert tunnelgw("check", "edge.toml").returncode == 0
    assert "no such file" in one_line(tunnelgw("check", "missing.toml"), 2)
