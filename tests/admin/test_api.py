"""The edge's desk: the same answers for a running edge and for its state alone."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tunnelgw.admin.api import EdgeDesk, Offline, parse_allow
from tunnelgw.admin.setup import create_state, dns_records, open_state
from tunnelgw.admin.status import edge_text
from tunnelgw.config.model import EdgeConfig, Endpoint
from tunnelgw.errors import LocalError
from tunnelgw.identity import home
from tunnelgw.identity.claims import Wish
from tunnelgw.identity.invitations import decode
from tunnelgw.identity.registry import Registry

if TYPE_CHECKING:
    from tunnelgw.admin.shapes import EdgeStatus, PublicAddress, RefusedService


class Running(Offline):
    """An edge that wrote down what it was told."""

    running = True

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry)
        self.told: list[str] = []

    def addresses(self) -> list[PublicAddress]:
        return [
            {"address": "https://a.example.com/", "service": "a", "connector": "home", "state": "up", "since": 1.0,
             "certificate_expiry": 2.0, "certificate_problem": "", "tls": "", "group": "", "priority": 0,
             "health": ""}
        ]  # fmt: skip

    def refused(self) -> list[RefusedService]:
        return [
            {"service": "game", "connector": "home", "reason": "port_unavailable", "message": "port 30002: taken",
             "hint": "", "partly": True},
            {"service": "ssh", "connector": "home", "reason": "claim_not_granted", "message": "port 22 is not granted",
             "hint": "tunnelgw edge grant home --allow-port 22", "partly": False},
        ]  # fmt: skip

    def connector(self, name: str) -> dict[str, Any]:
        return {"state": "up", "since": 5.0, "tunnels": 2, "rtt": 0.02} if name == "home" else {}

    async def grant_changed(self, name: str) -> None:
        self.told.append(f"grant {name}")

    async def revoked(self, name: str) -> None:
        self.told.append(f"revoke {name}")


@pytest.fixture
def registry(tmp_path: Path) -> Any:
    create_state(tmp_path / "state")
    store = open_state(tmp_path / "state")
    yield Registry(store)
    store.close()


def desk(registry: Registry, live: Offline) -> EdgeDesk:
    config = EdgeConfig(Path("edge.toml"), "example.com", Endpoint("edge.example.com", 443), Path("state"))
    return EdgeDesk(registry=registry, config=lambda: config, live=live)


def ask(registry: Registry, live: Offline, command: str, **request: Any) -> dict[str, Any]:
    return asyncio.run(desk(registry, live).answer({"command": command, **request}))


def join(registry: Registry, live: Offline, **request: Any) -> None:
    answer = ask(registry, live, "invite", name="home", ttl=60, **request)
    invitation = decode(answer["invitation"])
    registry.accept(invitation.id, invitation.secret.reveal(), home.new_request().csr)


def test_a_change_reaches_the_running_edge(registry: Registry) -> None:
    live = Running(registry)
    join(registry, live)
    answer = ask(registry, live, "grant", name="home", allow={"ports": ["2222", "30000-30100"]})
    assert answer["messages"] == ["home may now claim: <service>.example.com; ports 2222, 30000-30100"]
    ask(registry, live, "revoke", name="home")
    assert live.told == ["grant home", "revoke home"]
    assert "before" in ask(registry, live, "revoke", name="home")["messages"][0]


def test_status_joins_what_is_known_with_what_is_seen(registry: Registry) -> None:
    live = Running(registry)
    join(registry, live, allow={"hosts": ["*.example.org"]})
    ask(registry, live, "invite", name="office", role="visitor", ttl=60)
    status: EdgeStatus = ask(registry, live, "status")["status"]
    (connector,) = status["connectors"]
    assert (connector["state"], connector["tunnels"], connector["grant"]) == ("up", 2, {"hosts": ["*.example.org"]})
    assert status["invitations"][0]["name"] == "office"
    text = edge_text(status)
    for word in ("https://a.example.com/", "home", "office", "visitor", "20 ms"):
        assert word in text
    assert [one["service"] for one in status["refused_services"]] == ["game", "ssh"]
    assert re.search("(?m)^game +home +partly +port 30002: taken$", text)
    assert re.search("(?m)^ssh +home +refused +port 22 .*; on the edge, run: tunnelgw edge grant home", text)
    ask(registry, live, "revoke", name="home")
    assert ask(registry, live, "status")["status"]["connectors"][0]["state"] == "revoked"


def test_without_an_edge_everybody_is_away(registry: Registry) -> None:
    live = Offline(registry)
    join(registry, live)
    shared = "name:25565:minecraft:mc.example.com"
    registry.hold("home", {claim: Wish() for claim in ("host:a.example.com/", "port:2222", shared)})
    status: EdgeStatus = ask(registry, live, "status")["status"]
    assert not status["running"]
    assert status["connectors"][0]["state"] == "away"
    assert [entry["address"] for entry in status["addresses"]] == [
        "https://a.example.com/", "minecraft://mc.example.com:25565", "tcp port 2222",
    ]  # fmt: skip
    assert "not running" in edge_text(status)
    assert "NOT SERVED" not in edge_text(status)


@pytest.mark.parametrize(
    ("command", "request_", "words"),
    [
        ("nonsense", {}, "does not know"),
        ("invite", {}, "no name"),
        ("invite", {"name": 1, "ttl": 1}, "no name"),
        ("invite", {"name": "a", "ttl": 0}, "--ttl"),
        ("invite", {"name": "a", "ttl": 1e12}, "--ttl"),
        ("grant", {"name": "a"}, "name what to grant"),
        ("grant", {"name": "a", "allow": {"hosts": "x"}}, "--allow-host"),
        ("grant", {"name": "a", "allow": {"hosts": ["a.example.com"] * 300}}, "--allow-host"),
        ("grant", {"name": "a", "allow": {"exits": ["A B"]}}, "--allow-exit"),
        ("revoke", {"name": "nobody"}, "not known"),
    ],
)
def test_what_cannot_be_is_refused(registry: Registry, command: str, request_: dict[str, Any], words: str) -> None:
    with pytest.raises(LocalError, match=words) as error:
        ask(registry, Offline(registry), command, **request_)
    assert error.value.exit_code == 2


def test_options_become_a_grant() -> None:
    grant = parse_allow(
        {"allow": {"hosts": ["A.Example.com.", "*", "*.x.org"], "ports": ["22"], "networks": ["192.0.2.0/24"],
                   "services": ["jellyfin", "home/ssh"]}}
    )  # fmt: skip
    assert grant.hosts == ("a.example.com", "*", "*.x.org")
    assert grant.ports == ((22, 22),)
    assert grant.services == ("jellyfin", "home/ssh")


def test_a_second_state_is_never_made(tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(LocalError, match="already"):
        create_state(tmp_path / "state")
    with pytest.raises(LocalError, match="edge init"):
        open_state(tmp_path / "none")


def test_records_for_an_edge_that_has_only_an_address() -> None:
    assert dns_records("example.com", "2001:db8::5") == [
        "*.example.com. AAAA  2001:db8::5",
        "example.com.   AAAA  2001:db8::5",
    ]
    assert dns_records("example.com", "192.0.2.5")[1] == "example.com.   A     192.0.2.5"
