"""What waits in no stream is charged to the process's memory, and makes room when that is full."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gateway.fakes import HOST, Browser2, World, make_route
from tests.gateway.test_h2c import GRPC, Service2, settle, start
from tests.gateway.test_passwords import USERS, get
from tunnelgw.obs.reasons import Reason

KIB = 1024
POST = f"POST /up HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1000000\r\n\r\n".encode()
WEBSOCKET = ((b":protocol", b"websocket"), (b"sec-websocket-version", b"13"))


def connect_websocket(browser: Browser2) -> int:
    fields = [
        (b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"https"), (b":path", b"/ws"),
        (b":authority", HOST.encode()), (b"sec-websocket-version", b"13"),
    ]  # fmt: skip
    return browser.core.send_request(fields, end_stream=False)


def upload(browser: Browser2, number: int, size: int) -> None:
    browser.core.send_data(number, bytes(size), end_stream=False)
    browser.go()


def park(world: World, body: bytes) -> tuple[Any, Any]:
    world.opener.park = True
    protocol, transport = world.connect()
    protocol.data_received(POST + body)
    return protocol, transport


def test_a_websocket_that_is_not_open_yet(world: World) -> None:
    browser = Browser2(world)
    number = connect_websocket(browser)
    upload(browser, number, 100 * KIB)
    assert b"x" not in world.opener.last.take()[-1:]
    assert world.memory.held == 100 * KIB
    browser.transport.lose()
    assert (world.memory.held, world.memory.holders) == (0, set())


def test_a_websocket_that_opens(world: World) -> None:
    browser = Browser2(world)
    number = connect_websocket(browser)
    upload(browser, number, 100 * KIB)
    stream = world.opener.last
    head = stream.take()
    from tunnelgw.gateway.exchange2 import websocket_accept

    key = next(line.split(b": ")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
    stream.deliver(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + websocket_accept(key) + b"\r\n\r\n"
    )
    browser.go()
    assert browser.heads[number][b":status"] == b"200"
    assert stream.take() == bytes(100 * KIB)
    assert world.memory.held == 0


def test_parked_bodies(world: World) -> None:
    protocol, _ = park(world, bytes(60 * KIB))
    assert world.memory.held == 60 * KIB
    stream = world.opener.unpark()
    assert world.memory.held == 0
    assert len(stream.take()) > 60 * KIB
    other, _ = park(world, bytes(50 * KIB))
    assert world.memory.held == 50 * KIB
    other.connection_lost(None)
    assert world.memory.held == 0
    protocol.connection_lost(None)
    assert world.memory.holders == set()


def test_bodies_whose_password_is_looked_at() -> None:
    world = World(make_route(users=USERS))
    protocol, _ = world.connect()
    protocol.data_received(get("wrong", method="POST", more="Content-Length: 1000000\r\n") + bytes(60 * KIB))
    assert world.memory.held == 60 * KIB
    world.loop.threads[0].finish()
    assert world.memory.held == 0
    assert not protocol._ahead


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found"])
def test_what_is_sent_ahead_of_an_answer(world: World, status: str) -> None:
    protocol, transport = world.connect()
    one = f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    protocol.data_received(one)
    protocol.data_received(one + bytes(30 * KIB))
    assert world.memory.held == len(one) + 30 * KIB
    world.opener.last.deliver(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
    world.loop.turn()
    assert world.memory.held == 30 * KIB  # the next one's time has come, and what follows it waits
    world.opener.last.deliver(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
    world.loop.turn()
    assert world.memory.held == 0  # now it is a bad head
    assert world.counters.refused(Reason.BAD_REQUEST) == 1
    assert b" 400 " in transport.take()


def test_an_upload_that_a_grpc_service_does_not_take(grpc_world: World) -> None:
    browser, service, number = start(grpc_world, end=False)
    trunk = grpc_world.opener.last.sink
    trunk.pause_sending()  # the tunnel takes nothing at the moment
    upload(browser, number, 200 * KIB)
    assert grpc_world.memory.held == 200 * KIB
    trunk.resume_sending()
    settle(browser, service)
    assert service.bodies[1] == bytes(200 * KIB)
    assert grpc_world.memory.held == 0
    browser.transport.lose()
    assert grpc_world.memory.holders == set()


@pytest.fixture
def grpc_world() -> World:
    return World(make_route(kind="h2c"))


def test_a_grpc_answer_that_the_visitor_does_not_take(grpc_world: World) -> None:
    browser = Browser2(grpc_world, window=1000)
    number = browser.get("/pkg.Service/Method", *GRPC, method=b"POST")
    browser.go()
    service = Service2(grpc_world.opener.last)
    settle(browser, service)
    service.respond(1)
    browser.transport.protocol.pause_writing()
    service.core.send_data(1, bytes(200 * KIB), end_stream=False)
    service.go()
    assert grpc_world.memory.held == 200 * KIB
    browser.transport.lose()
    assert (grpc_world.memory.held, grpc_world.memory.holders) == (0, set())
    assert number == 1


def test_the_longest_without_progress_makes_room(world: World) -> None:
    world.memory.resize(256 * KIB)
    transports = []
    for _ in range(5):
        transports.append(park(world, bytes(60 * KIB))[1])
        world.loop.now += 1
        world.loop.turn()
    assert world.memory.held <= 256 * KIB
    answers = [transport.take()[:13] for transport in transports]
    assert answers == [b"HTTP/1.1 503 ", b"HTTP/1.1 503 ", b"", b"", b""]
    assert world.counters.refused(Reason.BUFFER_LIMIT) == 2


def test_the_same_over_http2(world: World) -> None:
    world.memory.resize(256 * KIB)
    browser = Browser2(world)
    numbers = []
    for _ in range(5):
        numbers.append(connect_websocket(browser))
        upload(browser, numbers[-1], 60 * KIB)
        world.loop.now += 1
    assert world.memory.held <= 256 * KIB
    assert [browser.heads[number][b":status"] for number in numbers[:2]] == [b"503", b"503"]
    assert not set(numbers[2:]) & set(browser.heads)
    assert world.counters.refused(Reason.BUFFER_LIMIT) == 2
    assert [stream.reset_with is None for stream in world.opener.streams] == [False, False, True, True, True]


def test_a_branch_makes_room_too(grpc_world: World) -> None:
    grpc_world.memory.resize(256 * KIB)
    for _ in range(5):
        browser, _, number = start(grpc_world, end=False)
        grpc_world.opener.last.sink.pause_sending()
        upload(browser, number, 60 * KIB)
        grpc_world.loop.now += 1
    assert grpc_world.memory.held <= 256 * KIB
    assert grpc_world.counters.refused(Reason.BUFFER_LIMIT) == 2
