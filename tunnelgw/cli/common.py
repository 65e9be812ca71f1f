"""What several commands share: where their file is, and speaking to people."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tunnelgw.config.model import EdgeConfig


def say(*lines: str) -> None:
    """To a person, on stderr: stdout is for what a script wants."""
    for line in lines:
        print(line, file=sys.stderr)


def edge_config(given: str | None) -> EdgeConfig:
    """The configuration of the edge on this machine."""
    from tunnelgw.config.load import load_edge
    from tunnelgw.config.paths import EDGE, config_path

    return load_edge(config_path(EDGE, given))


def option(path: Path, role: str) -> str:
    """` --config FILE` for a command to copy, empty where the default finds the file anyway."""
    from tunnelgw.config.paths import config_path

    if os.environ.get("TUNNELGW_CONFIG"):
        return f" --config {path}"
    return "" if path == config_path(role) else f" --config {path}"
