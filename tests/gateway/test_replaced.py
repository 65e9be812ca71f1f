"""An old process of the edge after an upgrade, when a connector is to be had in the new one only."""

from __future__ import annotations

import pytest

from tests.gateway.fakes import Browser2, World, make_route
from tunnelgw.gateway.opener import NoStream
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.table import RouteTable

GET = b"GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
REFUSED_STREAM = 7


@pytest.fixture
def old() -> World:
    world = World()
    world.gateway.table = RouteTable()
    world.gateway.table.replace("home", [make_route()])
    world.gateway.table.replace("other", [make_route(host="b.example.com", connector="other")])
    return world


def test_idle_connections_to_its_hosts_end_at_once(old: World) -> None:
    protocol, kept = old.connect(server_name="a.example.com")
    protocol.data_received(GET)
    old.opener.last.deliver(OK)
    kept.take()
    busy_protocol, busy = old.connect(server_name="a.example.com")
    busy_protocol.data_received(GET)
    _, other = old.connect(server_name="b.example.com")
    browser = Browser2(old, server_name="a.example.com")
    browser.go()
    old.gateway.send_on("home")
    browser.go()
    assert kept.closed
    assert not kept.take()
    assert browser.transport.closed
    assert not busy.closed
    old.opener.last.deliver(OK)
    assert busy.take().endswith(b"hi")
    assert not other.closed


def test_a_request_that_crossed_the_end_is_not_answered_but_repeated_elsewhere(old: World) -> None:
    protocol, transport = old.connect()
    protocol.data_received(GET)
    old.opener.last.deliver(OK)
    transport.take()
    old.opener.last.end()
    old.opener.refusal = NoStream(Reason.EDGE_REPLACED)
    protocol.data_received(GET)
    assert transport.closed
    assert not transport.take()
    transport.lose()
    assert [entry[7] for entry in old.log] == [200, 503]
    assert not old.gateway.connections


def test_the_first_request_of_a_connection_is_answered(old: World) -> None:
    """Few clients repeat it by themselves, and a person wants a page."""
    old.opener.refusal = NoStream(Reason.EDGE_REPLACED)
    protocol, transport = old.connect()
    protocol.data_received(GET)
    assert transport.take().startswith(b"HTTP/1.1 503 ")


def test_what_was_parked_is_repeated_elsewhere(old: World) -> None:
    protocol, transport = old.connect()
    protocol.data_received(GET)
    old.opener.last.deliver(OK)
    transport.take()
    old.opener.last.end()
    old.opener.park = True
    protocol.data_received(b"POST / HTTP/1.1\r\nHost: a.example.com\r\nContent-Length: 5\r\n\r\nhe")
    _route, waiter = old.opener.parked.pop()
    waiter.stream_refused(Reason.EDGE_REPLACED, 0.0)
    assert transport.closed
    assert not transport.take()


def test_on_http2_the_stream_is_refused(old: World) -> None:
    """RFC 9113, 8.7: that says that it was not processed, and may be sent again whatever its method."""
    browser = Browser2(old)
    first = browser.get("/")
    browser.go()
    lasting = old.opener.last
    old.opener.refusal = NoStream(Reason.EDGE_REPLACED)
    number = browser.get("/", method=b"POST")
    browser.go()
    assert browser.closed == {number: REFUSED_STREAM}
    lasting.deliver(OK)
    browser.go()
    assert browser.bodies[first] == b"hi"
    assert browser.transport.closed
    assert sorted(entry[7] for entry in old.log) == [200, 503]
