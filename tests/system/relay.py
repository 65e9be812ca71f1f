"""A TCP relay with a bad temper: `python relay.py LISTEN TARGET [--delay SECONDS] [--control SOCKET]`.

LISTEN and TARGET are PORT or HOST:PORT. Bytes are passed on in order, after a delay each way. Prints `ready`. What it
does to connections is said over the control socket (see control.py):

    reset               every connection, with RST to both sides
    freeze              the present ones, for ever and in silence: nothing is passed on or closed; new ones work
    stall SECONDS       nothing passes for so long, then everything does: what loss looks like on TCP
    delay SECONDS       from now on, each way
    half_close SIDE     a FIN to "near" (who connected) or "far" (the target) of each connection; the rest goes on
    bytewise SECONDS    for so long every byte is written alone
    singles             how many bytes were written alone so far
    connections         how many there are that are not frozen
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import os
import signal
import socket
import struct
import sys
from pathlib import Path

import uvloop

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.system import control

# In flight per direction: 100 ms at 160 MB/s.
IN_FLIGHT = 16 * 1024 * 1024
BYTES_A_TURN = 512  # written one by one before others have their turn


class End(asyncio.Protocol):
    """One end of a relayed connection; `other` is the far one, to which `queue` goes once it is due."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.other: End | None = None
        self.transport: asyncio.Transport | None = None
        self.queue: collections.deque[tuple[float, bytes]] = collections.deque()  # b"": the end
        self.timer: asyncio.Handle | None = None
        self.flying = 0
        self.blocked = False  # its kernel takes no more
        self.reading = True
        self.frozen = False
        self.descriptor = -1
        self.finished = False

    def connection_made(self, transport) -> None:
        self.transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.descriptor = os.dup(sock.fileno())
        self.relay.ends.add(self)
        self.other.deliver()  # what came while this end connected

    def data_received(self, data: bytes) -> None:
        if not self.frozen:
            self.flying += len(data)
            self.enqueue(data)

    def eof_received(self) -> bool:
        self.enqueue(b"")
        return True

    def enqueue(self, data: bytes) -> None:
        due = self.relay.loop.time() + self.relay.delay
        if self.queue:
            due = max(due, self.queue[-1][0])
        self.queue.append((due, data))
        if self.timer is None:
            self.deliver()

    def deliver(self) -> None:
        """Pass on what is due, in order."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        other = self.other
        while self.queue and not self.frozen and (other.transport is not None or other.finished):
            due, data = self.queue[0]
            due = max(due, self.relay.stalled_until)
            if due > self.relay.loop.time():
                self.timer = self.relay.loop.call_at(due, self.deliver)
                break
            self.queue.popleft()
            self.flying -= len(data)
            if not data:
                other.end()
            elif other.transport is not None and not other.finished:
                if self.relay.bytewise_until > self.relay.loop.time():
                    rest = other.one_by_one(data)
                    if rest:
                        self.flying += len(rest)
                        self.queue.appendleft((due, rest))
                        self.timer = self.relay.loop.call_soon(self.deliver)
                        break
                else:
                    other.transport.write(data)
        self.regulate()

    def one_by_one(self, data: bytes) -> bytes:
        """Each byte in a write of its own; returns what has to wait for the next turn."""
        if self.transport.get_write_buffer_size():
            return data
        for index in range(min(len(data), BYTES_A_TURN)):
            try:
                os.write(self.descriptor, data[index : index + 1])
            except BlockingIOError:
                return data[index:]
            except OSError:
                return b""  # the loop hears of it by itself
            self.relay.singles += 1
        return data[BYTES_A_TURN:]

    def regulate(self) -> None:
        """Read no faster than the other end takes it."""
        full = self.flying > IN_FLIGHT or self.other.blocked
        if self.transport is not None and full == self.reading:
            self.reading = not full
            (self.transport.pause_reading if full else self.transport.resume_reading)()

    def pause_writing(self) -> None:
        self.blocked = True
        self.other.regulate()

    def resume_writing(self) -> None:
        self.blocked = False
        self.other.regulate()

    def end(self) -> None:
        """The other end is over."""
        if self.transport is not None and not self.frozen:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.finished = True
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        self.relay.ends.discard(self)
        if not self.frozen:
            self.enqueue(b"")
            self.other.deliver()  # so that what was on its way to this end does not wait for ever

    def reset(self) -> None:
        if self.transport is not None:
            os.close(self.descriptor)  # or the kernel would not know that it is over
            self.descriptor = -1
            linger = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.transport.abort()

    def half_close(self) -> None:
        if self.transport is not None and not self.finished:
            self.finished = True
            self.transport.write_eof()


class Relay:
    """All connections, and what is being done to them."""

    def __init__(self, target: tuple[str, int], delay: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.target = target
        self.delay = delay
        self.stalled_until = 0.0
        self.bytewise_until = 0.0
        self.singles = 0
        self.ends: set[End] = set()  # connected
        self.near: dict[End, End] = {}

    def accept(self) -> End:
        near, far = End(self), End(self)
        near.other, far.other = far, near
        self.near[near] = far
        task = self.loop.create_task(self.connect(near, far))
        task.add_done_callback(lambda task: task.exception())
        return near

    async def connect(self, near: End, far: End) -> None:
        try:
            await self.loop.create_connection(lambda: far, *self.target)
        except OSError:
            far.finished = True
            near.end()

    def commands(self) -> dict:
        return {
            "reset": self.reset, "freeze": self.freeze, "stall": self.stall, "delay": self.delays,
            "half_close": self.half_close, "bytewise": self.bytewise, "connections": self.connections,
            "singles": lambda: self.singles,
        }  # fmt: skip

    def reset(self) -> int:
        ends = tuple(self.ends)
        for end in ends:
            end.reset()
        return len(ends)

    def freeze(self) -> int:
        frozen = [end for end in self.ends if not end.frozen]
        for end in frozen:
            end.frozen = True
        return len(frozen)

    def stall(self, seconds: float) -> None:
        self.stalled_until = self.loop.time() + seconds

    def delays(self, seconds: float) -> None:
        self.delay = seconds

    def half_close(self, side: str) -> int:
        ends = [end for end in self.ends if not end.frozen and (end in self.near) == (side == "near")]
        for end in ends:
            end.half_close()
        return len(ends)

    def bytewise(self, seconds: float) -> None:
        self.bytewise_until = self.loop.time() + seconds

    def connections(self) -> int:
        self.near = {near: far for near, far in self.near.items() if not (near.finished and far.finished)}
        return sum(not end.frozen for end in self.ends if end in self.near)


def place(text: str) -> tuple[str, int]:
    """(host, port) of PORT or HOST:PORT."""
    host, _, port = text.rpartition(":")
    return host or "127.0.0.1", int(port)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("listen", type=place)
    parser.add_argument("target", type=place)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--control")
    options = parser.parse_args()
    loop = asyncio.get_running_loop()
    relay = Relay(options.target, options.delay)
    stopping = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    servers: list[object] = []  # uvloop closes a server that nobody refers to
    if options.control:
        servers.append(await control.serve(options.control, relay.commands()))
    servers.append(await loop.create_server(relay.accept, *options.listen))
    print("ready", flush=True)
    await stopping.wait()


if __name__ == "__main__":
    uvloop.run(main())
