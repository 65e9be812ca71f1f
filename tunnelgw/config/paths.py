"""Where files are when nobody says: `--config` and `state_dir`.

`--config` wins over TUNNELGW_CONFIG, which wins over the default: /etc/tunnelgw for root; for others their XDG folder,
or a readable file in /etc when they have none of their own. Invariant: the same user and environment always get the
same path, whether or not a process is running.
"""

from __future__ import annotations

import os
from pathlib import Path

EDGE = "edge"
CONNECTOR = "connector"
SYSTEM_CONFIG = Path("/etc/tunnelgw")
SYSTEM_STATE = Path("/var/lib/tunnelgw")


def config_path(role: str, given: str | None = None) -> Path:
    """The configuration file of an edge or a connector; it need not exist.

    role: EDGE or CONNECTOR. given: the value of --config, if any.
    """
    named = given or os.environ.get("TUNNELGW_CONFIG", "")
    if named:
        return Path(named).absolute()
    system = SYSTEM_CONFIG / f"{role}.toml"
    if os.geteuid() == 0:
        return system
    own = xdg("XDG_CONFIG_HOME", ".config") / "tunnelgw" / f"{role}.toml"
    if not own.exists() and os.access(system, os.R_OK):
        return system
    return own


def default_state_dir(role: str) -> Path:
    """$STATE_DIRECTORY under systemd, /var/lib/tunnelgw/<role> for root, else the XDG state folder."""
    named = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if named:
        return Path(named)
    if os.geteuid() == 0:
        return SYSTEM_STATE / role
    return xdg("XDG_STATE_HOME", ".local/state") / "tunnelgw" / role


def xdg(variable: str, below_home: str) -> Path:
    """An XDG base folder; a relative value is ignored, as the specification says."""
    value = os.environ.get(variable, "")
    if value.startswith("/"):
        return Path(value)
    try:
        return Path.home() / below_home
    except RuntimeError:  # a user without a home
        return Path("/") / below_home
