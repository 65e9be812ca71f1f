"""Decisions about claims when things happen in between: revocations, stores that fail."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from tests.edge.front import run
from tunnelgw.access.grants import Grant
from tunnelgw.edge import routes
from tunnelgw.edge.claims import HOSTS_MAX, ClaimDesk
from tunnelgw.edge.names import ended_hosts
from tunnelgw.edge.passthrough import Live
from tunnelgw.edge.ports import TAKEN, PortRefused
from tunnelgw.edge.routes import OTHER_LABEL
from tunnelgw.errors import LocalError
from tunnelgw.identity.claims import USED, Held
from tunnelgw.net.tasks import spawn
from tunnelgw.obs.counters import ProcessCounters
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.table import RouteTable
from tunnelgw.wire.control import ClaimResult, Claims, Offer, Services, encode


class Ports:
    """Opening takes until it is allowed, as it does where a supervisor is asked."""

    def __init__(self) -> None:
        self.allowed = asyncio.Event()
        self.asked = asyncio.Event()
        self.open_now: set[Any] = set()
        self.taken: set[Any] = set()  # by another program
        self.tried = 0  # how often such a one was

    async def open(self, port: Any) -> None:
        if port in self.open_now:
            return
        self.asked.set()
        await self.allowed.wait()
        if port in self.taken:
            self.tried += 1
            raise PortRefused(port, TAKEN)
        self.open_now.add(port)

    def close(self, port: int) -> None:
        self.open_now.discard(port)


class Registry:
    def __init__(self) -> None:
        self.failure: LocalError | None = None
        self.remembered = 0
        self.held: dict[str, str] = {}
        self.uses: dict[str, str] = {}
        self.hosts: tuple[str, ...] = ("*",)
        self.ports: tuple[tuple[int, int], ...] = ((2222, 2222),)

    def get(self, name: str) -> Any:
        return SimpleNamespace(revoked=False, grant=Grant(hosts=self.hosts, ports=self.ports))

    def remember_offers(self, name: str, offers: bytes) -> None:
        if self.failure is not None:
            raise self.failure
        self.remembered += 1

    def hold(self, name: str, wanted: Any) -> dict[str, Held]:
        uses = {claim: Held(holder, USED) for claim, holder in self.uses.items() if claim in wanted}
        return uses | {claim: Held(holder) for claim, holder in self.held.items() if claim in wanted}

    def affinity_secret(self) -> bytes:
        return b"secret"


class Home:
    def __init__(self, name: str = "home") -> None:
        self.name = name
        self.told: list[Any] = []
        self.session: Any = object()
        self.link: Any = object()

    def tell(self, message: Any) -> None:
        self.told.append(message)


class Desk:
    def __init__(self) -> None:
        self.home, self.ports, self.registry, self.table = Home(), Ports(), Registry(), RouteTable()
        self.by_name: dict[str, Any] = {"home": self.home}
        self.private: dict[str, frozenset[str]] = {}
        self.served: list[tuple[str, set[str]]] = []
        self.desk = ClaimDesk(
            domain="example.com", edge_names=frozenset(), address="edge.example.com", https_port=443,
            registry=self.registry, table=self.table, ports=self.ports, live=Live(print),  # type: ignore[arg-type]
            connectors=SimpleNamespace(  # type: ignore[arg-type]
                by_name=self.by_name,
                notify_holder=lambda *a, **k: None,
                serves=lambda name, services: self.served.append((name, services)),
                groups=SimpleNamespace(serve=lambda name: None),
                visits=SimpleNamespace(offered=lambda name, services: self.private.update({name: services})),
            ),
            counters=ProcessCounters(),
            changed=lambda hosts: None,
            own={443: "listen", 9150: "metrics.listen"},
        )  # fmt: skip
        self.offers = Services(1, [Offer(name="web", kind="http"), Offer(name="ssh", kind="tcp", ports=[(2222, 2222)])])


def test_a_revocation_while_ports_open_leaves_no_route() -> None:
    async def main() -> None:
        desk = Desk()
        deciding = spawn(desk.desk.decide(desk.home, desk.offers), name="decide")  # type: ignore[arg-type]
        await desk.ports.asked.wait()
        del desk.by_name["home"]
        desk.desk.withdraw("home")
        desk.ports.allowed.set()
        await deciding
        assert not list(desk.table.routes())
        assert not desk.ports.open_now
        assert not desk.home.told

    run(main)


def test_what_is_withdrawn_is_waited_for_no_more() -> None:
    """After the routes are gone, so that who asks at once again is told the truth."""
    web, api = Offer(name="web", kind="http"), Offer(name="api", kind="http")
    desk, _ = decided(web, api)
    decided(api, desk=desk)
    desk.desk.withdraw("home")
    assert desk.served == [("home", {"web", "api"}), ("home", {"api"}), ("home", set())]


def test_a_port_of_a_group_stays_open_while_another_member_waits_for_one_more() -> None:
    async def main() -> None:
        desk = Desk()
        desk.registry.ports = ((2222, 2223),)
        attic = desk.by_name["attic"] = Home("attic")
        shared = Offer(name="ssh", kind="tcp", ports=[(2222, 2222)], group="g")
        desk.ports.allowed.set()
        await desk.desk.decide(attic, Services(1, [shared]))  # type: ignore[arg-type]
        desk.ports.allowed.clear()
        desk.ports.asked.clear()
        both = [shared, Offer(name="more", kind="tcp", ports=[(2223, 2223)])]
        deciding = spawn(desk.desk.decide(desk.home, Services(1, both)), name="decide")  # type: ignore[arg-type]
        await desk.ports.asked.wait()
        await desk.desk.decide(attic, Services(2, []))  # type: ignore[arg-type]
        desk.ports.allowed.set()
        await deciding
        assert desk.ports.open_now == {2222, 2223}
        assert {route.port for route in desk.table.routes()} == {2222, 2223}
        await desk.desk.decide(desk.home, Services(2, []))  # type: ignore[arg-type]
        assert desk.ports.open_now == set()

    run(main)


def test_a_full_disk_takes_no_route() -> None:
    """What is offered cannot be remembered; it is served all the same."""

    async def main() -> None:
        desk = Desk()
        desk.registry.failure = LocalError("disk full")
        desk.ports.allowed.set()
        await desk.desk.decide(desk.home, desk.offers)  # type: ignore[arg-type]
        assert len(list(desk.table.routes())) == 2
        assert len(desk.home.told) == 1
        desk.registry.failure = None
        await desk.desk.again(desk.home)  # type: ignore[arg-type]
        assert desk.registry.remembered == 1

    run(main)


def decided(*offers: Offer, desk: Desk | None = None) -> tuple[Desk, dict[str, Any]]:
    """The desk after it decided about these offers, and the answers by service."""
    desk = desk or Desk()

    async def main() -> None:
        desk.ports.allowed.set()
        await desk.desk.decide(desk.home, Services(1, list(offers)))  # type: ignore[arg-type]

    run(main)
    return desk, {result.name: result for result in desk.home.told[-1].results}


def test_services_whose_tls_ends_at_home_share_a_host_by_path() -> None:
    desk, results = decided(
        Offer(name="photos", kind="http", tls="home"),
        Offer(name="albums", kind="h2c", tls="home", hosts=["photos.example.com"], path="/albums"),
    )
    assert results["photos"].addresses == ["https://photos.example.com/"]
    assert results["albums"].addresses == ["https://photos.example.com/albums"]
    assert {route.kind for route in desk.table.routes()} == {"home"}
    assert {route.label for route in desk.table.routes()} == {"photos.example.com/"}, "the edge sees no path"
    assert ended_hosts(desk.table) == set(), "and makes no certificate for it"


@pytest.mark.parametrize("first", ["", "home"])
def test_tls_of_one_host_ends_in_one_place(first: str) -> None:
    second = "" if first else "home"
    desk, results = decided(
        Offer(name="web", kind="http", tls=first, hosts=["h.example.com"]),
        Offer(name="wiki", kind="http", tls=second, hosts=["h.example.com"], path="/wiki"),
    )
    assert not results["web"].refused
    assert results["wiki"].refused == "claim_held"
    assert "ends at home for one service and at the edge for another" in results["wiki"].message
    assert len(desk.table.routes()) == 1


@pytest.mark.parametrize(
    "offer",
    [
        Offer(name="x", kind="tcp", tls="home", hosts=["h.example.com"]),
        Offer(name="x", kind="http", tls="home", plain_http=True),
        Offer(name="x", kind="http", tls="somewhere"),
    ],
)
def test_what_cannot_end_at_home_is_refused(offer: Offer) -> None:
    desk, results = decided(offer)
    assert results["x"].refused == "claim_unsupported"
    assert not desk.table.routes()


async def answers(desk: Desk, *offers: Offer) -> list[ClaimResult]:
    desk.ports.allowed.set()
    await desk.desk.decide(desk.home, Services(1, list(offers)))  # type: ignore[arg-type]
    assert isinstance(desk.home.told[-1], Claims)
    return desk.home.told[-1].results


def test_a_connector_is_told_which_ports_it_may_choose_from() -> None:
    async def main() -> None:
        desk = Desk()
        await answers(desk)
        assert desk.home.told[-1].ports == [(2222, 2222)]

    run(main)


def test_a_grant_that_changes_while_its_connector_is_away_opens_no_ports() -> None:
    async def main() -> None:
        desk = Desk()
        desk.ports.allowed.set()
        await desk.desk.decide(desk.home, desk.offers)  # type: ignore[arg-type]
        assert desk.ports.open_now == {2222}
        desk.home.session = None
        desk.ports.open_now.clear()  # as it is when the connector leaves
        await desk.desk.again(desk.home)  # type: ignore[arg-type]
        assert not desk.ports.open_now
        assert len(list(desk.table.routes())) == 2
        desk.home.session = object()
        await desk.desk.decide(desk.home, desk.offers)  # type: ignore[arg-type]
        assert desk.ports.open_now == {2222}

    run(main)


def test_refused_claims_are_logged_once_per_interval(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        desk = Desk()
        desk.registry.held = {"host:web.example.com/": "other"}
        for _ in range(5):
            results = await answers(desk, Offer(name="web", kind="http"), Offer(name="x", kind="udp"))
            assert [result.refused for result in results] == ["claim_held", "claim_unsupported"]
        lines = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
        assert len(lines) == 2
        assert "held by connector other" in lines[0]
        assert desk.desk._counters.refused(Reason.CLAIM_HELD) == 5

    run(main)


def test_only_one_worker_logs_a_refusal(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        desk = Desk()
        desk.desk._logs = lambda name: name != "home"
        await answers(desk, Offer(name="x", kind="udp"))
        assert not caplog.records

    run(main)


def test_many_port_ranges_are_counted_before_they_are_listed() -> None:
    """A message of 1 MB has room for a hundred thousand ranges of all ports."""

    async def main() -> None:
        desk = Desk()
        everything = [(1, 65535)] * 256
        offers = [Offer(name=f"s{number}", kind="tcp", ports=everything) for number in range(400)]
        begun = time.process_time()
        results = await answers(desk, *offers, Offer(name="ssh", kind="tcp", ports=[(2222, 2222)]))
        assert {result.refused for result in results} == {"claim_unsupported"}
        assert time.process_time() - begun < 5.0  # 27 million ports, one by one, would take longer

    run(main)


def test_host_names_are_bounded_and_the_answer_fits_a_message() -> None:
    async def main() -> None:
        desk = Desk()
        offers = [
            Offer(name=f"s{number}", kind="http", hosts=[f"h{number}-{index}.example.com" for index in range(8)])
            for number in range(4096)
        ]
        results = await answers(desk, *offers)
        assert sum(len(result.addresses) for result in results) == HOSTS_MAX
        assert len(list(desk.table.routes())) == HOSTS_MAX
        assert len(encode(desk.home.told[-1])) < 1 << 20

    run(main)


def test_labels_are_bounded_however_often_the_paths_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "LABELS_MAX", 10)

    async def main() -> None:
        desk = Desk()
        for number in range(30):
            await answers(desk, Offer(name="web", kind="http", path=f"/p{number}"))
        assert len(desk.desk._counters.routes) == 11
        assert OTHER_LABEL in desk.desk._counters.routes

    run(main)


def test_a_private_service_has_no_public_address_whatever_it_says() -> None:
    desk, answers = decided(
        Offer(name="ssh", kind="tcp", private=True, hosts=["ssh.example.com"], ports=[(22, 22)]),
        Offer(name="dns", kind="udp", private=True),
        Offer(name="photos", kind="http", private=True, tls="home"),
    )
    assert not list(desk.table.routes())
    assert (answers["ssh"].addresses, answers["ssh"].refused) == ([], "")
    assert answers["dns"].refused == answers["photos"].refused == "claim_unsupported"
    assert desk.private == {"home": frozenset({"ssh"})}


@pytest.mark.parametrize("name", ["home/db", "edge-metrics", "SSH", "a\x1b[2J", "../x"])
def test_a_private_service_cannot_have_the_name_of_something_else(name: str) -> None:
    desk, answers = decided(Offer(name=name, kind="tcp", private=True))
    assert answers[name].refused == "claim_unsupported"
    assert desk.private == {"home": frozenset()}


def shared(name: str, *hosts: str, port: int = 2222, **more: Any) -> Offer:
    more = {"kind": "tcp", "protocol": "minecraft"} | more
    return Offer(name=name, hosts=list(hosts), ports=[(port, port)], **more)


def with_database_port() -> Desk:
    desk = Desk()
    desk.registry.ports = ((2222, 2222), (5432, 5432))
    return desk


def test_hosts_that_share_a_port() -> None:
    desk, results = decided(
        shared("one", "one.a.b", "two.a.b"),
        shared("db", "db.a.b", port=5432, protocol="postgres"),
        shared("own", "own.a.b", port=5432, protocol="postgres", kind="tls"),
        Offer(name="web", kind="http", hosts=["one.a.b"]),
        desk=with_database_port(),
    )
    assert results["one"].addresses == ["minecraft://one.a.b:2222", "minecraft://two.a.b:2222"]
    assert results["db"].addresses == ["postgres://db.a.b:5432"]
    assert desk.ports.open_now == {2222, 5432}
    assert {route.label for route in desk.table.routes()} == {
        "tcp:2222/one.a.b", "tcp:2222/two.a.b", "tcp:5432/db.a.b", "tcp:5432/own.a.b", "one.a.b/",
    }  # fmt: skip
    assert ended_hosts(desk.table) == {"db.a.b", "one.a.b"}, "nobody speaks TLS to Minecraft"


def test_what_a_shared_port_needs_and_cannot_be() -> None:
    _, results = decided(
        shared("one", "one.a.b"),
        shared("again", "one.a.b"),
        shared("other", "db.a.b", protocol="postgres"),
        Offer(name="raw", kind="tcp", ports=[(2222, 2222)]),
        shared("far", "far.a.b", port=2223),
        shared("gopher", "g.a.b", protocol="gopher"),
        shared("tls", "t.a.b", kind="tls"),
        shared("nameless"),
        Offer(name="portless", kind="tcp", hosts=["p.a.b"], protocol="minecraft"),
    )
    assert results["one"].refused == ""
    assert results["again"].message == "one.a.b on port 2222 is used by your service one"
    assert results["other"].message == results["raw"].message == "port 2222 is used by your service one"
    assert results["far"].refused == "claim_not_granted"
    assert results["far"].hint == ("tunnelgw edge grant home --allow-port 2222 --allow-port 2223")
    for name in ("gopher", "tls", "nameless", "portless"):
        assert results[name].refused == "claim_unsupported", name
        assert not results[name].addresses


def test_a_shared_port_needs_the_grant_of_its_host_too() -> None:
    desk = Desk()
    desk.registry.hosts = ("one.a.b",)
    desk, results = decided(shared("s", "one.a.b", "two.a.b"), desk=desk)
    assert results["s"].addresses == ["minecraft://one.a.b:2222"]
    assert results["s"].refused == "claim_not_granted"
    assert results["s"].hint == "tunnelgw edge grant home --allow-host one.a.b --allow-host two.a.b"


def test_a_port_that_somebody_else_uses_otherwise() -> None:
    desk = with_database_port()
    desk.registry.uses = {"port:2222": "cabin", "name:5432:postgres:db.a.b": "cabin"}
    _, results = decided(
        Offer(name="raw", kind="tcp", ports=[(2222, 2222)]),
        shared("db", "db.a.b", port=5432, protocol="postgres"),
        desk=desk,
    )
    assert results["raw"].message == "port 2222 is held by connector cabin for another use than raw: use another port"
    assert "for another use than for postgres" in results["db"].message
    assert not results["raw"].addresses
    assert desk.ports.open_now == set()


def with_range() -> Desk:
    desk = Desk()
    desk.registry.ports = ((2222, 2222), (30000, 30100))
    return desk


def test_a_grant_covers_tcp_and_udp_and_one_number_may_be_both() -> None:
    desk, results = decided(
        Offer(name="ssh", kind="tcp", ports=[(2222, 2222)]),
        Offer(name="game", kind="udp", ports=[(2222, 2222)]),
        Offer(name="other", kind="udp", ports=[(2222, 2222)]),
        Offer(name="named", kind="udp", hosts=["h.example.com"], ports=[(2222, 2222)]),
        Offer(name="nowhere", kind="udp"),
    )
    assert results["ssh"].addresses == ["tcp://edge.example.com:2222"]
    assert results["game"].addresses == ["udp://edge.example.com:2222"]
    assert results["other"].message == "udp port 2222 is used by your service game"
    for name in ("named", "nowhere"):
        assert (results[name].refused, results[name].addresses) == ("claim_unsupported", [])
    assert desk.ports.open_now == {2222, ("udp", 2222)}
    assert {route.label for route in desk.table.routes()} == {"tcp:2222", "udp:2222"}


def test_a_range_is_one_address_and_what_others_hold_of_it_is_named_with_them() -> None:
    async def main() -> None:
        desk = with_range()
        desk.registry.held = {
            **{f"udp:{port}": "attic" for port in (30003, 30004, 30007)},
            "udp:30005": "barn",
            "port:30001": "barn",  # TCP: another thing
        }
        (result,) = await answers(desk, Offer(name="game", kind="udp", ports=[(30000, 30009)]))
        edge = "udp://edge.example.com"
        assert result.addresses == [f"{edge}:30000-30002", f"{edge}:30006", f"{edge}:30008-30009"]
        assert result.message == (
            "udp port 30003-30004, 30007 is held by connector attic; udp port 30005 is held by connector barn"
        )
        assert result.refused == "claim_held"
        assert len(desk.ports.open_now) == 6

    run(main)


def test_a_range_that_is_granted_in_part_is_refused_with_what_is_missing() -> None:
    desk, results = decided(Offer(name="game", kind="udp", ports=[(30090, 30110)]), desk=with_range())
    result = results["game"]
    assert (result.refused, result.addresses) == ("claim_not_granted", [])
    assert result.message == "port 30101-30110 of the range 30090-30110 is not granted"
    grant = "--allow-port 2222 --allow-port 30000-30100 --allow-port 30090-30110"
    assert result.hint == f"tunnelgw edge grant home {grant}"
    assert not desk.ports.open_now


def test_hosts_share_a_tcp_port_beside_the_udp_port_of_its_number() -> None:
    desk, results = decided(
        shared("one", "one.a.b"),
        Offer(name="voice", kind="udp", ports=[(2222, 2222)]),
        shared("two", "two.a.b"),
        shared("odd", "odd.a.b", kind="udp"),
    )
    assert results["one"].addresses == ["minecraft://one.a.b:2222"]
    assert results["voice"].addresses == ["udp://edge.example.com:2222"]
    assert results["two"].addresses == ["minecraft://two.a.b:2222"]
    assert (results["odd"].refused, results["odd"].addresses) == ("claim_unsupported", [])
    assert desk.ports.open_now == {2222, ("udp", 2222)}
    assert desk.table.ports() == [("udp", 2222)]
    assert desk.table.protocol(2222) == "minecraft"
