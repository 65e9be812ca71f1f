"""A world whose edge is replaced while it runs."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

from tests.system.crowd import HOST
from tests.system.harness import TUNNELGW, Process, World, wait_until

if TYPE_CHECKING:
    import socket
    from pathlib import Path


_ACTIVATED = """
import os, sys
given = sys.argv[1].split(",")
for target, descriptor in enumerate(map(int, given), start=3):
    os.dup2(descriptor, target)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(given)))
os.execvp(sys.argv[2], sys.argv[2:])
"""


def activated_by(descriptors: list[int], command: list[str]) -> list[str]:
    """A command as systemd starts it for a socket unit. The descriptors must be passed, and be no low numbers."""
    return [sys.executable, "-c", _ACTIVATED, ",".join(map(str, descriptors)), *command]


class Upgrading(World):
    """A world whose edge is replaced: `newest` is the process that is the edge, `voice` the one whose log it writes."""

    def __init__(
        self,
        folder: Path,
        *,
        workers: int = 1,
        ports: tuple[int, int] = (0, 0),
        env: dict[str, str] | None = None,
    ) -> None:
        super().__init__(folder, workers=workers, extra='port_bind = "127.0.0.1"', ports=ports, env=env)
        self.started: list[int] = []  # by SIGUSR2: no children of ours
        self.newest = 0
        self.voice: Process

    def start_edge(self, *, env: dict[str, str] | None = None) -> Process:
        self.voice = super().start_edge(env=env)
        self.newest = self.voice.pid
        return self.voice

    def command(self, *, env: dict[str, str] | None = None) -> Process:
        """`edge run --upgrade`, whatever comes of it."""
        command = [*TUNNELGW, "edge", "run", "--config", str(self.config), "--upgrade"]
        process = Process("edge", command, self.folder, env=env)
        self.children.append(process)
        return process

    def ask(self) -> int:
        """SIGUSR2 to the edge; the number of the process that it starts."""
        after = len(self.voice.text())
        os.kill(self.newest, signal.SIGUSR2)
        self.started.append(int(self.voice.wait_for(r"upgrade: started process (\d+)", after=after)[1]))
        return self.started[-1]

    def upgrade(self, how: str) -> int:
        """Replace the edge; the number of the new process."""
        if how == "command":
            self.voice = self.command()
            self.newest = self.voice.pid
            self.voice.wait_for("(?m)^ready")
        else:
            after = len(self.voice.text())
            self.newest = self.ask()
            self.voice.wait_for("(?m)^ready", after=after)
        return self.newest

    def __exit__(self, *error: object) -> None:
        for pid in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        for pid in self.started:
            wait_until(lambda pid=pid: ended(pid), seconds=30, what=f"process {pid} ends")
        super().__exit__(*error)  # type: ignore[arg-type]


def ended(pid: int) -> bool:
    """A process that is not our child (nor anybody's who would reap it at once)."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter: it went between opening and reading
        return True


def echo(sock: socket.socket) -> None:
    """What a raw target does."""
    while data := sock.recv(65536):
        sock.sendall(data)


def home(world: World, *, raw: int = 0, port: int = 0, env: dict[str, str] | None = None) -> None:
    """A connector with what a crowd asks for: web, and an echo behind a raw port."""
    services = f"[services.web]\ntarget = {world.service('web')}\n"
    if raw:
        services += f'[services.raw]\ntarget = "tcp://127.0.0.1:{raw}"\nport = {port}\n'
    world.connector("home", services, allow=("--allow-host", HOST, "--allow-port", str(port)) if raw else (), env=env)
