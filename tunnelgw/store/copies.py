"""Copies of the store's file, taken while others write.

A copy is made by SQLite itself, in a file that was private before its first byte, and gets its name once it is whole
and on the disk. Invariant: a file of that name is a complete copy, or what was there before.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from typing import TYPE_CHECKING

from tunnelgw.config.files import cannot_write, owner_to_keep, sync_folder
from tunnelgw.errors import LocalError
from tunnelgw.store.failures import explained

if TYPE_CHECKING:
    from pathlib import Path

_BUSY_SECONDS = 5.0


def snapshot(source: Path, target: Path) -> None:
    """A consistent copy (0600) of the store in `source`, whatever its version. LocalError."""
    if not source.is_file():
        raise LocalError(f"{source} does not exist")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
    try:
        create_private(temporary)
        with explained(source), contextlib.closing(_open(source)) as database:
            # Into an empty file: SQLite keeps its mode.
            database.execute("VACUUM INTO ?", (str(temporary),))
        _sync(temporary)
        temporary.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        raise cannot_write(target, error) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def schema_of(path: Path) -> int:
    """The version of the tables in a store's file. LocalError if it is none."""
    with explained(path), contextlib.closing(_open(path)) as database:
        row = database.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()
    return int(row[0])


def create_private(path: Path) -> None:
    """An empty file, 0600 whatever the umask, for the owner of the folder; nothing if it exists."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return
    except OSError as error:
        raise cannot_write(path, error) from None
    try:
        owner = owner_to_keep(path.parent)
        if owner is not None:
            os.fchown(descriptor, *owner)
        os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def _open(path: Path) -> sqlite3.Connection:
    """An existing file; SQLite gives the files that it makes beside it the owner of the store."""
    found = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
    found.execute("PRAGMA cache_size = -512")
    return found


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
