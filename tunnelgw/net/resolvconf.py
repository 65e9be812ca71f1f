"""/etc/resolv.conf: which servers it names, and a change of it that carries its own undo.

While a change is in force the lines that were there before follow behind a mark, as comments: whoever finds such a
file, another process or a person, can put it back without anything else. A file that was replaced by another program
meanwhile has no mark, and is left alone.

Invariant: one write replaces the whole content, so that a kill leaves the old lines or the new ones.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

RESOLV_CONF = Path("/etc/resolv.conf")
RESOLVED = Path("/run/systemd/resolve/resolv.conf")  # systemd-resolved's own servers
_MARK = "# Written by tunnelgw visit --tun, which puts back what is below when it ends (tunnelgw visit --cleanup):"
_BEFORE = "#tunnelgw# "


def servers(text: str) -> list[str]:
    """The addresses of its servers."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            try:
                found.append(str(ipaddress.ip_address(words[1])))  # one with a zone stays as it is
            except ValueError:
                continue
    return found


def changed(text: str, server: str) -> str:
    """This server first; those of before stay as a second choice, with all options."""
    text = restored(text)
    kept = [line for line in text.splitlines() if line.split()[:1] not in ([], ["search"], ["domain"])]
    names = [line for line in text.splitlines() if line.split()[:1] in (["search"], ["domain"])]
    before = [f"{_BEFORE}{line}" for line in text.splitlines()]
    return "\n".join([f"nameserver {server}", *names, *kept, _MARK, *before]) + "\n"


def restored(text: str) -> str:
    """As it was before `changed`; the same text if it was not."""
    if _MARK not in text.splitlines():
        return text
    lines = [line.removeprefix(_BEFORE) for line in text.splitlines() if line.startswith(_BEFORE)]
    return "".join(f"{line}\n" for line in lines)


def read(path: Path = RESOLV_CONF) -> str:
    """The text; empty where there is none."""
    try:
        return path.read_text(errors="surrogateescape")
    except OSError:
        return ""


def change(server: str, path: Path = RESOLV_CONF) -> None:
    """Put this server first. OSError."""
    _replace(path, changed(read(path), server))


def restore(path: Path = RESOLV_CONF) -> bool:
    """Undo `change`, of whichever process; whether there was one. OSError."""
    text = read(path)
    before = restored(text)
    if before == text:
        return False
    _replace(path, before)
    return True


def _replace(path: Path, text: str) -> None:
    """In place: the file may be mounted (containers), or somebody's link."""
    data = text.encode(errors="surrogateescape")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.pwrite(descriptor, data.ljust(os.fstat(descriptor).st_size, b"\n"), 0)
        os.ftruncate(descriptor, len(data))
    finally:
        os.close(descriptor)
