"""ssh -R: OpenSSH's remote forwarding, with nginx before it for visitors' TLS."""

from __future__ import annotations

import getpass
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest.contenders.base import Contender, through, which
from loadtest.contenders.nginx import start_proxy
from loadtest.scenario import Kind
from tests.ports import free_port

if TYPE_CHECKING:
    from loadtest.processes import Group
    from loadtest.scenario import Setup


class Ssh(Contender):
    """An sshd of its own and one `ssh -N -R`, with their default ciphers."""

    name = "ssh-R"
    programs = {"sshd": "Debian: openssh-server", "ssh": "Debian: openssh-client", "nginx": "Debian: nginx"}
    kinds = {
        Kind.WEB: "nginx ends TLS before the forwarded port, connections kept",
        Kind.TCP: "the forwarded port",
        Kind.PASS: "the forwarded port, to nginx with TLS at home; no choice by name",
    }
    parts = ("sshd", "ssh")

    def launch(self, group: Group, setup: Setup, service: int) -> tuple[int, tuple[str, ...]]:
        """sshd, ssh, and nginx for visitors of the web."""
        folder, (port, remote, front) = group.folder, (free_port(), free_port(), free_port())
        for name in ("host", "user"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True, capture_output=True)
        if getpass.getuser() == "root":
            Path("/run/sshd").mkdir(
                exist_ok=True
            )  # what sshd confines itself to, made by the system's service elsewhere
        (folder / "known").write_text(f"[127.0.0.1]:* {(folder / 'host.pub').read_text()}")
        (folder / "sshd.conf").write_text(f"""
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
""")
        group.start("sshd", [which("sshd") or "sshd", "-D", "-e", "-f", str(folder / "sshd.conf")], ready=port)
        dialled = through(group, setup, port, dialled_by="home")
        group.start(
            "ssh",
            ["ssh", "-F", "none", "-N", "-R", f"127.0.0.1:{remote}:127.0.0.1:{service}", "-p", str(dialled),
             "-i", str(folder / "user"), "-o", f"UserKnownHostsFile={folder}/known", "-o", "BatchMode=yes",
             "-o", "ExitOnForwardFailure=yes", "-o", "ServerAliveInterval=15", f"{getpass.getuser()}@127.0.0.1"],
            ready=remote,
        )  # fmt: skip
        if setup.kind is not Kind.WEB:
            return remote, ()
        start_proxy(group, "nginx", front, remote)
        return front, ("nginx", *self.parts)
