"""Forwarding that was switched on: what is known of it after a kill, and who else needs it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from tunnelgw.access.nftables import HOME, OFF
from tunnelgw.net import commands, forwarding
from tunnelgw.net.forwarding import SWITCHES, Forwarding, others, recalled

if TYPE_CHECKING:
    from pathlib import Path

DOCKER = [
    {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}},
    {"rule": {"family": "ip", "table": "filter", "chain": "FORWARD", "expr": []}},
    {"rule": {"family": "ip", "table": "filter", "chain": "DOCKER", "expr": []}},
    {"rule": {"family": "ip", "table": "filter", "chain": "FORWARD", "expr": []}},
]
OURS = [
    {"metainfo": {}},
    {"table": {"family": "inet", "name": HOME}},
    {"chain": {"family": "inet", "table": HOME, "name": f"{OFF}4_beside_3"}},
    {"chain": {"family": "inet", "table": HOME, "name": f"{OFF}6_beside_0"}},
    {"set": {"family": "inet", "table": HOME, "name": "hears", "elem": ["lan", "wan"]}},
    {"chain": {"family": "inet", "table": HOME, "name": "onwards", "hook": "forward"}},
    {"rule": {"family": "inet", "table": HOME, "chain": "onwards", "expr": []}},
]
FIREWALL = [
    {"chain": {"family": "inet", "table": "fw", "name": "in", "hook": "input"}},
    {"rule": {"family": "inet", "table": "fw", "chain": "in", "expr": []}},
    {"chain": {"family": "inet", "table": "fw", "name": "through", "hook": "forward"}},
    {"chain": {"family": "bridge", "table": "fw", "name": "through", "hook": "forward"}},
]


def test_what_a_table_says() -> None:
    assert recalled(OURS) == ({4: 3, 6: 0}, {"lan", "wan"})
    assert recalled([]) == ({}, set())


def test_others_are_counted_by_what_passes_through() -> None:
    assert others(OURS) == {4: 0, 6: 0}
    assert others([*OURS, *DOCKER]) == {4: 3, 6: 0}
    assert others([*DOCKER, *FIREWALL]) == {4: 4, 6: 1}


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Switches in a folder, and a ruleset that a test may change."""
    found: dict[str, Any] = {"ruleset": [], "table": [], "folder": tmp_path}
    for name in (*SWITCHES.values(), "ipv6/conf/wan/accept_ra"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1\n" if "accept" in name else "0\n")

    async def attempt(*command: str) -> str:
        return json.dumps({"nftables": found["ruleset" if "ruleset" in command else "table"]})

    monkeypatch.setattr(forwarding, "attempt", attempt)
    for module in (commands, forwarding):
        monkeypatch.setattr(module, "SYSCTL", tmp_path)
    monkeypatch.setattr(forwarding, "_LEGACY", dict.fromkeys((4, 6), tmp_path / "none"))
    return found


def values(kernel: dict[str, Any]) -> list[str]:
    names = (*SWITCHES.values(), "ipv6/conf/wan/accept_ra")
    return [(kernel["folder"] / name).read_text().strip() for name in names]


@pytest.mark.parametrize(
    ("before", "later", "ours", "left"),
    [
        (FIREWALL, FIREWALL, {4, 6}, ["0", "0", "1"]),  # what was there before relies on nothing
        ([], DOCKER, {6}, ["1", "0", "1"]),  # it has IPv4 only
        ([], FIREWALL, set(), ["1", "1", "2"]),  # routers are heard while it forwards
    ],
)
def test_it_is_put_back_unless_somebody_else_came(
    kernel: dict[str, Any], before: list[Any], later: list[Any], ours: set[int], left: list[str]
) -> None:
    async def main() -> None:
        kernel["ruleset"] = before
        forwards = Forwarding()
        await forwards.look({4, 6})
        forwards.switch_on()
        assert values(kernel) == ["1", "1", "2"]
        kernel["ruleset"] = later
        assert await forwards.review() == (ours != {4, 6})
        assert set(forwards.off) == ours
        forwards.switch_back()
        assert values(kernel) == left

    asyncio.run(main())


def test_after_a_kill_others_are_asked_too(kernel: dict[str, Any]) -> None:
    async def main() -> None:
        kernel["table"] = OURS
        kernel["ruleset"] = [*OURS, *DOCKER]
        ours = Forwarding()
        await ours.recall()
        assert ours.off == {4: 3, 6: 0}, "three were there before"
        kernel["ruleset"] = [*OURS, *DOCKER, *FIREWALL]
        await ours.recall()
        assert ours.off == {}

    asyncio.run(main())


def test_a_start_without_the_right_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> object:
        raise AssertionError("asked")

    monkeypatch.setattr(forwarding, "may_set_up", lambda: False)
    for name in ("is_there", "lock", "attempt", "nft"):
        monkeypatch.setattr(forwarding, name, never)
    asyncio.run(forwarding.take_back())


def test_a_start_beside_one_that_runs_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> object:
        raise AssertionError("changed")

    monkeypatch.setattr(forwarding, "may_set_up", lambda: True)
    monkeypatch.setattr(forwarding, "is_there", lambda _: True)
    for name in ("attempt", "nft", "switch_back"):
        monkeypatch.setattr(forwarding, name, never)
    monkeypatch.setattr(forwarding, "only_one", lambda name, what: commands.only_one(f"{name}-test", what))
    with forwarding.lock():
        asyncio.run(forwarding.take_back())
