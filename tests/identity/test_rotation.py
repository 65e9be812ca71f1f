"""The tunnels' authority is replaced in steps, by a clock that is moved; nobody who was there in each step is lost."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest

from tests.net.certs import shake
from tunnelgw.errors import LocalError, RemoteError
from tunnelgw.identity import certs, home
from tunnelgw.identity.ca import Authorities
from tunnelgw.identity.material import digest
from tunnelgw.identity.registry import Registry
from tunnelgw.identity.rotation import BEFORE_END_SECONDS, DAY, STEP_SECONDS, Rotation
from tunnelgw.net import tls
from tunnelgw.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tunnelgw.identity.invitations import Invitation

ADDRESS = "edge.example.com:443"


class Edge:
    """Its store and what it makes of it; `at` is its clock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = SqliteStore(folder / "edge" / "store.db")
        self.authorities = Authorities(self.store)
        self.registry = Registry(self.store)
        self.at = float(self.authorities.edge().not_before + DAY)

    def wait(self, seconds: float, *, starting: bool = False) -> None:
        self.at += seconds
        self.authorities.advance(now=self.at, starting=starting)

    @property
    def step(self) -> str:
        rotation = self.authorities.rotation()
        return rotation.step if rotation is not None else ""

    def context(self) -> ssl.SSLContext:
        files = self.authorities.edge_files(self.folder / "edge")
        return tls.tunnel_server_context(files.cert, files.key, authority=self.registry.authority)

    def invite(self) -> Invitation:
        return self.registry.invite("home", address=ADDRESS, now=self.at)

    def join(self, invitation: Invitation, folder: Path) -> home.HomeIdentity:
        """As the two sides of a join do it, the check of the edge included."""
        far, near = shake(self.context(), tls.joining_context(), "tgw.invalid")
        assert far.version() == "TLSv1.3"
        home.check_edge(self.registry.authority, pin=invitation.pin, leaf=near.getpeercert(binary_form=True) or b"")
        request = home.new_request()
        accepted = self.registry.accept(invitation.id, invitation.secret.reveal(), request.csr, now=self.at)
        return home.save_joined(
            folder, edge=ADDRESS, request=request, pin=invitation.pin, name="home", role="connector",
            domain="example.com", certificate=accepted.certificate, authority=accepted.authority,
        )  # fmt: skip

    def renew(self, identity: home.HomeIdentity) -> None:
        renewed = self.registry.renew("home", identity.make_request(), now=self.at)
        identity.install(renewed.certificate, renewed.authority)


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    made = Edge(tmp_path)
    yield made
    made.store.close()


def meet(edge: Edge, identity: home.HomeIdentity) -> None:
    """They shake hands; ssl.SSLError if either does not trust the other."""
    client = tls.tunnel_client_context(identity.certificate_path, identity.key_path, authority=identity.authority)
    shake(edge.context(), client, "tgw.invalid")


def test_a_connector_that_is_there_in_each_step_never_notices(edge: Edge, tmp_path: Path) -> None:
    identity = edge.join(edge.invite(), tmp_path / "home")
    first = edge.authorities.tunnels().pin
    edge.authorities.rotate(30 * DAY, now=edge.at)
    assert edge.step == "learning"
    meet(edge, identity)
    identity.learn(edge.registry.authority)
    assert not identity.outdated, "nothing is signed by the new one yet"
    edge.wait(30 * DAY - 1)
    assert (edge.step, edge.authorities.tunnels().pin) == ("learning", first)
    meet(edge, identity)
    edge.wait(1)
    assert edge.step == "retiring"
    assert edge.authorities.tunnels().pin != first
    meet(edge, identity)
    identity.learn(edge.registry.authority)
    assert identity.outdated, "its certificate is of the old one"
    assert identity.renew_at == 0.0
    again = home.load(tmp_path / "home", ADDRESS)
    assert again == identity, "also after a restart"
    edge.renew(identity)
    assert not identity.outdated
    meet(edge, identity)
    edge.wait(30 * DAY)
    assert edge.step == ""
    meet(edge, identity)
    identity.learn(edge.registry.authority)
    assert identity.authority.count("BEGIN CERTIFICATE") == 1
    meet(edge, identity)
    assert edge.authorities.due_at(now=edge.at) > edge.at


def test_who_was_away_for_a_step_is_not_trusted_and_does_not_trust(edge: Edge, tmp_path: Path) -> None:
    away = edge.join(edge.invite(), tmp_path / "home")
    edge.authorities.rotate(DAY, now=edge.at)
    edge.wait(DAY)
    with pytest.raises(ssl.SSLCertVerificationError):  # it never learned
        meet(edge, away)
    learned = edge.join(edge.invite(), tmp_path / "home2")
    edge.authorities.advance(now=edge.at + DAY)
    edge.authorities.rotate(DAY, now=edge.at)
    learned.learn(edge.registry.authority)
    edge.wait(DAY)
    edge.wait(DAY)
    with pytest.raises(ssl.SSLError, match="verify failed"):  # it learned, but its certificate is of the old one
        meet(edge, learned)


def test_invitations_carry_the_authority_that_is_shown(edge: Edge, tmp_path: Path) -> None:
    edge.authorities.rotate(DAY, now=edge.at)
    early = edge.registry.invite("home", address=ADDRESS, now=edge.at, ttl=3 * DAY)
    joined = edge.join(early, tmp_path / "a")
    assert joined.authority.count("BEGIN CERTIFICATE") == 2, "a joiner knows both"
    late = edge.registry.invite("home", address=ADDRESS, now=edge.at, ttl=3 * DAY)
    edge.wait(DAY)
    meet(edge, joined)
    with pytest.raises(RemoteError, match="changed its authority since it made this invitation"):
        edge.join(late, tmp_path / "b")
    meet(edge, edge.join(edge.invite(), tmp_path / "c"))


def test_it_begins_by_itself_before_the_end(edge: Edge) -> None:
    authority = edge.authorities.tunnels()
    edge.authorities.edge(now=authority.not_after - BEFORE_END_SECONDS - 10)
    due = edge.authorities.due_at(now=authority.not_after - BEFORE_END_SECONDS - 10)
    assert due == authority.not_after - BEFORE_END_SECONDS
    edge.authorities.advance(now=due)
    assert edge.step == ""
    edge.authorities.advance(now=due + 1)
    assert edge.step == "learning"
    edge.authorities.advance(now=due + 1 + STEP_SECONDS)
    edge.authorities.advance(now=due + 1 + 2 * STEP_SECONDS)
    assert edge.step == ""
    assert edge.authorities.tunnels().not_after > authority.not_after + 7 * 365 * DAY


def test_an_edge_that_was_switched_off_gives_connectors_time_to_learn(edge: Edge) -> None:
    edge.authorities.rotate(10 * DAY, now=edge.at)
    edge.wait(30 * DAY, starting=True)
    assert edge.step == "learning"
    edge.wait(DAY - 1)
    assert edge.step == "learning"
    edge.wait(1)
    assert edge.step == "retiring"


def test_one_rotation_at_a_time_and_one_step_for_all_workers(edge: Edge) -> None:
    edge.authorities.rotate(DAY, now=edge.at)
    with pytest.raises(LocalError, match="being changed already"):
        edge.authorities.rotate(DAY, now=edge.at)
    with pytest.raises(LocalError, match="at least"):
        edge.authorities.rotate(1, now=edge.at)
    edge.wait(DAY)
    signing = edge.authorities.tunnels()
    edge.wait(0)
    assert edge.authorities.tunnels() == signing
    rotation = edge.authorities.rotation()
    assert rotation is not None
    assert rotation.other.key == "", "the old one signs nothing more"
    assert Rotation.decode(rotation.encode()) == rotation
    assert edge.authorities.edge().issuer == signing.pin


def test_what_is_learned_must_overlap_with_what_is_known(edge: Edge, tmp_path: Path) -> None:
    identity = edge.join(edge.invite(), tmp_path / "home")
    before = identity.authority
    foreign = certs.make_authority("tunnelgw tunnels", now=edge.at)
    for authority in (foreign.certificate, "", "nonsense"):
        with pytest.raises(RemoteError):
            identity.learn(authority)
    assert identity.authority == before
    assert digest(before) == digest(before.replace("\n", "\r\n") + "\n") != digest(before + before)
