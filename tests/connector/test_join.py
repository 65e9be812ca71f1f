"""Joining: the edge is checked before the secret goes out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.connector.athome import LOOPS, run, until
from tests.connector.authority import TestAuthority
from tests.connector.fakeedge import FakeEdge, config
from tunnelgw.config.model import Endpoint
from tunnelgw.connector import dial
from tunnelgw.connector.app import Connector
from tunnelgw.connector.dial import explain
from tunnelgw.connector.join import join_or_explain
from tunnelgw.errors import LocalError
from tunnelgw.identity import home, invitations

if TYPE_CHECKING:
    from pathlib import Path


def invitation(edge: FakeEdge, *, authority: TestAuthority | None = None, address: str = "") -> invitations.Invitation:
    pin = (authority or edge.authority).pin.hex()
    return invitations.make(address=address or str(edge.endpoint), pin=pin, expires=int(time.time()) + 60)


@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_join(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        edge = await FakeEdge(tmp_path).listen()
        made = invitation(edge)
        identity = await join_or_explain(made.encode(), state_dir=tmp_path / "state")
        assert identity.name == "home"
        assert edge.joins[0].invitation == made.id
        assert edge.joins[0].secret == made.secret.reveal()
        saved = home.load(tmp_path / "state", str(edge.endpoint))
        assert saved == identity
        await edge.close()

    run(main, loop=loop)


def test_another_address_than_the_invitation_says(tmp_path: Path) -> None:
    async def main() -> None:
        edge = await FakeEdge(tmp_path).listen()
        text = invitation(edge, address="edge.invalid:443").encode()
        identity = await join_or_explain(text, state_dir=tmp_path / "state", edge=edge.endpoint)
        assert identity.edge == str(edge.endpoint)
        await edge.close()

    run(main)


@pytest.mark.parametrize("limit", ["DIAL_SECONDS", "ANSWER_SECONDS"])
def test_an_edge_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(dial, limit, 0.0)

    async def main() -> None:
        edge = await FakeEdge(tmp_path).listen()
        with pytest.raises(LocalError, match=str(edge.endpoint)):
            await join_or_explain(invitation(edge).encode(), state_dir=tmp_path / "state")
        assert not edge.joins
        await edge.close()

    run(main)


def refused(tmp_path: Path, *, forged_leaf: bool) -> str:
    """The error of a join with somebody else in between; the secret must not have been said."""

    async def main() -> str:
        true, false = TestAuthority("true"), TestAuthority("false")
        edge = FakeEdge(tmp_path, authority=true if forged_leaf else false)
        edge.leaf_authority = false
        await edge.listen()
        with pytest.raises(LocalError) as caught:
            await join_or_explain(invitation(edge, authority=true).encode(), state_dir=tmp_path / "state")
        assert edge.joins == []
        await edge.close()
        return caught.value.text

    text: str = run(main)
    assert not (tmp_path / "state").exists()
    return text


def test_an_impostor_with_its_own_authority(tmp_path: Path) -> None:
    text = refused(tmp_path, forged_leaf=False)
    assert text.startswith("NOT JOINED")
    assert "the secret was not sent" in text


def test_an_impostor_that_shows_the_true_authority(tmp_path: Path) -> None:
    assert "not signed by its authority" in refused(tmp_path, forged_leaf=True)


def test_nobody_there(tmp_path: Path) -> None:
    async def main() -> None:
        edge = await FakeEdge(tmp_path).listen()
        edge.stop_listening()
        with pytest.raises(LocalError, match=r"cannot connect to 127\.0\.0\.1"):
            await join_or_explain(invitation(edge).encode(), state_dir=tmp_path / "state")

    run(main)


def test_a_connector_without_identity_joins_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        edge = await FakeEdge(tmp_path).listen()
        (tmp_path / "invitation").write_text(invitation(edge).encode() + "\n")
        for keys in ({"invitation_file": tmp_path / "invitation"}, {}):  # the second start needs no invitation
            connector = Connector(config(tmp_path, **keys))
            await connector.start()
            await until(lambda connector=connector: connector.is_ready)  # type: ignore[misc]
            await connector.stop(grace=0.1)
            (tmp_path / "invitation").unlink(missing_ok=True)
        assert len(edge.joins) == 1
        await edge.close()

    run(main)


def test_who_hangs_up_without_a_word_is_named() -> None:
    """As event loops report a peer that closes in the middle of a handshake."""
    assert explain(ConnectionResetError(), Endpoint("vps", 443)) == "cannot connect to vps:443: it hung up"
