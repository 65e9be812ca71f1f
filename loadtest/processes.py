"""Processes of a benchmark: started together, measured from /proc, always stopped again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def listening(port: int) -> bool:
    """Whether something listens on 127.0.0.1:`port`."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def wait_port(port: int, *, seconds: float = 15.0) -> None:
    """Return once something listens on 127.0.0.1:`port`; `TimeoutError` otherwise."""
    end = time.monotonic() + seconds
    while not listening(port):
        if time.monotonic() > end:
            raise TimeoutError(f"nothing listens on port {port}")
        time.sleep(0.02)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process; 0 for one that is gone."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_text()
        fields = text[text.rindex(")") + 2 :].split()
        return (int(fields[11]) + int(fields[12])) / TICKS
    return 0.0


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 for one that is gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    return 0


def peak_bytes(pid: int) -> int:
    """The most that was resident (VmHWM) since the process began or `forget_peak`; 0 for one that is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def forget_peak(pid: int) -> None:
    """The peak is counted from now on, where the kernel lets us."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def family(pid: int) -> list[int]:
    """A process and all that descends from it: nginx and sshd work in children, sshd in grandchildren."""
    found = [pid]
    for known in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{known}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


@dataclass(frozen=True)
class Start:
    """How a member was started, to do it again."""

    command: list[str]
    ready: str | int
    options: dict[str, object]


@dataclass
class Group:
    """Processes that live and die together."""

    folder: Path
    members: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    starts: dict[str, Start] = field(default_factory=dict)

    def start(
        self, name: str, command: Sequence[str], *, ready: str | int = "", **options: object
    ) -> subprocess.Popen[bytes]:
        """Start a process with its output in `folder`/`name`.log.

        ready: return only once it printed this text, or listens on this port of 127.0.0.1.
        """
        self.starts[name] = Start(list(command), ready, options)
        return self.again(name)

    def again(self, name: str) -> subprocess.Popen[bytes]:
        """Start a member that ended once more, as it was."""
        how = self.starts[name]
        with (self.folder / f"{name}.log").open("wb") as output:
            process: subprocess.Popen[bytes] = subprocess.Popen(  # type: ignore[call-overload]
                how.command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, **how.options
            )
        self.members[name] = process
        if how.ready:
            self.wait_for(name, how.ready)
        return process

    def pids(self, name: str) -> list[int]:
        """The process and its descendants."""
        return family(self.members[name].pid)

    def cpu(self, name: str) -> float:
        """CPU seconds so far."""
        return sum(cpu_seconds(pid) for pid in self.pids(name))

    def memory(self, name: str) -> int:
        """Resident bytes now."""
        return sum(resident_bytes(pid) for pid in self.pids(name))

    def wait_for(self, name: str, ready: str | int, *, seconds: float = 20.0) -> None:
        """Return once it printed this text, or this port is listened on; `RuntimeError` with its output otherwise."""
        end = time.monotonic() + seconds
        output = self.folder / f"{name}.log"
        while not (listening(ready) if isinstance(ready, int) else ready in output.read_text(errors="replace")):
            if self.members[name].poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{name}: waited for {ready!r}:\n{output.read_text(errors='replace')}")
            time.sleep(0.02)

    def end(self, name: str, *, seconds: float = 5.0) -> None:
        """End one member: asked first, then killed."""
        process = self.members.pop(name, None)
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def stop(self) -> None:
        """End them all, newest first."""
        for process in reversed(self.members.values()):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for name in reversed(list(self.members)):
            self.end(name)
