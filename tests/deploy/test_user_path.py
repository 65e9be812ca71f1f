"""README's four commands, as they stand there, on a machine of their own.

The machine is a set of namespaces: its /etc and /var/lib are overlays that vanish, its network is its own, so 443 is
free. There is no systemd in it; `fake_systemctl.py` starts what the installed unit says, as the unit's user.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.deploy.deploy_places import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMESPACES = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
MACHINE = """
set -eu
mount -t tmpfs tmpfs {folder}/disk
for name in etc lib; do mkdir {folder}/disk/$name {folder}/disk/$name.work; done
mount -t overlay overlay -o lowerdir=/etc,upperdir={folder}/disk/etc,workdir={folder}/disk/etc.work /etc
mount -t overlay overlay -o lowerdir=/var/lib,upperdir={folder}/disk/lib,workdir={folder}/disk/lib.work /var/lib
rm -rf /etc/tunnelgw /var/lib/tunnelgw
chmod 755 {folder}/disk/etc {folder}/disk/lib
ip link set lo up
export PATH={folder}/bin:$PATH
echo 127.0.0.1 edge.example.com jellyfin.example.com >> /etc/hosts
{python} -m http.server 8096 --bind 127.0.0.1 --directory {folder}/site > {folder}/site.log 2>&1 &
"""


def python_for_everybody() -> str | None:
    """An interpreter of our version that a service's user may run; ours may be in somebody's home."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        # By way of a shell: what setpriv itself starts, it starts with root's right to enter every folder.
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        command = [*nobody, "sh", "-c", f"{candidate} -c 'import ssl'"]
        if shutil.which(candidate) and subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return candidate
    return None


def readme_commands() -> list[str]:
    """The command lines of the section "Use it"."""
    section = (ROOT / "README.md").read_text().split("## Use it")[1].split("\n## ")[0]
    return [line for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL) for line in block.splitlines()]


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the service's user can enter; pytest keeps its own closed to everybody else."""
    with tempfile.TemporaryDirectory(prefix="tunnelgw-machine-") as name:
        made = Path(name)
        made.chmod(0o755)
        yield made


@pytest.mark.system
@pytest.mark.root
def test_readme_user_path(folder: Path) -> None:
    if os.geteuid() != 0 or subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs root and namespaces")
    for program in ("setpriv", "ip", "curl", "useradd"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    python = python_for_everybody()
    if python is None:
        pytest.skip("no interpreter of this version that every user may run")
    for name in ("bin", "disk", "site"):
        (folder / name).mkdir(mode=0o755)
    (folder / "site" / "index.html").write_text("hello from home\n")
    packages = ":".join([str(ROOT), *site.getsitepackages()])
    script(folder / "bin" / "tunnelgw", f'#!/bin/sh\nPYTHONPATH={packages} exec {python} -m tunnelgw "$@"\n')
    fake = ROOT / "tests" / "deploy" / "fake_systemctl.py"
    script(folder / "bin" / "systemctl", f'#!/bin/sh\nexec {python} {fake} {folder} "$@"\n')
    script(folder / "bin" / "sudo", '#!/bin/sh\nexec "$@"\n')

    init, invite, join, expose = readme_commands()
    assert "tgw1_…" in join
    text = MACHINE.format(folder=folder, python=python)
    # No ACME server reaches this machine.
    text += f"{init} --self-signed\ninvitation=$({invite})\n"
    text += join.replace("tgw1_…", '"$invitation"') + f"\nurl=$({expose})\n"
    text += 'echo "url $url"\ncurl --silent --show-error --insecure --fail --max-time 20 "$url"\n'
    text += "stat -c '%U %a %n' /var/lib/tunnelgw/edge /var/lib/tunnelgw/connector\n"
    done = subprocess.run(
        [*NAMESPACES, "bash", "-c", text], capture_output=True, text=True, timeout=100, check=False, cwd="/"
    )
    logs = "".join(log.read_text() for log in folder.glob("*.log"))
    assert done.returncode == 0, done.stderr + logs
    assert "url https://jellyfin.example.com/\nhello from home\n" in done.stdout
    assert "*.example.com" in done.stdout, "init prints the DNS records"
    assert shlex.split(done.stdout.splitlines()[-2])[:2] == ["tunnelgw", "700"]
    assert shlex.split(done.stdout.splitlines()[-1])[:2] == ["tunnelgw", "700"]
