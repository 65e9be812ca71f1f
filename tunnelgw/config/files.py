"""Writing files that must survive a crash and keep their owner.

A file is replaced as a whole: written beside, synced, renamed, the folder synced. Root, working in a folder of another
user (the state of a service), leaves files that this user can read. Invariant: a reader sees the old content or the
new one, never a part; a secret is never readable by others, not even for a moment.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from typing import TYPE_CHECKING

from tunnelgw.errors import LocalError

if TYPE_CHECKING:
    from pathlib import Path

_HINTS = {
    errno.ENOSPC: "the disk is full; make room and try again",
    errno.EDQUOT: "the quota of this user is used up",
    errno.EROFS: "the file system is read-only; edit the file where it is made",
    errno.EACCES: "this user may not write here; run it as root or as the owner",
    errno.EPERM: "this user may not write here; run it as root or as the owner",
}


def cannot_write(path: Path, error: OSError) -> LocalError:
    """The error to raise where writing failed: what, where and what to do."""
    return LocalError(f"cannot write {path}: {_HINTS.get(error.errno or 0, error.strerror or 'unknown error')}")


def owner_to_keep(folder: Path) -> tuple[int, int] | None:
    """Owner and group for new files in a folder: another user's if we are root there, else None."""
    if os.geteuid() != 0:
        return None
    found = folder.stat()
    return (found.st_uid, found.st_gid) if found.st_uid != 0 else None


def make_private_folder(path: Path) -> None:
    """The folder and what is missing above it, 0700, owned like the nearest folder that exists. LocalError."""
    missing = []
    at = path.absolute()
    while not at.exists():
        missing.append(at)
        at = at.parent
    try:
        for folder in reversed(missing):
            owner = owner_to_keep(folder.parent)
            with contextlib.suppress(FileExistsError):  # another process was faster
                folder.mkdir(mode=0o700)
            if owner is not None:
                os.chown(folder, *owner, follow_symlinks=False)
    except OSError as error:
        raise cannot_write(path, error) from None
    if not path.is_dir():
        raise LocalError(f"{path} is not a folder; move it away or name another state_dir")


def listed(folder: Path, suffix: str) -> list[Path]:
    """What a folder holds with this ending, in order; nothing where there is no folder.

    Raises `OSError` for one that cannot be read; pathlib's `glob` would show it as an empty one.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [folder / name for name in sorted(names) if name.endswith(suffix)]


def write_atomic(path: Path, data: bytes, *, mode: int | None = None) -> None:
    """Replace a file by `data`. LocalError if that is not possible; the old file is then as it was.

    mode: of the file; None keeps the mode of the old one (0644 for a new one). The owner of the old file, or of the
    folder, is kept when we are root. A symbolic link stays one: what it points to is replaced.
    """
    target = path.resolve()
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
    try:
        owner = owner_to_keep(target.parent)
        with contextlib.suppress(FileNotFoundError):
            old = target.stat()
            owner = (old.st_uid, old.st_gid) if os.geteuid() == 0 else None
            mode = (old.st_mode & 0o777) if mode is None else mode
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            _fill(descriptor, data, mode=0o644 if mode is None else mode, owner=owner)
        finally:
            os.close(descriptor)
        temporary.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise cannot_write(path, error) from None


def _fill(descriptor: int, data: bytes, *, mode: int, owner: tuple[int, int] | None) -> None:
    """Content first, then the owner, then the mode: a secret never has the wide mode with the wrong content."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    if owner is not None:
        os.fchown(descriptor, *owner)
    os.fchmod(descriptor, mode)
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
