"""What every contender is, and what they share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest.scenario import Kind, Setup, Target

if TYPE_CHECKING:
    from typing import Literal

    from loadtest.processes import Group

# Where Debian keeps daemons, for users whose PATH lacks it.
WHERE = "/usr/local/sbin:/usr/sbin:/sbin"


def which(program: str) -> str | None:
    """The path of a program."""
    return shutil.which(program) or shutil.which(program, path=WHERE)


class Contender:
    """One way from a visitor to the service at home. Subclasses are small: a name, programs, and `launch`."""

    name: str
    programs: dict[str, str] = {}  # needed on PATH: where to get each
    kinds: dict[Kind, str] = {}  # the jobs it does: how it is set up for each, in half a line
    parts: tuple[str, ...] = ()  # edge first
    workers: bool = False  # its edge can have several processes or threads
    http2: bool = True  # visitors can speak HTTP/2 to it where TLS ends at it

    def missing(self) -> str:
        """Why it cannot run here; "" if it can."""
        lacking = [f"{name} ({place})" for name, place in self.programs.items() if which(name) is None]
        return f"not on PATH: {', '.join(lacking)}" if lacking else ""

    def refuses(self, setup: Setup) -> str:
        """Why it does not do this setup's job; "" if it does."""
        if setup.kind not in self.kinds:
            return f"no {setup.kind}"
        return "" if setup.workers == 1 or self.workers else "no number of workers"

    def start(self, folder: Path, setup: Setup, service: int) -> Target:
        """Start it in a new folder, before the port of the service at home."""
        from loadtest.home import make_certificate
        from loadtest.processes import Group

        group = Group(make_certificate(folder))
        try:
            port, parts = self.launch(group, setup, service)
        except BaseException:
            group.stop()
            raise
        return Target(self.name, setup, port, folder / "cert.pem", folder, group, parts or self.parts)

    def launch(self, group: Group, setup: Setup, service: int) -> tuple[int, tuple[str, ...]]:
        """Start all parts; (the visitor's port, the parts: () for `self.parts`)."""
        raise NotImplementedError


def through(group: Group, setup: Setup, port: int, *, dialled_by: Literal["home", "edge"]) -> int:
    """The port to dial instead of `port`, where something lies between edge and home."""
    return setup.wire.lay(group, port, dialled_by=dialled_by) if setup.wire else port
