"""The SQLite store: revisions, compare-and-set across processes, leases, watching, faults and restarts."""

from __future__ import annotations

import itertools
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tunnelgw.errors import LocalError
from tunnelgw.store import sqlite
from tunnelgw.store.base import Check, Compacted, Conflict, Delete, Put
from tunnelgw.store.copies import schema_of, snapshot
from tunnelgw.store.failures import UnusableError
from tunnelgw.store.schema import MIGRATIONS
from tunnelgw.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    found = SqliteStore(tmp_path / "state" / "store.db")
    yield found
    found.close()


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(sqlite, "_now", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_put_get_list_delete(store: SqliteStore) -> None:
    assert store.get("a") is None
    first = store.put("a/1", b"x")
    second = store.put("a/2", b"y")
    store.put("b", b"z")
    assert second == first + 1
    found, revision = store.list("a/")
    assert [(item.key, item.value, item.revision) for item in found] == [("a/1", b"x", first), ("a/2", b"y", second)]
    assert revision == store.revision() == second + 1
    assert len(store.list()[0]) == 3
    store.delete("a/1")
    assert store.get("a/1") is None


def test_compare_and_set(store: SqliteStore) -> None:
    revision = store.put("a", b"1", expect=0)
    with pytest.raises(Conflict):
        store.put("a", b"2", expect=0)
    newer = store.put("a", b"2", expect=revision)
    for expect in (revision, 0):
        with pytest.raises(Conflict):
            store.delete("a", expect=expect)
    assert store.get("a").value == b"2"  # type: ignore[union-attr]
    store.delete("a", expect=newer)
    with pytest.raises(Conflict):
        store.delete("a", expect=newer)


def test_apply_is_all_or_nothing(store: SqliteStore) -> None:
    store.put("b", b"")
    before = store.revision()
    with pytest.raises(Conflict) as caught:
        store.apply([Put("a", b"1"), Delete("b"), Put("b", b"2", expect=99)])
    assert caught.value.key == "b"
    assert store.get("a") is None
    assert store.revision() == before
    revision = store.apply([Put("a", b"1"), Delete("b")])
    assert store.get("a").revision == revision  # type: ignore[union-attr]


def test_a_check_writes_nothing_and_holds_all_others_back(store: SqliteStore) -> None:
    revision = store.put("a", b"1")
    for check in (Check("a", 0), Check("a", revision + 1), Check("none", 1)):
        with pytest.raises(Conflict) as caught:
            store.apply([check, Put("b", b"")])
        assert caught.value.key == check.key
        assert store.get("b") is None
    after = store.apply([Check("a", revision), Check("none", 0), Put("b", b"")])
    assert store.get("a").revision == revision  # type: ignore[union-attr]
    assert [change.key for change in store.watch(revision)[0]] == ["b"]
    assert after == store.revision()


def test_watching_costs_what_changed_not_what_there_is(store: SqliteStore) -> None:
    """Counted in steps of SQLite's machine, with a prefix that everything has."""

    def steps() -> int:
        at = store.put("claims/last", b"")
        counted = itertools.count()
        store._db.set_progress_handler(lambda: next(counted) and None, 1)
        assert len(store.watch(at - 1, "claims/")[0]) == 1
        store._db.set_progress_handler(None, 0)
        return next(counted)

    few = steps()
    store.apply([Put(f"claims/{index}", b"") for index in range(500)])
    assert steps() < few + 20


def test_bounds(store: SqliteStore) -> None:
    for put in (Put("", b""), Put("k" * 1025, b""), Put("k", bytes(sqlite.MAX_VALUE_BYTES + 1))):
        with pytest.raises(ValueError):
            store.apply([put])


def test_watch(store: SqliteStore) -> None:
    changes, at = store.watch(0)
    assert changes == []
    store.put("a", b"1")
    store.put("a", b"2")
    store.put("c", b"3")
    store.delete("c")
    changes, at = store.watch(at)
    assert [(change.key, change.value) for change in changes] == [("a", b"2"), ("c", None)]
    assert store.watch(at) == ([], at)
    store.put("c", b"4")
    assert [change.value for change in store.watch(at, "c")[0]] == [b"4"]
    assert store.watch(at, "d")[0] == []


def test_forgotten_deletions_are_said(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "MAX_DELETED", 20)
    for index in range(30):
        store.put(str(index), b"")
        store.delete(str(index))
    with pytest.raises(Compacted):
        store.watch(0)
    at = store.list()[1]
    assert store.watch(at) == ([], at)


def test_lease_ends(store: SqliteStore, clock: Clock) -> None:
    lease = store.lease(10)
    store.put("held", b"", lease=lease.id)
    at = store.revision()
    clock.now += 9
    assert lease.renew()
    clock.now += 9
    assert store.get("held") is not None
    clock.now += 2
    assert store.get("held") is None
    assert store.list() == ([], at)
    assert [(change.key, change.value) for change in store.watch(at)[0]] == [("held", None)]
    assert not lease.renew()
    with pytest.raises(Conflict):
        store.put("held", b"", lease=lease.id)


def test_lease_revoked_and_lost_by_reboot(store: SqliteStore, clock: Clock) -> None:
    lease = store.lease(10)
    store.put("held", b"", lease=lease.id)
    store.put("free", b"")
    lease.revoke()
    assert [item.key for item in store.list()[0]] == ["free"]
    other = store.lease(1e9)
    store.put("held", b"", lease=other.id)
    store._boot = "the next boot"
    clock.now = 1.0
    assert store.get("held") is None


def test_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        store = SqliteStore(tmp_path / "state" / "store.db")
        store.put("a", b"")
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "state").iterdir()}
        assert modes == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}
        assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
        store.backup(tmp_path / "copy")
        assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(old)
    store.close()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_keeps_the_owner_of_the_folder(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    os.chown(state, 12345, 12346)
    store = SqliteStore(state / "store.db")
    store.put("a", b"")
    assert {(path.stat().st_uid, path.stat().st_gid) for path in state.iterdir()} == {(12345, 12346)}
    store.close()


def test_a_copy_replaces_everything(store: SqliteStore, tmp_path: Path) -> None:
    store.put("a", b"old")
    store.put("held", b"", lease=store.lease(100).id)
    copy = tmp_path / "copy.db"
    store.backup(copy)
    store.backup(copy)
    assert schema_of(copy) == len(MIGRATIONS)
    store.put("a", b"new")
    store.put("b", b"new")
    at = store.revision()
    source = SqliteStore(copy)
    store.replace_all(source.list()[0])
    source.close()
    assert [(item.key, item.value) for item in store.list()[0]] == [("a", b"old")]
    assert store.revision() > at
    with pytest.raises(Compacted):
        store.watch(at)
    assert {path.name for path in store.path.parent.iterdir()} == {"store.db", "store.db-wal", "store.db-shm"}


def test_a_copy_of_what_is_no_store(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    for content in (b"hello" * 1000, b"SQLite format 3\x00" + bytes(5000)):
        bad.write_bytes(content)
        for read in (schema_of, lambda path: snapshot(path, tmp_path / "copy")):
            with pytest.raises(UnusableError, match=str(bad)):
                read(bad)
    with pytest.raises(LocalError, match="does not exist"):
        snapshot(tmp_path / "none", tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_newer_schema_is_refused_and_older_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = SqliteStore(path)
    store.put("a", b"1")
    store.close()
    newer = (*MIGRATIONS, ("CREATE TABLE more (x)", "INSERT INTO more VALUES (1)"))
    store = SqliteStore(path, migrations=newer)
    assert store.get("a").value == b"1"  # type: ignore[union-attr]
    store.close()
    with pytest.raises(LocalError, match="newer tunnelgw"):
        SqliteStore(path)
    old = SqliteStore(tmp_path / "store.db.schema1")
    assert old.get("a").value == b"1"  # type: ignore[union-attr]
    old.close()


def test_failed_migration_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    SqliteStore(path).close()
    with pytest.raises(LocalError):
        SqliteStore(path, migrations=(*MIGRATIONS, ("CREATE TABLE more (x)", "nonsense")))
    SqliteStore(path).close()


def test_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(LocalError, match=r"store\.db is damaged.*restore"):
        SqliteStore(path)


def test_disk_full(store: SqliteStore) -> None:
    store.put("a", b"kept")
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LocalError, match="disk is full"):
        store.put("b", bytes(500_000))
    assert store.get("b") is None
    assert store.get("a").value == b"kept"  # type: ignore[union-attr]
    store._db.execute("PRAGMA max_page_count = 1000000")
    store.put("b", bytes(500_000))


def test_read_only(store: SqliteStore) -> None:
    store._db.execute("PRAGMA query_only = 1")
    with pytest.raises(LocalError, match="read-only"):
        store.put("b", b"")


def test_locked(store: SqliteStore) -> None:
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store._db.execute("PRAGMA busy_timeout = 10")
    with pytest.raises(LocalError, match="locked by another process"):
        store.put("b", b"")
    assert store.get("b") is None
    other.execute("ROLLBACK")
    other.close()


INCREMENT = """
import sys, pathlib
from tunnelgw.store.base import Conflict
from tunnelgw.store.sqlite import SqliteStore
store = SqliteStore(pathlib.Path(sys.argv[1]))
for _ in range(50):
    while True:
        old = store.get("counter")
        try:
            store.put("counter", str(int(old.value if old else 0) + 1).encode(), expect=old.revision if old else 0)
            break
        except Conflict:
            pass
"""


def test_compare_and_set_from_several_processes(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    writers = [subprocess.Popen([sys.executable, "-c", INCREMENT, str(path)]) for _ in range(4)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0, 0]
    store = SqliteStore(path)
    assert store.get("counter").value == b"200"  # type: ignore[union-attr]
    assert store.revision() == 200
    store.close()


def test_killed_while_writing(tmp_path: Path) -> None:
    """200 times: every write that was acknowledged is there, whole, and at most the one in progress besides."""
    command = [sys.executable, "-m", "tests.store.killed", tmp_path / "store.db", os.environ.get("KILLS", "200")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    kills, acknowledged = map(int, done.stdout.split())
    assert kills == int(command[-1])
    assert acknowledged > kills


def test_trouble_is_remembered_until_a_write_succeeds(store: SqliteStore) -> None:
    store.put("a", b"")
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LocalError):
        store.put("b", bytes(500_000))
    assert "disk is full" in store.trouble
    store.get("a")
    assert store.trouble
    store.probe()
    assert not store.trouble
    store._db.execute("PRAGMA query_only = 1")
    with pytest.raises(LocalError):
        store.probe()
    assert "read-only" in store.trouble


def test_a_full_disk_is_trouble_also_while_small_writes_find_place(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = os.statvfs(store.path.parent)
    full = os.statvfs_result((*free[:4], 1, *free[5:]))  # one block
    monkeypatch.setattr("tunnelgw.store.sqlite.os.statvfs", lambda _: full)
    with pytest.raises(LocalError, match="the disk is full"):
        store.probe()
    assert "disk is full" in store.trouble
    monkeypatch.undo()
    store.probe()
    assert not store.trouble


def test_a_lock_of_another_process_is_no_trouble(store: SqliteStore) -> None:
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store.serve()
    with pytest.raises(LocalError):
        store.probe()
    assert not store.trouble
    other.execute("ROLLBACK")
    other.close()


def test_who_serves_does_not_wait_for_a_lock(tmp_path: Path) -> None:
    """Another process that stands still within a write must not stand a whole edge still."""
    store = SqliteStore(tmp_path / "store.db")
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store.serve()
    began = time.monotonic()
    with pytest.raises(LocalError, match="locked"):
        store.put("a", b"b")
    assert time.monotonic() - began < 4.0
    assert store.get("a") is None
    other.execute("ROLLBACK")
    store.put("a", b"b")
    other.close()
    store.close()
