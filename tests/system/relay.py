"""A TCP relay with a bad temper: `python relay.py LISTEN_PORT TARGET_PORT [DELAY_SECONDS]`.

Bytes are passed on after a fixed delay each way. SIGUSR1 resets every connection, SIGUSR2 freezes the present ones for
ever in silence (nothing is passed on, nothing is closed); new connections work. Prints `ready`, `reset`, `frozen`.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import struct
import sys

import uvloop

# In flight per direction: 100 ms at 160 MB/s.
IN_FLIGHT = 16 * 1024 * 1024


class End(asyncio.Protocol):
    """One end of a relayed connection; `other` is the far one."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.other: End | None = None
        self.transport: asyncio.Transport | None = None
        self.early: list[bytes] = []
        self.flying = 0
        self.reading = True
        self.frozen = False

    def connection_made(self, transport) -> None:
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.relay.ends.add(self)
        for data in self.early:
            transport.write(data)
        self.early.clear()

    def data_received(self, data: bytes) -> None:
        if self.frozen or self.other is None:
            return
        self.flying += len(data)
        if self.flying > IN_FLIGHT and self.reading:
            self.reading = False
            self.transport.pause_reading()
        if self.relay.delay:
            self.relay.loop.call_later(self.relay.delay, self.arrive, data)
        else:
            self.arrive(data)

    def arrive(self, data: bytes) -> None:
        self.flying -= len(data)
        if not self.reading and self.flying < IN_FLIGHT // 2 and self.transport is not None:
            self.reading = True
            self.transport.resume_reading()
        if self.frozen:
            return
        if self.other.transport is not None:
            self.other.transport.write(data)
        else:
            self.other.early.append(data)

    def eof_received(self) -> bool:
        if not self.frozen and self.other.transport is not None:
            self.relay.loop.call_later(self.relay.delay, self.other.end)
        return True

    def end(self) -> None:
        if self.transport is not None and not self.frozen:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.relay.ends.discard(self)
        if not self.frozen and self.other is not None:
            self.relay.loop.call_later(self.relay.delay, self.other.end)

    def reset(self) -> None:
        if self.transport is not None:
            linger = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.transport.abort()


class Relay:
    def __init__(self, target: int, delay: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.target = target
        self.delay = delay
        self.ends: set[End] = set()

    def accept(self) -> End:
        near, far = End(self), End(self)
        near.other, far.other = far, near
        self.loop.create_task(self.connect(near, far))
        return near

    async def connect(self, near: End, far: End) -> None:
        try:
            await self.loop.create_connection(lambda: far, "127.0.0.1", self.target)
        except OSError:
            near.end()

    def reset(self) -> None:
        for end in tuple(self.ends):
            end.reset()
        print("reset", flush=True)

    def freeze(self) -> None:
        for end in self.ends:
            end.frozen = True
        print("frozen", flush=True)


async def main() -> None:
    loop = asyncio.get_running_loop()
    relay = Relay(int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
    loop.add_signal_handler(signal.SIGUSR1, relay.reset)
    loop.add_signal_handler(signal.SIGUSR2, relay.freeze)
    stopping = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    await loop.create_server(relay.accept, "127.0.0.1", int(sys.argv[1]))
    print("ready", flush=True)
    await stopping.wait()


uvloop.run(main())
