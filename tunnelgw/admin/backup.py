"""One file that holds what makes an edge that edge: its store, the folders beside it, and its configuration.

A tar file that any tar can read; only `restore` should unpack it for use.

    manifest.json      format, software, schema of the store, domain, Unix time
    store.db           a consistent copy
    edge.toml          as it is now
    state/<name>...    every regular file in state_dir and below but the store's own, links and hidden files left out
    sha256             of all bytes before this member

It is taken while the edge runs. Invariants: the file holds private keys, so nobody but its owner could ever read it;
nothing that a link points at gets into it; a file of that name is a complete backup, or what was there before; reading
one byte less, or another one, is an error before anything is done with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import secrets
import stat
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunnelgw import __version__
from tunnelgw.admin.call import SOCKET_NAME
from tunnelgw.config.files import cannot_write, make_private_folder, sync_folder
from tunnelgw.errors import LocalError
from tunnelgw.store.copies import schema_of, snapshot
from tunnelgw.store.sqlite import FILE_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunnelgw.config.model import EdgeConfig

FORMAT = 1
MANIFEST, CONFIG, SEAL, STATE = "manifest.json", "edge.toml", "sha256", "state/"
PREVIOUS = "before-restore-"  # what `restore` keeps; a backup of backups helps nobody
# An edge with a thousand certificates of its own has 3,000 files of 4 KB, and a store of a few MB.
MAX_FILES = 20_000
MAX_FILE_BYTES = 64 << 20
MAX_BYTES = 256 << 20
_TRIES = 5  # certificates are being written right now: look again
_BLOCK = 1 << 16
_SAFE = re.compile(r"[^\x00-\x1f\x7f/]{1,255}")


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup file that was read and found whole. created: Unix seconds. config: text of edge.toml."""

    path: Path
    domain: str
    created: float
    software: str
    schema: int
    config: str
    names: tuple[str, ...]


def write_backup(config: EdgeConfig, target: Path, *, force: bool = False) -> dict[str, Any]:
    """Write `target` (0600) and say what is in it. LocalError; exit code 2 if it exists and `force` is not given."""
    if os.path.lexists(target) and not force:
        raise LocalError(f"{target} exists already; name another file, or overwrite it with --force", exit_code=2)
    copy = config.state_dir / f".backup-{secrets.token_hex(6)}"
    try:
        snapshot(config.state_dir / FILE_NAME, copy)
        files = _settled(config.state_dir)
        database = copy.read_bytes()
        schema = schema_of(copy)
    except OSError as error:
        raise LocalError(f"cannot read {config.state_dir}: {error.strerror}; run this as its owner or root") from None
    finally:
        with contextlib.suppress(OSError):
            copy.unlink()
    now = time.time()
    manifest = {
        "format": FORMAT, "software": __version__, "schema": schema, "domain": config.domain, "created": int(now),
    }  # fmt: skip
    members = {
        MANIFEST: json.dumps(manifest, indent=1).encode(),
        FILE_NAME: database,
        CONFIG: config.path.read_bytes(),
        **{STATE + name: content for name, content in sorted(files.items())},
    }
    _write(target, _packed(members, now), force=force)
    return {"file": str(target), "bytes": target.stat().st_size, "files": len(files), **manifest}


def _settled(state_dir: Path) -> dict[str, bytes]:
    """Every file with its content, at a moment when none of them changed."""
    for attempt in range(_TRIES):
        time.sleep(0.1 * attempt)
        before = {name: stamp for name, stamp, _ in _walk(state_dir, read=False)}
        found = {name: content for name, _, content in _walk(state_dir, read=True)}
        after = {name: stamp for name, stamp, _ in _walk(state_dir, read=False)}
        if before == after and found.keys() == after.keys():
            return found
    raise LocalError(f"the files in {state_dir} keep changing; try again in a minute")


def _walk(state_dir: Path, *, read: bool) -> Iterator[tuple[str, tuple[int, ...], bytes]]:
    """Name, stamp and (if asked for) content of every file to keep. Folders are held open: no link is ever followed."""
    count = size = 0
    for folder, folders, names, descriptor in os.fwalk(state_dir, follow_symlinks=False):
        below = Path(folder).relative_to(state_dir)
        top = below == Path()
        folders[:] = sorted(name for name in folders if is_state(name, top=top))
        for name in sorted(names):
            if not is_state(name, top=top):
                continue
            with contextlib.suppress(FileNotFoundError):  # gone since it was listed: the stamps will not agree
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if not stat.S_ISREG(status.st_mode):
                    continue
                content = _content(name, descriptor) if read else b""
                count, size = count + 1, size + status.st_size
                if count > MAX_FILES or size > MAX_BYTES or status.st_size > MAX_FILE_BYTES:
                    raise LocalError(f"{state_dir} holds more than an edge keeps there; move away what is not its own")
                yield str(below / name), (status.st_mtime_ns, status.st_size, status.st_ino), content


def is_state(name: str, *, top: bool) -> bool:
    """Is this entry of a folder part of the state? top: of state_dir itself."""
    return not name.startswith(".") and not (top and name.startswith((FILE_NAME, SOCKET_NAME, PREVIOUS)))


def _content(name: str, descriptor: int) -> bytes:
    opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=descriptor)
    with open(opened, "rb") as file:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise FileNotFoundError
        return file.read(MAX_FILE_BYTES)


def _packed(members: dict[str, bytes], now: float) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members.items():
            _add(archive, name, content, now)
        seal = hashlib.sha256(buffer.getbuffer()).hexdigest()
        _add(archive, SEAL, seal.encode(), now)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes, now: float) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(content), 0o600, int(now)
    archive.addfile(member, io.BytesIO(content))


def _write(target: Path, content: bytes, *, force: bool) -> None:
    """Under its name only once it is whole; what has that name is replaced by `force` only, and never written into."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        if force:
            temporary.rename(target)
        else:
            _name(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        raise cannot_write(target, error) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _name(temporary: Path, target: Path) -> None:
    """Give a finished file its name, which must be free."""
    try:
        os.link(temporary, target, follow_symlinks=False)
    except FileExistsError:
        raise LocalError(f"{target} exists already; name another file", exit_code=2) from None
    except OSError:  # a file system without links (a USB stick): the name was free a moment ago
        temporary.rename(target)


def read_backup(path: Path, unpack: Path | None = None) -> Backup:
    """Check a backup as a whole; then, if asked for, unpack it into a folder that exists (0600 and 0700).

    LocalError if it is not a backup, is damaged, or was made by a newer version; exit code 2 if there is no such file.
    """
    try:
        with path.open("rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise LocalError(f"{path} is not a file", exit_code=2)
            return _read(path, file, unpack)
    except (tarfile.TarError, ValueError, KeyError, TypeError, EOFError, OverflowError, RecursionError):
        raise _unreadable(path) from None
    except OSError as error:
        raise LocalError(f"cannot read {path}: {error.strerror}", exit_code=2) from None


def _read(path: Path, file: io.BufferedReader, unpack: Path | None) -> Backup:
    size = os.fstat(file.fileno()).st_size
    if size > 2 * MAX_BYTES or size % tarfile.RECORDSIZE:
        raise _unreadable(path)
    with tarfile.open(fileobj=file, mode="r:") as archive:
        members = archive.getmembers()
        _check_seal(path, file, archive, members)
        _check_names(path, members)
        first = _text(archive, members[0])
        manifest = json.loads(first)
        if manifest["format"] > FORMAT:
            raise LocalError(f"{path} was made by a newer tunnelgw ({manifest['software']}); use that or a newer one")
        contents = {member.name: member for member in members[1:-1]}
        if FILE_NAME not in contents or CONFIG not in contents:
            raise _unreadable(path)
        backup = Backup(
            path=path,
            domain=str(manifest["domain"]),
            created=float(manifest["created"]),
            software=str(manifest["software"]),
            schema=int(manifest["schema"]),
            config=_text(archive, contents[CONFIG]),
            names=tuple(name for name in contents if name.startswith(STATE)),
        )
        if unpack is not None:
            for name, member in contents.items():
                if name != CONFIG:
                    _unpack(archive, member, unpack / name)
    return backup


def _check_seal(path: Path, file: io.BufferedReader, archive: tarfile.TarFile, members: list[tarfile.TarInfo]) -> None:
    """The last member says the digest of everything before it, and only zeros follow."""
    if len(members) < 3 or members[-1].name != SEAL or len(members) > MAX_FILES + 4:
        raise _unreadable(path)
    seal = members[-1]
    said = _text(archive, seal)
    digest, left = hashlib.sha256(), seal.offset
    file.seek(0)
    while left:
        data = file.read(min(_BLOCK, left))
        if not data:
            raise _unreadable(path)
        digest.update(data)
        left -= len(data)
    file.seek(seal.offset_data)
    ends = file.read()
    if (
        digest.hexdigest() != said
        or ends[: len(said)] != said.encode()
        or len(ends) < 3 * 512
        or any(ends[len(said) :])
    ):
        raise _unreadable(path)


def _check_names(path: Path, members: list[tarfile.TarInfo]) -> None:
    """Regular files only, each once, under names that stay where they belong."""
    seen: set[str] = set()
    if members[0].name != MANIFEST:
        raise _unreadable(path)
    for member in members:
        name = member.name
        if member.type != tarfile.REGTYPE or name in seen or member.size > MAX_FILE_BYTES or not _is_known(name):
            raise _unreadable(path)
        seen.add(name)


def _is_known(name: str) -> bool:
    if not name.startswith(STATE):
        return name in (MANIFEST, FILE_NAME, CONFIG, SEAL)
    parts = name.removeprefix(STATE).split("/")
    return all(_SAFE.fullmatch(part) and is_state(part, top=not index) for index, part in enumerate(parts))


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = archive.extractfile(member)
    if file is None or member.size > 4 << 20:
        raise ValueError
    return file.read().decode()


def _unpack(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = archive.extractfile(member)
    if source is None:
        raise ValueError
    make_private_folder(target.parent)
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            while data := source.read(_BLOCK):
                file.write(data)
    except OSError as error:
        raise cannot_write(target, error) from None


def _unreadable(path: Path) -> LocalError:
    return LocalError(f"{path} is damaged, cut short, or not a backup of an edge; nothing was changed")
