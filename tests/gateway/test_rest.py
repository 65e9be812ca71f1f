"""When a visitor's connection may be asked to give its place to somebody else: between requests, never within one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.gateway.fakes import Browser2, World
from tests.gateway.test_http1 import get, ok
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

WEBSOCKET = get("/ws", "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n")
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Place:
    """Stands for a counted socket: what it was told, in order."""

    def __init__(self) -> None:
        self.leave: Callable[[], None] | None = None
        self.told = 0
        self.crowded = False

    def rest(self, leave: Callable[[], None]) -> None:
        self.leave = leave
        self.told += 1

    def work(self) -> bool:
        self.leave = None
        self.told += 1
        return not self.crowded


def test_a_silent_connection_rests_from_its_beginning(world: World) -> None:
    place = Place()
    protocol, transport = world.connect(place=place)  # of TLS itself something may still be on its way
    protocol.data_received(b"GET / HT")  # half a head is no request
    assert place.leave is not None
    place.leave()
    assert transport.closed
    world.loop.turn()
    assert transport.aborted, "nobody waits for its goodbye"
    assert world.counters.refused(Reason.MADE_ROOM) == 1
    protocol.data_received(get())
    assert not world.opener.streams


def test_a_request_is_never_cut_and_an_answered_one_rests_again(world: World) -> None:
    place = Place()
    protocol, transport = world.connect(place=place)
    protocol.data_received(get())
    assert place.leave is None
    world.loop.advance(30)
    assert place.leave is None
    world.opener.last.deliver(ok())
    assert place.leave is None, "it is noticed by the tick of a second: the next request may be on its way"
    world.loop.advance(1.5)
    assert place.leave is not None
    transport.take()
    protocol.data_received(get())
    assert place.leave is None
    world.opener.last.deliver(ok())
    assert transport.take().endswith(b"hi")


def test_requests_in_close_order_cost_nothing(world: World) -> None:
    place = Place()
    protocol, _ = world.connect(place=place)
    for _ in range(50):
        protocol.data_received(get())
        world.opener.last.deliver(ok())
    assert place.told == 2, "at the beginning, and at the first request"


def test_the_rest_of_an_answer_goes_out_first(world: World) -> None:
    place = Place()
    protocol, transport = world.connect(place=place)
    protocol.data_received(get())
    world.opener.last.deliver(ok())
    transport.unsent = 1000
    world.loop.advance(20)
    assert place.leave is None
    transport.unsent = 0
    world.loop.advance(1.5)
    assert place.leave is not None


def test_websockets_and_event_streams_stay(world: World) -> None:
    for request, answer in ((WEBSOCKET, SWITCHED), (get("/events"), EVENTS)):
        place = Place()
        protocol, transport = world.connect(place=place)
        protocol.data_received(request)
        world.opener.last.deliver(answer)
        world.loop.advance(200)
        assert place.leave is None
        assert not transport.is_closing()


def test_what_was_refused_is_said_before_anything_else(world: World) -> None:
    place = Place()
    protocol, transport = world.connect(place=place, tls=False)
    protocol.data_received(b"nonsense\r\n\r\n")
    assert place.leave is None
    assert transport.take().startswith(b"HTTP/1.1 400 ")


def test_h2_rests_between_requests_and_says_goodbye(world: World) -> None:
    place = Place()
    browser = Browser2(world, place=place)
    browser.go()
    assert place.leave is not None
    number = browser.get()
    browser.go()
    assert place.leave is None
    world.loop.advance(30)
    assert place.leave is None
    world.opener.last.deliver(ok())
    browser.go()
    assert browser.bodies[number] == b"hi"
    world.loop.advance(1.5)
    assert place.leave is not None
    place.leave()
    assert browser.transport.closed
    browser.feed(browser.transport.take())
    assert browser.goaway is not None
    assert (browser.goaway.error_code, browser.goaway.last_stream_id) == (0, number), "the next one is safe to repeat"
    world.loop.turn()
    assert browser.transport.aborted
    assert world.counters.refused(Reason.MADE_ROOM) == 1


def test_h2_streams_that_stay_open_keep_the_connection(world: World) -> None:
    place = Place()
    browser = Browser2(world, place=place)
    browser.get("/events")
    browser.go()
    world.opener.last.deliver(EVENTS)
    browser.go()
    world.loop.advance(200)
    assert place.leave is None


def test_a_request_beyond_the_share_of_its_address_is_refused(world: World) -> None:
    """Idle connections may be many; what is under way on them may not."""
    place = Place()
    protocol, transport = world.connect(place=place)
    place.crowded = True
    protocol.data_received(get())
    assert transport.take().startswith(b"HTTP/1.1 503 ")
    assert transport.closed
    assert not world.opener.streams
    assert world.counters.refused(Reason.CONNECTION_LIMIT) == 1


def test_h2_requests_beyond_the_share_of_their_address_are_refused(world: World) -> None:
    place = Place()
    browser = Browser2(world, place=place)
    browser.go()
    place.crowded = True
    number = browser.get()
    browser.go()
    assert dict(browser.heads[number])[b":status"] == b"503"
    assert browser.goaway is not None
    assert not world.opener.streams
    assert world.counters.refused(Reason.CONNECTION_LIMIT) == 1
