"""Whatever is given up is counted once, by reason, whether or not the visitor could be told with a page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.gateway.fakes import HOST, Browser2, World, make_route
from tunnelgw.gateway.opener import NoStream
from tunnelgw.gateway.settings import GatewaySettings
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

GET = f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"


def begun(world: World, *, h2: bool, window: int = 1 << 20) -> Any:
    """A response is under way; the visitor's transport."""
    if h2:
        browser = Browser2(world, window=window)
        browser.get()
        browser.protocol.data_received(browser.pull())
        world.loop.turn()
        transport = browser.transport
    else:
        protocol, transport = world.connect()
        protocol.data_received(GET)
        if not window:
            transport.fill_after = 1
    world.opener.last.deliver(HEAD + bytes(1000))
    world.loop.turn()
    return transport


def counted(world: World) -> dict[str, int]:
    return world.counters.snapshot()["refused"]


CUTS: dict[str, tuple[Callable[[World], object], dict[str, int]]] = {
    "the tunnel made room": (lambda w: w.opener.last.fail(Reason.BUFFER_LIMIT), {"buffer_limit": 1}),
    "the service cut it": (lambda w: w.opener.last.fail(Reason.TARGET_RESET), {"target_reset": 1}),
    "the service ended early": (lambda w: w.opener.last.end(), {"target_reset": 1}),
    "the connector is gone": (lambda w: w.opener.last.fail(Reason.CONNECTOR_AWAY), {"connector_away": 1}),
    "all is well": (lambda w: w.opener.last.deliver(bytes(99_000)), {}),
}


@pytest.mark.parametrize("h2", [False, True])
@pytest.mark.parametrize("what", CUTS)
def test_a_response_that_is_cut(what: str, h2: bool) -> None:
    world = World()
    begun(world, h2=h2)
    act, expected = CUTS[what]
    act(world)
    world.loop.turn()
    assert counted(world) == expected


@pytest.mark.parametrize("h2", [False, True])
def test_a_reader_that_stands_still(h2: bool) -> None:
    world = World(settings=GatewaySettings(stall_seconds=20))
    begun(world, h2=h2, window=0)
    world.loop.advance(25)
    assert counted(world) == {"stalled": 1}


@pytest.mark.parametrize("h2", [False, True])
def test_a_visitor_that_leaves_is_no_refusal(h2: bool) -> None:
    world = World()
    begun(world, h2=h2).lose()
    assert counted(world) == {}


@pytest.mark.parametrize("h2", [False, True])
def test_a_connection_that_never_says_anything(h2: bool) -> None:
    world = World()
    _, transport = world.connect(h2=h2)
    world.loop.advance(12)
    assert transport.closed
    assert counted(world) == {"head_timeout": 1}


POST = f"POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100000\r\n\r\n".encode()


def uploading(world: World, *, h2: bool) -> None:
    """An upload is under way, and stands still."""
    if h2:
        browser = Browser2(world)
        number = browser.get("/", (b"content-length", b"100000"), method=b"POST", end=False)
        browser.core.send_data(number, b"x", end_stream=False)
        browser.go()
    else:
        protocol, _ = world.connect()
        protocol.data_received(POST + b"x")


@pytest.mark.parametrize("h2", [False, True])
@pytest.mark.parametrize(("service_takes", "reason"), [(True, "body_timeout"), (False, "stalled")])
def test_an_upload_that_stands_still(service_takes: bool, reason: str, h2: bool) -> None:
    world = World(settings=GatewaySettings(stall_seconds=20))
    uploading(world, h2=h2)
    if not service_takes:
        world.opener.last.sink.pause_sending()
    world.loop.advance(25)
    assert counted(world) == {reason: 1}


@pytest.mark.parametrize("h2", [False, True])
def test_a_service_that_is_silent(h2: bool) -> None:
    world = World(make_route(response_seconds=5))
    if h2:
        browser = Browser2(world)
        browser.get()
        browser.go()
    else:
        world.connect()[0].data_received(GET)
    world.loop.advance(8)
    assert counted(world) == {"response_timeout": 1}


@pytest.mark.parametrize("reason", [Reason.STREAM_LIMIT, Reason.BUFFER_LIMIT, Reason.PARK_LIMIT, Reason.CONNECTOR_AWAY])
def test_a_stream_that_is_refused(reason: Reason) -> None:
    world = World()
    world.opener.refusal = NoStream(reason)
    world.connect()[0].data_received(GET)
    assert counted(world) == {reason.label: 1}


def test_a_request_that_waited_in_vain() -> None:
    world = World()
    world.opener.park = True
    world.connect()[0].data_received(GET)
    world.opener.parked[0][1].stream_refused(Reason.PARK_TIMEOUT, 0.0)
    assert counted(world) == {"park_timeout": 1}


def test_idleness_between_requests_is_no_refusal() -> None:
    world = World()
    protocol, transport = world.connect()
    protocol.data_received(GET)
    world.opener.last.deliver(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    browser = Browser2(world)
    browser.go()
    world.loop.advance(80)
    assert transport.closed
    assert browser.transport.closed
    assert counted(world) == {}
