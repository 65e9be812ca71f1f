"""Sockets from systemd: taken once, only for this process, and none left listening unread."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from tunnelgw.net import activation

CHILD = """
import os, socket, sys
for target, source in ((3, int(sys.argv[1])), (4, int(sys.argv[2]))):
    os.dup2(source, target, inheritable=True)
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDS"] = "2"
from tunnelgw.net import activation
sockets = activation.inherited()
ports = [sock.getsockname()[1] for sock in sockets]
assert all(not sock.getblocking() and not sock.get_inheritable() for sock in sockets)
assert "LISTEN_FDS" not in os.environ and "LISTEN_PID" not in os.environ
assert activation.inherited() == []
mine = activation.take(sockets, [ports[0]])
assert [sock.getsockname()[1] for sock in mine] == ports[:1]
activation.close_unused(sockets)
assert sockets == []
print(*ports)
"""


def test_sockets_arrive_and_unused_ones_are_closed() -> None:
    one, two = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    with one, two:
        # Above the numbers that the child duplicates them to, as a process manager would arrange it.
        sources = [os.dup(sock.fileno()) for sock in (one, two)]
        try:
            run = subprocess.run(
                [sys.executable, "-c", CHILD, *map(str, sources)],
                pass_fds=sources, capture_output=True, text=True, timeout=30, check=False,
            )  # fmt: skip
        finally:
            for source in sources:
                os.close(source)
        assert run.returncode == 0, run.stderr
        assert run.stdout.split() == [str(sock.getsockname()[1]) for sock in (one, two)]


@pytest.mark.parametrize(("pid", "count"), [("1", "1"), ("", "1"), ("mine", "x"), ("mine", ""), ("mine", "-1")])
def test_what_is_not_for_us_is_ignored(monkeypatch: pytest.MonkeyPatch, pid: str, count: str) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()) if pid == "mine" else pid)
    monkeypatch.setenv("LISTEN_FDS", count)
    assert activation.inherited() == []
    assert "LISTEN_FDS" not in os.environ
