"""Cost of the HTTP proxy alone: microseconds of Python per exchange and bytes per idle connection, no socket, no TLS.

    python -m loadtest.micro_gateway

Visitor and service are stand-ins that only count; the route table, codecs, checks and serialisers are the real ones.
"""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from typing import Any

import ngh2

from tunnelgw.gateway.opener import Visitor
from tunnelgw.gateway.service import Gateway
from tunnelgw.net.timers import Wheel
from tunnelgw.obs.counters import ProcessCounters
from tunnelgw.routing.table import Route, RouteTable
from tunnelgw.wire.flow import Budget

HOST = "a.example.com"
FIELDS = (
    b"user-agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n"
    b"accept: text/html,*/*;q=0.8\r\naccept-language: en-US,en;q=0.5\r\naccept-encoding: gzip, deflate, br\r\n"
)
REQUEST = b"GET /index.html HTTP/1.1\r\nhost: a.example.com\r\n" + FIELDS + b"\r\n"
BODY = b"Hello, world!"
RESPONSE = (
    b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Mon, 05 Jan 2026 00:00:00 GMT\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 13\r\nConnection: keep-alive\r\nETag: \"abc\"\r\nAccept-Ranges: bytes\r\n\r\n" + BODY
)  # fmt: skip


class Transport:
    """Takes everything."""

    def __init__(self) -> None:
        self.last = b""
        self.count = 0

    def write(self, data: bytes) -> None:
        self.last = data
        self.count += 1

    def set_write_buffer_limits(self, high: int, low: int) -> None: ...

    def get_extra_info(self, name: str) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def close(self) -> None: ...


class Stream:
    """A stream whose service answers when told to."""

    closed = False
    leaving = False

    def __init__(self, sink: Any) -> None:
        self.sink = sink

    def write(self, data: bytes) -> None: ...

    def hurry(self) -> None: ...

    def consumed(self, count: int) -> None: ...

    def finish(self) -> None: ...

    def reset(self, reason: object) -> None: ...


class Opener:
    """Opens at once."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []

    def open(self, route: Route, visitor: Visitor, waiter: Any) -> Any:
        stream = Stream(waiter)
        self.streams.append(stream)
        return stream

    def cancel(self, waiter: Any) -> None: ...


class Bench:
    """One gateway and its stand-ins."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.opener = Opener()
        counters = ProcessCounters()
        table = RouteTable()
        table.replace("home", [Route("http", HOST, "home", "web", counters.route(HOST), label=HOST)])
        opener: Any = self.opener
        self.gateway = Gateway(
            table=table, opener=opener, wheel=Wheel(loop), loop=loop, counters=counters, memory=Budget()
        )

    def connect(self, *, h2: bool) -> tuple[Any, Any]:
        visitor = Visitor("192.0.2.7", 40000, edge_port=443, server_name=HOST, alpn="h2" if h2 else "http/1.1")
        protocol: Any = self.gateway.http2(visitor) if h2 else self.gateway.http1(visitor)
        transport = Transport()
        protocol.connection_made(transport)
        return protocol, transport

    def h1(self, count: int, *, repeated: bool) -> float:
        """CPU seconds for `count` exchanges on one HTTP/1.1 connection; `repeated`: the same heads each time."""
        protocol, transport = self.connect(h2=False)
        protocol.data_received(REQUEST)
        sink = self.opener.streams[-1].sink
        sink.stream_data(RESPONSE)
        assert transport.last.endswith(BODY)
        other = (REQUEST, RESPONSE)
        if not repeated:
            other = (REQUEST.replace(b"q=0.8", b"q=0.7"), RESPONSE.replace(b"05 Jan", b"06 Jan"))
        begin = time.thread_time()
        for _ in range(count // 2):
            protocol.data_received(REQUEST)
            sink.stream_data(RESPONSE)
            protocol.data_received(other[0])
            sink.stream_data(other[1])
        seconds = time.thread_time() - begin
        assert transport.count == count + 1
        return seconds

    def h2(self, rounds: int, streams: int) -> float:
        """CPU seconds for `rounds` times `streams` exchanges on one HTTP/2 connection."""
        browser = ngh2.Connection(ngh2.Role.CLIENT)
        browser.initiate_connection()
        protocol, transport = self.connect(h2=True)
        fields = [
            (b":method", b"GET"),
            (b":scheme", b"https"),
            (b":authority", HOST.encode()),
            (b":path", b"/index.html"),
        ]
        for line in FIELDS.split(b"\r\n")[:-1]:
            name, _, value = line.partition(b": ")
            fields.append((name, value))
        seconds = 0.0
        for _ in range(rounds):
            for _ in range(streams):
                browser.send_request(fields, end_stream=True)
            data = browser.data_to_send()
            begin = time.thread_time()
            protocol.data_received(data)
            for stream in self.opener.streams[-streams:]:
                stream.sink.stream_data(RESPONSE)
            protocol.flush()
            seconds += time.thread_time() - begin
            browser.receive_data(transport.last)
            assert sum(isinstance(event, ngh2.StreamClosed) for event in browser.events()) == streams
        return seconds

    def idle_bytes(self, *, h2: bool, count: int) -> float:
        """Python bytes that one connection holds after one request, its kept stream given up."""
        self.connect(h2=h2)
        self.gateway._waiting.clear()
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        kept = []
        for _ in range(count):
            protocol, transport = self.connect(h2=h2)
            if h2:
                browser = ngh2.Connection(ngh2.Role.CLIENT)
                browser.initiate_connection()
                browser.send_request(
                    [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", HOST.encode()), (b":path", b"/")],
                    end_stream=True,
                )
                protocol.data_received(browser.data_to_send())
            else:
                protocol.data_received(REQUEST)
            self.opener.streams.pop().sink.stream_data(RESPONSE)
            protocol.flush()
            protocol.pool.rest(self.loop.time() + 10)
            transport.last = b""
            kept.append(protocol)
        browser = None
        self.gateway._waiting.clear()
        gc.collect()
        size = (tracemalloc.get_traced_memory()[0] - before) / count
        tracemalloc.stop()
        return size


def best(run: Any, per: int) -> float:
    """Microseconds per exchange, best of seven."""
    return min(run() for _ in range(7)) / per * 1e6


def main() -> None:
    """Print the figures."""
    loop = asyncio.new_event_loop()
    print(f"h1 exchange, new   {best(lambda: Bench(loop).h1(5000, repeated=False), 5000):6.2f} us")
    print(f"h1 exchange, same  {best(lambda: Bench(loop).h1(5000, repeated=True), 5000):6.2f} us")
    for streams in (1, 16, 100):
        rounds = 2000 // streams
        print(f"h2 exchange ({streams:3}x) {best(lambda: Bench(loop).h2(rounds, streams), rounds * streams):6.2f} us")  # noqa: B023
    print(f"idle h1 connection {Bench(loop).idle_bytes(h2=False, count=500):6.0f} bytes")
    print(
        f"idle h2 connection {Bench(loop).idle_bytes(h2=True, count=500):6.0f} bytes, without what libnghttp2 allocates"
    )
    loop.close()


if __name__ == "__main__":
    main()
