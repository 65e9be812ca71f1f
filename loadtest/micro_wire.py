"""What the tunnel protocol costs per frame, in microseconds: `python loadtest/micro_wire.py`.

Best of several rounds, since the machine is shared. Two sessions without a network; sinks that consume at once.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tunnelgw.wire.control import Control, Open
from tunnelgw.wire.flow import Budget
from tunnelgw.wire.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.obs.reasons import Reason
    from tunnelgw.wire.stream import Stream

REQUEST = Open(service="web", visitor="203.0.113.9", visitor_port=50000, host="web.example.com")
ROUNDS = 7


class Consumer:
    """A sink that passes everything on at once."""

    __slots__ = ("stream",)

    def __init__(self) -> None:
        self.stream: Stream | None = None

    def stream_data(self, data: bytes) -> None:
        self.stream.consumed(len(data))  # type: ignore[union-attr]

    def stream_finished(self) -> None:
        self.stream.finish()  # type: ignore[union-attr]

    def stream_reset(self, reason: Reason) -> None:
        pass

    def pause_sending(self) -> None:
        pass

    def resume_sending(self) -> None:
        pass


class Acceptor:
    def stream_opened(self, stream: Stream, request: Open) -> None:
        sink = Consumer()
        sink.stream = stream
        stream.sink = sink

    def control_received(self, message: Control) -> None:
        pass

    def datagram_received(self, flow: int, data: bytes) -> None:
        pass

    def going_away(self, reason: Reason) -> None:
        pass


def pair() -> tuple[Session, Session]:
    edge, home = (
        Session(opens_odd=odd, handler=Acceptor(), wake=lambda: None, budget=Budget(), now=0.0) for odd in (True, False)
    )
    edge.attach(0, 0.0)
    home.attach(0, 0.0)
    return edge, home


def exchange(edge: Session, home: Session) -> None:
    while True:
        forth = edge.pull(65536, 0.0)
        home.feed(forth, 0.0)
        back = home.pull(65536, 0.0)
        edge.feed(back, 0.0)
        if not forth and not back:
            return


def opened(edge: Session, home: Session, count: int) -> list[Stream]:
    streams = []
    for _ in range(count):
        sink = Consumer()
        sink.stream = edge.open(REQUEST, sink, 0.0)
        streams.append(sink.stream)
    exchange(edge, home)
    return streams


def best(measure: Callable[[], float]) -> float:
    return min(measure() for _ in range(ROUNDS))


def small_receive() -> float:
    """One DATA frame of 100 bytes, dispatched: 32 streams, 32 frames a feed."""
    edge, home = pair()
    streams = opened(edge, home, 32)
    spent = 0.0
    for _ in range(300):
        for stream in streams:
            stream.write(b"x" * 100)
        data = edge.pull(65536, 0.0)
        start = time.perf_counter()
        home.feed(data, 0.0)
        spent += time.perf_counter() - start
        exchange(edge, home)
    return spent / 300 / 32


def small_send() -> float:
    """One write of 100 bytes and its share of a pull: 32 streams a batch."""
    edge, home = pair()
    streams = opened(edge, home, 32)
    spent = 0.0
    chunk = b"x" * 100
    for _ in range(300):
        start = time.perf_counter()
        for stream in streams:
            stream.write(chunk)
        data = edge.pull(65536, 0.0)
        spent += time.perf_counter() - start
        home.feed(data, 0.0)
        exchange(edge, home)
    return spent / 300 / 32


def bulk_send() -> float:
    """One chunk of 64 KiB through write and pull."""
    edge, home = pair()
    (stream,) = opened(edge, home, 1)
    chunk = bytes(65536)
    spent = 0.0
    for _ in range(300):
        start = time.perf_counter()
        stream.write(chunk)
        data = edge.pull(131072, 0.0)
        spent += time.perf_counter() - start
        home.feed(data, 0.0)
        exchange(edge, home)
    return spent / 300


def bulk_receive() -> float:
    """256 KiB of full frames through one feed; seconds."""
    edge, home = pair()
    (stream,) = opened(edge, home, 1)
    stream.credit = 1 << 30
    chunk = bytes(16376 * 15)
    spent = 0.0
    for _ in range(100):
        stream.write(chunk)
        data = edge.pull(262144, 0.0)
        start = time.perf_counter()
        home.feed(data, 0.0)
        spent += time.perf_counter() - start
        exchange(edge, home)
    return spent / 100


def request_response() -> float:
    """A new stream, 300 bytes there, 1,000 back, both ends finished: all work of both sides."""
    edge, home = pair()
    spent = 0.0
    for _ in range(300):
        start = time.perf_counter()
        sink = Consumer()
        sink.stream = edge.open(REQUEST, sink, 0.0)
        sink.stream.write(b"x" * 300)
        home.feed(edge.pull(65536, 0.0), 0.0)
        answer = home.streams[sink.stream.id]
        answer.write(b"x" * 1000)
        answer.finish()
        edge.feed(home.pull(65536, 0.0), 0.0)
        home.feed(edge.pull(65536, 0.0), 0.0)
        spent += time.perf_counter() - start
        exchange(edge, home)
    return spent / 300


def main() -> None:
    bulk = best(bulk_receive)
    print(f"receive, one small DATA frame      {best(small_receive) * 1e6:8.2f} us")
    print(f"write + pull, one small frame of 32{best(small_send) * 1e6:8.2f} us")
    print(f"write + pull, 64 KiB               {best(bulk_send) * 1e6:8.2f} us")
    print(f"feed, 240 KiB of full frames       {bulk * 1e6:8.2f} us  {16384 * 15 / bulk / 1e9:.1f} GB/s")
    print(f"open, request, response, both FINs {best(request_response) * 1e6:8.2f} us")


if __name__ == "__main__":
    main()
