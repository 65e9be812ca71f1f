"""Visiting machines at the edge: what they may open, what they cannot pretend, and what becomes of it when they go."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.edge.test_connectors import FakeLink
from tests.gateway.fakes import FakeLoop
from tests.wire.wirepair import Handler, Sink
from tunnelgw.access.grants import Grant
from tunnelgw.edge.connectors import Connectors
from tunnelgw.edge.visits import INSTANCES_MAX
from tunnelgw.errors import Refused, RemoteError
from tunnelgw.identity.records import VISITOR, Connector, Issued
from tunnelgw.net.timers import Wheel
from tunnelgw.obs.counters import ProcessCounters
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire.control import Hello, Notice, Open, Reachable, Services
from tunnelgw.wire.flow import Budget
from tunnelgw.wire.session import Session
from tunnelgw.wire.stream import PRIVATE_FLOW

if TYPE_CHECKING:
    from tunnelgw.edge.visit import Visit

KEY = "a" * 64


class Peer:
    """The other side of an edge's session: a connector or a visiting machine."""

    def __init__(self, world: World, instance: str) -> None:
        self.world = world
        self.handler = Handler(held=False)
        self.instance = instance.ljust(16, "0")
        self.dials = 0
        self.link: Any = None
        self.session = Session(
            opens_odd=False, handler=self.handler, wake=lambda: None, budget=Budget(), now=world.loop.time()
        )
        self.session_id = ""
        self.streams: list[tuple[Any, Sink]] = []

    def hello(self) -> Hello:
        self.dials += 1
        received = self.session.received if self.session_id else 0
        return Hello(
            versions=[1], software="test", instance=self.instance, dial=self.dials, session=self.session_id,
            received=received,
        )  # fmt: skip

    def attached(self, theirs: Session) -> None:
        if not self.session_id:
            self.session.attach(0, self.world.loop.time())
        else:
            self.session.attach(theirs.received, self.world.loop.time())

    def open(self, request: Open) -> Sink:
        sink = Sink()
        sink.stream = self.session.open(request, sink, self.world.loop.time())
        self.streams.append((sink.stream, sink))
        return sink


class World:
    """One connector `home` with private services, and visitors."""

    def __init__(self) -> None:
        self.loop = FakeLoop()
        self.connectors = Connectors(
            loop=self.loop,  # type: ignore[arg-type]
            wheel=Wheel(self.loop),  # type: ignore[arg-type]
            counters=ProcessCounters(),
            resume_seconds=120.0,
            park_seconds=20.0,
        )
        self.visits = self.connectors.visits
        self.grants: dict[str, Grant] = {}
        self.home = Peer(self, "home")
        self.home_link: Any = None
        self.dial_home()
        self.visits.offered("home", frozenset({"ssh", "wiki"}))

    def record(self, name: str, *, serial: str = "1") -> Connector:
        return Connector(name, VISITOR, self.grants[name], (Issued(serial, 2_000_000_000),), 0.0)

    def dial_home(self) -> None:
        link = self.home_link = FakeLink()
        connector = self.connectors.known("home")
        connector.accept(link, self.home.hello(), version=1, serial="1")  # type: ignore[arg-type]
        assert connector.session is not None
        self.home.attached(connector.session)
        self.home.session_id = connector.session_id

    def visit(self, name: str, grant: Grant, instance: str = "one") -> Peer:
        self.grants[name] = grant
        peer = Peer(self, instance)
        self.dial(name, peer)
        return peer

    def dial(self, name: str, peer: Peer) -> Visit:
        link = peer.link = FakeLink()
        self.visits.accept(link, peer.hello(), version=1, identity=self.record(name), serial="1", key=KEY)  # type: ignore[arg-type]
        visit: Visit = link.owner
        assert visit.session is not None
        peer.attached(visit.session)
        peer.session_id = visit.session_id
        return visit

    def run(self, *peers: Peer) -> None:
        """Let bytes pass until nobody has more to say."""
        connector = self.connectors.known("home")
        moved = True
        while moved:
            moved = False
            pairs = [(peer.session, peer.link.owner.session) for peer in peers]
            if connector.session is not None:
                pairs.append((self.home.session, connector.session))
            for ours, theirs in pairs:
                for source, target in ((ours, theirs), (theirs, ours)):
                    if source is None or target is None:
                        continue
                    data = source.pull(1 << 20, self.loop.time())
                    if data:
                        moved = True
                        target.feed(data, self.loop.time())

    @property
    def asked(self) -> list[Open]:
        return self.home.handler.requests

    def refused(self, reason: Reason) -> int:
        return self.connectors.counters.refused(reason)


SSH = Open(service="ssh", kind="private")
LAPTOP = Grant(services=("ssh",), networks=("192.168.1.0/24",), exits=("home",))


def test_a_stream_is_joined_and_the_connector_hears_who_it_is() -> None:
    world = World()
    laptop = world.visit("laptop", LAPTOP)
    sink = laptop.open(
        Open(service="ssh", kind="private", connector="home", by="root", key="f" * 64, visitor="10.0.0.1")
    )
    assert sink.stream is not None
    sink.stream.write(b"hello")
    world.run(laptop)
    (told,) = world.asked
    assert (told.service, told.kind, told.by, told.key) == ("ssh", "private", "laptop", KEY), "not what it says itself"
    assert told.visitor != "10.0.0.1"
    assert told.networks == []
    (far,) = world.home.handler.sinks.values()
    assert bytes(far.data) == b"hello"
    assert far.stream is not None
    far.stream.write(b"answer")
    far.stream.finish()
    world.run(laptop)
    assert (bytes(sink.data), sink.finished) == (b"answer", True)
    sink.stream.write(b" and more")
    sink.stream.finish()
    world.run(laptop)
    assert (bytes(far.data), far.finished) == (b"hello and more", True)
    assert world.visits.streams == 0
    assert not world.visits.flows
    assert laptop.handler.controls[0] == world.visits.reachable(LAPTOP)
    assert [(one.connector, one.service, one.up) for one in laptop.handler.controls[0].services] == [
        ("home", "ssh", True)
    ]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Open(service="wiki", kind="private"), Reason.VISIT_NOT_GRANTED),
        (Open(service="nothing", kind="private"), Reason.VISIT_NOT_GRANTED),
        (Open(service="ssh", kind="private", connector="attic"), Reason.SERVICE_UNKNOWN),
        (Open(service="edge-metrics", kind="private"), Reason.VISIT_NOT_GRANTED),
        (Open(service="edge", kind="exit"), Reason.VISIT_NOT_GRANTED),
        (Open(service="edge", kind="via"), Reason.NOT_IMPLEMENTED),
        (Open(service="attic", kind="via"), Reason.SERVICE_UNKNOWN),
        (Open(service="ssh"), Reason.ROLE_REFUSED),
        (Open(service="ssh", kind="tcp"), Reason.ROLE_REFUSED),
        (Open(service="ssh", kind="\x00" * 1000), Reason.ROLE_REFUSED),
    ],
)
def test_what_is_refused(request_: Open, reason: Reason) -> None:
    world = World()
    laptop = world.visit("laptop", LAPTOP)
    sink = laptop.open(request_)
    world.run(laptop)
    assert sink.reason is reason
    assert world.refused(reason) == 1
    assert world.asked == []


def test_networks_and_exits_are_told_as_the_grant_has_them() -> None:
    world = World()
    laptop = world.visit("laptop", LAPTOP)
    laptop.open(Open(service="home", kind="via", networks=["0.0.0.0/0"]))
    laptop.open(Open(service="home", kind="exit"))
    world.run(laptop)
    assert [(told.kind, told.networks) for told in world.asked] == [("via", ["192.168.1.0/24"]), ("exit", [])]
    phone = world.visit("phone", Grant(services=("ssh",)))
    sinks = [phone.open(Open(service="home", kind="via")), phone.open(Open(service="home", kind="exit"))]
    world.run(phone)
    assert [sink.reason for sink in sinks] == [Reason.VISIT_NOT_GRANTED] * 2


def test_a_grant_that_ends_cuts_what_is_open_and_nothing_else() -> None:
    world = World()
    laptop = world.visit("laptop", Grant(services=("ssh", "wiki")))
    ssh, wiki = laptop.open(SSH), laptop.open(Open(service="wiki", kind="private"))
    world.run(laptop)
    world.grants["laptop"] = Grant(services=("home/wiki",))
    world.visits.changed(world.record("laptop"))
    world.run(laptop)
    assert (ssh.reason, wiki.reason) == (Reason.VISIT_NOT_GRANTED, None)
    assert [sink.reason for sink in world.home.handler.sinks.values()] == [Reason.VISIT_NOT_GRANTED, None]
    world.visits.offered("home", frozenset({"ssh"}))
    world.run(laptop)
    assert wiki.reason is Reason.WITHDRAWN
    assert laptop.handler.controls[-1] == Reachable()


def test_other_networks_cut_what_was_judged_by_the_old_ones() -> None:
    world = World()
    laptop = world.visit("laptop", LAPTOP)
    via, leaving, ssh = (
        laptop.open(Open(service="home", kind="via")),
        laptop.open(Open(service="home", kind="exit")),
        laptop.open(SSH),
    )
    world.run(laptop)
    world.grants["laptop"] = Grant(services=("ssh",), networks=("192.168.1.5/32:22",), exits=("home",))
    world.visits.changed(world.record("laptop"))
    world.run(laptop)
    assert (via.reason, leaving.reason, ssh.reason) == (Reason.VISIT_NOT_GRANTED, None, None)
    via = laptop.open(Open(service="home", kind="via"))
    world.run(laptop)
    assert via.reason is None
    assert world.home.handler.requests[-1].networks == ["192.168.1.5/32:22"]


def test_a_revocation_cuts_every_tunnel_and_resets_what_they_had() -> None:
    world = World()
    first, second = world.visit("laptop", LAPTOP), world.visit("laptop", LAPTOP, "two")
    other = world.visit("phone", LAPTOP)
    sinks = [peer.open(SSH) for peer in (first, second, other)]
    world.run(first, second, other)
    world.connectors.remove("laptop", Reason.REVOKED)
    world.run(other)
    assert first.link.ended
    assert second.link.ended
    assert [sink.reason for sink in world.home.handler.sinks.values()] == [Reason.REVOKED, Reason.REVOKED, None]
    assert sinks[2].reason is None
    assert [visit.name for visit in world.visits] == ["phone"]


def test_another_key_under_the_same_name_cuts_the_old_one() -> None:
    world = World()
    laptop = world.visit("laptop", LAPTOP)
    world.visits.changed(world.record("laptop", serial="2"))
    assert laptop.link.ended


def test_a_link_that_dies_is_resumed_and_one_that_stays_away_resets_the_streams() -> None:
    world = World()
    laptop = world.visit("laptop", LAPTOP)
    sink = laptop.open(SSH)
    world.run(laptop)
    assert sink.stream is not None
    for _ in range(2):
        visit = laptop.link.owner
        visit.link_lost(laptop.link, ConnectionResetError())
        laptop.session.detach(world.loop.time())
        sink.stream.write(b"x")
        assert visit.state == "detached"
        assert world.dial("laptop", laptop) is visit
        world.run(laptop)
    (far,) = world.home.handler.sinks.values()
    assert bytes(far.data) == b"xx"
    visit.link_lost(laptop.link, ConnectionResetError())
    visit.on_deadline(0.0)
    world.run()
    assert far.reason is Reason.CANCELLED
    assert list(world.visits) == []


def test_the_last_bytes_of_the_last_stream_survive_a_link_that_dies_with_them() -> None:
    world = World()
    laptop = world.visit("laptop", LAPTOP)
    sink = laptop.open(SSH)
    assert sink.stream is not None
    sink.stream.finish()
    world.run(laptop)
    (far,) = world.home.handler.sinks.values()
    assert far.stream is not None
    far.stream.write(b"the end")
    far.stream.finish()
    world.run()
    visit = laptop.link.owner
    assert b"the end" in visit.session.pull(1 << 20, world.loop.time()), "on the wire, and lost there"
    assert not visit.session.streams
    visit.link_lost(laptop.link, ConnectionResetError())
    laptop.session.detach(world.loop.time())
    assert world.dial("laptop", laptop) is visit
    world.run(laptop)
    assert (bytes(sink.data), sink.finished) == (b"the end", True)


def test_what_is_opened_into_a_dead_link_opens_on_the_next() -> None:
    world = World()
    laptop = world.visit("laptop", LAPTOP)
    world.run(laptop)
    sink = laptop.open(SSH)
    assert sink.stream is not None
    sink.stream.write(b"hello")
    assert laptop.session.pull(1 << 20, world.loop.time()), "on the wire, and lost there"
    visit = laptop.link.owner
    visit.link_lost(laptop.link, ConnectionResetError())
    laptop.session.detach(world.loop.time())
    assert world.dial("laptop", laptop) is visit
    world.run(laptop)
    (far,) = world.home.handler.sinks.values()
    assert bytes(far.data) == b"hello"


def test_the_connectors_link_dies_and_bytes_wait() -> None:
    world = World()
    laptop = world.visit("laptop", LAPTOP)
    sink = laptop.open(SSH)
    world.run(laptop)
    world.connectors.known("home").link_lost(world.home_link, ConnectionResetError())
    world.home.session.detach(world.loop.time())
    assert sink.stream is not None
    sink.stream.write(bytes(100_000))
    world.run(laptop)
    later = laptop.open(SSH)
    assert later.stream is not None
    later.stream.write(b"later")
    world.run(laptop)
    assert later.reason is None, "parked"
    world.dial_home()
    world.run(laptop)
    first, second = world.home.handler.sinks.values()
    assert len(first.data) == 100_000
    assert bytes(second.data) == b"later"


def said_to_who_only_listens(size: int) -> tuple[World, Peer, Sink]:
    """A visitor has said so many bytes and the end, to a slow reader at home whose half ended before."""
    world = World()
    world.home.handler.held = True
    laptop = world.visit("laptop", LAPTOP)
    sink = laptop.open(SSH)
    assert sink.stream is not None
    world.run(laptop)
    (far,) = world.home.handler.sinks.values()
    assert far.stream is not None
    far.stream.finish()
    sink.stream.write(bytes(size))
    sink.stream.finish()
    world.run(laptop)
    return world, laptop, far


def test_what_a_visitor_said_to_the_end_arrives_though_it_has_left() -> None:
    world, laptop, far = said_to_who_only_listens(500_000)
    assert len(far.data) < 500_000
    assert laptop.session.settled, "the edge has all of it"
    laptop.session.go_away(Reason.CANCELLED)
    world.run(laptop)
    laptop.link.owner.link_lost(laptop.link, None)
    assert list(world.visits) == []
    assert far.stream is not None
    while len(far.data) < 500_000 and not far.reason:
        far.stream.consumed(far.stream.unread)
        world.run()
    assert (len(far.data), far.finished, far.reason) == (500_000, True, None)


def test_a_cut_spares_nothing() -> None:
    world, _, far = said_to_who_only_listens(500_000)
    assert world.connectors.ending, "no joint is left, and the end is still here"
    world.visits.remove("laptop", Reason.REVOKED)
    world.run()
    assert far.reason is Reason.REVOKED


def test_an_upgrade_waits_for_an_end_that_a_link_took_with_it() -> None:
    world = World()
    laptop = world.visit("laptop", LAPTOP)
    world.run(laptop)
    world.loop.now += 1.0
    laptop.session.tick(world.loop.time())
    world.run(laptop)
    visit = laptop.link.owner
    visit.link_lost(laptop.link, ConnectionResetError())
    assert world.connectors.waiting() == 0
    laptop.session.detach(world.loop.time())
    world.dial("laptop", laptop)
    assert visit.session.pull(1 << 20, world.loop.time()), "on the wire, and lost there"
    visit.link_lost(laptop.link, ConnectionResetError())
    assert world.connectors.waiting() == 1


def test_a_visitor_that_said_goodbye_leaves_nothing() -> None:
    world = World()
    laptop = world.visit("laptop", LAPTOP)
    laptop.session.go_away(Reason.CANCELLED)
    world.run(laptop)
    laptop.link.owner.link_lost(laptop.link, None)
    assert list(world.visits) == []


def test_a_session_of_somebody_else_cannot_be_resumed() -> None:
    world = World()
    laptop = world.visit("laptop", LAPTOP)
    sink = laptop.open(SSH)
    world.run(laptop)
    world.grants["phone"] = Grant()
    thief = Peer(world, "one")
    thief.session_id = laptop.session_id
    link = FakeLink()
    world.visits.accept(link, thief.hello(), version=1, identity=world.record("phone"), serial="1", key="b" * 64)  # type: ignore[arg-type]
    assert link.owner is not laptop.link.owner
    assert link.owner.session_id != laptop.session_id
    assert sink.reason is None


def test_an_older_dial_is_refused() -> None:
    world = World()
    laptop = world.visit("laptop", LAPTOP)
    laptop.dials = 0
    with pytest.raises(Refused) as caught:
        world.dial("laptop", laptop)
    assert caught.value.reason is Reason.SUPERSEDED


def test_tunnels_of_one_identity_are_bounded_and_who_is_away_makes_room() -> None:
    world = World()
    peers = [world.visit("laptop", LAPTOP, f"number {number:02}.") for number in range(INSTANCES_MAX)]
    with pytest.raises(Refused) as caught:
        world.visit("laptop", LAPTOP, "one more")
    assert caught.value.reason is Reason.CONNECTION_LIMIT
    peers[3].open(SSH)
    world.run(peers[3])
    peers[3].link.owner.link_lost(peers[3].link, ConnectionResetError())
    world.visit("laptop", LAPTOP, "one more")
    assert len(list(world.visits)) == INSTANCES_MAX
    world.visit("phone", LAPTOP)


def test_a_flood_of_streams_is_refused_and_then_cut() -> None:
    world = World()
    laptop = world.visit("laptop", LAPTOP)
    theirs = laptop.link.owner.session
    with pytest.raises(RemoteError):
        for _ in range(5000):
            laptop.open(SSH)
            theirs.feed(laptop.session.pull(1 << 20, world.loop.time()), world.loop.time())
    assert 0 < world.visits.streams <= 1024
    laptop.link.owner.link_lost(laptop.link, RemoteError("flood"))
    assert world.visits.streams == 0
    other = world.visit("phone", LAPTOP)
    sink = other.open(SSH)
    world.run(other)
    assert sink.reason is None, "others do not notice"


@pytest.mark.parametrize("message", [Services(1, []), Reachable()])
def test_messages_that_are_not_a_visitors(message: Any) -> None:
    world = World()
    laptop = world.visit("laptop", LAPTOP)
    laptop.session.send_control(message)
    with pytest.raises(RemoteError):
        world.run(laptop)


def test_messages_without_end() -> None:
    world = World()
    laptop = world.visit("laptop", LAPTOP)
    for _ in range(100):
        laptop.session.send_control(Notice(reason="x", message="y"))
    with pytest.raises(RemoteError):
        world.run(laptop)


def test_datagrams_go_with_their_stream_and_nowhere_else() -> None:
    world = World()
    laptop, phone = world.visit("laptop", LAPTOP), world.visit("phone", LAPTOP)
    via = laptop.open(Open(service="home", kind="via"))
    private = laptop.open(SSH)
    world.run(laptop, phone)
    assert via.stream is not None
    assert private.stream is not None
    laptop.session.send_datagram(PRIVATE_FLOW | via.stream.id, b"out", laptop.session.now)
    laptop.session.send_datagram(PRIVATE_FLOW | private.stream.id, b"a service has none", laptop.session.now)
    laptop.session.send_datagram(via.stream.id, b"not of a private stream", laptop.session.now)
    phone.session.send_datagram(PRIVATE_FLOW | via.stream.id, b"of somebody else", phone.session.now)
    world.run(laptop, phone)
    ((flow, data),) = world.home.handler.datagrams
    assert data == b"out"
    far = next(iter(world.home.handler.sinks))
    assert flow == PRIVATE_FLOW | far
    world.home.session.send_datagram(flow, b"in", world.home.session.now)
    world.home.session.send_datagram(flow + 64, b"nowhere", world.home.session.now)
    world.run(laptop, phone)
    assert laptop.handler.datagrams == [(PRIVATE_FLOW | via.stream.id, b"in")]
    assert phone.handler.datagrams == []


def test_datagrams_of_a_stream_that_waited_for_homes_successor() -> None:
    """Its number is that of a stream of the session before, which ends only after that."""
    world = World()
    laptop, phone = world.visit("laptop", LAPTOP), world.visit("phone", LAPTOP)
    first = laptop.open(Open(service="home", kind="exit"))
    world.run(laptop)
    connector = world.connectors.known("home")
    connector.link_lost(world.home_link, None)
    second = phone.open(Open(service="home", kind="exit"))
    world.run(laptop, phone)
    assert len(world.connectors.lot) == 1
    world.home = Peer(world, "home started anew")
    world.dial_home()
    world.run(laptop, phone)
    assert first.reason is Reason.CONNECTOR_AWAY
    assert second.reason is None
    (stream,) = world.home.session.streams.values()
    stream.send_datagram(b"inwards", world.loop.time())
    got: list[bytes] = []
    assert second.stream is not None
    second.stream.on_datagram = got.append
    world.run(laptop, phone)
    assert got == [b"inwards"]


def test_what_the_edge_offers_itself() -> None:
    world = World()
    opened: list[Open] = []
    world.visits.within = SimpleNamespace(  # type: ignore[assignment]
        names=lambda: ("edge-metrics",),
        open=lambda stream, request: (opened.append(request), stream.reset(Reason.IDLE)),
        review=lambda name, grant: reviewed.append((name, grant)),
    )
    reviewed: list[tuple[str, Grant]] = []
    prometheus = world.visit("prometheus", Grant(services=("edge-metrics",)))
    world.visits.offered("home", frozenset({"edge-metrics"}))
    prometheus.open(Open(service="edge-metrics", kind="private"))
    prometheus.open(Open(service="edge-metrics", kind="private", connector="edge"))
    prometheus.open(Open(service="edge-metrics", kind="private", connector="home"))
    world.run(prometheus)
    assert [(told.by, told.key) for told in opened] == [("prometheus", KEY)] * 2
    assert len(world.asked) == 1, "a connector's service of that name, when it is named"
    world.grants["prometheus"] = Grant()
    world.visits.changed(world.record("prometheus"))
    assert reviewed[-1] == ("prometheus", Grant())
