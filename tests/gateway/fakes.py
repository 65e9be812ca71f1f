"""Stand-ins for what the gateway touches: a loop with a clock of its own, transports, streams, an opener."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import ngh2

from tunnelgw.gateway.opener import NoStream, Visitor
from tunnelgw.gateway.service import Gateway
from tunnelgw.net.timers import Wheel
from tunnelgw.obs.counters import ProcessCounters, RouteCounters
from tunnelgw.routing.table import NameEntry, Route
from tunnelgw.wire.flow import Budget

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.gateway.settings import GatewaySettings
    from tunnelgw.obs.reasons import Reason


class Handle:
    def __init__(self, call: Callable[..., object], args: tuple[Any, ...], when: float) -> None:
        self.call, self.args, self.when = call, args, when

    def cancel(self) -> None:
        self.call = _nothing


def _nothing(*_: object) -> None: ...


class Work:
    """A future of `run_in_executor`."""

    def __init__(self, loop: FakeLoop, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.loop, self.work, self.args = loop, work, args
        self.callbacks: list[Callable[[Any], object]] = []

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        self.callbacks.append(callback)

    def cancelled(self) -> bool:
        return False

    def result(self) -> Any:
        return self.work(*self.args)

    def finish(self) -> None:
        self.loop.threads.remove(self)
        for callback in self.callbacks:
            callback(self)
        self.loop.turn()


class FakeLoop:
    """`call_soon`, `call_later` and `time`, driven by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.soon: list[Handle] = []
        self.later: list[Handle] = []
        self.threads: list[Work] = []  # what a thread was asked to do; `finish` does it

    def time(self) -> float:
        return self.now

    def call_soon(self, call: Callable[..., object], *args: Any) -> Handle:
        handle = Handle(call, args, self.now)
        self.soon.append(handle)
        return handle

    def call_later(self, delay: float, call: Callable[..., object], *args: Any) -> Handle:
        handle = Handle(call, args, self.now + delay)
        self.later.append(handle)
        return handle

    def run_in_executor(self, _executor: object, work: Callable[..., Any], *args: Any) -> Work:
        made = Work(self, work, args)
        self.threads.append(made)
        return made

    def turn(self) -> None:
        """Run what waits for the next loop turn."""
        while self.soon:
            batch, self.soon = self.soon, []
            for handle in batch:
                handle.call(*handle.args)

    def advance(self, seconds: float) -> None:
        """Let time pass in small steps."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(self.now + 0.25, until)
            due = [handle for handle in self.later if handle.when <= self.now]
            self.later = [handle for handle in self.later if handle.when > self.now]
            for handle in due:
                handle.call(*handle.args)
            self.turn()


class FakeTransport(asyncio.Transport):
    """Keeps what is written; `tls` decides about half-close."""

    def __init__(self, protocol: asyncio.Protocol | None = None, *, tls: bool = True) -> None:
        super().__init__()
        self.protocol = protocol
        self.tls = tls
        self.written = bytearray()
        self.writes = 0
        self.closed = self.aborted = self.eof_written = self.reading_paused = False
        self.lost = False
        self.ended = False  # the peer said that nothing more comes
        self.unsent = 0  # written, and not yet taken by the kernel
        self.fill_after = -1  # pause the protocol when this much was written

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed, "write after close"
        assert not self.aborted
        assert isinstance(data, bytes)
        self.written += data
        self.writes += 1
        if 0 <= self.fill_after <= len(self.written) and self.protocol is not None:
            self.fill_after = -1
            self.protocol.pause_writing()

    def take(self) -> bytes:
        """What was written, without the Date that the gateway adds where a service said none."""
        data = bytes(self.written).replace(b"date: NOW\r\n", b"")
        self.written.clear()
        return data

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def can_write_eof(self) -> bool:
        return not self.tls

    def write_eof(self) -> None:
        assert not self.tls
        self.eof_written = True

    def pause_reading(self) -> None:
        assert not self.is_closing()
        assert not self.reading_paused
        self.reading_paused = True

    def resume_reading(self) -> None:
        assert not self.is_closing()
        assert self.reading_paused
        self.reading_paused = False

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def lose(self, error: Exception | None = None) -> None:
        """The connection is gone."""
        if not self.lost and self.protocol is not None:
            self.lost = True
            self.protocol.connection_lost(error)


class FakeStream:
    """A stream whose far end is the test."""

    def __init__(self, sink: Any, route: Route) -> None:
        self.sink = sink
        self.route = route
        self.sent = bytearray()
        self.delivered = 0
        self.credited = 0
        self.finished = self.peer_finished = False
        self.reset_with: Reason | None = None
        self.gone = False

        self.linked, self.leaving = True, False
        self.sent_anything = True  # the other side knows of it

    @property
    def closed(self) -> bool:
        return self.gone or self.reset_with is not None or (self.finished and self.peer_finished)

    def write(self, data: bytes | memoryview) -> None:
        assert not self.finished, "write after finish"
        if not self.closed:
            self.sent += data

    def hurry(self) -> None:
        pass

    def lend(self, data: memoryview) -> None:
        self.write(bytes(data))

    def finish(self) -> None:
        self.finished = True

    def reset(self, reason: Reason) -> None:
        if self.reset_with is None and not self.closed:
            self.reset_with = reason

    def consumed(self, count: int) -> None:
        assert count > 0
        self.credited += count
        assert self.credited <= self.delivered

    # The far end.

    def take(self) -> bytes:
        data = bytes(self.sent)
        self.sent.clear()
        return data

    def deliver(self, data: bytes, *, step: int = 0) -> None:
        size = step or len(data)
        for start in range(0, len(data), size):
            if self.closed:
                return
            part = data[start : start + size]
            self.delivered += len(part)
            self.sink.stream_data(part)

    def end(self) -> None:
        self.peer_finished = True
        self.sink.stream_finished()

    def fail(self, reason: Reason) -> None:
        self.gone = True
        self.sink.stream_reset(reason)


class FakeOpener:
    """Opens fake streams at once; or parks, or refuses, as told."""

    def __init__(self) -> None:
        self.streams: list[FakeStream] = []
        self.parked: list[tuple[Route, Any]] = []
        self.park = False
        self.refusal: NoStream | None = None
        self.full: dict[str, Reason] = {}  # connectors that have no room, and why
        self.away_since = 0.0
        self.cancelled = 0

    def open(self, route: Route, visitor: Visitor, waiter: Any) -> Any:
        if self.refusal is not None:
            raise self.refusal
        if route.connector in self.full:
            raise NoStream(self.full[route.connector])
        if self.park:
            self.parked.append((route, waiter))
            return None
        return self._make(route, waiter)

    def _make(self, route: Route, waiter: Any) -> FakeStream:
        stream = FakeStream(waiter, route)
        self.streams.append(stream)
        return stream

    def unpark(self) -> FakeStream:
        route, waiter = self.parked.pop(0)
        stream = self._make(route, waiter)
        waiter.stream_ready(stream)
        return stream

    def cancel(self, waiter: Any) -> None:
        self.cancelled += 1
        self.parked = [entry for entry in self.parked if entry[1] is not waiter]

    def since(self, route: Route) -> float:
        return self.away_since

    @property
    def last(self) -> FakeStream:
        return self.streams[-1]

    @property
    def open_streams(self) -> list[FakeStream]:
        return [stream for stream in self.streams if not stream.closed]


class FakeTable:
    """Exact hosts, longest path first by plain prefix: the real table has tests of its own."""

    def __init__(self, routes: list[Route]) -> None:
        self.routes = sorted(routes, key=lambda route: -len(route.path))

    def find_http(self, host: str, path: bytes) -> Route | None:
        for route in self.routes:
            if route.host == host and path.decode().startswith(route.path):
                return route
        return None

    def routes_of(self, connector: str) -> list[Route]:
        return [
            own for route in self.routes if route.members for own in route.members.routes if own.connector == connector
        ]

    def find_name(self, host: str) -> NameEntry | None:
        return NameEntry("http", host, None) if any(route.host == host for route in self.routes) else None


HOST = "a.example.com"


def make_route(**changes: Any) -> Route:
    values: dict[str, Any] = {
        "kind": "http", "host": HOST, "connector": "home", "service": "web",
        "counters": RouteCounters("a"), "label": "a",
    }  # fmt: skip
    return Route(**(values | changes))


class World:
    """A gateway among fakes."""

    def __init__(self, *routes: Route, settings: GatewaySettings | None = None, **more: Any) -> None:
        self.loop = FakeLoop()
        self.opener = FakeOpener()
        self.log: list[tuple[Any, ...]] = []
        self.counters = ProcessCounters()
        self.memory = Budget(later=self.loop.call_soon)
        self.routes = list(routes) or [make_route()]
        loop: Any = self.loop
        opener: Any = self.opener
        table: Any = FakeTable(self.routes)
        self.gateway = Gateway(
            table=table,
            opener=opener,
            wheel=Wheel(loop),
            loop=loop,
            counters=self.counters,
            memory=self.memory,
            settings=settings,
            log_request=self.log.append,
            **more,
        )
        self.gateway.date = lambda: b"NOW"  # type: ignore[method-assign]

    def visitor(self, **changes: Any) -> Visitor:
        values: dict[str, Any] = {
            "edge_address": "198.51.100.1", "edge_port": 443, "server_name": HOST, "alpn": "http/1.1",
        }  # fmt: skip
        return Visitor("192.0.2.7", 40000, **(values | changes))

    def connect(self, *, h2: bool = False, tls: bool = True, **changes: Any) -> tuple[Any, FakeTransport]:
        visitor = self.visitor(secure=tls, **changes)
        protocol: Any = self.gateway.http2(visitor) if h2 else self.gateway.http1(visitor)
        transport = FakeTransport(protocol, tls=tls)
        protocol.connection_made(transport)
        return protocol, transport


class Peer2:
    """The other end of an HTTP/2 connection: a visitor's browser (`serving=False`) or a service."""

    def __init__(self, *, serving: bool = False, window: int = 1 << 20, **settings: int) -> None:
        role = ngh2.Role.SERVER if serving else ngh2.Role.CLIENT
        self.core = ngh2.Connection(role, ngh2.Configuration(auto_window_update=True))
        self.core.initiate_connection({ngh2.Setting.INITIAL_WINDOW_SIZE: window})
        self.core.set_local_window_size(max(window, 65535))
        self.requests: dict[int, ngh2.RequestReceived] = {}
        self.heads: dict[int, dict[bytes, bytes]] = {}
        self.interim: list[tuple[tuple[bytes, bytes], ...]] = []
        self.bodies: dict[int, bytes] = {}
        self.trailers: dict[int, list[tuple[bytes, bytes]]] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.closed: dict[int, int] = {}
        self.goaway: ngh2.GoAwayReceived | None = None

    def feed(self, data: bytes) -> None:
        if data:
            self.core.receive_data(data)
        for event in self.core.events():
            self._note(event)

    def _note(self, event: ngh2.Event) -> None:
        if isinstance(event, ngh2.RequestReceived):
            self.requests[event.stream_id] = event
            self.heads[event.stream_id] = dict(event.headers)
            if event.end_stream:
                self.ended.add(event.stream_id)
        elif isinstance(event, ngh2.ResponseReceived):
            assert event.stream_id not in self.heads
            self.heads[event.stream_id] = dict(event.headers)
            if event.end_stream:
                self.ended.add(event.stream_id)
        elif isinstance(event, ngh2.InformationalResponseReceived):
            self.interim.append(tuple(event.headers))
        elif isinstance(event, ngh2.DataReceived):
            self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
            if event.end_stream:
                self.ended.add(event.stream_id)
        elif isinstance(event, ngh2.TrailersReceived):
            self.trailers[event.stream_id] = list(event.headers)
            self.ended.add(event.stream_id)
        elif isinstance(event, ngh2.StreamReset):
            self.resets[event.stream_id] = event.error_code
        elif isinstance(event, ngh2.StreamClosed):
            self.closed[event.stream_id] = event.error_code
        elif isinstance(event, ngh2.GoAwayReceived):
            self.goaway = event

    def get(self, path: str = "/", *more: tuple[bytes, bytes], method: bytes = b"GET", end: bool = True) -> int:
        fields = [(b":method", method), (b":scheme", b"https"), (b":authority", HOST.encode())]
        fields.append((b":path", path.encode()))
        return self.core.send_request([*fields, *more], end_stream=end)

    def pull(self) -> bytes:
        data = self.core.data_to_send()
        self.feed(b"")
        return data


class Browser2(Peer2):
    """A visitor on an HTTP/2 connection of a world."""

    def __init__(self, world: World, *, window: int = 1 << 20, **visitor: Any) -> None:
        super().__init__(window=window)
        self.world = world
        self.protocol, self.transport = world.connect(h2=True, alpn="h2", **visitor)

    def go(self) -> None:
        """Exchange bytes with the gateway until both are silent."""
        for _ in range(1000):
            data = self.pull()
            if data and not self.transport.lost:
                self.protocol.data_received(data)
            self.world.loop.turn()
            answer = self.transport.take()
            self.feed(answer)
            if not data and not answer:
                return
        raise AssertionError("never silent")
