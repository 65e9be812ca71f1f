"""Who may hold an address together with others: decided with a real registry, store and table."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.edge.front import run
from tunnelgw.access.grants import Grant
from tunnelgw.edge.app import Edge
from tunnelgw.edge.claims import ClaimDesk
from tunnelgw.edge.offers import TEXT_MOST, Verdict
from tunnelgw.edge.passthrough import Live
from tunnelgw.edge.ports import TAKEN, PortRefused
from tunnelgw.errors import Refused
from tunnelgw.identity import home
from tunnelgw.identity.registry import Registry
from tunnelgw.obs.counters import ProcessCounters
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.table import Route, RouteTable
from tunnelgw.store.sqlite import SqliteStore
from tunnelgw.wire.control import ClaimResult, Offer, Services

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOST = "web.example.com"
HASH = "$2b$04$" + "a" * 53


class Ports:
    def __init__(self) -> None:
        self.open_now: set[int] = set()
        self.taken: set[int] = set()  # by another program

    async def open(self, port: int) -> None:
        if port in self.taken:
            raise PortRefused(port, TAKEN)
        self.open_now.add(port)

    def close(self, port: int) -> None:
        self.open_now.discard(port)


class Home:
    """A connector as the desk sees it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.session: Any = object()
        self.link: Any = object()
        self.answers: dict[str, ClaimResult] = {}
        self.notices: list[str] = []

    def tell(self, message: Any) -> None:
        self.answers = {result.name: result for result in message.results}


class World:
    """One edge's desk, and connectors that joined."""

    def __init__(self, store: SqliteStore) -> None:
        self.registry = Registry(store)
        self.homes: dict[str, Home] = {}
        self.served: list[str] = []
        self.start()

    def start(self) -> None:
        """As an edge that starts, or starts again: only the store is known."""
        self.ports = Ports()
        roster = SimpleNamespace(standing=lambda *_: 0, load=lambda _name: 0, left_out=lambda *_: None)
        self.table = RouteTable(roster=roster)  # type: ignore[arg-type]
        self.desk = ClaimDesk(
            domain="example.com", edge_names=frozenset({"edge.example.com"}), address="edge.example.com",
            https_port=443, registry=self.registry, table=self.table, ports=self.ports, live=Live(lambda _reason: None),  # type: ignore[arg-type]
            connectors=SimpleNamespace(  # type: ignore[arg-type]
                by_name=self.homes,
                serves=lambda name, services: None,
                notify_holder=lambda holder, *, claimant, what: self.homes[holder].notices.append(f"{claimant} {what}"),
                groups=SimpleNamespace(serve=self.served.append),
                visits=SimpleNamespace(offered=lambda name, services: None),
            ),
            counters=ProcessCounters(),
            changed=lambda hosts: None,
            own={},
        )  # fmt: skip

    def join(self, name: str, *, hosts: tuple[str, ...] = (), ports: tuple[tuple[int, int], ...] = ()) -> None:
        invitation = self.registry.invite(name, address="edge:1", grant=Grant(hosts=hosts, ports=ports))
        self.registry.accept(invitation.id, invitation.secret.reveal(), home.new_request().csr)
        self.homes[name] = Home(name)

    async def offer(self, name: str, *offers: Offer) -> ClaimResult:
        """What the desk answers about the first of these."""
        await self.desk.decide(self.homes[name], Services(1, list(offers)))  # type: ignore[arg-type]
        return self.homes[name].answers[offers[0].name]

    async def again(self, *names: str) -> None:
        for name in names:
            await self.desk.again(self.homes[name])  # type: ignore[arg-type]

    def members(self, place: str | int = HOST) -> list[str]:
        """Who serves a place; checked against what the store says."""
        found = self.table.find_port(place) if isinstance(place, int) else self.table.find_http(place, b"/")
        if found is None:
            return []
        routes: tuple[Route, ...] = found.members.routes if found.members is not None else (found,)
        key = f"port:{place}" if isinstance(place, int) else f"host:{place}/"
        assert sorted(self.registry.claims()[key]) == sorted(route.connector for route in routes)
        return [route.connector for route in routes]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    found = SqliteStore(tmp_path / "edge" / "store.db")
    yield found
    found.close()


@pytest.fixture
def world(store: SqliteStore) -> World:
    made = World(store)
    made.join("attic")
    made.join("cellar")
    return made


def web(**more: Any) -> Offer:
    return Offer(**{"name": "web", "kind": "http", "group": "pair", **more})


def grant(world: World, name: str, command: str) -> None:
    """Runs the command of a hint, as far as the store is concerned."""
    words = command.split()
    assert words[:4] == ["tunnelgw", "edge", "grant", name]
    given = list(zip(words[4::2], words[5::2], strict=True))
    ranges = [value.partition("-") for option, value in given if option == "--allow-port"]
    world.registry.set_grant(
        name,
        Grant(
            hosts=tuple(value for option, value in given if option == "--allow-host"),
            ports=tuple((int(low), int(high or low)) for low, _, high in ranges),
        ),
    )


def test_the_hint_is_the_command_that_allows_it(world: World) -> None:
    async def main() -> None:
        other = Offer(name="own", kind="http")
        assert not (await world.offer("attic", web())).refused
        answer = await world.offer("cellar", web(priority=3), other)
        assert answer.refused == "claim_held"
        assert (
            answer.message
            == f"{HOST} is held by connector attic in the same group; to share it, the grant must name it"
        )
        assert world.homes["attic"].notices == [f"cellar {HOST}"]
        assert world.members() == ["attic"]
        assert world.desk.waiting == {"cellar"}
        grant(world, "cellar", answer.hint)
        await world.again("cellar")
        assert world.members() == ["attic", "cellar"]
        assert not any(result.refused for result in world.homes["cellar"].answers.values()), "and keeps what it had"
        assert world.served[-1] == "cellar", "requests that wait for the group hear of it"

    run(main)


def test_a_port_and_its_hint(world: World) -> None:
    async def main() -> None:
        game = web(name="game", kind="tcp", ports=[(3000, 3002)])
        world.registry.set_grant("attic", Grant(ports=((3000, 3002),)))
        world.registry.set_grant("cellar", Grant(ports=((1, 65535),)))
        assert not (await world.offer("attic", game)).refused
        answer = await world.offer("cellar", game)
        assert answer.refused == "claim_held", "a range that covers everything names nothing"
        grant(world, "cellar", answer.hint)
        await world.again("cellar")
        assert world.members(3001) == ["attic", "cellar"]
        assert world.ports.open_now == {3000, 3001, 3002}
        world.registry.revoke("attic")
        world.desk.withdraw("attic")
        assert world.members(3001) == ["cellar"]
        assert world.ports.open_now == {3000, 3001, 3002}, "the port stays open"

    run(main)


@pytest.mark.parametrize("pattern", ["*", "*.example.com"])
def test_a_pattern_names_nothing(world: World, pattern: str) -> None:
    async def main() -> None:
        world.registry.set_grant("cellar", Grant(hosts=(pattern,)))
        await world.offer("attic", web())
        answer = await world.offer("cellar", web())
        assert answer.refused == "claim_held"
        grant(world, "cellar", answer.hint.replace("'", ""))
        await world.again("cellar")
        assert world.members() == ["attic", "cellar"]

    run(main)


@pytest.mark.parametrize("mine", [{"group": "other"}, {"name": "site", "hosts": [HOST]}, {"plain_http": True}])
def test_who_was_not_granted_the_very_name_learns_nothing_of_what_is_there(world: World, mine: Any) -> None:
    async def main() -> None:
        world.registry.set_grant("cellar", Grant(hosts=("*",)))
        assert not (await world.offer("attic", web(allow_from=["10.0.0.0/8"]))).refused
        answer = await world.offer("cellar", web(**mine))
        assert answer.refused == "claim_held"
        assert answer.message.startswith(f"{HOST} is held by connector attic")
        for told in ("pair", "service web", "allow_from", "plain_http"):
            assert told not in answer.message

    run(main)


@pytest.mark.parametrize(
    ("theirs", "mine", "words"),
    [
        ({}, {"allow_from": ["10.0.0.0/8"]}, "otherwise about allow_from"),
        ({"allow_from": ["10.0.0.0/8"]}, {}, "otherwise about allow_from"),
        ({"users": [f"me:{HASH}"]}, {}, "otherwise about basic_auth_file"),
        ({}, {"plain_http": True, "strip_path": True}, "otherwise about strip_path, plain_http"),
        ({}, {"kind": "h2c"}, "otherwise about target"),
        ({}, {"tls": "home"}, "otherwise about tls"),
        ({}, {"affinity": "address"}, "otherwise about affinity"),
        ({}, {"response_seconds": 1.0}, "otherwise about response_seconds"),
        ({}, {"group": "other"}, "in group pair as service web; members of a group offer the same service"),
        ({"group": ""}, {}, "without a group as service web; members of a group offer the same service"),
        ({}, {"group": ""}, "is held by connector attic"),
        ({}, {"name": "site", "hosts": [HOST]}, "in group pair as service web; members of a group offer the same"),
    ],
)
def test_members_that_say_otherwise(world: World, theirs: Any, mine: Any, words: str) -> None:
    async def main() -> None:
        world.registry.set_grant("cellar", Grant(hosts=(HOST,)))
        assert not (await world.offer("attic", web(**theirs))).refused
        answer = await world.offer("cellar", web(**mine))
        assert answer.refused == "claim_held"
        assert words in answer.message
        assert not answer.addresses
        assert world.members() == ["attic"]
        assert not answer.hint.startswith("tunnelgw edge grant"), "no grant would allow it"

    run(main)


@pytest.mark.parametrize(
    "more",
    [
        {"group": "\x1b[31m"},
        {"group": "a b"},
        {"affinity": "stars"},
        {"affinity": "cookie", "tls": "home"},
        {"affinity": "cookie", "kind": "tcp"},
    ],
)
def test_what_no_connector_of_ours_would_offer(world: World, more: Any) -> None:
    async def main() -> None:
        assert (await world.offer("attic", web(**more))).refused == "claim_unsupported"
        assert world.table.routes() == []

    run(main)


def test_the_same_networks_in_another_order_agree(world: World) -> None:
    async def main() -> None:
        world.registry.set_grant("cellar", Grant(hosts=(HOST,)))
        await world.offer("attic", web(allow_from=["10.0.0.0/8", "192.0.2.1"]))
        assert not (await world.offer("cellar", web(allow_from=["192.0.2.1/32", "10.0.0.0/8"]))).refused
        assert world.members() == ["attic", "cellar"]

    run(main)


def test_rules_change_member_by_member(world: World) -> None:
    async def main() -> None:
        for name in ("attic", "cellar"):
            world.registry.set_grant(name, Grant(hosts=(HOST,)))
            await world.offer(name, web())
        assert world.members() == ["attic", "cellar"]
        strict = web(allow_from=["10.0.0.0/8"])
        assert (await world.offer("attic", strict)).refused == "claim_held"
        assert world.members() == ["cellar"], "who differs is out; nobody's rules change"
        assert not (await world.offer("cellar", strict)).refused
        await world.again(*world.desk.waiting)
        assert world.members() == ["attic", "cellar"]
        found = world.table.find_http(HOST, b"/")
        assert found is not None
        assert found.allow_from == ("10.0.0.0/8",)

    run(main)


def test_a_member_leaves_alone(world: World) -> None:
    async def main() -> None:
        for name in ("attic", "cellar"):
            world.registry.set_grant(name, Grant(hosts=(HOST, "other.example.com")))
            await world.offer(name, web())
        await world.offer("attic", Offer(name="other", kind="http"))
        assert world.members() == ["cellar"]
        assert (await world.offer("attic", web())).addresses == [f"https://{HOST}/"]
        assert world.members() == ["attic", "cellar"]
        # Its grant no longer names the host.
        world.registry.set_grant("attic", Grant(hosts=("other.example.com",)))
        await world.again("attic")
        assert world.homes["attic"].answers["web"].refused == "claim_not_granted"
        assert world.members() == ["cellar"]
        world.registry.revoke("cellar")
        world.desk.withdraw("cellar")
        assert world.members() == []

    run(main)


def test_all_members_are_back_after_a_restart_of_the_edge(world: World) -> None:
    async def main() -> None:
        for name in ("attic", "cellar"):
            world.registry.set_grant(name, Grant(hosts=(HOST,)))
            await world.offer(name, web(affinity="cookie"))
        before = world.table.find_http(HOST, b"/")
        world.start()
        assert world.members() == []
        for one in world.homes.values():
            await world.desk.restore(one)  # type: ignore[arg-type]
        assert world.members() == ["attic", "cellar"]
        after = world.table.find_http(HOST, b"/")
        assert before is not None
        assert before.members is not None
        assert after is not None
        assert after.members is not None
        tokens = [route.token for route in before.members.routes]
        assert tokens == [route.token for route in after.members.routes]
        assert len(set(tokens)) == 2
        assert not any(name in token for token in tokens for name in world.homes)

    run(main)


def test_two_of_one_moment_in_two_workers(world: World, store: SqliteStore) -> None:
    """The store has the last word: a worker whose table lags behind it routes nobody twice, and tries again."""

    async def main() -> None:
        other = World(store)
        other.homes = world.homes
        other.start()
        for name in ("attic", "cellar"):
            world.registry.set_grant(name, Grant(hosts=(HOST,)))
        await world.offer("attic", web())
        await other.offer("attic", web())
        strict = web(allow_from=["10.0.0.0/8"])
        await world.offer("attic", strict)
        assert not (await other.offer("cellar", strict)).refused
        assert other.desk.unrouted == {"cellar"}
        found = other.table.find_http(HOST, b"/")
        assert found is not None
        assert found.allow_from == ()
        assert other.table.holders(HOST) == ("attic",)
        await other.offer("attic", strict)
        await other.again(*other.desk.unrouted)
        assert other.members() == ["attic", "cellar"]
        assert not other.desk.unrouted

    run(main)


def test_requests_that_decide_at_once_never_share_by_accident(world: World) -> None:
    async def main() -> None:
        await asyncio.gather(world.offer("attic", web()), world.offer("cellar", web()))
        assert len(world.members()) == 1

    run(main)


def test_a_shared_port_stays_open_while_any_member_is_waited_for() -> None:
    """Nobody knows that the last one left, before the last one's visitors have waited long enough."""
    roster = SimpleNamespace()
    table = RouteTable(roster=roster)  # type: ignore[arg-type]
    for name in ("attic", "cellar"):
        counters = ProcessCounters().route("tcp:22")
        table.replace(name, [Route("tcp", "", name, "ssh", counters, port=22, group="pair")])
    closed: list[int] = []
    edge: Any = Edge.__new__(Edge)
    edge.loop = SimpleNamespace(time=lambda: 100.0)
    edge.table, edge.ports = table, SimpleNamespace(close=closed.append)
    attic = SimpleNamespace(name="attic", session=None, away_until=50.0)
    cellar = SimpleNamespace(name="cellar", session=None, away_until=150.0)
    edge.connectors = SimpleNamespace(by_name={"attic": attic, "cellar": cellar})
    wanted = {22}
    edge.claims = SimpleNamespace(shut=SimpleNamespace(opening=wanted.__contains__))
    cellar.session, cellar.away_until = None, 90.0
    edge._close_ports(attic)
    assert closed == [], "another member's decision is under way"
    wanted.clear()
    cellar.away_until = 150.0
    edge._close_ports(attic)
    assert closed == []
    cellar.session = object()
    edge._close_ports(attic)
    assert closed == []
    cellar.session, cellar.away_until = None, 90.0
    edge._close_ports(attic)
    assert closed == [22]


def test_the_text_of_a_refusal_ends() -> None:
    """There may be one loss for each host on each port."""
    verdict = Verdict(Offer(name="a", kind="tcp"))
    for number in range(2000):
        verdict.lose(Refused(f"port {number} is held by connector other", reason=Reason.CLAIM_HELD), f"hint {number}")
    assert verdict.refused is not None
    assert verdict.refused.text.startswith("port 0 is held by connector other; port 1 is")
    assert TEXT_MOST <= len(verdict.refused.text) < TEXT_MOST + 100
    assert verdict.hint == "hint 0"
    assert verdict.held
