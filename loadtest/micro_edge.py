"""Python's part of an exchange at the edge: the HTTP proxy over real frames, without sockets and TLS.

    python -m loadtest.micro_edge [--opcodes]

Several visitors ask at a time, their requests leave in one batch and the answers come in one, as on a busy edge. What
is measured is microseconds of CPU for an exchange; --opcodes says how many of Python's instructions and calls that is,
by function: how long they take depends on the machine, how many there are does not.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from loadtest.micro_gateway import HOST, REQUEST, Bench
from tunnelgw.wire import frames
from tunnelgw.wire.control import Open
from tunnelgw.wire.flow import INITIAL_WINDOW
from tunnelgw.wire.session import Session

if TYPE_CHECKING:
    from types import FrameType

HEAD = (
    b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Mon, 05 Jan 2026 00:00:00 GMT\r\nContent-Type: text/plain\r\n"
    b"Content-Length: %d\r\nConnection: keep-alive\r\nETag: \"abc\"\r\nAccept-Ranges: bytes\r\n\r\n"
)  # fmt: skip
CYCLES = 200


class Sink:
    """A transport that counts."""

    def __init__(self) -> None:
        self.count = 0

    def write(self, data: bytes) -> None:
        self.count += 1

    def is_closing(self) -> bool:
        return False


class Quiet:
    """A session's handler that hears of nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class Edge:
    """`visitors` connections with a stream each, whose answers have bodies of `size` bytes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, visitors: int, size: int) -> None:
        bench = Bench(loop)
        handler: Any = Quiet()
        self.session = Session(
            opens_odd=True, handler=handler, wake=lambda: None, budget=bench.gateway.memory, now=loop.time()
        )
        self.session.attach(0, loop.time())
        self.loop = loop
        bench.gateway.opener = self  # type: ignore[assignment]
        self.visitors = [bench.connect(h2=False)[0] for _ in range(visitors)]
        self.sinks = [Sink() for _ in self.visitors]
        for protocol, sink in zip(self.visitors, self.sinks, strict=True):
            protocol._transport = sink
            protocol.data_received(REQUEST)
        self.pull()
        self.answers = memoryview(
            bytearray(b"".join(_data(number, HEAD % size + bytes(size)) for number in self.session.streams))
        )
        self.session.feed(self.answers, loop.time())

    def open(self, _route: object, _visitor: object, waiter: Any) -> Any:
        """As `StreamOpener.open`."""
        request = Open(kind="http", service="web", host=HOST, visitor="192.0.2.7", visitor_port=1, edge="", edge_port=1)
        return self.session.open(request, waiter, self.loop.time())

    def pull(self) -> None:
        """What the link does at the end of a turn."""
        while not self.session.quiet:
            self.session.pull(64 * 1024, self.loop.time())

    def cycle(self) -> None:
        """One exchange of each visitor."""
        for protocol in self.visitors:
            protocol.data_received(REQUEST)
        self.pull()
        self.session.feed(self.answers, self.loop.time())

    def settle(self) -> None:
        """The other side acknowledges and credits everything."""
        retained = self.session.retained_frames
        retained.acknowledge(retained.sent)
        for stream in self.session.streams.values():
            stream.credit = stream.granted = INITIAL_WINDOW
            stream.owed, stream.owing = 0, False

    def seconds(self) -> float:
        """CPU seconds for one exchange."""
        answered = sum(sink.count for sink in self.sinks)
        begin = time.thread_time()
        for _ in range(CYCLES):
            self.cycle()
            self.settle()
        taken = time.thread_time() - begin
        exchanges = CYCLES * len(self.visitors)
        assert sum(sink.count for sink in self.sinks) - answered == exchanges
        return taken / exchanges


def _data(number: int, payload: bytes) -> bytes:
    """DATA frames of one stream."""
    step = frames.MAX_PAYLOAD
    parts = (payload[at : at + step] for at in range(0, len(payload), step))
    return b"".join(frames.encode(frames.DATA, number, part) for part in parts)


def opcodes(edge: Edge) -> tuple[Counter[str], Counter[str]]:
    """Instructions and calls by function, for one `cycle`."""
    instructions: Counter[str] = Counter()
    calls: Counter[str] = Counter()

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        name = frame.f_code.co_qualname
        if event == "call":
            calls[name] += 1
        elif event == "opcode":
            instructions[name] += 1
        return trace

    sys.settrace(trace)
    edge.cycle()
    sys.settrace(None)
    return instructions, calls


def main() -> None:
    """Print the figures."""
    loop = asyncio.new_event_loop()
    for visitors in (1, 4, 16):
        for size in (13, 10 * 1024):
            edge = Edge(loop, visitors, size)
            best = min(edge.seconds() for _ in range(7))
            print(f"{visitors:2} at a time, {size:6,} bytes {best * 1e6:6.2f} us")
    if "--opcodes" in sys.argv[1:]:
        edge = Edge(loop, 4, 13)
        edge.seconds()
        instructions, calls = opcodes(edge)
        print(f"4 at a time: {instructions.total() / 4:.0f} instructions and {calls.total() / 4:.1f} calls an exchange")
        for name, count in instructions.most_common(40):
            print(f"{count / 4:8.1f} {calls[name] / 4:6.2f}  {name}")
    loop.close()


if __name__ == "__main__":
    main()
