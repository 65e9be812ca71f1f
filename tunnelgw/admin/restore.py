"""Putting a backup into force, on a machine that runs the edge or not, so that a kill at any moment leaves one state.

1. `staged` unpacks the file into `state_dir/.restore-…`, checks everything, and syncs. Nothing is in force.
2. `apply` names that folder `.restoring`: from here on the new state is the one that counts.
3. `finish` puts it in force: the store in one transaction, then folders by renaming. Whoever was killed in the middle
   leaves `.restoring` behind, and the next start (or command) finishes it before it looks at anything else.

The running edge does 2 and 3 itself when it is asked over the control socket; without one the command does.

What a backup cannot know is kept from the present state where that can be read: who was revoked stays revoked, and
certificates that a connector was given since stay good. Where it cannot (a new machine), a certificate that the
authority signed between backup and restore is believed once it is shown. Invitations are never taken over: one that was
used since would work a second time.

Invariant: whatever the moment of a kill, what is served afterwards is the old state or the new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunnelgw.admin.backup import PREVIOUS, is_state, read_backup, write_backup
from tunnelgw.config.files import cannot_write, make_private_folder, owner_to_keep, sync_folder
from tunnelgw.errors import LocalError
from tunnelgw.identity.ca import PREFIX as IDENTITY
from tunnelgw.identity.material import Material
from tunnelgw.identity.registry import Registry
from tunnelgw.store.failures import UnusableError
from tunnelgw.store.sqlite import FILE_NAME, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunnelgw.admin.backup import Backup
    from tunnelgw.config.model import EdgeConfig

PENDING = ".restoring"
_STAGING = ".restore-"
_MARK = "restored"  # key in the store: which restore it was last replaced by
_OLD, _NEW, _ASIDE, _ID = "old", "state", "aside", "id"
_LOCK_SECONDS = 60.0  # another process is finishing a restore: renames, and one write to the store


@dataclass(slots=True)
class Staged:
    """A backup, unpacked and checked in `folder`. previous: the backup of the present state; None if there is none."""

    folder: Path
    backup: Backup
    connectors: list[str]
    kept_revoked: list[str]
    previous: Path | None


@contextlib.contextmanager
def staged(config: EdgeConfig, source: Path) -> Iterator[Staged]:
    """Steps before anything changes. LocalError; nothing is left behind then, or if nobody called `apply`."""
    state_dir = config.state_dir
    read_backup(source)  # first: a bad file makes no folder
    make_private_folder(state_dir)
    _clear_leftovers(state_dir)
    folder = state_dir / f"{_STAGING}{secrets.token_hex(6)}"
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise cannot_write(folder, error) from None
    with _held(folder):  # a sign of life for who clears leftovers
        try:
            yield _stage(config, source, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _stage(config: EdgeConfig, source: Path, folder: Path) -> Staged:
    try:
        (folder / _ID).write_text(folder.name)
        backup = read_backup(source, unpack=folder)
        (folder / _NEW).mkdir(mode=0o700, exist_ok=True)
        previous = _save_previous(config)
        connectors, kept = _prepare(folder, source, config.state_dir, created=backup.created)
        _hand_over(folder, config.state_dir)
    except OSError as error:
        raise cannot_write(folder, error) from None
    return Staged(folder, backup, connectors, kept, previous)


def apply(state_dir: Path, name: str, store: SqliteStore | None = None) -> None:
    """Put what was staged under this name into force. LocalError, and then the old state is as it was.

    store: the running edge's own.
    """
    if not re.fullmatch(re.escape(_STAGING) + "[0-9a-f]{12}", name):
        raise LocalError(f"{name!r} is nothing that was staged", exit_code=2)
    with _exclusive(state_dir):
        _finish(state_dir, store)  # an earlier one that was killed
        try:
            (state_dir / name).rename(state_dir / PENDING)
            sync_folder(state_dir)
        except OSError as error:
            raise cannot_write(state_dir / PENDING, error) from None
        _finish(state_dir, store)


def finish(state_dir: Path) -> bool:
    """Finish a restore that was killed; True if there was one. Called before a store is opened. LocalError."""
    if not (state_dir / PENDING).is_dir():
        return False
    with _exclusive(state_dir):
        return _finish(state_dir, None)


def _finish(state_dir: Path, store: SqliteStore | None) -> bool:
    pending = state_dir / PENDING
    if not pending.is_dir():
        return False
    try:
        try:
            _take_store(state_dir, pending, store)
        except LocalError:
            if not (pending / _OLD).exists():  # nothing was touched: the old state stays
                _drop(state_dir, pending)
            raise
        _swap(state_dir, pending)
        if (pending / _OLD / FILE_NAME).exists():  # could not be read, so it is not in a backup of its own
            (pending / _OLD).rename(state_dir / f"{PREVIOUS}{_stamp()}")
        _drop(state_dir, pending)
    except OSError as error:
        raise LocalError(f"the restore is not complete ({error}); start the edge again to finish it") from None
    return True


def _take_store(state_dir: Path, pending: Path, store: SqliteStore | None) -> None:
    """All of the store, in one transaction; nothing if that was done before."""
    opened = _opened(state_dir, pending) if store is None else store
    try:
        done = opened.get(_MARK)
        if done is not None and done.value == (pending / _ID).read_bytes():
            return
        fresh = SqliteStore(pending / FILE_NAME)
        try:
            found = fresh.list()[0]
        finally:
            fresh.close()
        opened.replace_all(found)
    finally:
        if store is None:
            opened.close()


def _opened(state_dir: Path, pending: Path) -> SqliteStore:
    """The store to restore into; one that cannot be used is moved aside first."""
    path = state_dir / FILE_NAME
    try:
        return SqliteStore(path)
    except UnusableError:
        old = pending / _OLD
        old.mkdir(mode=0o700, exist_ok=True)
        # The file itself goes last: without it, what is beside it means nothing to SQLite.
        for name in (f"{FILE_NAME}-wal", f"{FILE_NAME}-shm", FILE_NAME):
            with contextlib.suppress(FileNotFoundError):
                (state_dir / name).rename(old / name)
        sync_folder(state_dir)
        return SqliteStore(path)


def _swap(state_dir: Path, pending: Path) -> None:
    """Folders and files by renaming: first those go that have no successor, which is noted; then the others in turn.

    None of these is away for longer than that: an edge that runs looks at them, and would have a certificate made that
    it does not find.
    """
    old, new = pending / _OLD, pending / _NEW
    if not (pending / _ASIDE).exists():
        old.mkdir(mode=0o700, exist_ok=True)
        replaced = _entries(new)
        for name in _entries(state_dir):
            if name not in replaced:
                _put_aside(state_dir / name, old)
        sync_folder(state_dir)
        sync_folder(old)
        (pending / _ASIDE).touch(mode=0o600)
        sync_folder(pending)
    for name in _entries(new):
        target = state_dir / name
        if os.path.lexists(target):
            _put_aside(target, old)
        (new / name).rename(target)
    sync_folder(state_dir)


def _put_aside(path: Path, old: Path) -> None:
    """Under another name if it was put there before: killed in between, and made anew since by an edge that ran."""
    again = os.path.lexists(old / path.name)
    path.rename(old / (f"{path.name}.{secrets.token_hex(4)}" if again else path.name))


def _entries(folder: Path) -> list[str]:
    """What of a state folder is swapped: never a socket, which belongs to the process that runs."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if is_state(entry.name, top=True)
            and (entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False) or entry.is_symlink())
        )


def _drop(state_dir: Path, pending: Path) -> None:
    """Gone at once for everybody who looks for `.restoring`, then removed."""
    gone = state_dir / f"{_STAGING}{secrets.token_hex(6)}"
    pending.rename(gone)
    sync_folder(state_dir)
    shutil.rmtree(gone, ignore_errors=True)


# Staging.


def _save_previous(config: EdgeConfig) -> Path | None:
    """The present state as a backup of its own; None if there is none, or if it cannot be read."""
    if not (config.state_dir / FILE_NAME).exists():
        return None
    previous = config.state_dir / f"{PREVIOUS}{_stamp()}.tar"
    try:
        write_backup(config, previous)
    except UnusableError:  # damaged: `_opened` keeps the file itself
        return None
    owner = owner_to_keep(config.state_dir)
    if owner is not None:
        os.chown(previous, *owner, follow_symlinks=False)
    return previous


def _prepare(folder: Path, source: Path, state_dir: Path, *, created: float) -> tuple[list[str], list[str]]:
    """Read every record once, and bring the copy up to what is known here; connectors, and those kept revoked."""
    try:
        store = SqliteStore(folder / FILE_NAME)
    except UnusableError as error:
        newer = "a newer tunnelgw made it" if "newer" in error.text else "its store is damaged"
        raise LocalError(f"{source} cannot be restored: {newer}; nothing was changed") from None
    try:
        registry = Registry(store)
        try:
            for item in store.list(IDENTITY)[0]:
                if item.key in (f"{IDENTITY}tunnels", f"{IDENTITY}edge"):
                    Material.decode(item.value)
            known = {connector.name: connector for connector in registry.connectors()}
            if store.get(f"{IDENTITY}tunnels") is None:
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise LocalError(f"{source} holds records that cannot be read; nothing was changed") from None
        registry.cancel_invitations()
        kept = _carry_over(registry, state_dir)
        if kept is None:
            registry.set_gap(created, time.time())
        store.put(_MARK, folder.name.encode())
        return sorted(name for name, one in known.items() if not one.revoked and name not in (kept or ())), kept or []
    finally:
        store.close()


def _carry_over(registry: Registry, state_dir: Path) -> list[str] | None:
    """What was decided here since the backup was made and must not be undone by it; names that stay revoked.

    None if that cannot be known.
    """
    if not (state_dir / FILE_NAME).exists():
        return None
    try:
        store = SqliteStore(state_dir / FILE_NAME)
    except UnusableError:
        return None
    try:
        return registry.catch_up(Registry(store).connectors())
    finally:
        store.close()


def _hand_over(folder: Path, state_dir: Path) -> None:
    """To the owner of the state, who runs the edge; and onto the disk."""
    owner = owner_to_keep(state_dir)
    for below, _, names, descriptor in os.fwalk(folder, follow_symlinks=False):
        if owner is not None:
            for name in names:
                os.chown(name, *owner, dir_fd=descriptor, follow_symlinks=False)
            os.fchown(descriptor, *owner)
        for name in names:
            _sync(Path(below) / name)
        os.fsync(descriptor)


def _clear_leftovers(state_dir: Path) -> None:
    """Folders of commands that were killed before they applied anything."""
    for found in state_dir.glob(f"{_STAGING}*"):
        with contextlib.suppress(OSError, BlockingIOError), _held(found):
            shutil.rmtree(found, ignore_errors=True)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder. BlockingIOError if a living process does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _exclusive(state_dir: Path) -> Iterator[None]:
    """One process finishes a restore at a time. LocalError."""
    deadline = time.monotonic() + _LOCK_SECONDS
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(_held(state_dir))
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LocalError(f"another process is restoring {state_dir}; try again") from None
            except OSError as error:
                raise LocalError(f"{state_dir}: {error.strerror}; run this as its owner or root") from None
            time.sleep(0.05)
        yield


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _stamp() -> str:
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(2)}"
