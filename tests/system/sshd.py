"""An sshd of our own: its key, its port, its users' keys; nothing of the machine's configuration."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from pathlib import Path

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
USER = getpass.getuser()


def make_key(path: Path) -> str:
    """A new key pair; returns the public half."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    kind, key, *_ = path.with_suffix(".pub").read_text().split()
    return f"{kind} {key}"


def configure(folder: Path, port: int) -> list[str]:
    """Its files in this folder, and the client's `ssh_config`; returns the command that runs it on loopback."""
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # its privilege separation insists on it
    host_key = make_key(folder / "host")
    (folder / "authorized_keys").write_text(make_key(folder / "user") + "\n")
    (folder / "known_hosts").write_text(f"* {host_key}\n")
    (folder / "sshd_config").write_text(f"""
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
Subsystem sftp internal-sftp
""")
    (folder / "ssh_config").write_text(f"""
Host *
    User {USER}
    IdentityFile {folder}/user
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
    GlobalKnownHostsFile none
    StrictHostKeyChecking yes
    BatchMode yes
    ConnectTimeout 20
""")
    return [str(SSHD), "-D", "-e", "-f", str(folder / "sshd_config")]
