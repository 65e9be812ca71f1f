"""A visiting machine for system tests: its own configuration and identity, and its `tunnelgw visit` processes."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

from tests.system.harness import TUNNELGW, Connector, Process, run

if TYPE_CHECKING:
    from tests.system.harness import World

READY = r"ready 127\.0\.0\.1:(\d+) -> (\S+)"


class Laptop(Connector):
    """Joined with role visitor."""

    def __init__(self, world: World, name: str, *allow: str, edge: str = "") -> None:
        super().__init__(world, name, "")
        options = [word for item in allow for word in ("--allow-service", item)]
        self.join(*(("--edge", edge) if edge else ()), allow=("--role", "visitor", *options))

    def visit(self, *names: str, wait: bool = True) -> Process:
        """Local ports onto these services."""
        count = len(self.world.children)
        command = [*TUNNELGW, "visit", *names, "--config", str(self.config)]
        process = Process(f"visit-{self.name}-{count}", command, self.folder)
        self.world.children.append(process)
        if wait:
            for name in names:
                process.wait_for(rf"ready \S+ -> (\S+/)?{re.escape(name)}\n")
        return process

    def port(self, name: str) -> int:
        """A local port onto this service, of a new process."""
        return ports(self.visit(name))[0]

    def stdio(self, name: str, data: bytes = b"", *, seconds: float = 60) -> subprocess.CompletedProcess[bytes]:
        """`visit NAME --stdio` with this input."""
        return subprocess.run(self.stdio_command(name), input=data, capture_output=True, timeout=seconds, check=False)

    def stdio_command(self, name: str) -> list[str]:
        """Of a pipe to this service."""
        return [*TUNNELGW, "visit", name, "--stdio", "--config", str(self.config)]

    def proxy_command(self, name: str) -> str:
        """For ssh."""
        return f"ProxyCommand={' '.join(self.stdio_command(name))}"

    def refused(self, *arguments: str) -> str:
        """What a command says that must fail with 1."""
        done = run(*arguments, "--config", str(self.config), check=False)
        assert done.returncode == 1, done
        return done.stderr


def ports(process: Process) -> list[int]:
    """The local ports that it said it is ready at, in order."""
    return [int(found[1]) for found in re.finditer(READY, process.text())]
