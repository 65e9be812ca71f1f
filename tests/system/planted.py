"""What must not be in any log: secrets that a test knows or planted, and shapes that are always secrets.

The harness calls `leaks` for every world that it closes, so that each test which starts processes is also a test of
what they write. `tests/conftest.py` gives `look` all other output of the run as it comes (what commands answered, what
tests and the processes that share their standard output wrote), and looks through all logs once more at its end.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

# In every secret that a test makes up (a password, a cookie, a token), so that one search finds them all.
MARK = "plant3d"
# An invitation as it is handed over, and any private key. ("tgw1_[hidden]" is what the log makes of an invitation.)
SHAPES = re.compile(rb"tgw1_[A-Za-z0-9_-]{40}|-----BEGIN [A-Z ]*PRIVATE KEY-----(?!\[hidden\])")
_KEYS = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----(.*?)-----END", re.DOTALL)
_CHECKED_BYTES = 64 * 1024 * 1024  # of one log; a test that writes more is about something else

every_log: set[Path] = set()  # of this run
found: list[str] = []  # by `look`


def secret_of_invitation(text: str) -> bytes:
    """The one-time secret as it travels, in base64url."""
    raw = base64.urlsafe_b64decode(text.removeprefix("tgw1_") + "===")
    return base64.urlsafe_b64encode(raw[40:58])


def key_bodies(content: bytes) -> Iterator[bytes]:
    """The middle of each private key in a file (PEM, also inside JSON or a database), as one line of base64."""
    for body in _KEYS.findall(content.replace(b"\\n", b"\n")):
        lines = [line for line in body.split() if len(line) >= 32]
        yield from lines[:1]


def keys_below(folders: Iterable[Path]) -> set[bytes]:
    """Of every file in these folders."""
    found: set[bytes] = set()
    for folder in folders:
        for path in folder.rglob("*") if folder.is_dir() else ():
            if path.is_file() and not path.is_symlink() and path.stat().st_size < _CHECKED_BYTES:
                found |= set(key_bodies(path.read_bytes()))
    return found


def leaks(logs: Iterable[Path], secrets: Iterable[bytes]) -> list[str]:
    """Which of the secrets (or shapes of secrets) is in which log; never the secret itself."""
    wanted = sorted(secrets)
    found = []
    for log in logs:
        if not log.is_file():
            continue
        with log.open("rb") as file:
            text = file.read(_CHECKED_BYTES)
        found += [f"{log.name} holds the secret {secret[:4]!r}…" for secret in wanted if secret in text]
        shape = SHAPES.search(text)
        if shape:
            found.append(f"{log.name} holds {shape[0][:12]!r}… at {shape.start()}")
    return found


def look(where: str, output: str | bytes | None, *, shapes: bool) -> None:
    """Remember if output holds the mark, or (`shapes`) anything that is always a secret; never the secret itself."""
    data = output.encode("utf-8", "surrogateescape") if isinstance(output, str) else output or b""
    if MARK.encode() in data or (shapes and SHAPES.search(data)):
        found.append(where)


def ours(arguments: object) -> bool:
    """Is this command tunnelgw, however it is started?"""
    words = arguments if isinstance(arguments, list | tuple) else [arguments]
    return any("tunnelgw" in str(word) or "worker_process" in str(word) for word in words)
