"""The systemd units that `--service` installs: own user, own state folder, no more rights than needed.

Invariant: nothing is changed before it is clear that the installation can work (root, systemd present).
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

from tunnelgw.cli.units import unit_name, unit_text
from tunnelgw.config.files import write_atomic
from tunnelgw.config.paths import SYSTEM_STATE
from tunnelgw.errors import LocalError

UNIT_FOLDER = Path("/etc/systemd/system")
USER = "tunnelgw"


def require() -> None:
    """LocalError unless this is root on a machine with systemd."""
    if os.geteuid() != 0:
        raise LocalError("--service installs a systemd unit and needs root; run this with sudo", exit_code=2)
    if shutil.which("systemctl") is None:
        raise LocalError("--service needs systemd, and there is no systemctl here; leave out --service", exit_code=2)


def install(role: str, *, config: Path, state_dir: Path, folder: Path = UNIT_FOLDER) -> Path:
    """Make the user, hand it the state, write the unit, start it and wait until it is ready. The file of the unit."""
    require()
    _ensure_user()
    _hand_over(state_dir)
    unit = folder / unit_name(role)
    write_atomic(unit, unit_text(role, config=config, state_dir=state_dir, program=_program()).encode(), mode=0o644)
    _run("systemctl", "daemon-reload")
    _run("systemctl", "enable", unit.name)
    # restart, not start: a further join must reach a connector that runs already.
    _run("systemctl", "restart", unit.name, hint=f"see: journalctl -u {unit.name}")
    return unit


def _program() -> str:
    """The console script of this very installation."""
    beside = Path(sys.executable).with_name("tunnelgw")
    found = str(beside) if beside.exists() else shutil.which("tunnelgw")
    if found is None:
        raise LocalError("the tunnelgw program is not installed where a service could find it; install the package")
    return os.path.abspath(found)


def _ensure_user() -> None:
    try:
        pwd.getpwnam(USER)
    except KeyError:
        options = ("--system", "--user-group", "--no-create-home", "--home-dir", "/var/lib/tunnelgw")
        _run("useradd", *options, "--shell", "/usr/sbin/nologin", USER)


def _hand_over(state_dir: Path) -> None:
    """Give the state to the service's user, folder and content; the folder above stays root's, and can be entered."""
    user = pwd.getpwnam(USER)
    if state_dir.parent == SYSTEM_STATE:
        SYSTEM_STATE.chmod(0o755)
    for path in (state_dir, *state_dir.rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)


def _run(*command: str, hint: str = "") -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        said = lines[0] if lines else f"exit status {done.returncode}"
        raise LocalError(f"{' '.join(command)} failed: {said}" + (f"; {hint}" if hint else ""))
