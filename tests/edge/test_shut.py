"""Ports that cannot be opened: who is in the way is named, and they open when they become free."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from tests.edge.front import run
from tests.edge.test_claims import Desk, answers, decided, with_range
from tests.edge.test_sharing import World
from tunnelgw.config.model import EdgeConfig, Endpoint, MetricsConfig
from tunnelgw.edge import claims
from tunnelgw.edge.settings import own_ports
from tunnelgw.edge.shut import PAUSES, PER_TRY
from tunnelgw.store.sqlite import SqliteStore
from tunnelgw.wire.control import Offer

GAME = Offer(name="game", kind="udp", ports=[(30000, 30009)])


class Clock:
    """Stands for `time` where the desk asks it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(claims, "time", self)

    def monotonic(self) -> float:
        return self.now

    def tick(self, desk: Desk, seconds: float) -> bool:
        """Whether the connector's ports are due after so long."""
        self.now += seconds
        return desk.desk.shut.due(self.now) == ["home"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_each_port_of_a_range_is_named_with_who_has_it() -> None:
    desk = with_range()
    desk.registry.held = {"udp:30001": "attic"}
    desk.ports.taken = {("udp", 30005), ("udp", 30006), ("udp", 30009)}
    voice = Offer(name="voice", kind="udp", ports=[(30003, 30003)])
    desk, results = decided(voice, GAME, desk=desk)
    edge = "udp://edge.example.com"
    assert results["voice"].addresses == [f"{edge}:30003"]
    assert results["game"].addresses == [f"{edge}:30000", f"{edge}:30002", f"{edge}:30004", f"{edge}:30007-30008"]
    assert results["game"].refused == "claim_held"
    assert results["game"].message == (
        "udp port 30003 is used by your service voice; udp port 30001 is held by connector attic; "
        "udp port 30005-30006, 30009: another program on the edge's machine uses it"
    )
    assert [one.name for one in desk.desk.refused["home"]] == ["game"]
    assert desk.desk.waiting == {"home"}


def test_the_edge_itself_is_no_other_program_and_is_not_tried_again() -> None:
    desk = Desk()
    desk.registry.ports = ((1, 65535),)
    desk.ports.taken = {443, 444, 9150, ("udp", 443)}
    everything = [
        Offer(name="web", kind="tcp", ports=[(442, 444)]),
        Offer(name="numbers", kind="tcp", ports=[(9150, 9150)]),
        Offer(name="quic", kind="udp", ports=[(443, 443)]),
    ]
    _, results = decided(*everything, desk=desk)
    assert results["web"].addresses == ["tcp://edge.example.com:442"]
    assert results["web"].message == (
        "port 443: the edge itself uses it (listen); port 444: another program on the edge's machine uses it"
    )
    assert results["numbers"].message == "port 9150: the edge itself uses it (metrics.listen)"
    assert results["quic"].message == "udp port 443: another program on the edge's machine uses it", "no TCP port"
    assert {result.refused for result in results.values()} == {"port_unavailable"}
    assert sorted(desk.desk.shut._shut["home"].ports, key=str) == [("udp", 443), 444]


def test_where_the_edge_listens() -> None:
    config = EdgeConfig(
        Path("edge.toml"), "example.com", Endpoint("edge.example.com", 443), Path("state"),
        listen=(Endpoint("0.0.0.0", 443), Endpoint("::", 8443)), listen_http=(Endpoint("0.0.0.0", 80),),
        metrics=MetricsConfig(listen=Endpoint("127.0.0.1", 9150)),
    )  # fmt: skip
    assert own_ports(config) == {443: "listen", 8443: "listen", 80: "listen_http", 9150: "metrics.listen"}


def test_a_port_that_comes_free_is_opened(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        desk = with_range()
        home: Any = desk.home
        desk.ports.taken = {("udp", 30001), ("udp", 30002)}
        await answers(desk, GAME)
        assert not clock.tick(desk, PAUSES[0] - 0.1)
        assert clock.tick(desk, 0.1)
        await desk.desk.reopen(home)
        assert desk.ports.tried == 4
        assert len(desk.home.told) == 1, "nothing is news"
        assert not clock.tick(desk, PAUSES[0])
        desk.ports.taken = {("udp", 30002)}
        assert clock.tick(desk, PAUSES[0])
        await desk.desk.reopen(home)
        edge = "udp://edge.example.com"
        assert desk.home.told[-1].results[0].addresses == [f"{edge}:30000-30001", f"{edge}:30003-30009"]
        desk.ports.taken.clear()
        clock.now += PAUSES[1]
        await desk.desk.reopen(home)
        assert desk.home.told[-1].results[0].addresses == [f"{edge}:30000-30009"]
        assert not desk.desk.refused["home"]
        assert not clock.tick(desk, 1e6)
        refusals = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
        assert [line.split(": udp ")[1].split(":")[0] for line in refusals] == ["port 30001-30002", "port 30002"]

    run(main)


@pytest.mark.parametrize("leave", ["withdraw", "offer", "away"])
def test_nobody_tries_for_who_does_not_want_it(clock: Clock, leave: str) -> None:
    async def main() -> None:
        desk = with_range()
        home: Any = desk.home
        desk.ports.taken = {("udp", 30001)}
        await answers(desk, GAME)
        if leave == "withdraw":
            desk.desk.withdraw("home")
        elif leave == "offer":
            await answers(desk, Offer(name="game", kind="udp", ports=[(30000, 30000)]))
        else:
            desk.home.session = None
        desk.ports.taken.clear()
        before = set(desk.ports.open_now)
        clock.now += 60
        await desk.desk.reopen(home)
        assert desk.ports.open_now == before
        assert not clock.tick(desk, 1e6)

    run(main)


def test_many_ports_are_tried_some_at_a_time_and_ever_less_often(clock: Clock) -> None:
    async def main() -> None:
        desk = Desk()
        home: Any = desk.home
        desk.registry.ports = ((20000, 21000),)
        desk.ports.taken = set(range(20000, 20100))
        await answers(desk, Offer(name="all", kind="tcp", ports=[(20000, 20099)]))
        assert desk.home.told[-1].results[0].addresses == []
        at_first = desk.ports.tried
        tries, begun = 0, clock.now
        while clock.now < begun + 3600:
            if clock.tick(desk, 0.5):
                await desk.desk.reopen(home)
                tries += 1
        assert desk.ports.tried - at_first == tries * PER_TRY
        assert 60 <= tries <= 64
        desk.ports.taken = set(range(20000, 20099))
        clock.now += 2 * PAUSES[1]
        await desk.desk.reopen(home)
        clock.now += PAUSES[1]
        await desk.desk.reopen(home)
        assert desk.ports.open_now == {20099}, "the last one has its turn"

    run(main)


def test_who_was_granted_the_very_ports_is_told_the_service(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    world = World(store)
    world.join("attic", ports=((30000, 30100),))
    world.join("cellar", ports=((30000, 30100),))
    world.join("barn", ports=((1, 65535),))
    game = Offer(name="game", kind="udp", ports=[(30000, 30100)])

    async def main() -> None:
        assert not (await world.offer("attic", Offer(name="doom", kind="udp", ports=[(30010, 30012)]))).refused
        answer = await world.offer("cellar", game)
        assert answer.message == "udp port 30010-30012 is held by attic/doom"
        answer = await world.offer("barn", game)
        assert "held by connector attic" in answer.message
        assert "held by connector cellar" in answer.message, "what it was not granted by name stays unknown to it"

    run(main)
    store.close()


def test_a_text_of_many_ranges_has_an_end() -> None:
    desk = Desk()
    desk.registry.ports = ((20000, 21000),)
    desk.ports.taken = set(range(20000, 20100, 2))
    _, results = decided(Offer(name="all", kind="tcp", ports=[(20000, 20099)]), desk=desk)
    assert results["all"].message.startswith("port 20000, 20002,")
    assert results["all"].message.endswith("and 34 more: another program on the edge's machine uses it")
