"""The tables of the SQLite store, and how an old file becomes a new one.

`MIGRATIONS[n]` takes a file from version n to n + 1, in one transaction, after a copy was put beside it. A file that a
newer version wrote is refused, never changed. Invariant: the version in `meta` is the number of migrations applied.
"""

from __future__ import annotations

Migration = tuple[str, ...]

MIGRATIONS: tuple[Migration, ...] = (
    (
        "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
        "INSERT INTO meta VALUES ('schema', 0), ('revision', 0), ('compacted', 0)",
        "CREATE TABLE kv (key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL, lease TEXT NOT NULL)",
        "CREATE INDEX kv_revision ON kv (revision)",
        "CREATE INDEX kv_lease ON kv (lease) WHERE lease <> ''",
        "CREATE TABLE deleted (key TEXT PRIMARY KEY, revision INTEGER NOT NULL)",
        "CREATE INDEX deleted_revision ON deleted (revision)",
        "CREATE TABLE leases (id TEXT PRIMARY KEY, boot TEXT NOT NULL, expires REAL NOT NULL, ttl REAL NOT NULL)",
    ),
)
