"""The files for systemd, as they are in deploy/systemd: the wheel carries a copy, a checkout has the folder itself.

Invariant: what gets installed is the text of deploy/systemd with one thing replaced, the path of the program.
"""

from __future__ import annotations

from pathlib import Path

import tunnelgw
from tunnelgw.errors import LocalError

# What ExecStart names in deploy/systemd.
PROGRAM = "/usr/local/bin/tunnelgw"
EDGE_UNIT = "tunnelgw-edge.service"
CONNECTOR_UNIT = "tunnelgw-connector.service"
SYSUSERS = "sysusers.d/tunnelgw.conf"
TMPFILES = "tmpfiles.d/tunnelgw.conf"


def unit_text(name: str, *, program: Path | None = None) -> str:
    """The text of a file below deploy/systemd. LocalError if this installation does not carry it.

    program: absolute path of the `tunnelgw` script that ExecStart shall run; None leaves it as it is.
    """
    package = Path(tunnelgw.__file__).parent
    for folder in (package / "data" / "systemd", package.parent / "deploy" / "systemd"):
        file = folder / name
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            return text if program is None else text.replace(f"ExecStart={PROGRAM} ", f"ExecStart={_quoted(program)} ")
    raise LocalError(f"{name} is not part of this installation; install tunnelgw from a wheel or from its checkout")


def _quoted(program: Path) -> str:
    """A path as systemd reads it on an Exec line: %, $ and spaces would mean something else."""
    text = str(program).replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if " " in text else text
