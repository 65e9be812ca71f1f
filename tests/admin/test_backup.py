"""Backup and restore on a state that no edge uses: what is kept, what is refused, and kills at every step."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.admin.edge_state import contents, join, make_edge, registry_of, write_pair
from tunnelgw.access.grants import Grant
from tunnelgw.admin import backup as backups
from tunnelgw.admin import restore as restores
from tunnelgw.admin.backup import read_backup, write_backup
from tunnelgw.config.load import load_edge
from tunnelgw.errors import LocalError, Refused
from tunnelgw.identity import certs
from tunnelgw.store import sqlite
from tunnelgw.store.schema import MIGRATIONS
from tunnelgw.store.sqlite import FILE_NAME, SqliteStore

if TYPE_CHECKING:
    from tunnelgw.config.model import EdgeConfig
    from tunnelgw.identity.invitations import Invitation
    from tunnelgw.identity.registry import Registry

ROOT = Path(__file__).parents[2]


@pytest.fixture
def edge(tmp_path: Path) -> EdgeConfig:
    return make_edge(tmp_path / "edge", "home")


@pytest.fixture
def saved(edge: EdgeConfig, tmp_path: Path) -> Path:
    write_backup(edge, tmp_path / "edge.backup")
    return tmp_path / "edge.backup"


def restore(config: EdgeConfig, source: Path) -> restores.Staged:
    with restores.staged(config, source) as staged:
        restores.apply(config.state_dir, staged.folder.name)
    return staged


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_everything_comes_back(edge: EdgeConfig, saved: Path) -> None:
    then = contents(edge)
    with registry_of(edge) as registry:
        join(registry, "later")
    write_pair(edge, "b.example.com", "new")
    write_pair(edge, "a.example.com", "other")
    (edge.state_dir / "acme").mkdir()
    (edge.state_dir / "acme" / "account.json").write_text("{}")
    now = contents(edge)
    staged = restore(edge, saved)
    assert contents(edge) == then
    assert staged.connectors == ["home"]
    assert {path.name for path in edge.state_dir.iterdir() if path.name.startswith(".")} == set()
    assert staged.previous is not None
    restore(edge, staged.previous)
    assert contents(edge) == now, "and back again"


def test_on_a_new_machine(edge: EdgeConfig, saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "edge.toml"
    other.parent.mkdir()
    other.write_text(read_backup(saved).config.replace(str(edge.state_dir), str(other.parent / "state")))
    config = load_edge(other)
    staged = restore(config, saved)
    assert contents(config) == contents(edge)
    assert staged.previous is None
    modes = {path.stat().st_mode & 0o777 for path in config.state_dir.rglob("*") if path.is_file()}
    assert modes == {0o600}
    assert {path.stat().st_mode & 0o777 for path in config.state_dir.rglob("*") if path.is_dir()} == {0o700}


def test_the_file_is_private_and_readable_by_tar(edge: EdgeConfig, saved: Path) -> None:
    assert saved.stat().st_mode & 0o777 == 0o600
    with tarfile.open(saved) as archive:
        names = archive.getnames()
    assert names[0] == "manifest.json"
    assert names[-1] == "sha256"
    assert {"store.db", "edge.toml", "state/certificates/deep/a.example.com.key"} <= set(names)
    assert subprocess.run(["tar", "-tf", saved], capture_output=True, check=False).returncode == 0
    assert not [name for name in tree(saved.parent) if name.startswith(".") or "/." in name], "nothing left behind"


def test_nothing_is_overwritten_and_no_link_followed(edge: EdgeConfig, saved: Path, tmp_path: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(LocalError, match="--force") as caught:
        write_backup(edge, saved)
    assert caught.value.exit_code == 2
    assert saved.read_bytes() == before
    secret, link = tmp_path / "secret", tmp_path / "link"
    secret.write_text("not ours")
    link.symlink_to(secret)
    with pytest.raises(LocalError):
        write_backup(edge, link)
    (edge.state_dir / "certificates" / "linked.key").symlink_to(secret)
    (edge.state_dir / "elsewhere").symlink_to(tmp_path)
    os.mkfifo(edge.state_dir / "certificates" / "pipe")
    write_backup(edge, link, force=True)
    assert secret.read_text() == "not ours"
    assert not link.is_symlink()
    with tarfile.open(link) as archive:
        assert not [name for name in archive.getnames() if "linked" in name or "elsewhere" in name or "pipe" in name]
    assert b"not ours" not in link.read_bytes()


def test_a_damaged_file_is_refused_and_nothing_changes(edge: EdgeConfig, saved: Path, tmp_path: Path) -> None:
    before, whole, bad = tree(edge.state_dir), saved.read_bytes(), tmp_path / "bad"
    rng = random.Random(7)
    with tarfile.open(saved) as archive:
        heads = [member.offset for member in archive.getmembers()]
    places = [
        *(rng.randrange(len(whole)) for _ in range(300)),
        *(at + rng.randrange(512) for at in heads for _ in "abc"),
    ]
    wrong = [whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :] for at in places]
    wrong += [whole[:size] for size in (0, 1, 511, 512, 10240, len(whole) - 10240, len(whole) - 512, len(whole) - 1)]
    wrong += [whole + b"x", whole + whole, b"hello", b"\x1f\x8b" + whole, bytes(10240)]
    for content in wrong:
        bad.write_bytes(content)
        with pytest.raises(LocalError, match=str(bad)) as caught:
            read_backup(bad)
        assert "\n" not in caught.value.text
    with pytest.raises(LocalError, match="damaged"), restores.staged(edge, bad):
        pass
    assert tree(edge.state_dir) == before
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(LocalError) as caught:
            read_backup(place)
        assert caught.value.exit_code == 2


def forged(saved: Path, target: Path, change: object) -> Path:
    """A backup with other members, sealed correctly."""
    with tarfile.open(saved) as archive:
        members = {m.name: archive.extractfile(m).read() for m in archive.getmembers()[:-1]}  # type: ignore[union-attr]
    change(members)  # type: ignore[operator]
    target.write_bytes(backups._packed(members, 0.0))
    return target


@pytest.mark.parametrize(
    "name", ["state/../x", "/etc/x", "state/", "state//x", "state/.x", "other", "state/store.db", "state/control.sock"]
)
def test_names_that_lead_elsewhere_are_refused(saved: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(LocalError, match="not a backup"):
        read_backup(forged(saved, tmp_path / "bad", lambda members: members.update({name: b"x"})))


@pytest.mark.parametrize("name", ["store.db", "edge.toml"])
def test_what_must_be_there(saved: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(LocalError):
        read_backup(forged(saved, tmp_path / "bad", lambda members: members.pop(name)))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_only_files_are_taken(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: bytes) -> None:
    real = backups._add

    def add(archive: tarfile.TarFile, name: str, content: bytes, now: float) -> None:
        if name == "state/evil":
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        else:
            real(archive, name, content, now)

    monkeypatch.setattr(backups, "_add", add)
    with pytest.raises(LocalError, match="not a backup"):
        read_backup(forged(saved, tmp_path / "bad", lambda members: members.update({"state/evil": b""})))


def test_a_newer_backup_is_refused(edge: EdgeConfig, saved: Path, tmp_path: Path) -> None:
    def newer_format(members: dict[str, bytes]) -> None:
        members["manifest.json"] = json.dumps({**json.loads(members["manifest.json"]), "format": 2}).encode()

    with pytest.raises(LocalError, match="newer tunnelgw"):
        read_backup(forged(saved, tmp_path / "bad", newer_format))

    def newer_store(members: dict[str, bytes]) -> None:
        file = tmp_path / "newer.db"
        file.write_bytes(members[FILE_NAME])
        SqliteStore(file, migrations=(*MIGRATIONS, ("CREATE TABLE more (x)",))).close()
        members[FILE_NAME] = file.read_bytes()

    before = contents(edge), tree(edge.state_dir)
    bad = forged(saved, tmp_path / "bad", newer_store)
    with pytest.raises(LocalError, match="newer tunnelgw made it; nothing was changed"), restores.staged(edge, bad):
        pass
    after = {name for name in tree(edge.state_dir) if not name.startswith("before-restore-")}
    assert (contents(edge), after) == before


def test_an_older_store_in_a_backup_is_migrated(edge: EdgeConfig, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        SqliteStore.__init__, "__kwdefaults__", {"migrations": (*MIGRATIONS, ("CREATE TABLE more (x)",))}
    )
    restore(edge, saved)
    assert sqlite.SqliteStore(edge.state_dir / FILE_NAME)._version() == len(MIGRATIONS) + 1


def test_records_that_cannot_be_read(edge: EdgeConfig, saved: Path, tmp_path: Path) -> None:
    def change(members: dict[str, bytes]) -> None:
        file = tmp_path / "odd.db"
        file.write_bytes(members[FILE_NAME])
        store = SqliteStore(file)
        store.put("connectors/home", b"nonsense")
        store.close()
        members[FILE_NAME] = file.read_bytes()

    with (
        pytest.raises(LocalError, match="cannot be read; nothing was changed"),
        restores.staged(edge, forged(saved, tmp_path / "bad", change)),
    ):
        pass


def use(registry: object, invitation: Invitation) -> None:
    registry.accept(  # type: ignore[attr-defined]
        invitation.id, invitation.secret.reveal(), certs.make_request(certs.make_key())
    )


def test_what_was_decided_since_is_not_undone(edge: EdgeConfig, tmp_path: Path) -> None:
    with registry_of(edge) as registry:
        join(registry, "stolen")
        join(registry, "renewed")
        invitation = registry.invite("guest", address="edge.example.com:443")
    write_backup(edge, tmp_path / "file")
    with registry_of(edge) as registry:
        registry.revoke("stolen")
        serial = join(registry, "renewed")
        use(registry, invitation)
    staged = restore(edge, tmp_path / "file")
    assert staged.kept_revoked == ["stolen"]
    assert staged.connectors == ["home", "renewed"]
    with registry_of(edge) as registry:
        assert [one.name for one in registry.connectors() if one.revoked] == ["stolen"]
        assert registry.get("guest") is None
        assert registry.get("renewed").issued[0].serial == serial  # type: ignore[union-attr]
        assert registry.invitations() == []
        with pytest.raises(Exception, match="invitation"):
            use(registry, invitation)


def test_certificates_that_were_renewed_since_are_believed_on_a_new_machine(edge: EdgeConfig, tmp_path: Path) -> None:
    """A month-old backup must not lock out whoever renewed meanwhile; what the backup replaced stays replaced."""
    now = time.time()
    key = certs.make_key()
    with registry_of(edge) as registry:
        replaced = shown(registry, "home", certs.make_request(key), now=now - 9 * 86400)
        join(registry, "home")
    write_backup(edge, tmp_path / "file")
    with registry_of(edge) as registry:
        renewed = shown(registry, "home", certs.make_request(key), now=now + 5)
        later = shown(registry, "home", certs.make_request(key), now=now + 86400)
    (tmp_path / "other").mkdir()
    file = tmp_path / "other" / "edge.toml"
    file.write_text(edge.path.read_text().replace(str(edge.state_dir), str(tmp_path / "other" / "state")))
    config = load_edge(file)
    moved = time.time() + 60
    monkey = pytest.MonkeyPatch()
    monkey.setattr(restores.time, "time", lambda: moved)
    restore(config, tmp_path / "file")
    monkey.undo()
    with registry_of(config) as registry:
        for _ in range(2):
            assert registry.authorise(renewed).issued[0].serial == renewed["serialNumber"]
        for wrong in (replaced, later):
            with pytest.raises(Refused, match="another key"):
                registry.authorise(wrong)
        registry.revoke("home")
        with pytest.raises(Refused, match="revoked"):
            registry.authorise(renewed)


def shown(registry: Registry, name: str, csr: str, *, now: float) -> dict[str, Any]:
    """What `getpeercert` says of a certificate that this connector renews at that time."""
    made = registry.renew(name, csr, now=now)

    def text(moment: float) -> str:
        return time.strftime("%b %d %H:%M:%S %Y GMT", time.gmtime(moment))

    return {
        "subject": ((("commonName", name),),),
        "serialNumber": made.connector.issued[0].serial,
        "notBefore": text(int(now) - 86400),
        "notAfter": text(int(now) + 90 * 86400),
    }


@pytest.mark.parametrize("how", ["damaged", "newer"])
def test_a_store_that_cannot_be_used_is_replaced_and_kept(edge: EdgeConfig, saved: Path, how: str) -> None:
    then, path = contents(edge), edge.state_dir / FILE_NAME
    if how == "damaged":
        path.write_bytes(b"damaged" * 10_000)
    else:
        SqliteStore(path, migrations=(*MIGRATIONS, ("CREATE TABLE more (x)",))).close()
    broken = path.read_bytes()
    with pytest.raises(LocalError):
        SqliteStore(path)
    restore(edge, saved)
    assert contents(edge) == then
    (kept,) = [found for found in edge.state_dir.glob("before-restore-*") if found.is_dir()]
    assert (kept / FILE_NAME).read_bytes() == broken
    assert (kept / "certificates").is_dir()


def test_a_full_disk_changes_nothing(edge: EdgeConfig, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with registry_of(edge) as registry:
        join(registry, "later")
    now = contents(edge)

    def full(_store: SqliteStore, _found: object) -> None:
        raise LocalError("the disk is full")

    monkeypatch.setattr(SqliteStore, "replace_all", full)
    with pytest.raises(LocalError, match="disk is full"):
        restore(edge, saved)
    assert contents(edge) == now
    assert not (edge.state_dir / restores.PENDING).exists()


def test_what_has_a_successor_is_not_away_while_the_disk_takes_its_time(
    edge: EdgeConfig, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edge that runs would see names without a certificate, and have some made."""
    write_pair(edge, "a.example.com", "old")
    there: list[bool] = []
    real = restores.sync_folder

    def synced(folder: Path) -> None:
        there.append((edge.state_dir / "certificates").is_dir())
        real(folder)

    monkeypatch.setattr(restores, "sync_folder", synced)
    restore(edge, saved)
    assert len(there) > 3
    assert all(there)


def test_what_was_put_aside_before_a_kill_and_made_anew_since_is_put_aside_too(edge: EdgeConfig, saved: Path) -> None:
    (edge.state_dir / "acme").mkdir()
    with restores.staged(edge, saved) as staged:
        staged.folder.rename(edge.state_dir / restores.PENDING)
    old = edge.state_dir / restores.PENDING / "old" / "acme"
    old.mkdir(parents=True)
    for folder in (old, edge.state_dir / "acme"):
        (folder / "account.json").write_text("{}")
    assert restores.finish(edge.state_dir)
    assert not (edge.state_dir / "acme").exists()
    assert not (edge.state_dir / restores.PENDING).exists()


def test_only_what_was_staged_is_applied(edge: EdgeConfig) -> None:
    for name in ("../x", ".restore-", "certificates", ".restore-0123456789ab/../x"):
        with pytest.raises(LocalError):
            restores.apply(edge.state_dir, name)
    assert not restores.finish(edge.state_dir)


def test_killed_at_every_step(edge: EdgeConfig, saved: Path, tmp_path: Path) -> None:
    """SIGKILL before each call that changes the disk: what the next start finds is the old state or the new one."""
    with registry_of(edge) as registry:
        registry.set_grant("home", Grant(hosts=("x.example.com",)))
    write_pair(edge, "a.example.com", "old")
    write_pair(edge, "old.example.com", "old")
    write_backup(edge, tmp_path / "old.backup")
    command = [sys.executable, "-m", "tests.admin.killed", edge.path, saved, tmp_path / "old.backup"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    seen = done.stdout.split()
    assert set(seen) == {"old", "new"}
    assert seen == sorted(seen, reverse=True), "once it is decided it stays decided"
    assert len(seen) > 25
    assert not (edge.state_dir / restores.PENDING).exists()
