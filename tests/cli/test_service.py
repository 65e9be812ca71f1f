"""--service, with a systemctl and a useradd that only write down how they were called."""

from __future__ import annotations

import getpass
import os
from typing import TYPE_CHECKING

import pytest

from tunnelgw.cli import service
from tunnelgw.errors import LocalError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root installs services")


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the fakes write."""
    programs = tmp_path / "bin"
    programs.mkdir()
    log = tmp_path / "calls"
    for name in ("systemctl", "useradd"):
        program = programs / name
        fails = 'test "$*" != "$FAIL" || { echo broken >&2; exit 3; }'
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\n{fails}\n')
        program.chmod(0o755)
    (programs / "tunnelgw").write_text("#!/bin/sh\n")
    (programs / "tunnelgw").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(service, "USER", getpass.getuser())
    return log


def install(tmp_path: Path, role: str = "edge") -> Path:
    state, units = tmp_path / "state", tmp_path / "units"
    state.mkdir(exist_ok=True)
    (state / "store.db").write_text("x")
    units.mkdir(exist_ok=True)
    return service.install(role, config=tmp_path / "edge.toml", state_dir=state, folder=units)


@pytest.mark.parametrize("role", ["edge", "connector"])
def test_the_unit_is_written_and_started(tmp_path: Path, calls: Path, role: str) -> None:
    unit = install(tmp_path, role)
    name = f"tunnelgw-{role}.service"
    assert unit.name == name
    assert calls.read_text().splitlines() == [
        "systemctl daemon-reload", f"systemctl enable {name}", f"systemctl restart {name}",
    ]  # fmt: skip
    assert f"--config {tmp_path / 'edge.toml'}" in unit.read_text()


def test_a_service_that_does_not_start_is_named(tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "restart tunnelgw-edge.service")
    with pytest.raises(LocalError, match=r"broken; see: journalctl -u tunnelgw-edge\.service"):
        install(tmp_path)


def test_without_systemd_nothing_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LocalError, match="needs systemd") as error:
        install(tmp_path)
    assert error.value.exit_code == 2
    assert not list((tmp_path / "units").iterdir())
