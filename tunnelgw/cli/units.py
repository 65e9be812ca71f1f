"""The systemd units: the text of deploy/systemd, with what differs between installations filled in.

The wheel carries a copy of that folder; a checkout has the folder itself. Invariant: but for ExecStart and a state
folder elsewhere, what gets installed is what deploy/systemd says, so what was reviewed and tested is what runs.
"""

from __future__ import annotations

from pathlib import Path

import tunnelgw
from tunnelgw.errors import LocalError

_STATE = Path("/var/lib/tunnelgw")


def unit_name(role: str) -> str:
    """`tunnelgw-edge.service` or `tunnelgw-connector.service`."""
    return f"tunnelgw-{role}.service"


def unit_text(role: str, *, config: Path, state_dir: Path, program: str) -> str:
    """The unit of a role ("edge" or "connector"). LocalError if this installation does not carry it."""
    verb = "edge run" if role == "edge" else "connect"
    lines = []
    for line in packaged(unit_name(role)).splitlines():
        if line.startswith("ExecStart="):
            line = f"ExecStart={_quoted(program)} {verb} --config {_quoted(str(config))}"
        lines.append(line)
        if line.startswith("StateDirectoryMode=") and state_dir != _STATE / role:
            lines.append(f"ReadWritePaths={_quoted(str(state_dir))}")
    return "\n".join(lines) + "\n"


def packaged(name: str) -> str:
    """The text of a file of deploy/systemd."""
    package = Path(tunnelgw.__file__).parent
    for folder in (package / "data" / "systemd", package.parent / "deploy" / "systemd"):
        file = folder / name
        if file.is_file():
            return file.read_text(encoding="utf-8")
    raise LocalError(f"{name} is not part of this installation; install tunnelgw from a wheel or from its checkout")


def _quoted(word: str) -> str:
    """A word of a unit file: `%` and `$` are doubled, spaces quoted."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{word}"' if any(char.isspace() or char in "\"'\\" for char in word) else word
