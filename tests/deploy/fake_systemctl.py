"""Stands in for systemctl where no systemd runs: starts what the installed unit says, as its user, until it is ready.

Called as `fake_systemctl.py FOLDER COMMAND...`; notes the process ids and the log in FOLDER.
"""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
from pathlib import Path

CAPABILITY = "+net_bind_service"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"


def main(folder: Path, command: str, *names: str) -> int:
    if command not in ("restart", "start"):
        return 0
    name = names[-1]
    lines = Path("/etc/systemd/system", name).read_text().splitlines()
    unit = {key: value for key, equals, value in (line.partition("=") for line in lines) if equals}
    user = ["setpriv", f"--reuid={unit['User']}", f"--regid={unit['Group']}", "--clear-groups", "--no-new-privs"]
    if "AmbientCapabilities" in unit:
        user += [f"--inh-caps={CAPABILITY}", f"--ambient-caps={CAPABILITY}"]
    state = Path("/var/lib") / unit["StateDirectory"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, (folder / f"{name}.log").open("w") as log:
        place = folder / f"{name}.notify"
        notify.bind(str(place))
        place.chmod(0o777)
        notify.settimeout(30)
        # As little as systemd passes on: nothing of whoever ran the command.
        environment = {"PATH": SYSTEM_PATH, "NOTIFY_SOCKET": str(place), "STATE_DIRECTORY": str(state)}
        subprocess.Popen(
            [*user, *shlex.split(unit["ExecStart"])],
            env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            while not notify.recv(4096).startswith(b"READY=1"):
                pass
        except TimeoutError:
            print((folder / f"{name}.log").read_text(), file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
