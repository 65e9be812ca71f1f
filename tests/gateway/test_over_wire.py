"""The gateway over two real sessions of the tunnel protocol, with a small service at the far end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.gateway.fakes import Browser2, World
from tunnelgw.wire.control import Open
from tunnelgw.wire.flow import Budget
from tunnelgw.wire.session import Session

if TYPE_CHECKING:
    from tunnelgw.obs.reasons import Reason

SIZE = 3_000_000


class Service:
    """Answers GET with `SIZE` bytes and anything else with the length of its body; honours the stream's pauses."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.head = b""
        self.left = 0
        self.got = 0
        self.want = -1
        self.paused = False
        self.resets: list[Reason] = []
        self.ended = False

    def stream_data(self, data: bytes) -> None:
        self.stream.consumed(len(data))
        if self.want < 0:
            self.head += data
            if b"\r\n\r\n" not in self.head:
                return
            head, _, data = self.head.partition(b"\r\n\r\n")
            self.head = b""
            if head.startswith(b"GET"):
                self.stream.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
                self.left = SIZE
                self.push()
                return
            self.want = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            self.got = 0
        self.got += len(data)
        if self.got == self.want:
            self.want = -1
            body = b"%d" % self.got
            self.stream.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    def push(self) -> None:
        while self.left and not self.paused and not self.resets:
            size = min(self.left, 50_000)
            self.left -= size
            self.stream.write(bytes(size))

    def stream_finished(self) -> None:
        self.ended = True
        self.stream.finish()

    def stream_reset(self, reason: Reason) -> None:
        self.resets.append(reason)

    def pause_sending(self) -> None:
        self.paused = True

    def resume_sending(self) -> None:
        self.paused = False
        self.push()


class Home:
    """The connector's session handler."""

    def __init__(self) -> None:
        self.services: list[Service] = []

    def stream_opened(self, stream: Any, request: Open) -> None:
        stream.sink = Service(stream)
        self.services.append(stream.sink)


class Tunnel:
    """Two sessions joined back to back, and an opener over them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.home = Home()
        handler: Any = self.home
        now = world.loop.time()
        self.edge = Session(opens_odd=True, handler=handler, wake=lambda: None, budget=Budget(), now=now)
        self.far = Session(opens_odd=False, handler=handler, wake=lambda: None, budget=Budget(), now=now)
        self.edge.attach(0, now)
        self.far.attach(0, now)
        world.gateway.opener = self  # type: ignore[assignment]

    def open(self, route: Any, visitor: Any, waiter: Any) -> Any:
        return self.edge.open(Open(service=route.service), waiter, self.world.loop.time())

    def cancel(self, waiter: Any) -> None: ...

    def since(self, route: Any) -> float:
        return 0.0

    def pump(self) -> bool:
        """Move what there is, once each way."""
        now = self.world.loop.time()
        there = self.edge.pull(128 * 1024, now)
        if there:
            self.far.feed(there, now)
        back = self.far.pull(128 * 1024, now)
        if back:
            self.edge.feed(back, now)
        self.world.loop.turn()
        return bool(there or back)

    def settle(self) -> None:
        while self.pump():
            pass


@pytest.fixture
def tunnel(world: World) -> Tunnel:
    return Tunnel(world)


def test_downloads_and_uploads_on_one_connection(world: World, tunnel: Tunnel) -> None:
    protocol, transport = world.connect()
    for _ in range(3):
        protocol.data_received(b"GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n")
        tunnel.settle()
        answer = transport.take()
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(bytes(1000))
        assert len(answer.partition(b"\r\n\r\n")[2]) == SIZE
        protocol.data_received(b"PUT / HTTP/1.1\r\nHost: a.example.com\r\nContent-Length: %d\r\n\r\n" % SIZE)
        sent = 0
        while sent < SIZE:
            if not transport.reading_paused:
                protocol.data_received(bytes(min(60_000, SIZE - sent)))
                sent += 60_000
            tunnel.pump()
        tunnel.settle()
        assert transport.take().endswith(b"%d" % SIZE)
    assert len(tunnel.home.services) == 1
    assert tunnel.edge.buffered == 0
    transport.lose()
    tunnel.settle()
    assert tunnel.home.services[0].ended
    assert not tunnel.edge.streams
    assert not tunnel.far.streams


def test_a_reader_that_stops_holds_one_window(world: World, tunnel: Tunnel) -> None:
    protocol, transport = world.connect()
    protocol.data_received(b"GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n")
    transport.fill_after = 1
    tunnel.settle()
    assert len(transport.written) < 600_000
    transport.fill_after = -1
    protocol.resume_writing()
    tunnel.settle()
    assert transport.written.count(b"\0") == SIZE


def test_an_http2_reader_with_a_small_window(world: World, tunnel: Tunnel) -> None:
    browser = Browser2(world, window=70_000)
    numbers = [browser.get(), browser.get()]
    for _ in range(2000):
        browser.go()
        if not tunnel.pump() and len(browser.closed) == 2:
            break
    assert [len(browser.bodies[number]) for number in numbers] == [SIZE, SIZE]
    assert tunnel.edge.buffered == 0
    browser.transport.lose()
    tunnel.settle()
    assert not tunnel.edge.streams
    assert not tunnel.far.streams


def test_a_visitor_who_leaves_resets_the_far_end(world: World, tunnel: Tunnel) -> None:
    protocol, transport = world.connect()
    protocol.data_received(b"GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n")
    tunnel.pump()
    transport.lose()
    tunnel.settle()
    assert tunnel.home.services[0].resets
    assert not tunnel.edge.streams
    assert not tunnel.far.streams
    assert tunnel.edge.buffered == 0
