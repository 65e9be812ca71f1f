"""Processes of a benchmark: started together, measured from /proc, always stopped again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def wait_port(port: int, *, seconds: float = 15.0) -> None:
    """Return once something listens on 127.0.0.1:`port`; `TimeoutError` otherwise."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise TimeoutError(f"nothing listens on port {port}")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and of its ended, waited-for children."""
    text = Path(f"/proc/{pid}/stat").read_text()
    fields = text[text.rindex(")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


@dataclass
class Group:
    """Processes that live and die together."""

    folder: Path
    members: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, command: list[str], **options: object) -> subprocess.Popen[bytes]:
        """Start a process with its output in `folder`/`name`.log."""
        with (self.folder / f"{name}.log").open("wb") as output:
            process = subprocess.Popen(  # type: ignore[call-overload]
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, **options
            )
        self.members[name] = process
        return process

    def pids(self, name: str) -> list[int]:
        """The process and its children (nginx and HAProxy work in children)."""
        pid = self.members[name].pid
        with contextlib.suppress(FileNotFoundError):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            return [pid, *map(int, children)]
        return [pid]

    def cpu(self, name: str) -> float:
        """CPU seconds so far."""
        return sum(cpu_seconds(pid) for pid in self.pids(name))

    def memory(self, name: str) -> int:
        """Resident bytes now."""
        return sum(resident_bytes(pid) for pid in self.pids(name))

    def wait_for(self, name: str, text: str, *, seconds: float = 20.0) -> None:
        """Return once the process printed `text`; `RuntimeError` with its output otherwise."""
        end = time.monotonic() + seconds
        output = self.folder / f"{name}.log"
        while text not in output.read_text(errors="replace"):
            if self.members[name].poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{name} did not say {text!r}:\n{output.read_text(errors='replace')}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End them all, newest first."""
        for process in reversed(self.members.values()):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in reversed(self.members.values()):
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.members.clear()
