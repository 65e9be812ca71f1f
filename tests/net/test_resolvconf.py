"""resolv.conf: changed, and put back by whoever finds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from tunnelgw.net import resolvconf

if TYPE_CHECKING:
    from pathlib import Path

BEFORE = "# mine\nsearch example.net\nnameserver 192.168.1.1\nnameserver fe80::1%eth0\noptions edns0\n"


def test_changed_and_restored() -> None:
    text = resolvconf.changed(BEFORE, "127.0.0.9")
    assert text.splitlines()[0] == "nameserver 127.0.0.9"
    assert resolvconf.servers(text) == ["127.0.0.9", "192.168.1.1", "fe80::1%eth0"]
    assert "search example.net" in text.splitlines()
    assert "options edns0" in text.splitlines()
    assert resolvconf.restored(text) == BEFORE
    assert resolvconf.restored(BEFORE) == BEFORE
    assert resolvconf.restored(resolvconf.changed(text, "127.0.0.8")) == BEFORE, "twice"


@given(st.text(st.characters(codec="ascii", exclude_characters="\r\v\f\x1c\x1d\x1e")))
def test_any_text_comes_back(text: str) -> None:
    whole = text if text.endswith("\n") or not text else f"{text}\n"
    assert resolvconf.restored(resolvconf.changed(whole, "127.0.0.9")) == whole


def test_in_place(tmp_path: Path) -> None:
    """A file that is mounted or linked stays the same file."""
    path, link = tmp_path / "resolv.conf", tmp_path / "link"
    path.write_text(BEFORE)
    link.symlink_to(path)
    inode = path.stat().st_ino
    resolvconf.change("127.0.0.9", link)
    assert link.is_symlink()
    assert path.stat().st_ino == inode
    assert resolvconf.restore(link)
    assert path.read_text() == BEFORE
    assert not resolvconf.restore(link), "there is nothing to put back"


def test_what_another_program_wrote_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(BEFORE)
    resolvconf.change("127.0.0.9", path)
    path.write_text("nameserver 10.0.0.1\n")
    assert not resolvconf.restore(path)
    assert path.read_text() == "nameserver 10.0.0.1\n"


def test_where_there_was_none(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    resolvconf.change("127.0.0.9", path)
    assert resolvconf.servers(resolvconf.read(path)) == ["127.0.0.9"]
    assert resolvconf.restore(path)
    assert path.read_text() == ""
