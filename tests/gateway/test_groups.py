"""Routes of several members: what moves to another one when a stream fails, and cookies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.gateway.fakes import Browser2, World, make_route
from tests.gateway.test_h2c import Service2
from tests.gateway.test_http1 import get, ok, status_of
from tests.routing.test_members import Roster
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.members import ABSENT, FAILURES_MOST, NOT_REACHED, READY, UNANSWERED_MOST, Members

TOKENS = {"a": "a" * 32, "b": "b" * 32}


class GroupWorld(World):
    """A gateway whose one route has the members a and b; a is preferred."""

    def __init__(self, **changes: Any) -> None:
        self.roster = Roster()
        members = Members(self.roster)
        cookie = changes.get("affinity") == "cookie"
        route = make_route(group="g", members=members, **changes)
        members.replace(
            replace(route, members=None, connector=name, priority=number, token=TOKENS[name] if cookie else "")
            for number, name in enumerate("ab")
        )
        self.members = members
        super().__init__(route)

    def asked(self) -> str:
        """Whom the last stream went to, and the method of what was sent."""
        return f"{self.opener.last.route.connector} {self.opener.last.take().split(b' ')[0].decode()}"

    @property
    def moved(self) -> dict[str, int]:
        return self.counters.snapshot()["failovers"]


@pytest.fixture
def group(codec: str) -> GroupWorld:
    return GroupWorld()


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("reason", [Reason.CONNECTOR_AWAY, Reason.TARGET_RESET, Reason.REVOKED, Reason.PROTOCOL_ERROR])
def test_what_is_safe_moves_whatever_became_of_the_first(group: GroupWorld, method: str, reason: Reason) -> None:
    protocol, transport = group.connect()
    protocol.data_received(get(method=method))
    assert group.asked() == f"a {method}"
    group.opener.last.fail(reason)
    assert group.asked() == f"b {method}"
    group.opener.last.deliver(ok())
    group.loop.turn()
    assert status_of(transport.take()) == 200
    assert group.moved == {reason.label: 1}
    assert len(group.log) == 1


@pytest.mark.parametrize("reason", sorted(NOT_REACHED, key=lambda reason: reason.code))
@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_any_method_moves_where_nothing_reached_the_service(group: GroupWorld, method: str, reason: Reason) -> None:
    protocol, _transport = group.connect()
    protocol.data_received(get(method=method))
    group.opener.last.fail(reason)
    assert group.asked() == f"b {method}"


def test_what_may_have_been_done_does_not_move(group: GroupWorld) -> None:
    for request, reason in (
        (get(method="POST"), Reason.CONNECTOR_AWAY),
        (get(method="DELETE"), Reason.TARGET_RESET),
        (get(more="Content-Length: 2\r\n", method="POST") + b"hi", Reason.TARGET_REFUSED),
    ):
        protocol, transport = group.connect()
        protocol.data_received(request)
        count = len(group.opener.streams)
        group.opener.last.fail(reason)
        group.loop.turn()
        assert status_of(transport.take()) in (502, 503)
        assert len(group.opener.streams) == count
    assert group.moved == {}


def test_it_moves_once_and_never_after_a_byte(group: GroupWorld) -> None:
    protocol, transport = group.connect()
    protocol.data_received(get())
    group.opener.last.fail(Reason.CONNECTOR_AWAY)
    assert group.asked() == "b GET"
    group.opener.last.fail(Reason.CONNECTOR_AWAY)
    group.loop.turn()
    assert status_of(transport.take()) == 503
    protocol, transport = group.connect()
    protocol.data_received(get())
    group.opener.last.deliver(b"HTTP/1.1 2")
    group.opener.last.fail(Reason.CONNECTOR_AWAY)
    group.loop.turn()
    assert status_of(transport.take()) == 503
    assert len(group.opener.streams) == 3


def test_with_nobody_else_it_is_tried_again_at_the_same(group: GroupWorld) -> None:
    group.roster.standings["b"] = ABSENT
    protocol, transport = group.connect()
    protocol.data_received(get())
    group.opener.last.fail(Reason.TARGET_RESET)
    assert group.asked() == "a GET"
    group.opener.last.deliver(ok())
    group.loop.turn()
    assert status_of(transport.take()) == 200
    assert group.moved == {}


def test_a_link_that_is_lost(group: GroupWorld) -> None:
    """What was asked there and was not begun to be answered moves; everything else waits for the link."""
    requests = {
        "safe": get(),
        "sent": get(method="DELETE"),
        "unsent": get(method="DELETE"),
        "body": get(more="Content-Length: 2\r\n", method="POST") + b"hi",
        "begun": get(),
    }
    streams, transports = {}, {}
    for name, request in requests.items():
        protocol, transports[name] = group.connect()
        protocol.data_received(request)
        streams[name] = group.opener.last
    streams["unsent"].sent_anything = False
    streams["begun"].deliver(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nh")
    group.roster.standings["a"] = ABSENT
    group.gateway.fail_over("b")
    assert len(group.opener.streams) == 5, "nobody asked b for anything"
    group.gateway.fail_over("a")
    moved = group.opener.streams[5:]
    asked = {(stream.route.connector, stream.take().split(b" ")[0]) for stream in moved}
    assert asked == {("b", b"GET"), ("b", b"DELETE")}
    assert {name for name, stream in streams.items() if stream.reset_with is Reason.CANCELLED} == {"safe", "unsent"}
    group.gateway.fail_over("b")
    assert len(group.opener.streams) == 7, "what moved once does not move again"
    for stream in moved:
        stream.deliver(ok(b"moved"))
    for name in ("sent", "body"):
        streams[name].deliver(ok(b"waited"))
    streams["begun"].deliver(b"i")
    group.loop.turn()
    answers = {name: transport.take().rpartition(b"\r\n\r\n")[2] for name, transport in transports.items()}
    assert answers == {"safe": b"moved", "unsent": b"moved", "sent": b"waited", "body": b"waited", "begun": b"hi"}


def test_kept_streams_are_their_members_own(group: GroupWorld) -> None:
    protocol, transport = group.connect()
    for standing, expected in ((0, "a GET"), (ABSENT, "b GET"), (0, "a GET")):
        group.roster.standings["a"] = standing
        protocol.data_received(get())
        used = [stream for stream in group.opener.streams if stream.sent]
        assert [f"{stream.route.connector} {stream.take().split(b' ')[0].decode()}" for stream in used] == [expected]
        used[0].deliver(ok())
        group.loop.turn()
        assert status_of(transport.take()) == 200
    assert len(group.opener.streams) == 2, "back on the first one's kept stream"


def test_kept_streams_that_were_closed_for_their_age_blame_nobody(codec: str) -> None:
    group = GroupWorld()
    browser = Browser2(group)
    numbers = [browser.get("/") for _ in range(UNANSWERED_MOST)]
    browser.go()
    kept = list(group.opener.streams)
    for stream in kept:
        stream.deliver(ok())
    browser.go()
    numbers += [browser.get("/") for _ in kept]
    browser.go()
    assert group.opener.streams == kept
    for stream in kept:
        stream.fail(Reason.TARGET_RESET)
    assert {stream.route.connector for stream in group.opener.streams} == {"a"}
    assert group.moved == {}
    assert not group.roster.out
    for stream in group.opener.open_streams:
        stream.deliver(ok())
    browser.go()
    assert [browser.heads[number][b":status"] for number in numbers] == [b"200"] * len(numbers)


def test_who_refuses_is_left_out_until_it_answers(group: GroupWorld) -> None:
    for _ in range(FAILURES_MOST):
        protocol, _ = group.connect()
        protocol.data_received(get())
        group.opener.last.fail(Reason.TARGET_REFUSED)
    assert group.roster.out == [("a", Reason.TARGET_REFUSED)]
    protocol, _ = group.connect()
    protocol.data_received(get())
    assert group.asked() == "b GET"
    group.roster.standings["b"] = ABSENT
    protocol, _ = group.connect()
    protocol.data_received(get())
    assert group.asked() == "a GET"
    group.opener.last.deliver(ok())
    group.roster.standings["b"] = 0
    protocol, _ = group.connect()
    protocol.data_received(get())
    assert group.asked() == "a GET", "it answered"


@pytest.mark.parametrize("how", [Reason.TARGET_RESET, Reason.RESPONSE_TIMEOUT])
def test_who_takes_requests_and_never_answers_is_left_out(codec: str, how: Reason) -> None:
    group = GroupWorld(response_seconds=1.0)

    def ask(*, answer: bytes = b"") -> None:
        protocol, transport = group.connect()
        protocol.data_received(get(method="POST"))
        stream = group.opener.last
        if answer:
            stream.deliver(answer)
        if how is Reason.TARGET_RESET:
            stream.fail(how)
        group.loop.advance(2)
        assert status_of(transport.take()) == how.status

    ask(answer=b"HTTP/1.1 100 Continue\r\n\r\n")
    for _ in range(UNANSWERED_MOST - 1):
        ask()
    assert not group.roster.out, "who began to answer is not counted"
    ask()
    assert group.roster.out == [("a", how)]


def test_parked_where_nobody_is(group: GroupWorld) -> None:
    group.roster.standings.update(a=ABSENT, b=ABSENT)
    group.opener.park = True
    protocol, transport = group.connect()
    protocol.data_received(get())
    route, waiter = group.opener.parked[0]
    assert route.members is group.members
    member = group.members.of("b")
    assert member is not None
    waiter.route = member
    group.opener.unpark().deliver(ok())
    group.loop.turn()
    assert status_of(transport.take()) == 200


def test_a_member_that_is_back_takes_over_what_waits_for_another_link(group: GroupWorld) -> None:
    """All links are lost at once: whoever is back first is asked, and only for what waits for a link."""
    waiting, transport = group.connect()
    waiting.data_received(get())
    stream = group.opener.last
    served, _ = group.connect()
    served.data_received(get())
    group.roster.standings.update(a=ABSENT, b=ABSENT)
    stream.linked = False
    group.gateway.fail_over("a")
    assert len(group.opener.streams) == 2, "there is nobody else"
    group.roster.standings["b"] = READY
    group.gateway.take_over("b")
    assert len(group.opener.streams) == 3, "the other one has a link"
    assert group.asked() == "b GET"
    assert stream.reset_with is Reason.CANCELLED
    group.opener.last.deliver(ok(b"moved"))
    group.loop.turn()
    assert transport.take().endswith(b"moved")


def test_http2_moves_alike(codec: str) -> None:
    group = GroupWorld()
    browser = Browser2(group)
    numbers = [browser.get(f"/{index}") for index in range(3)]
    browser.go()
    group.roster.standings["a"] = ABSENT
    group.gateway.fail_over("a")
    assert [stream.route.connector for stream in group.opener.open_streams] == ["b"] * 3
    for stream in group.opener.open_streams:
        stream.deliver(ok())
    browser.go()
    assert [browser.heads[number][b":status"] for number in numbers] == [b"200"] * 3


def test_services_that_speak_http2_move_alike(codec: str) -> None:
    group = GroupWorld(kind="h2c")
    browser = Browser2(group)
    first, second = browser.get("/1"), browser.get("/2", method=b"POST", end=False)
    browser.go()
    old = Service2(group.opener.last)
    old.go()
    assert group.opener.last.route.connector == "a"
    group.roster.standings["a"] = ABSENT
    group.gateway.fail_over("a")
    browser.go()
    assert group.opener.last.route.connector == "b"
    service = Service2(group.opener.last)
    service.go()
    service.respond(1, end=True)
    service.go()
    browser.go()
    assert browser.heads[first][b":status"] == b"200"
    assert second not in browser.heads, "it waits for the link"


def test_what_waits_for_the_link_in_a_shared_stream_does_not_move(codec: str) -> None:
    """A service's HTTP/2 connection whose stream has not left yet: it will, and with it all that was asked on it."""
    group = GroupWorld(kind="h2c")
    browser = Browser2(group)
    other, request = browser.get("/1"), browser.get("/2", method=b"DELETE")
    browser.go()
    group.opener.last.sent_anything = False
    group.roster.standings["a"] = ABSENT
    group.gateway.fail_over("a")
    browser.go()
    left, right = (Service2(stream) for stream in group.opener.streams)
    right.go()
    assert [head[b":path"] for head in right.heads.values()] == [b"/1"], "what may be asked twice"
    left.go()  # the link is back
    assert [head[b":method"] for head in left.heads.values()] == [b"GET", b"DELETE"]
    left.respond(3, end=True)
    left.go()
    right.respond(1, end=True)
    right.go()
    browser.go()
    assert [browser.heads[number][b":status"] for number in (other, request)] == [b"200"] * 2


@pytest.mark.parametrize("kind", ["http", "h2c"])
def test_with_no_room_elsewhere_it_waits_for_its_link(codec: str, kind: str) -> None:
    group = GroupWorld(kind=kind)
    browser = Browser2(group)
    number = browser.get("/")
    browser.go()
    group.roster.standings["a"] = ABSENT
    group.opener.full["b"] = Reason.STREAM_LIMIT
    group.gateway.fail_over("a")
    browser.go()
    assert number not in browser.heads
    assert group.moved == {}
    del group.opener.full["b"]
    group.gateway.fail_over("a")
    assert group.opener.last.route.connector == "b", "it has not been sent twice yet"
    if kind == "http":
        group.opener.last.deliver(ok())
    else:
        browser.go()
        service = Service2(group.opener.last)
        service.go()
        service.respond(1, end=True)
        service.go()
    browser.go()
    assert browser.heads[number][b":status"] == b"200"
    assert group.moved == {"connector_away": 1}


@pytest.mark.parametrize("kind", ["http", "h2c"])
@pytest.mark.parametrize("reason", [Reason.STREAM_LIMIT, Reason.BUFFER_LIMIT])
def test_a_member_without_room_for_a_stream_is_passed_over(codec: str, kind: str, reason: Reason) -> None:
    """Nothing was sent, so that any request may go elsewhere, with a body too."""
    group = GroupWorld(kind=kind)
    group.opener.full["a"] = reason
    browser = Browser2(group)
    number = browser.get("/", method=b"POST", end=False)
    browser.core.send_data(number, b"hello", end_stream=True)
    browser.go()
    assert [stream.route.connector for stream in group.opener.streams] == ["b"]
    assert b"hello" in group.opener.last.take()
    assert group.moved == {reason.label: 1}
    assert not group.roster.out
    group.opener.full["b"] = reason
    other = Browser2(group)
    number = other.get("/")
    other.go()
    assert other.heads[number][b":status"] == b"503"


def test_a_member_that_takes_no_more_streams_is_passed_over(group: GroupWorld) -> None:
    """It said so by resetting the stream, before anything was dialled."""
    for _ in range(FAILURES_MOST + 1):
        protocol, transport = group.connect()
        protocol.data_received(get(method="DELETE"))
        group.opener.last.fail(Reason.STREAM_LIMIT)
        assert group.asked() == "b DELETE"
        group.opener.last.deliver(ok())
        group.loop.turn()
        assert status_of(transport.take()) == 200
    assert not group.roster.out, "its target is not to blame"


@pytest.mark.parametrize("h2", [False, True], ids=["h1", "h2"])
def test_the_cookie(codec: str, h2: bool) -> None:
    group = GroupWorld(affinity="cookie", path="/app")

    def ask(cookie: bytes, *, answer: bytes = ok()) -> tuple[str, bytes]:
        """Who was asked, and the cookie in the answer."""
        if h2:
            browser = Browser2(group)
            number = browser.get("/app/x", *([(b"cookie", cookie)] if cookie else []))
            browser.go()
            group.opener.last.deliver(answer)
            browser.go()
            given = browser.heads[number].get(b"set-cookie", b"")
        else:
            protocol, transport = group.connect()
            protocol.data_received(get("/app/x", f"Cookie: {cookie.decode()}\r\n" if cookie else ""))
            group.opener.last.deliver(answer)
            group.loop.turn()
            lines = transport.take().lower().split(b"\r\n")
            given = next((line.partition(b": ")[2] for line in lines if line.startswith(b"set-cookie")), b"")
        return group.opener.last.route.connector, given.lower()

    attributes = b"; path=/app; httponly; secure; samesite=lax"
    assert ask(b"") == ("a", b"tgw_affinity=" + b"a" * 32 + attributes)
    assert ask(b"x=y; tgw_affinity=" + b"b" * 32) == ("b", b"")
    assert ask(b"tgw_affinity=" + b"c" * 32 + b"; tgw_affinity=" + b"b" * 32) == ("b", b"")
    for odd in (b"b" * 31, b"b" * 33, b"B" * 32, b"", b'"' + b"b" * 32 + b'"', b"home"):
        asked, given = ask(b"tgw_affinity=" + odd)
        assert asked == "a", odd
        assert given.startswith(b"tgw_affinity=aaaa")
    assert ask(b"xtgw_affinity=" + b"b" * 32)[0] == "a"
    group.roster.standings["b"] = ABSENT
    assert ask(b"tgw_affinity=" + b"b" * 32) == ("a", b"tgw_affinity=" + b"a" * 32 + attributes)


def test_no_cookie_without_tls_and_none_changes_what_is_remembered(codec: str) -> None:
    group = GroupWorld(affinity="cookie", plain_http=True)
    protocol, transport = group.connect(tls=False, server_name="")
    protocol.data_received(get())
    group.opener.last.deliver(ok())
    group.loop.turn()
    assert b"set-cookie" not in transport.take().lower()
    protocol, transport = group.connect()
    for cookie in ("", f"Cookie: tgw_affinity={'a' * 32}\r\n", ""):
        protocol.data_received(get(more=cookie))
        group.opener.last.deliver(ok())
        group.loop.turn()
        assert transport.take().lower().count(b"set-cookie") == (not cookie)


def test_an_address_decides_over_kept_streams_too(codec: str) -> None:
    group = GroupWorld(affinity="address")
    protocol, transport = group.connect()
    expected = group.members.choose(0.0, address="192.0.2.7")
    assert expected is not None
    for _ in range(3):
        protocol.data_received(get())
        assert group.opener.last.route is expected
        group.opener.last.deliver(ok())
        group.loop.turn()
        transport.take()
