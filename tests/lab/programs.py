"""What runs in a lab: programs that can be ended and started again, the relay, the load."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.system.control import ask
from tests.system.harness import Process, wait_until
from tests.system.upgrading import activated_by

if TYPE_CHECKING:
    from tests.lab.lab import Lab


def now() -> float:
    """The clock of every time in the lab, the load's included."""
    return time.monotonic()


class Program:
    """One of ours that can be started, ended and started again; `process` is the present one (harness.Process)."""

    def __init__(self, lab: Lab, name: str, role: str, command: list[str], *, ready: str = "ready") -> None:
        self.lab = lab
        self.name = name
        self.role = role
        self.command = command
        self.ready = ready
        self.env: dict[str, str] = {}  # more than the environment of the tests
        self.passed: list[int] = []  # descriptors of listening sockets, as from systemd's socket unit
        self.process: Process | None = None

    def start(self, *, wait: bool = True, arguments: tuple[str, ...] = (), before: tuple[str, ...] = ()) -> Process:
        """Begin, with further arguments, by another program that becomes it; wait until it says that it serves."""
        command = [*before, *self.command, *arguments]
        if self.passed:
            command = activated_by(self.passed, command)
        self.process = self.lab.spawn(self.name, self.role, command, env=self.env, pass_fds=self.passed)
        if wait:
            self.process.wait_for(self.ready)
        return self.process

    @property
    def present(self) -> Process:
        assert self.process is not None, f"{self.name} was never started"
        return self.process

    def stop(self, *, seconds: float = 30.0) -> int:
        """SIGTERM; the exit code."""
        return self.present.stop(seconds=seconds)

    def kill(self) -> None:
        """SIGKILL."""
        self.present.kill()

    def signal(self, number: int) -> None:
        self.present.signal(number)

    def pause(self) -> None:
        """SIGSTOP: as if the machine slept."""
        self.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.popen.poll() is None

    def memory(self) -> int:
        """Resident bytes, of its children too."""
        pages = (int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.pids())
        return sum(pages) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        """Open ones, of its children too."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.pids())

    def lines(self) -> list[str]:
        """The command lines of its children."""
        lines = []
        for pid in self.pids()[1:]:
            with contextlib.suppress(OSError):  # it has just ended
                lines.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
        return lines

    def pids(self) -> list[int]:
        """The program's process, and its children."""
        first = self.present.pid
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        return [first, *map(int, children)]


class Relay:
    """The relay between home and VPS, while it runs; see tests/system/relay.py for what each fault is."""

    def __init__(self, control: Path) -> None:
        self.control = control

    def reset(self) -> int:
        return ask(self.control, "reset")

    def freeze(self) -> int:
        return ask(self.control, "freeze")

    def stall(self, seconds: float) -> None:
        ask(self.control, "stall", seconds)

    def delay(self, seconds: float) -> None:
        ask(self.control, "delay", seconds)

    def half_close(self, side: str) -> int:
        return ask(self.control, "half_close", side)

    def bytewise(self, seconds: float) -> None:
        ask(self.control, "bytewise", seconds)

    def singles(self) -> int:
        return ask(self.control, "singles")

    def connections(self) -> int:
        return ask(self.control, "connections")


class Load:
    """The checker in the visitor's namespace (load.py), while it runs."""

    def __init__(self, process: Process, control: Path) -> None:
        self.process = process
        self.control = control

    def report(self) -> dict[str, Any]:
        """Everything so far: see load.py."""
        return ask(self.control, "report")

    def mark(self) -> float:
        """From here on `report` says the longest wait anew; returns the time (monotonic)."""
        return ask(self.control, "mark")

    def wait_flowing(self, since: float, *, seconds: float = 60.0) -> None:
        """Until every kind of load got something through that was begun after `since` (monotonic)."""

        def behind() -> list[str]:
            return [kind for kind, facts in self.report()["kinds"].items() if facts["fresh"] < since]

        wait_until(lambda: not behind(), seconds=seconds, what=f"traffic begun after the fault: {self.report()}")

    def table(self, report: dict[str, Any] | None = None) -> str:
        """The present report, or this one, for people."""
        head = f"{'':10} {'begun':>8} {'finished':>8} {'failed':>7} {'retried':>7} {'longest wait':>13} {'MB':>8}"
        lines = [head]
        for kind, facts in (report or self.report())["kinds"].items():
            failed = sum(facts["failed"].values())
            lines.append(
                f"{kind:10} {facts['begun']:8} {facts['finished']:8} {failed:7} {facts['retried']:7}"
                f" {facts['longest']:11.2f} s {facts['bytes'] / 1e6:8.1f}"
            )
            lines += [f"    {count} times: {cause}" for cause, count in sorted(facts["failed"].items())]
        return "\n".join(lines)

    def finish(self, *, seconds: float = 90.0) -> dict[str, Any]:
        """Begin nothing new, end what is under way, and report."""
        return ask(self.control, "finish", seconds=seconds)
