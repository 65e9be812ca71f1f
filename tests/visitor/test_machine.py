"""Who is at the far end: the key that is remembered, and what the first one must show."""

from __future__ import annotations

import asyncio
import json
import ssl
import stat
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from tunnelgw.config.model import ConnectorConfig
from tunnelgw.connector.dial import DialRefused
from tunnelgw.errors import LocalError, Refused, RemoteError
from tunnelgw.identity import certs, home
from tunnelgw.identity.records import CONNECTOR, VISITOR
from tunnelgw.net.tasks import spawn
from tunnelgw.obs.reasons import Reason
from tunnelgw.private import pins as pins_file
from tunnelgw.private.pins import FILE_NAME, Pins, keys_of
from tunnelgw.private.spki import END, fingerprint_of_pem, key_fingerprint
from tunnelgw.visitor.machine import Machine, identity_of
from tunnelgw.wire.control import Reachable, Reached, RefusedMessage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tunnelgw.identity.material import Material

NOW = time.time()


def der_of(pem: str) -> bytes:
    """The first certificate; the others are its chain."""
    return ssl.PEM_cert_to_DER_cert(pem.partition(END)[0] + END)


def signed(authority: Material, name: str, role: str = CONNECTOR) -> bytes:
    """A certificate of this authority for a new key."""
    request = certs.read_request(certs.make_request(certs.make_key()))
    return der_of(certs.sign_connector(authority, request, name=name, role=role, now=NOW).certificate)


class Place:
    def __init__(self, folder: Path) -> None:
        self.authority = certs.make_authority("tunnelgw tunnels", now=NOW)
        request = home.new_request()
        key = certs.read_request(request.csr)
        made = certs.sign_connector(self.authority, key, name="laptop", role=VISITOR, now=NOW)
        self.identity = home.save_joined(
            folder, edge="edge.example.com:443", request=request, pin=self.authority.pin, name="laptop", role=VISITOR,
            domain="example.com", certificate=made.certificate, authority=self.authority.certificate,
        )  # fmt: skip
        self.config = ConnectorConfig(path=folder / "connector.toml", state_dir=folder)

    def run(self, work: Callable[[Machine], object]) -> None:
        async def main() -> None:
            work(Machine(self.config, identity_of(self.config)))

        asyncio.run(main())


def test_the_first_key_is_remembered_and_another_one_refused(tmp_path: Path) -> None:
    place = Place(tmp_path)
    first, other = signed(place.authority, "home"), signed(place.authority, "home")

    def work(machine: Machine) -> None:
        machine.meet("home", first)
        machine.meet("home", first)
        with pytest.raises(Refused) as caught:
            machine.meet("home", other)  # of the same authority: what an edge that was taken over can make
        assert caught.value.reason is Reason.KEY_CHANGED
        assert "tunnelgw forget home" in caught.value.text
        assert Pins(place.identity.folder).forget("home")
        assert not Pins(place.identity.folder).forget("home")
        machine.meet("home", other)
        with pytest.raises(Refused):
            machine.meet("home", first)

    place.run(work)
    path = place.identity.folder / FILE_NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    keys = keys_of(place.identity)
    assert keys["known_keys"] == {"home": key_fingerprint(other)}
    assert keys["fingerprint"] == fingerprint_of_pem(place.identity.certificate)


def test_a_first_key_must_be_of_the_authority_and_of_that_name(tmp_path: Path) -> None:
    place = Place(tmp_path)
    stranger = certs.make_authority("tunnelgw tunnels", now=NOW)

    def work(machine: Machine) -> None:
        for shown in (
            signed(stranger, "home"),
            signed(place.authority, "attic"),
            signed(place.authority, "home", VISITOR),
            der_of(certs.make_server(place.authority, ["edge.example.com"], now=NOW).certificate),
            der_of(place.authority.certificate),
        ):
            with pytest.raises(RemoteError) as caught:
                machine.meet("home", shown)
            assert caught.value.reason is Reason.UNAUTHENTICATED
        with pytest.raises(RemoteError):
            machine.meet("home", b"junk")
        assert machine.pins.known() == {}

    place.run(work)


def test_names_are_found_among_what_may_be_reached(tmp_path: Path) -> None:
    place = Place(tmp_path)

    async def main() -> None:
        machine = Machine(place.config, place.identity)
        with pytest.raises(Refused, match="not reached in time"):
            await machine.find("ssh", seconds=0.01)
        services = [Reached("home", "ssh"), Reached("attic", "ssh"), Reached("home", "wiki", up=True)]
        machine.edge.reachable(Reachable(services=services))
        assert await machine.find("wiki") == ("home", "wiki")
        assert await machine.find("attic/ssh") == ("attic", "ssh")
        with pytest.raises(Refused, match="say home/ssh or attic/ssh"):
            await machine.find("ssh")
        with pytest.raises(Refused, match="edge grant laptop --allow-service db") as caught:
            await machine.find("db")
        assert caught.value.reason is Reason.VISIT_NOT_GRANTED

    asyncio.run(main())


def test_nobody_waits_for_an_edge_that_has_refused(tmp_path: Path) -> None:
    place = Place(tmp_path)

    async def main() -> None:
        machine = Machine(place.config, place.identity)
        waiting = [spawn(machine.find("ssh"), name="find"), spawn(machine.session(), name="session")]
        await asyncio.sleep(0)
        supervisor = machine.edge.main
        refusal = RefusedMessage(reason="revoked", message="laptop was revoked")
        await supervisor._refused(DialRefused(refusal))
        for one in waiting:
            with pytest.raises(Refused, match="laptop was revoked"):
                async with asyncio.timeout(5):
                    await one

    asyncio.run(main())


def test_who_this_machine_is(tmp_path: Path) -> None:
    nobody = ConnectorConfig(path=tmp_path / "connector.toml", state_dir=tmp_path / "none")
    with pytest.raises(LocalError, match="joined no edge as a visitor"):
        identity_of(nobody)
    place = Place(tmp_path)
    assert identity_of(place.config).name == "laptop"
    assert home.load_all(tmp_path) == [], "a connector's identities are beside it"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"home": 1}', '{"home": {"key": "x"}}'])
def test_a_damaged_file_lets_nobody_in(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(LocalError, match="is damaged"):
        Pins(tmp_path).check("home", "a" * 64)


def test_a_lock_that_cannot_be_had_is_no_error_of_ours(tmp_path: Path) -> None:
    lock = (tmp_path / FILE_NAME).with_suffix(".lock")
    assert not Pins(tmp_path).forget("home")
    assert not lock.exists(), "root, who only looks, leaves no file that the owner could not open"
    lock.mkdir()
    with pytest.raises(LocalError, match="cannot lock"):
        Pins(tmp_path).remember("home", "a" * 64)
    assert Pins(tmp_path).known() == {}


def test_the_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins_file, "MOST", 3)
    pins = Pins(tmp_path)
    for number in range(3):
        pins.remember(f"name{number}", "a" * 64)
        pins.remember(f"name{number}", "a" * 64)
    with pytest.raises(Refused, match="forget some"):
        pins.remember("one-more", "a" * 64)
    with pytest.raises(Refused):
        pins.remember("name0", "b" * 64)
    assert len(json.loads((tmp_path / FILE_NAME).read_text())) == 3


def test_a_session_that_is_used_up_is_replaced(tmp_path: Path) -> None:
    place = Place(tmp_path)

    async def main() -> None:
        machine = Machine(place.config, place.identity)
        tunnel = machine.edge.main.tunnel
        table = SimpleNamespace(worn=False)
        tunnel.session = SimpleNamespace(table=table)  # type: ignore[assignment]
        machine.renew_if_due()
        assert tunnel.leaving is None
        table.worn = True
        machine.renew_if_due()
        assert tunnel.leaving is Reason.STREAM_LIMIT
        assert tunnel.changed.is_set(), "the supervisor begins another one"
        tunnel.changed.clear()
        machine.renew_if_due()
        assert not tunnel.changed.is_set()

    asyncio.run(main())
