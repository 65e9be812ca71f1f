"""sd_notify: datagrams to whoever started us, silence otherwise."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from tunnelgw.net import systemd

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_states_arrive_on_one_line_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "n"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
        assert systemd.ready("serving\nMAINPID=1")
        assert manager.recv(4096) == b"READY=1\nSTATUS=serving MAINPID=1"
        assert systemd.stopping()
        assert manager.recv(4096).startswith(b"STOPPING=1\n")


def test_without_a_manager_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not systemd.status("x")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not systemd.status("x")
    monkeypatch.setenv("NOTIFY_SOCKET", "vsock:1:2")
    assert not systemd.status("x")
