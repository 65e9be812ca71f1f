"""What the connector's tests share: loops, a stream without a session, targets on loopback."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from tests.loops import runner
from tunnelgw.config.model import ServiceConfig, Target
from tunnelgw.net.loop import loop_factory
from tunnelgw.wire.control import Open

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from tunnelgw.obs.reasons import Reason

LOOPS = {"uvloop": loop_factory(require_uvloop=True), "asyncio": asyncio.new_event_loop}


def run(main: Callable[[], Coroutine[Any, Any, Any]], *, loop: str = "uvloop", seconds: float = 20.0) -> Any:
    """Run a test's coroutine with a deadline."""

    async def bounded() -> Any:
        async with asyncio.timeout(seconds):
            try:
                return await main()
            finally:
                for _ in range(10):  # transports that were closed or aborted say so in a later turn
                    await asyncio.sleep(0)

    with runner(LOOPS[loop]) as opened:
        return opened.run(bounded())


async def until(condition: Callable[[], object], *, seconds: float = 10.0) -> None:
    """Wait until a condition holds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition():
        assert loop.time() < end, "the condition never held"
        await asyncio.sleep(0.005)


class LooseStream:
    """A stream's near end without a session: what a sink writes is collected, what it owes is counted."""

    def __init__(self) -> None:
        self.sink: Any = None
        self.received = bytearray()
        self.finished = asyncio.Event()
        self.ended = asyncio.Event()
        self.reason: Reason | None = None
        self.credited = 0
        self.queued = 0

    @property
    def closed(self) -> bool:
        return self.reason is not None

    def write(self, data: bytes) -> None:
        self.received += data

    def hurry(self) -> None:
        pass

    def lend(self, data: memoryview) -> None:
        self.write(bytes(data))

    def finish(self) -> None:
        self.finished.set()
        self.ended.set()

    def reset(self, reason: Reason) -> None:
        self.reason = self.reason or reason
        self.ended.set()

    def consumed(self, count: int) -> None:
        self.credited += count


def service(target: Target, name: str = "web", **keys: Any) -> ServiceConfig:
    """A declared service."""
    return ServiceConfig(name=name, target=target, **keys)


def request(kind: str = "tcp", **keys: Any) -> Open:
    """What the edge asks for."""
    return Open(service="web", kind=kind, **keys)


class LocalService:
    """A TCP or Unix target that records what arrives, answers with `answer`, and echoes its half-close."""

    def __init__(self, *, answer: bytes = b"", echo: bool = False) -> None:
        self.answer = answer
        self.echo = echo
        self.received = bytearray()
        self.connections = 0
        self.ended = asyncio.Event()
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def listen(self, *, host: str = "127.0.0.1", ssl: Any = None) -> LocalService:
        self._server = await asyncio.start_server(self._serve, host, 0, ssl=ssl)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def listen_unix(self, path: Path) -> LocalService:
        self._server = await asyncio.start_unix_server(self._serve, str(path))
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        if self.answer:
            writer.write(self.answer)
        with contextlib.suppress(ConnectionResetError):  # an end as well: the visitor's side broke
            while data := await reader.read(65536):
                self.received += data
                if self.echo:
                    writer.write(data)
                    await writer.drain()
        self.ended.set()
        writer.close()

    def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Abort every connection."""
        for writer in self._writers:
            if not writer.is_closing():  # asyncio's TLS transports before 3.11.3 cannot be aborted after close()
                writer.transport.abort()
        self._writers.clear()


async def closed_port() -> int:
    """A port of 127.0.0.1 where nobody listens."""
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port
