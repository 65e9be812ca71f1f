"""What SQLite's errors mean for the operator."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

from tunnelgw.errors import LocalError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_DAMAGED = 'is damaged; restore a copy with "tunnelgw edge restore FILE", or move it away (everybody then joins again)'
DISK_FULL = "the disk is full; make room, what was written before is kept"
_TEXTS = {
    sqlite3.SQLITE_FULL: DISK_FULL,
    sqlite3.SQLITE_READONLY: "is read-only for this user; run the command as the owner of state_dir",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened; does state_dir exist, and may this user write in it?",
    sqlite3.SQLITE_PERM: "may not be opened by this user; run the command as the owner of state_dir",
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_IOERR: "cannot be read or written: the disk reports an error (see dmesg)",
    sqlite3.SQLITE_BUSY: "is locked by another process",
}


class StoreError(LocalError):
    """The store failed; `passing` if only because another process was faster."""

    def __init__(self, text: str, *, passing: bool = False) -> None:
        super().__init__(text)
        self.passing = passing


class UnusableError(StoreError):
    """The file will not become usable by waiting: it is damaged, or a newer version wrote it."""


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """SQLite's errors become a StoreError that names the file and what to do."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        # The low byte is the kind, the rest the detail. https://sqlite.org/rescode.html
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        text = f"{path} {_TEXTS.get(code, f'failed: {error}')}"
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise UnusableError(text) from None
        raise StoreError(text, passing=code == sqlite3.SQLITE_BUSY) from None
