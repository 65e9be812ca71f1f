"""Files that commands make or change: whole or not at all, and owned by whoever owns the state.

`sudo tunnelgw expose …` must not leave a file that the service's own user cannot read.

Invariant: a reader sees the old content or the new one, never a part; the mode and the owner of a file that existed
stay as they were.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING

from tunnelgw.errors import LocalError

if TYPE_CHECKING:
    from pathlib import Path


def write_file(path: Path, text: str, *, mode: int = 0o644, owner_of: Path | None = None) -> None:
    """Replace `path` by `text`. A new file gets `mode` and, if we are root, the owner of `owner_of`.

    LocalError names the file and says what to do.
    """
    # A link (as configuration managers make them) stays a link: its target is replaced.
    target = path.resolve()
    try:
        existing = target.stat() if target.exists() else None
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise _failed(path, error) from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(handle, mode if existing is None else existing.st_mode & 0o7777)
            _chown(handle, existing if existing is not None else _stat(owner_of))
            os.fsync(handle)
        os.replace(name, target)
    except OSError as error:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise _failed(path, error) from error


def make_folder(path: Path, *, mode: int = 0o755, owner_of: Path | None = None) -> None:
    """Make a folder and its parents where missing; new ones belong to the owner of `owner_of` if we are root."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        for folder in reversed(missing):
            folder.mkdir(mode=mode if folder == path else 0o755)
            keep_owner(folder, owner_of)
    except OSError as error:
        raise _failed(path, error) from error


def keep_owner(path: Path, owner_of: Path | None) -> None:
    """Give `path` the owner of `owner_of`, if we are root and it is somebody else's."""
    owner = _stat(owner_of)
    if owner is not None and os.geteuid() == 0:
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def keep_owner_below(folder: Path) -> None:
    """Give everything in `folder` the folder's own owner, after root wrote into somebody else's state."""
    if os.geteuid() != 0:
        return
    for path in folder.rglob("*"):
        keep_owner(path, folder)


def _stat(path: Path | None) -> os.stat_result | None:
    return path.stat() if path is not None and path.exists() else None


def _chown(handle: int, owner: os.stat_result | None) -> None:
    if owner is not None and os.geteuid() == 0:
        os.fchown(handle, owner.st_uid, owner.st_gid)


def _failed(path: Path, error: OSError) -> LocalError:
    hint = "run this as root or as the owner" if isinstance(error, PermissionError) else "make room or fix the path"
    return LocalError(f"{path}: cannot be written: {error.strerror or error}; {hint}")
