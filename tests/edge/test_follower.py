"""What a worker does about changes of the store, its own and those of another worker."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.edge.front import run, until
from tests.edge.test_sharing import Home, World
from tunnelgw.access.grants import Grant
from tunnelgw.edge import follower as module
from tunnelgw.edge import shut
from tunnelgw.edge.follower import RETRY_LOOKS, SOON, Follower
from tunnelgw.edge.names import ended_hosts, ends_here
from tunnelgw.errors import LocalError
from tunnelgw.identity import home
from tunnelgw.identity.records import CONNECTOR, VISITOR
from tunnelgw.net.tasks import spawn
from tunnelgw.obs.counters import ProcessCounters
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.table import Route, RouteTable
from tunnelgw.store.sqlite import SqliteStore
from tunnelgw.wire.control import Offer, Services

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Office:
    async def keep_fresh(self) -> None:
        """The edge's own certificate is no matter here."""


class Worker(World):
    """One of several: a desk of its own, which counts what it decides, and a follower."""

    def __init__(self, store: SqliteStore) -> None:
        super().__init__(store)
        self.decided: list[str] = []
        self.dismissed: list[str] = []
        self.visitors: list[str] = []
        visits = SimpleNamespace(
            changed=lambda record: self.visitors.append(record.name),
            remove=lambda name, reason: self.visitors.append(f"no {name}"),
        )
        decide = self.desk.decide

        async def counted(connector: Any, services: Services, *, opening: bool = True) -> None:
            self.decided.append(connector.name)
            await decide(connector, services, opening=opening)

        self.desk.decide = counted  # type: ignore[method-assign]
        edge: Any = SimpleNamespace(
            store=store, registry=self.registry, claims=self.desk, left=False, lock=lambda _name: asyncio.Lock(),
            connectors=SimpleNamespace(known=self.known, by_name=self.homes, visits=visits, dismiss=self.dismiss),
            health=SimpleNamespace(looks=1), office=Office(),
        )  # fmt: skip
        self.follower = Follower(edge)
        self.follower.begin()

    def known(self, name: str) -> Any:
        home = self.homes.setdefault(name, Home(name))
        home.serial = ""  # type: ignore[attr-defined]
        return home

    async def serve_attic(self) -> None:
        """One connector with one service, all of it known."""
        self.join("attic")
        self.known("attic")
        await self.look()
        await self.offer("attic", service("one"))
        self.decided.clear()

    def dismiss(self, name: str, reason: Reason) -> None:
        assert reason is Reason.REVOKED
        self.dismissed.append(name)
        del self.homes[name]

    def away(self, name: str) -> None:
        """Its tunnel to this worker is down."""
        home = self.known(name)
        home.session = home.link = None

    async def look(self) -> list[str]:
        """Whose claims were decided because of what the store said."""
        self.decided.clear()
        await self.follower.look()
        return self.decided

    async def reopen(self) -> list[str]:
        """Whose claims were decided because a port of theirs came free."""
        self.decided.clear()
        await self.follower.reopen()
        return self.decided


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    found = SqliteStore(tmp_path / "edge" / "store.db")
    yield found
    found.close()


def service(name: str, **more: Any) -> Offer:
    return Offer(name=name, kind="http", **more)


def test_what_was_decided_here_is_not_decided_again(store: SqliteStore) -> None:
    async def main() -> None:
        worker = Worker(store)
        for name in ("attic", "cellar"):
            worker.join(name)
            worker.known(name)
        await worker.look()
        await worker.offer("attic", service("one"))
        await worker.offer("cellar", service("two"))
        assert await worker.look() == []
        worker.registry.set_grant("attic", Grant(ports=((2222, 2222),)))
        assert await worker.look() == ["attic"]
        assert await worker.look() == []

    run(main)


def test_a_port_that_another_program_had_opens_once_it_is_free(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shut, "PAUSES", (0.0, 0.0))

    async def main() -> None:
        worker = Worker(store)
        worker.join("attic", ports=((2222, 2222),))
        worker.known("attic")
        await worker.look()
        worker.ports.taken = {2222}
        answer = await worker.offer("attic", Offer(name="ssh", kind="tcp", ports=[(2222, 2222)]))
        assert answer.refused == "port_unavailable"
        assert await worker.reopen() == []
        worker.ports.taken.clear()
        worker.follower._edge.left = True
        assert await worker.reopen() == [], "another process has its ports"
        worker.follower._edge.left = False
        assert await worker.reopen() == ["attic"]
        assert worker.members(2222) == ["attic"]
        assert await worker.reopen() == []

    run(main)


def test_other_workers_learn_of_it_once(store: SqliteStore) -> None:
    async def main() -> None:
        here, there = Worker(store), Worker(store)
        here.join("attic")
        there.away("attic")
        for worker in (here, there):
            await worker.look()
        await here.offer("attic", service("one"), service("two"))
        assert await there.look() == ["attic"]
        assert there.members("two.example.com") == ["attic"]
        # It has no tunnel there yet: what this worker heard since counts, or the two would never agree.
        await here.offer("attic", service("one"))
        assert await there.look() == ["attic"]
        assert there.members("two.example.com") == []
        assert [await worker.look() for worker in (here, there, here, there)] == [[]] * 4
        await there.offer("attic", service("one"))
        assert await here.look() == []

    run(main)


def test_who_was_refused_hears_when_it_is_free(store: SqliteStore) -> None:
    async def main() -> None:
        worker = Worker(store)
        for name in ("attic", "cellar"):
            worker.join(name, hosts=("web.example.com",))
            worker.known(name)
        await worker.look()
        await worker.offer("attic", service("web"))
        assert (await worker.offer("cellar", service("web"))).refused
        await worker.offer("attic", service("other"))
        assert await worker.look() == ["cellar"]
        assert worker.members() == ["cellar"]

    run(main)


def test_who_joins_anew_in_another_role_has_nothing_of_the_old_one(store: SqliteStore) -> None:
    """Revoked, invited and joined between two looks: no worker has seen the revocation."""

    async def main() -> None:
        worker = Worker(store)
        await worker.serve_attic()
        assert worker.members("one.example.com") == ["attic"]
        for role in (VISITOR, CONNECTOR):
            worker.registry.revoke("attic")
            invitation = worker.registry.invite("attic", address="edge:1", role=role)
            worker.registry.accept(invitation.id, invitation.secret.reveal(), home.new_request().csr)
            worker.visitors.clear()
            await worker.look()
            assert worker.dismissed == ["attic"]
            assert ("attic" in worker.homes) == (role == CONNECTOR)
            assert not list(worker.table.routes())
            assert worker.visitors == ["attic" if role == VISITOR else "no attic"]

    run(main)


def test_what_changed_before_the_door_opened_is_looked_at_as_it_opens(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an upgrade: the process before this one decided until then."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 1000.0)

    async def main() -> None:
        worker = Worker(store)
        await worker.serve_attic()
        edge: Any = worker.follower._edge
        edge.loop, edge.office.due = asyncio.get_running_loop(), 1e12
        edge.health.look = edge.connectors.renew_worn = lambda: None
        worker.registry.set_grant("attic", Grant(ports=((2222, 2222),)))
        worker.follower.start()
        await until(lambda: worker.decided == ["attic"])
        worker.follower.stop()

    run(main)


def test_what_the_store_does_not_let_us_do_is_tried_again(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Soon, since another worker was writing; then more rarely, since the disk may be full."""
    tries: list[str] = []

    def locked(name: str, wanted: Any) -> Any:
        tries.append(name)
        raise LocalError("the store is locked")

    async def main() -> None:
        worker = Worker(store)
        await worker.serve_attic()
        for looks, tried in ((SOON - 1, SOON - 1), (RETRY_LOOKS - 1, SOON + 1)):
            with monkeypatch.context() as patch:
                patch.setattr(worker.registry, "hold", locked)
                worker.registry.set_grant("attic", Grant(ports=((2222 + looks, 2300),)))
                tries.clear()
                for worker.follower._edge.health.looks in range(1, looks + 1):
                    await worker.look()
                assert tries == ["attic"] * tried
            worker.follower._edge.health.looks = looks + 1
            assert await worker.look() == ["attic"]
            assert await worker.look() == []

    run(main)


def test_who_waits_for_a_decision_under_way_is_not_tried_once_more(store: SqliteStore) -> None:
    async def main() -> None:
        worker, lock = Worker(store), asyncio.Lock()
        await worker.serve_attic()
        worker.follower._edge.lock = lambda _name: lock  # type: ignore[method-assign]
        worker.follower.postpone("attic")
        async with lock:
            looks = [spawn(worker.follower.look(), name="look") for _ in range(6)]
            await asyncio.sleep(0)
        await asyncio.gather(*looks)
        assert worker.decided == ["attic"]
        assert not worker.follower.overdue

    run(main)


def test_the_same_offers_are_not_remembered_again(store: SqliteStore) -> None:
    """A connector counts its changes from the beginning when it starts again."""

    async def main() -> None:
        worker = Worker(store)
        worker.join("attic")
        await worker.offer("attic", service("one"))
        at = store.revision()
        await worker.desk.decide(worker.homes["attic"], Services(7, [service("one")]))  # type: ignore[arg-type]
        assert store.revision() == at

    run(main)


def test_only_the_hosts_of_a_decision_are_told(store: SqliteStore) -> None:
    async def main() -> None:
        worker = Worker(store)
        told: list[set[str]] = []
        worker.desk._changed = lambda hosts: told.append(set(hosts))
        for name in ("attic", "cellar"):
            worker.join(name)
        await worker.offer("attic", service("one"), service("two"))
        await worker.offer("cellar", service("three"))
        await worker.offer("attic", service("one"))
        worker.desk.withdraw("cellar")
        one, two, three = (f"{name}.example.com" for name in ("one", "two", "three"))
        assert told == [{one, two}, {three}, {one, two}, {three}]

    run(main)


def test_a_port_stays_open_while_any_host_of_it_is_held(store: SqliteStore) -> None:
    def game(host: str) -> Offer:
        return Offer(name="game", kind="tcp", protocol="minecraft", hosts=[host], ports=[(2222, 2222)])

    async def main() -> None:
        worker = Worker(store)
        for name in ("attic", "cellar"):
            worker.join(name, hosts=(f"{name}.example.com",), ports=((2222, 2222),))
            assert not (await worker.offer(name, game(f"{name}.example.com"))).refused
        assert worker.ports.open_now == {2222}
        worker.desk.withdraw("attic")
        assert worker.ports.open_now == {2222}
        worker.desk.withdraw("cellar")
        assert worker.ports.open_now == set()

    run(main)


def test_whose_tls_ends_here_can_be_asked_host_by_host() -> None:
    table, counters = RouteTable(), ProcessCounters().route("")

    def route(kind: str, host: str, port: int = 0, protocol: str = "") -> Route:
        return Route(kind, host, "attic", f"{host} {port}", counters, port=port, protocol=protocol)

    table.replace("attic", [
        route("http", "web.a.b"), route("http", "*.c.d"), route("tls", "passed.a.b"), route("home", "home.a.b"),
        route("tcp", "tcp.a.b"), route("tcp", "game.a.b", 25565, "minecraft"), route("tcp", "db.a.b", 5432, "postgres"),
        route("tls", "own.a.b", 5432, "postgres"), route("tcp", "", 22), route("tcp", "passed.a.b", 5433, "postgres"),
    ])  # fmt: skip
    asked = {"", "x.c.d", "none.a.b", *(one.host for one in table.routes())}
    assert {host for host in asked if ends_here(table, host)} == ended_hosts(table)
    assert ended_hosts(table) == {"web.a.b", "*.c.d", "tcp.a.b", "db.a.b", "passed.a.b"}


def test_nobody_waits_for_ports_that_are_tried_again(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grant that changes is in force meanwhile, and another try does not begin."""
    monkeypatch.setattr(shut, "PAUSES", (0.0, 0.0))

    async def main() -> None:
        worker = Worker(store)
        for name in ("attic", "cellar"):
            worker.join(name, ports=((2222, 2222),))
            worker.known(name)
        await worker.look()
        worker.ports.taken = {2222}
        await worker.offer("attic", Offer(name="ssh", kind="tcp", ports=[(2222, 2222)]))
        await worker.offer("cellar", service("two"))
        await worker.look()
        held = asyncio.Lock()
        worker.follower._edge.lock = lambda name: held if name == "attic" else asyncio.Lock()
        async with held:
            trying = spawn(worker.follower.reopen(), name="try")
            await asyncio.sleep(0)
            worker.registry.set_grant("cellar", Grant(ports=((2223, 2223),)))
            assert await worker.look() == ["cellar"]
            assert await worker.reopen() == []
            assert not trying.done()
        worker.ports.taken.clear()
        await trying
        assert worker.members(2222) == ["attic"]

    run(main)
