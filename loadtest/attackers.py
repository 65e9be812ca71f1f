"""Floods of one kind from one or many addresses, and the visitor beside them who measures what they do to others.

    python -m loadtest.attackers KIND PORT [--sources 256] [--width 512] [--seconds 10]
    python -m loadtest.attackers bystander PORT [--seconds 10] [--patience 5]

KIND is connect, silent, stalled, halfway, handshakes, tunnels, idle or asking: the methods of `Flood`.

Sources are addresses of 127.0.0.0/8, which Linux lets anybody use. Prints one line of JSON at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import ssl
import statistics
import time
from collections import Counter
from typing import TYPE_CHECKING

import uvloop

from loadtest.scenario import HOST

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ADDRESS = "127.0.0.1"
BYSTANDER = "127.200.0.1"
REQUEST = b"GET /small HTTP/1.1\r\nHost: " + HOST.encode() + b"\r\n\r\n"
SMALL = 13  # bytes of the answer's body
PATIENCE = 5.0  # seconds after which an answer counts as lost


def context(*alpn: str) -> ssl.SSLContext:
    """A visitor that believes every certificate."""
    made = ssl.create_default_context()
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    if alpn:
        made.set_alpn_protocols(list(alpn))
    return made


def hello() -> bytes:
    """A whole ClientHello for HOST."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context("http/1.1").wrap_bio(back, there, server_hostname=HOST).do_handshake()
    return there.read()


class Flood:
    """`width` workers that do the same thing again and again, each from its own source in turn."""

    def __init__(self, port: int, *, sources: int, width: int, seconds: float) -> None:
        self.port = port
        self.addresses = [
            f"127.{100 + number // 65536}.{number // 256 % 256}.{number % 256}" for number in range(sources)
        ]
        self.width = width
        self.until = time.monotonic() + seconds
        self.count: Counter[str] = Counter()
        self.tls = context("http/1.1")
        self.tunnel = context("tgw/1")
        self.hello = hello()

    async def connected(self, number: int) -> socket.socket:
        """A connection from the worker's address."""
        sock = socket.socket()
        sock.setblocking(False)
        try:
            sock.bind((self.addresses[number % len(self.addresses)], 0))
            await asyncio.wait_for(asyncio.get_running_loop().sock_connect(sock, (ADDRESS, self.port)), PATIENCE)
        except BaseException:
            sock.close()
            raise
        return sock

    async def connect(self, number: int) -> None:
        """Connect and leave."""
        (await self.connected(number)).close()

    async def silent(self, number: int) -> None:
        """Connect and wait to be thrown out."""
        await self._wait(await self.connected(number))

    async def stalled(self, number: int) -> None:
        """Half a ClientHello, then silence."""
        sock = await self.connected(number)
        sock.send(self.hello[: len(self.hello) // 2])
        await self._wait(sock)

    async def halfway(self, number: int) -> None:
        """A whole ClientHello, so that the edge signs, then silence."""
        sock = await self.connected(number)
        sock.send(self.hello)
        await self._wait(sock)

    async def handshakes(self, number: int) -> None:
        """A whole handshake, then leave."""
        await self._shake_hands(number, self.tls)

    async def tunnels(self, number: int) -> None:
        """A whole handshake as a stranger at the tunnel port."""
        await self._shake_hands(number, self.tunnel)

    async def _shake_hands(self, number: int, how: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        sock = await self.connected(number)
        transport, _ = await loop.create_connection(
            asyncio.Protocol, sock=sock, ssl=how, server_hostname=HOST, ssl_handshake_timeout=15
        )
        transport.abort()

    async def idle(self, number: int) -> None:
        """A request over TLS and its answer, then silence until thrown out."""
        await self._hold(number, REQUEST)

    async def asking(self, number: int) -> None:
        """A whole handshake, then a request of which a byte comes every five seconds."""
        await self._hold(number, b"GET / HTTP/1.1\r\nX: ", drip=5.0)

    async def _hold(self, number: int, said: bytes, *, drip: float = 0.0) -> None:
        sock = await self.connected(number)
        reader, writer = await asyncio.open_connection(
            sock=sock, ssl=self.tls, server_hostname=HOST, ssl_handshake_timeout=15
        )
        try:
            writer.write(said)
            while not reader.at_eof() and time.monotonic() < self.until:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(65536), drip or 1.0)
                if drip:
                    writer.write(b"x")
        finally:
            writer.transport.abort()

    async def _wait(self, sock: socket.socket) -> None:
        with sock:
            while await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 65536), 30):
                pass

    async def run(self, kind: str) -> dict[str, int]:
        """All workers until the time is over; what came of their attempts."""
        work: Callable[[int], Awaitable[None]] = getattr(self, kind)
        workers = [asyncio.create_task(self._repeat(work, number)) for number in range(self.width)]  # noqa: TID251
        await asyncio.sleep(max(0.0, self.until - time.monotonic()))
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        return dict(self.count)

    async def _repeat(self, work: Callable[[int], Awaitable[None]], number: int) -> None:
        while time.monotonic() < self.until:
            try:
                await work(number)
            except (OSError, TimeoutError) as error:
                self.count[type(error).__name__] += 1
                await asyncio.sleep(0.01)
            else:
                self.count["done"] += 1
                await asyncio.sleep(0)
            number += self.width


class Bystander:
    """A visitor with small requests, on a connection that it keeps and on fresh ones."""

    def __init__(self, port: int, *, seconds: float, patience: float = PATIENCE) -> None:
        self.port = port
        self.until = time.monotonic() + seconds
        self.patience = patience
        self.tls = context("http/1.1")

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A new TLS connection."""
        return await asyncio.open_connection(
            ADDRESS, self.port, ssl=self.tls, server_hostname=HOST, local_addr=(BYSTANDER, 0)
        )

    async def request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request; `OSError` for anything but 200."""
        writer.write(REQUEST)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise OSError(head.split(b"\r\n")[0].decode())
        await reader.readexactly(SMALL)

    async def kept(self) -> None:
        """A request on the connection that is kept; a new one where it was lost."""
        if self._kept is None:
            self._kept = await self.open()
        try:
            await self.request(*self._kept)
        except BaseException:
            self._kept[1].transport.abort()
            self._kept = None
            raise

    async def fresh(self) -> None:
        """A request on a connection of its own."""
        reader, writer = await self.open()
        try:
            await self.request(reader, writer)
        finally:
            writer.transport.abort()

    _kept: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self) -> dict[str, object]:
        """Both kinds side by side."""
        kept, fresh = await asyncio.gather(self._measure(self.kept, 0.02), self._measure(self.fresh, 0.1))
        return {"kept": kept, "fresh": fresh}

    async def _measure(self, work: Callable[[], Awaitable[None]], pause: float) -> dict[str, object]:
        times: list[float] = []
        failures: Counter[str] = Counter()
        while time.monotonic() < self.until:
            begin = time.monotonic()
            try:
                await asyncio.wait_for(work(), self.patience)
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                failures[f"{type(error).__name__} {error}"[:60]] += 1
            times.append(time.monotonic() - begin)
            await asyncio.sleep(pause)
        if len(times) < 2:
            times += [self.patience, self.patience]
        cuts = statistics.quantiles(times, n=100, method="inclusive")
        return {
            "requests": len(times), "failures": dict(failures), "p50_ms": round(cuts[49] * 1000, 1),
            "p99_ms": round(cuts[98] * 1000, 1), "max_ms": round(max(times) * 1000, 1),
        }  # fmt: skip


def main() -> int:
    """Run one of them."""
    parser = argparse.ArgumentParser()
    kinds = ["connect", "silent", "stalled", "halfway", "handshakes", "tunnels", "idle", "asking", "bystander"]
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("port", type=int)
    parser.add_argument("--sources", type=int, default=1)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--patience", type=float, default=PATIENCE)
    given = parser.parse_args()
    if given.kind == "bystander":
        work: Awaitable[object] = Bystander(given.port, seconds=given.seconds, patience=given.patience).run()
    else:
        flood = Flood(given.port, sources=given.sources, width=given.width, seconds=given.seconds)
        work = flood.run(given.kind)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(work)))  # type: ignore[arg-type]
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
