"""The commands of the VPS on the state of an edge that does not run."""

from __future__ import annotations

import json
import stat
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.cli.test_main import one_line
from tunnelgw.identity.invitations import decode

if TYPE_CHECKING:
    from pathlib import Path

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def edge(tunnelgw: Run, tmp_path: Path) -> Run:
    done = tunnelgw("edge", "init", "--domain", "example.com", "--config", "edge.toml", "--state-dir", "state")
    assert done.returncode == 0, done.stderr

    def run(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return tunnelgw("edge", command, *arguments, "--config", "edge.toml")

    return run


def test_init_prints_records_and_the_next_command(tunnelgw: Run, tmp_path: Path) -> None:
    done = tunnelgw("edge", "init", "--domain", "Example.com.", "--config", "edge.toml", "--state-dir", "state")
    assert done.returncode == 0
    for name in ("edge.example.com.", "*.example.com.", "example.com."):
        assert any(line.split()[:2] == [name, "A"] for line in done.stdout.splitlines())
    assert f"tunnelgw edge run --config {tmp_path / 'edge.toml'}" in done.stdout
    assert "self" not in done.stdout
    assert "Let's Encrypt" in done.stderr
    assert 'issuer = "acme"' in (tmp_path / "edge.toml").read_text()
    assert tunnelgw("check", "edge.toml").returncode == 0
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "state" / "store.db").stat().st_mode) == 0o600


@pytest.mark.parametrize("options", [("--domain", "home.lan"), ("--domain", "example.com", "--self-signed")])
def test_init_signs_itself_where_it_must_or_should(tunnelgw: Run, tmp_path: Path, options: tuple[str, ...]) -> None:
    done = tunnelgw("edge", "init", *options, "--config", "edge.toml", "--state-dir", "state")
    assert done.returncode == 0
    assert "browsers will warn" in done.stderr
    assert 'issuer = "self-signed"' in (tmp_path / "edge.toml").read_text()


def test_certificates_can_be_asked_for_only_where_they_are_ordered(edge: Run, tmp_path: Path) -> None:
    assert "no certificate was ordered" in edge("certificate", "list").stdout
    assert "does not run" in one_line(edge("certificate", "renew", "a.example.com"), 1)
    assert "there is no certificate of" in one_line(edge("certificate", "revoke", "a.example.com"), 1)
    assert "is an address" in one_line(edge("certificate", "renew", "192.0.2.1"), 2)
    config = tmp_path / "edge.toml"
    config.write_text(config.read_text().replace('issuer = "acme"', 'issuer = "self-signed"'))
    assert "can be asked for" in one_line(edge("certificate", "list"), 2)


def test_init_refuses_to_overwrite(edge: Run, tunnelgw: Run, tmp_path: Path) -> None:
    before = (tmp_path / "edge.toml").read_bytes(), (tmp_path / "state" / "store.db").read_bytes()
    again = ("edge", "init", "--domain", "example.org")
    assert "exists already" in one_line(tunnelgw(*again, "--config", "edge.toml", "--state-dir", "other"), 2)
    assert "state of an edge" in one_line(tunnelgw(*again, "--config", "other.toml", "--state-dir", "state"), 2)
    assert before == ((tmp_path / "edge.toml").read_bytes(), (tmp_path / "state" / "store.db").read_bytes())
    assert not (tmp_path / "other.toml").exists()
    assert not (tmp_path / "other").exists()


def test_init_listens_where_invitations_lead(tunnelgw: Run, tmp_path: Path) -> None:
    options = ("--domain", "example.com", "--address", "192.0.2.1:8443", "--self-signed", "--email", "a@example.com")
    assert "not allowed with" in one_line(tunnelgw("edge", "init", *options), 2)
    done = tunnelgw("edge", "init", *options[:5], "--config", "edge.toml", "--state-dir", "state")
    assert "*.example.com. A     192.0.2.1" in done.stdout
    assert '"0.0.0.0:8443"' in (tmp_path / "edge.toml").read_text()


@pytest.mark.parametrize("domain", ["192.0.2.1", "*.example.com", "exa mple.com", "https://example.com"])
def test_init_refuses_what_is_no_domain(tunnelgw: Run, tmp_path: Path, domain: str) -> None:
    assert "--domain" in one_line(tunnelgw("edge", "init", "--domain", domain, "--config", "edge.toml"), 2)
    assert not (tmp_path / "edge.toml").exists()


def test_invite_prints_the_invitation_alone(edge: Run) -> None:
    done = edge("invite", "home", "--allow-host", "*.example.org", "--allow-port", "2222", "--ttl", "10m")
    assert done.stdout.count("\n") == 1
    invitation = decode(done.stdout)
    assert invitation.address == "edge.example.com:443"
    assert invitation.secret.reveal() not in done.stderr
    status = json.loads(edge("status", "--json").stdout)
    assert [(entry["name"], entry["role"]) for entry in status["invitations"]] == [("home", "connector")]
    assert done.stdout.strip() not in json.dumps(status)
    assert not status["running"]
    assert "home" in edge("status").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("Home!",), "connector name"),
        (("home", "--allow-port", "70000"), "--allow-port"),
        (("home", "--allow-host", "a b"), "--allow-host"),
        (("home", "--allow-network", "10.0.0.1/8"), "--allow-network"),
        (("home", "--role", "king"), "--role"),
    ],
)
def test_invite_refuses_what_cannot_be(edge: Run, arguments: tuple[str, ...], words: str) -> None:
    done = edge("invite", *arguments)
    assert words in one_line(done, 2)
    assert not done.stdout
    assert json.loads(edge("status", "--json").stdout)["invitations"] == []


def test_revoke_cancels_invitations_and_names_what_is_known(edge: Run) -> None:
    edge("invite", "home")
    assert edge("revoke", "home").returncode == 0
    assert json.loads(edge("status", "--json").stdout)["invitations"] == []
    assert "not known" in one_line(edge("revoke", "nobody"), 2)
    assert "not known" in one_line(edge("grant", "nobody", "--allow-port", "22"), 2)
    assert "--allow-host" in one_line(edge("grant", "nobody"), 2)


def test_without_a_file_or_state_it_says_what_to_do(tunnelgw: Run, tmp_path: Path) -> None:
    assert "edge init" in one_line(tunnelgw("edge", "status", "--config", "edge.toml"), 2)
    (tmp_path / "edge.toml").write_text(f'domain = "example.com"\nstate_dir = "{tmp_path / "none"}"\n')
    assert "edge init" in one_line(tunnelgw("edge", "status", "--config", "edge.toml"), 1)
    assert not (tmp_path / "none").exists()
