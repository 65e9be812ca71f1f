"""Changing files: comments kept, nothing half written, nothing that does not load."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tunnelgw.config import files
from tunnelgw.config.edit import add_edge, add_service, create, initial_connector, initial_edge, remove_service
from tunnelgw.config.load import ConfigError, load_connector, load_edge
from tunnelgw.errors import LocalError

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """# top
edge = "a:443" # mine
[services.a]
target = 1 # one
# about b
[services.b] # bb
target = 2
"""


def names(path: Path) -> list[str]:
    return [service.name for service in load_connector(path).services]


def test_add_change_remove(tmp_path: Path) -> None:
    path = tmp_path / "connector.toml"
    path.write_text(TEXT)
    path.chmod(0o640)
    assert add_service(path, "c", {"target": "tcp://127.0.0.1:22", "port": 2222, "host": None}) == path
    assert path.read_text().startswith(TEXT)
    add_service(path, "a", {"target": 3, "host": ["x.y"]})
    add_service(path, "a", {"target": 4, "host": None})
    assert path.read_text().startswith(TEXT.replace("target = 1", "target = 4"))
    assert names(path) == ["a", "b", "c"]
    for name in ("a", "b", "c"):
        remove_service(path, name)
    assert names(path) == []
    assert "# mine" in path.read_text()
    with pytest.raises(LocalError, match="it has: none"):
        remove_service(path, "a")
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "text",
    [
        "[services]\na = {target = 1}\nb.target = 2\n",
        "services.a.target = 1\n",
        "[services.a]\ntarget = 1\n[[x]]\n".replace("[[x]]\n", ""),
        'services = {a = {target = 1}}\nedge = "x:1"\n',
        '[services.a]\ntarget = 1\n\n[services.a2]\ntarget = 1\nhost = "q.w"\n',
        "",
    ],
)
def test_every_way_to_write_services(tmp_path: Path, text: str) -> None:
    path = tmp_path / "connector.toml"
    path.write_text(text)
    before = names(path)
    add_service(path, "new", {"target": 9})
    assert names(path) == [*before, "new"]
    add_edge(path, "edge.example.com:443")
    assert str(load_connector(path).edge[-1]) == "edge.example.com:443"
    remove_service(path, "new")
    assert names(path) == before


def test_what_does_not_load_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "connector.toml"
    path.write_text(TEXT)
    for name, values in (("x", {"target": "ftp://a"}), ("Bad Name", {"target": 1}), ("b", {"port": 1})):
        with pytest.raises(ConfigError, match=str(path)):
            add_service(path, name, values)
    assert path.read_text() == TEXT
    path.write_text("oops")
    with pytest.raises(ConfigError):
        add_service(path, "x", {"target": 1})
    assert path.read_text() == "oops"


def test_edges(tmp_path: Path) -> None:
    path = tmp_path / "new" / "connector.toml"
    add_edge(path, "a.b:443")
    add_edge(path, "a.b:443")
    assert [str(edge) for edge in load_connector(path).edge] == ["a.b:443"]
    add_edge(path, "c.d:8443")
    add_edge(path, "[::1]:443")
    assert [str(edge) for edge in load_connector(path).edge] == ["a.b:443", "c.d:8443", "[::1]:443"]
    assert "# Where identities" in path.read_text()


def test_first_files_load(tmp_path: Path) -> None:
    edge = tmp_path / "edge.toml"
    text = initial_edge(
        edge,
        domain="example.com",
        address="edge.example.com:8443",
        state_dir=str(tmp_path),
        email="me@example.com",
        issuer="acme",
        listen="127.0.0.1:8443",
        listen_http="127.0.0.1:8080",
    )
    create(edge, text, role="edge")
    config = load_edge(edge)
    assert config.tls.issuer == "acme"
    assert (config.acme.email, str(config.listen[0]), config.state_dir) == (
        "me@example.com",
        "127.0.0.1:8443",
        tmp_path,
    )
    with pytest.raises(LocalError, match="exists already"):
        create(edge, text, role="edge")
    with pytest.raises(ConfigError):
        create(tmp_path / "e2.toml", initial_edge(edge, domain="no domain", address="a:1"), role="edge")
    assert not (tmp_path / "e2.toml").exists()
    connector = tmp_path / "connector.toml"
    create(connector, initial_connector(connector), role="connector")
    assert load_connector(connector).services == ()


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real = tmp_path / "real.toml"
    real.write_text(TEXT)
    link = tmp_path / "connector.toml"
    link.symlink_to(real)
    add_service(link, "c", {"target": 3})
    assert link.is_symlink()
    assert names(real) == ["a", "b", "c"]


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "write", full)
    with pytest.raises(LocalError, match="disk is full"):
        files.write_atomic(path, b"new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_keeps_owners(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12346)
    files.make_private_folder(tmp_path / "a" / "b")
    files.write_atomic(tmp_path / "a" / "b" / "c", b"x", mode=0o600)
    files.write_atomic(tmp_path / "a" / "b" / "c", b"y")
    for path in (tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"):
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12346)
        assert path.stat().st_mode & 0o077 == 0
