"""A connector's successor, and what becomes of what its predecessor had begun."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.edge.front import route
from tests.gateway.fakes import FakeLoop
from tunnelgw.edge.connectors import Connectors
from tunnelgw.errors import Refused
from tunnelgw.gateway.opener import NoStream, Visitor
from tunnelgw.net.timers import Wheel
from tunnelgw.obs.counters import ProcessCounters
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.members import DOUBTFUL, READY, Members
from tunnelgw.routing.table import RouteTable
from tunnelgw.wire.control import Health, Hello, Services
from tunnelgw.wire.table import WORN_ID

if TYPE_CHECKING:
    from tunnelgw.wire.session import Session

ROUTE = route("http")


class FakeLink:
    """Carries a session nowhere."""

    peer = "192.0.2.1"
    transport = None

    def __init__(self) -> None:
        self.owner: Any = None
        self.session: Session | None = None
        self.greetings = 0
        self.ended = False

    def greet(self, message: object) -> None:
        self.greetings += 1

    def attach(self, session: Session, received: int) -> None:
        session.attach(received, 0.0)
        self.session = session

    def wake(self) -> None: ...

    def flush(self) -> None: ...

    def abort(self) -> None:
        self.ended = True

    close = abort


class Again:
    """Whose request is reset, and who asks once more, at once."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.reset: Reason | None = None
        self.since = 0.0
        self.answer: Any = "nothing"
        self.stream = world.connectors.open(ROUTE, world.visitor, self)  # type: ignore[arg-type]

    def stream_reset(self, reason: Reason) -> None:
        self.reset = reason
        self.since = self.world.connectors.since(ROUTE)
        try:
            self.answer = self.world.connectors.open(ROUTE, self.world.visitor, self)  # type: ignore[arg-type]
        except NoStream as error:
            self.answer = error.reason

    def stream_ready(self, stream: Any) -> None:
        self.answer = stream


class World:
    def __init__(self) -> None:
        self.loop = FakeLoop()
        self.connectors = Connectors(
            loop=self.loop,  # type: ignore[arg-type]
            wheel=Wheel(self.loop),  # type: ignore[arg-type]
            counters=ProcessCounters(), resume_seconds=120.0, park_seconds=20.0,
        )  # fmt: skip
        self.visitor = Visitor("203.0.113.1", 1)
        self.connector = self.connectors.known(ROUTE.connector)

    def dial(self, instance: str, number: int = 1, *, yields: bool = False) -> FakeLink:
        link = FakeLink()
        hello = Hello(versions=[1], software="x", instance=instance, dial=number, yields=yields)
        self.connector.accept(link, hello, version=1, serial="1")  # type: ignore[arg-type]
        return link


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize("noticed", [True, False], ids=["lost", "silent"])
def test_what_a_dead_instance_held_can_be_asked_of_its_successor(world: World, noticed: bool) -> None:
    """However long the edge has known this connector, and whether its end was noticed or not."""
    first = world.dial("1" * 32)
    world.loop.now += 100_000
    request = Again(world)
    began = time.time()
    if noticed:
        world.connector.link_lost(first, None)  # type: ignore[arg-type]
    second = world.dial("2" * 32)
    assert request.reset is Reason.CONNECTOR_AWAY
    assert request.answer in second.session.streams.values()  # type: ignore[union-attr]
    assert second.greetings == 1
    assert began - 1 <= request.since <= time.time(), "since when it was away until now"
    assert world.connector.state == "up"
    assert len(world.connector.lane) == 0


def test_who_yields_takes_over_from_nobody(world: World) -> None:
    first = world.dial("1" * 32, yields=True)
    with pytest.raises(Refused, match=r"another process .* is connected, from 192\.0\.2\.1") as refused:
        world.dial("2" * 32, yields=True)
    assert refused.value.reason is Reason.SUPERSEDED
    assert not first.ended
    world.dial("1" * 32, 2, yields=True)  # its own next link
    assert first.ended
    link = world.dial("3" * 32)
    assert world.connector.link is link  # type: ignore[comparison-overlap]
    world.connector.link_lost(link, None)  # type: ignore[arg-type]
    assert world.dial("4" * 32, yields=True).greetings == 1


def test_what_a_stopping_instance_could_not_end_waits_for_its_successor(world: World) -> None:
    first = world.dial("1" * 32)
    world.loop.now += 100_000
    request = Again(world)
    world.connector.going_away(Reason.CONNECTOR_STOPPING)
    began = time.time()
    world.connector.link_lost(first, None)  # type: ignore[arg-type]
    assert request.reset is Reason.CONNECTOR_STOPPING
    assert request.answer is None, "parked"
    assert request.since >= began - 1
    second = world.dial("2" * 32)
    assert request.answer in second.session.streams.values()  # type: ignore[union-attr]


def test_nobody_waits_for_who_is_away_for_long(world: World) -> None:
    first = world.dial("1" * 32)
    request = Again(world)
    world.connector.link_lost(first, None)  # type: ignore[arg-type]
    world.loop.advance(121.0)
    assert request.reset is Reason.CONNECTOR_AWAY
    assert request.answer is Reason.CONNECTOR_AWAY


class Parked:
    """Who waits."""

    def __init__(self) -> None:
        self.refused: Reason | None = None

    def stream_refused(self, reason: Reason, since: float) -> None:
        self.refused = reason


def send_away(world: World) -> list[str]:
    """An upgrade; the names of those who are known to have gone for good."""
    moved: list[str] = []
    world.connectors.moved = moved.append
    world.connectors.send_away(Reason.EDGE_STOPPING)
    return moved


@pytest.mark.parametrize("how", ["leaves", "loses its link"])
def test_after_an_upgrade_nobody_waits_for_who_comes_back_elsewhere(world: World, how: str) -> None:
    link = world.dial("1" * 32)
    moved = send_away(world)
    stream = world.connectors.open(ROUTE, world.visitor, Again(world))  # type: ignore[arg-type]
    assert stream is not None, "it serves until it leaves"
    assert not moved
    if how == "leaves":
        world.connector.going_away(Reason.CONNECTOR_STOPPING)
    else:
        world.connector.link_lost(link, None)  # type: ignore[arg-type]
    assert moved == [ROUTE.connector]
    with pytest.raises(NoStream) as error:
        world.connectors.open(ROUTE, world.visitor, Again(world))  # type: ignore[arg-type]
    assert error.value.reason is Reason.EDGE_REPLACED


def test_an_upgrade_ends_what_waits_for_a_link_that_will_come_elsewhere(world: World) -> None:
    """The streams of a connector whose line is down at that moment, and the requests that are parked for it."""
    link = world.dial("1" * 32)
    request = Again(world)
    world.connector.link_lost(link, None)  # type: ignore[arg-type]
    parked = Parked()
    assert world.connectors.open(ROUTE, world.visitor, parked) is None  # type: ignore[arg-type]
    assert world.connectors.waiting() == 2
    assert send_away(world) == [ROUTE.connector]
    assert request.reset is Reason.CONNECTOR_STOPPING
    assert request.answer is Reason.EDGE_REPLACED
    assert parked.refused is Reason.EDGE_REPLACED
    assert not world.connectors.waiting()


def test_after_an_upgrade_a_group_without_members_is_not_waited_for(world: World) -> None:
    table = RouteTable(roster=world.connectors.groups)
    table.replace(ROUTE.connector, [replace(ROUTE, group="g")])
    shared = table.find_http(ROUTE.host, b"/")
    assert shared is not None
    parked = Parked()
    assert world.connectors.open(shared, world.visitor, parked) is None  # type: ignore[arg-type]
    send_away(world)
    assert parked.refused is Reason.EDGE_REPLACED
    with pytest.raises(NoStream) as error:
        world.connectors.open(shared, world.visitor, Parked())  # type: ignore[arg-type]
    assert error.value.reason is Reason.EDGE_REPLACED


def test_nobody_waits_for_what_is_offered_no_more(world: World) -> None:
    """A connector that stops for good withdraws first, but the edge may decide that only after its goodbye."""
    world.dial("1" * 32)
    world.connector.going_away(Reason.CONNECTOR_STOPPING)
    first, second = Parked(), Parked()
    assert world.connectors.open(ROUTE, world.visitor, first) is None  # type: ignore[arg-type]
    assert world.connectors.open(replace(ROUTE, service="other"), world.visitor, second) is None  # type: ignore[arg-type]
    world.connectors.serves("somebody else", set())
    world.connectors.serves(ROUTE.connector, {"other"})
    assert first.refused is Reason.WITHDRAWN
    assert second.refused is None
    assert world.connectors.waiting() == 1


def test_a_route_that_was_looked_up_before_its_service_was_withdrawn_leads_nowhere(world: World) -> None:
    """A request that is asked once more, a password that was being checked, a handshake that took its time."""
    world.dial("1" * 32)
    private = replace(ROUTE, kind="private", service="secret")
    for _ in range(2):
        for each in (ROUTE, private):
            assert world.connectors.open(each, world.visitor, Parked()) is not None  # type: ignore[arg-type]
        world.connectors.serves(ROUTE.connector, {ROUTE.service})
    world.connectors.serves(ROUTE.connector, set())
    for _ in range(2):
        with pytest.raises(NoStream) as error:
            world.connectors.open(ROUTE, world.visitor, Parked())  # type: ignore[arg-type]
        assert error.value.reason is Reason.WITHDRAWN
        world.connector.going_away(Reason.CONNECTOR_STOPPING)
    assert world.connectors.open(private, world.visitor, Parked()) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["withdrawn", "no group any more"])
def test_nobody_waits_for_a_group_that_nobody_belongs_to(world: World, how: str) -> None:
    table = RouteTable(roster=world.connectors.groups)
    for name in (ROUTE.connector, "attic"):
        world.connectors.known(name)
        table.replace(name, [replace(ROUTE, connector=name, group="g")])
    shared = table.find_http(ROUTE.host, b"/")
    assert shared is not None
    parked = Parked()
    assert world.connectors.open(shared, world.visitor, parked) is None  # type: ignore[arg-type]
    table.replace("attic", [])
    world.connectors.serves("attic", set())
    assert parked.refused is None, "one member may come back"
    table.replace(ROUTE.connector, [ROUTE] if how == "no group any more" else [])
    world.connectors.serves(ROUTE.connector, {ROUTE.service} if how == "no group any more" else set())
    assert parked.refused is Reason.WITHDRAWN
    with pytest.raises(NoStream) as error:
        world.connectors.open(shared, world.visitor, Parked())  # type: ignore[arg-type]
    assert error.value.reason is Reason.WITHDRAWN


def test_what_a_dead_instance_held_is_reset_whatever_becomes_of_its_successor(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.dial("1" * 32)
    request = Again(world)

    def fails(self: FakeLink, message: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(FakeLink, "greet", fails)
    with pytest.raises(RuntimeError):
        world.dial("2" * 32)
    assert request.reset is Reason.CONNECTOR_AWAY


def test_a_member_that_has_not_said_what_works_is_given_nothing_that_can_wait(world: World) -> None:
    """Until a new session said what it serves, nobody knows whether its target works."""
    groups, name = world.connectors.groups, ROUTE.connector
    members = Members(groups)
    members.replace([replace(ROUTE, group="pair")])
    shared = replace(ROUTE, group="pair", members=members)

    class Waiter:
        route: Any = shared
        stream: Any = None

        def stream_ready(self, stream: Any) -> None:
            self.stream = stream

        def stream_reset(self, reason: Reason) -> None: ...

    def standing() -> int:
        return groups.standing(name, ROUTE.service, world.loop.now)

    def say(*messages: Any) -> None:
        for message in messages:
            world.connector.control_received(message)

    waiter = Waiter()
    assert world.connectors.open(shared, world.visitor, waiter) is None  # type: ignore[arg-type]
    first = world.dial("1" * 32)
    assert standing() == DOUBTFUL
    assert waiter.stream is None
    say(Health(unhealthy=["other"]), Services(1, []))
    assert standing() == READY
    assert waiter.stream is not None
    world.connector.link_lost(first, None)  # type: ignore[arg-type]
    world.dial("2" * 32)
    assert standing() == DOUBTFUL
    say(Health(unhealthy=[ROUTE.service]), Services(1, []))
    assert standing() == DOUBTFUL
    say(Health(unhealthy=[]))
    assert standing() == READY


def test_a_session_that_is_used_up_is_asked_for_once_and_replaced(world: World) -> None:
    link = world.dial("1" * 32)
    session = world.connector.session
    assert session is not None
    world.connectors.renew_worn()
    assert session.out.leaving is None
    session.table._last_opened = WORN_ID + 1
    world.connectors.renew_worn()
    assert session.out.leaving is Reason.STREAM_LIMIT
    session.out.leaving = Reason.EDGE_STOPPING  # whatever was said since
    world.connectors.renew_worn()
    assert session.out.leaving is Reason.EDGE_STOPPING, "it was asked already"
    request = Again(world)
    world.dial("1" * 32, 2)
    assert link.ended
    assert request.reset is Reason.CONNECTOR_AWAY
    assert world.connector.session is not session
    assert request.answer in world.connector.session.streams.values()
    assert not world.connector.session.table.worn
