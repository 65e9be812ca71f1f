"""The store in one SQLite file, shared by the processes of one machine.

Write-ahead log with full synchronisation: a write that returned survives SIGKILL and power loss. Every write takes the
file's write lock first (BEGIN IMMEDIATE), so that revision counter, compare and set are one step for all processes.
Leases run on the machine's boot clock: neither a jump of the wall clock nor a reboot keeps a dead owner's keys.

Invariant: revisions only grow, also over a restore; no two writes share one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tunnelgw.config.files import make_private_folder
from tunnelgw.store.base import Change, Check, Compacted, Conflict, Delete, KeyValue, Put
from tunnelgw.store.copies import create_private, snapshot
from tunnelgw.store.failures import DISK_FULL, StoreError, UnusableError, explained
from tunnelgw.store.schema import MIGRATIONS

if TYPE_CHECKING:
    import builtins
    from collections.abc import Iterator, Sequence

    from tunnelgw.store.base import Operation
    from tunnelgw.store.schema import Migration

FILE_NAME = "store.db"
# How many deletions are remembered: a watcher polls every second or so, an edge deletes a few keys a minute.
MAX_DELETED = 10_000
MAX_VALUE_BYTES = 1 << 20
MAX_KEY_BYTES = 1024
ROOM_LEAST = 64 * 1024  # free bytes below which the disk is full to us: a declaration of many services and its pages
_BUSY_SECONDS = 5.0
_SERVING_MILLISECONDS = 300  # a write takes a few, some dozens on a slow disk
# Parameters: the key (or prefix and its end), our boot, the time. A key whose lease has ended is gone, purged or not.
_GET = """SELECT key, value, revision, lease FROM kv WHERE key = ?
    AND (lease = '' OR lease IN (SELECT id FROM leases WHERE boot = ? AND expires > ?))"""
_LIST = """SELECT key, value, revision, lease FROM kv WHERE key >= ? AND key < ?
    AND (lease = '' OR lease IN (SELECT id FROM leases WHERE boot = ? AND expires > ?)) ORDER BY key"""
# Few change between two looks; SQLite, who does not know that, would go through all keys with the prefix.
_CHANGED = """SELECT key, value, revision FROM kv INDEXED BY kv_revision
    WHERE revision > ? AND key >= ? AND key < ?"""
_GONE = """SELECT key, NULL, revision FROM deleted INDEXED BY deleted_revision
    WHERE revision > ? AND key >= ? AND key < ?"""


class SqliteStore:
    """`store.base.Store` on a file. One per process: make it after a fork, never before.

    LocalError if the file cannot be opened, is damaged, or was written by a newer version.
    """

    def __init__(self, path: Path, *, migrations: Sequence[Migration] = MIGRATIONS) -> None:
        self.path = path
        self._migrations = migrations
        self._lock = threading.RLock()
        self._boot = _boot_id()
        self.trouble = ""  # why a write failed, until `probe` succeeds
        make_private_folder(path.parent)
        create_private(path)
        with explained(path):
            self._db = _connect(path)
            try:
                self._migrate()
            except BaseException:
                self._db.close()
                raise

    def serve(self) -> None:
        """Visitors are served meanwhile: do not wait long for another process's lock; fail, and come again."""
        with self._lock, explained(self.path):
            self._db.execute(f"PRAGMA busy_timeout = {_SERVING_MILLISECONDS}")

    # Reading

    def get(self, key: str) -> KeyValue | None:
        """The key, or None."""
        with self._lock, explained(self.path):
            row = self._db.execute(_GET, (key, self._boot, _now())).fetchone()
        return KeyValue(*row) if row else None

    def list(self, prefix: str = "") -> tuple[list[KeyValue], int]:
        """All keys that begin with the prefix, in order, and the revision they were read at."""
        with self._transaction("DEFERRED"):
            revision = self._meta("revision")
            rows = self._db.execute(_LIST, (prefix, _after(prefix), self._boot, _now())).fetchall()
        return [KeyValue(*row) for row in rows], revision

    def revision(self) -> int:
        """The revision of the last write."""
        with self._lock, explained(self.path):
            return self._meta("revision")

    def watch(self, since: int, prefix: str = "") -> tuple[builtins.list[Change], int]:
        """What changed after a revision (each key once, as it is now), and the revision to ask from next. Compacted."""
        with self._lock, explained(self.path):
            row = self._db.execute("SELECT 1 FROM leases WHERE boot <> ? OR expires <= ? LIMIT 1", self._clock())
            ended = row.fetchone() is not None
        if ended:
            with self._transaction("IMMEDIATE"):
                self._purge()
        bounds = (since, prefix, _after(prefix))
        with self._transaction("DEFERRED"):
            revision = self._meta("revision")
            if since < self._meta("compacted"):
                raise Compacted
            found = self._db.execute(_CHANGED, bounds).fetchall()
            gone = self._db.execute(_GONE, bounds).fetchall()
        return sorted((Change(*row) for row in found + gone), key=lambda change: change.revision), revision

    # Writing

    def put(self, key: str, value: bytes, *, expect: int | None = None, lease: str = "") -> int:
        """Write one key; the new revision. Conflict."""
        return self.apply([Put(key, value, expect, lease)])

    def delete(self, key: str, *, expect: int | None = None) -> int:
        """Remove one key; the revision after. Conflict."""
        return self.apply([Delete(key, expect)])

    def apply(self, operations: Sequence[Operation]) -> int:
        """All or none of several writes, at one revision. Conflict; ValueError for a key or value out of bounds."""
        for operation in operations:
            if not 0 < len(operation.key.encode()) <= MAX_KEY_BYTES:
                raise ValueError("a key has 1 to 1,024 bytes")
            if isinstance(operation, Put) and len(operation.value) > MAX_VALUE_BYTES:
                raise ValueError(f"the value of {operation.key} is larger than 1 MiB")
        with self._transaction("IMMEDIATE"):
            self._purge()
            revision = self._next_revision()
            for operation in operations:
                self._expect(operation.key, operation.expect)
                if isinstance(operation, Put):
                    self._put(operation, revision)
                elif not isinstance(operation, Check):
                    self._delete(operation.key, revision)
            self._forget()
        return revision

    def lease(self, ttl_seconds: float) -> SqliteLease:
        """A new lease."""
        lease = SqliteLease(self, secrets.token_hex(8), ttl_seconds)
        with self._transaction("IMMEDIATE"):
            row = (lease.id, self._boot, _now() + ttl_seconds, ttl_seconds)
            self._db.execute("INSERT INTO leases VALUES (?, ?, ?, ?)", row)
        return lease

    # The file

    def probe(self) -> None:
        """Can the state be written? LocalError if not; `trouble` is what went wrong since this last succeeded."""
        with self._transaction("IMMEDIATE"):
            self._db.execute("UPDATE meta SET value = value WHERE name = 'schema'")
        with self._watched(writes=True):
            free = os.statvfs(self.path.parent)
            if free.f_bavail * free.f_frsize < ROOM_LEAST:  # a small write may still find place in the log
                raise StoreError(f"{self.path} {DISK_FULL}")
        self.trouble = ""

    def backup(self, path: Path) -> None:
        """A consistent copy (0600), taken while others write. LocalError; an old file there stays until it is whole."""
        snapshot(self.path, path)

    def replace_all(self, found: Sequence[KeyValue]) -> None:
        """Hold exactly these keys, in one step and while others use the store.

        Keys that hang on a lease are not taken: their owners are gone. Watchers get Compacted. LocalError.
        """
        with self._transaction("IMMEDIATE"):
            revision = self._next_revision()
            for table in ("kv", "deleted", "leases"):
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608
            rows = [(item.key, item.value, revision, "") for item in found if not item.lease]
            self._db.executemany("INSERT INTO kv VALUES (?, ?, ?, ?)", rows)
            self._db.execute("UPDATE meta SET value = ? WHERE name = 'compacted'", (revision,))

    def close(self) -> None:
        """Nothing works afterwards."""
        with self._lock:
            self._db.close()

    # Inside a transaction

    @contextlib.contextmanager
    def _transaction(self, kind: str) -> Iterator[None]:
        """BEGIN … COMMIT, or ROLLBACK on any exception. Nothing is committed half, also when the disk is full."""
        with self._lock, self._watched(writes=kind == "IMMEDIATE"), explained(self.path):
            self._db.execute(f"BEGIN {kind}")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _watched(self, *, writes: bool) -> Iterator[None]:
        """Keep `trouble` up to date."""
        try:
            yield
        except StoreError as error:
            if writes and not error.passing:
                self.trouble = error.text
            raise

    def _meta(self, name: str) -> int:
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return int(row[0])

    def _next_revision(self) -> int:
        self._db.execute("UPDATE meta SET value = value + 1 WHERE name = 'revision'")
        return self._meta("revision")

    def _expect(self, key: str, expect: int | None) -> None:
        if expect is None:
            return
        row = self._db.execute("SELECT revision FROM kv WHERE key = ?", (key,)).fetchone()
        if (row[0] if row else 0) != expect:
            raise Conflict(key)

    def _put(self, put: Put, revision: int) -> None:
        if put.lease and not self._db.execute("SELECT 1 FROM leases WHERE id = ?", (put.lease,)).fetchone():
            raise Conflict(put.key)
        self._db.execute(
            "INSERT INTO kv VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE"
            " SET value = excluded.value, revision = excluded.revision, lease = excluded.lease",
            (put.key, put.value, revision, put.lease),
        )
        self._db.execute("DELETE FROM deleted WHERE key = ?", (put.key,))

    def _delete(self, key: str, revision: int) -> None:
        if self._db.execute("DELETE FROM kv WHERE key = ?", (key,)).rowcount:
            self._db.execute("INSERT OR REPLACE INTO deleted VALUES (?, ?)", (key, revision))

    def _purge(self) -> None:
        """End leases that nobody renewed."""
        query = "SELECT id FROM leases WHERE boot <> ? OR expires <= ?"
        for (lease,) in self._db.execute(query, self._clock()).fetchall():
            self._end_lease(lease)

    def _end_lease(self, lease: str) -> None:
        keys = self._db.execute("SELECT key FROM kv WHERE lease = ?", (lease,)).fetchall()
        if keys:
            revision = self._next_revision()
            for (key,) in keys:
                self._delete(key, revision)
        self._db.execute("DELETE FROM leases WHERE id = ?", (lease,))

    def _forget(self) -> None:
        """Keep the memory of deletions bounded."""
        extra = self._db.execute("SELECT COUNT(*) FROM deleted").fetchone()[0] - MAX_DELETED
        if extra <= 0:
            return
        oldest = "SELECT revision FROM deleted ORDER BY revision LIMIT 1 OFFSET ?"
        limit = self._db.execute(oldest, (extra - 1 + MAX_DELETED // 10,)).fetchone()[0]
        self._db.execute("DELETE FROM deleted WHERE revision <= ?", (limit,))
        self._db.execute("UPDATE meta SET value = ? WHERE name = 'compacted'", (limit,))

    def _clock(self) -> tuple[str, float]:
        return self._boot, _now()

    # Opening

    def _migrate(self) -> None:
        """Bring an older file to our version; a copy of it is kept beside it."""
        version, ours = self._version(), len(self._migrations)
        if version > ours:
            raise UnusableError(
                f"{self.path} was written by a newer tunnelgw (its schema is {version}, ours {ours}); "
                "use the newer version, or restore a backup of this one"
            )
        if version == ours:
            return
        if version:
            self.backup(self.path.with_name(f"{self.path.name}.schema{version}"))
        with self._transaction("IMMEDIATE"):
            for step in range(self._version(), ours):  # another process may have been faster
                for statement in self._migrations[step]:
                    self._db.execute(statement)
                self._db.execute("UPDATE meta SET value = ? WHERE name = 'schema'", (step + 1,))

    def _version(self) -> int:
        exists = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'meta'"
        return self._meta("schema") if self._db.execute(exists).fetchone() else 0


class SqliteLease:
    """A lease of a `SqliteStore`: its keys vanish `ttl_seconds` after the last renewal."""

    __slots__ = ("_store", "id", "ttl_seconds")

    def __init__(self, store: SqliteStore, identity: str, ttl_seconds: float) -> None:
        self._store = store
        self.id = identity
        self.ttl_seconds = ttl_seconds

    def renew(self) -> bool:
        """Live on; False if the lease has already ended (its keys are gone)."""
        store = self._store
        with store._transaction("IMMEDIATE"):
            store._purge()
            row = (_now() + self.ttl_seconds, self.id)
            return store._db.execute("UPDATE leases SET expires = ? WHERE id = ?", row).rowcount == 1

    def revoke(self) -> None:
        """End it now, with its keys."""
        with self._store._transaction("IMMEDIATE"):
            self._store._end_lease(self.id)


def _connect(path: Path) -> sqlite3.Connection:
    """An open connection with our settings; damage is found here rather than in the middle of a write."""
    database = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _use_write_ahead_log(database)
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA cache_size = -512")
        if database.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            damage = sqlite3.DatabaseError("the check of the file failed")
            damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise damage
    except BaseException:
        database.close()
        raise
    return database


def _use_write_ahead_log(database: sqlite3.Connection) -> None:
    """Switch once per file. SQLite does not wait for other processes here, whatever the timeout, so we do."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.02)


def _after(prefix: str) -> str:
    """The least text that is greater than everything with this prefix, as far as keys go."""
    return prefix + "\U0010ffff"


def _now() -> float:
    """Seconds since boot, sleep included; the same clock in every process."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _boot_id() -> str:
    """Which boot this is; a constant where the kernel does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"
