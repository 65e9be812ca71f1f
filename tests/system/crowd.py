"""Visitors of every kind at once, who count what happens to each of their requests.

They run in a thread with a loop of its own while the test does something to edge or connector; `stop` returns what
was asked, and every request, message or byte that went wrong, with its cause. A visitor of HTTP keeps to its protocol:
`Connection: close` and GOAWAY are heeded, and a kept connection that ends under a request is a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import ssl
import threading
from collections import Counter
from typing import TYPE_CHECKING, Self

from websockets.asyncio.client import connect

from tests.system.service import pattern
from tunnelgw.http.h2 import DataReceived, GoAwayReceived, Http2, ResponseReceived, StreamClosed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.system.harness import World

HOST = "web.example.com"
ANSWER_SECONDS = 60.0  # for one answer, however busy the machine is
PAUSE = 0.005  # between two requests of one visitor: the machine has others to serve
UPLOAD = pattern(20_000)
DIGEST = hashlib.sha256(UPLOAD).hexdigest()
# The second one must not be sent again by anybody when it fails.
REQUESTS = (
    b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % HOST.encode(),
    b"POST /upload HTTP/1.1\r\nHost: %b\r\nContent-Length: %d\r\n\r\n" % (HOST.encode(), len(UPLOAD)) + UPLOAD,
)
CHECKS = (
    lambda body: body == b"hello from web\n",
    lambda body: json.loads(body) == {"bytes": len(UPLOAD), "sha256": DIGEST},
)


class WrongError(Exception):
    """An answer that is not what was asked for."""


def context(*alpn: str) -> ssl.SSLContext:
    made = ssl.create_default_context()
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    if alpn:
        made.set_alpn_protocols(list(alpn))
    return made


class Crowd:
    """`await_each()` waits until each visitor was served anew; `stop()` ends them and says what went wrong."""

    def __init__(self, world: World, *, raw_port: int = 0, lasting: bool = True) -> None:
        """`lasting`: also a WebSocket, a slow download and (with `raw_port`) a TCP connection, each kept throughout."""
        self.port = world.port
        self.raw_port = raw_port
        self.done: Counter[str] = Counter()
        self.failures: list[str] = []
        self.stopping = threading.Event()
        self._visitors: dict[str, Callable[[str], Awaitable[None]]] = {
            "kept 1": self._kept, "kept 2": self._kept, "kept 3": self._kept, "h2 1": self._http2, "h2 2": self._http2,
            "new": self._new,
        }  # fmt: skip
        if raw_port:
            self._visitors["raw new"] = self._raw_new
        if lasting:
            self._visitors |= {"websocket": self._websocket, "download": self._download}
            if raw_port:
                self._visitors["raw"] = self._raw
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.await_each()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._thread.join(ANSWER_SECONDS * 2)

    def await_each(self) -> None:
        """Every visitor has been served from now on (the download: went on)."""
        from tests.system.harness import wait_until

        before = Counter(self.done)
        wait_until(
            lambda: self.failures or all(self.done[name] > before[name] for name in self._visitors),
            seconds=ANSWER_SECONDS, what="every visitor is served",
        )  # fmt: skip

    def stop(self) -> Counter[str]:
        """End everybody; AssertionError if anything went wrong for anyone."""
        self.stopping.set()
        self._thread.join(ANSWER_SECONDS * 2)
        assert not self._thread.is_alive(), "a visitor waits for ever"
        assert not self.failures, "\n".join(self.failures)
        return self.done

    async def _run(self) -> None:
        await asyncio.gather(*(self._guard(name, visitor) for name, visitor in self._visitors.items()))

    async def _guard(self, name: str, visitor: Callable[[str], Awaitable[None]]) -> None:
        while not self.stopping.is_set():
            try:
                await visitor(name)
            except Exception as error:
                self.failures.append(f"{name}, after {self.done[name]}: {error!r}")
                await asyncio.sleep(0.1)

    async def _open(self, *alpn: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=context(*alpn), server_hostname=HOST)

    async def _kept(self, name: str) -> None:
        """One connection, as long as it is kept."""
        reader, writer = await self._open("http/1.1")
        number = 0
        try:
            keep = True
            while keep and not self.stopping.is_set():
                number += 1
                async with asyncio.timeout(ANSWER_SECONDS):
                    keep = await exchange(reader, writer, number % 2)
                self.done[name] += 1
                await asyncio.sleep(PAUSE)
        finally:
            await ended(writer)

    async def _new(self, name: str) -> None:
        """One connection for each request."""
        reader, writer = await self._open("http/1.1")
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await exchange(reader, writer, self.done[name] % 2)
            self.done[name] += 1
        finally:
            await ended(writer)
        await asyncio.sleep(PAUSE)

    async def _http2(self, name: str) -> None:
        """One connection, four requests at a time, until the edge asks to go on elsewhere."""
        reader, writer = await self._open("h2")
        try:
            session = Http2Session(reader, writer)
            while not session.leaving and not self.stopping.is_set():
                async with asyncio.timeout(ANSWER_SECONDS):
                    await session.round(4)
                self.done[name] += 4
                await asyncio.sleep(PAUSE)
        finally:
            await ended(writer)

    async def _websocket(self, name: str) -> None:
        """Numbered messages, each of which comes back."""
        url = f"wss://{HOST}:{self.port}/ws"
        async with connect(url, ssl=context(), host="127.0.0.1", port=self.port, server_hostname=HOST) as connection:
            while not self.stopping.is_set():
                number = self.done[name] + 1
                await connection.send(str(number))
                async with asyncio.timeout(ANSWER_SECONDS):
                    answer = await connection.recv()
                if answer != f"echo {number}":
                    raise WrongError(answer)
                self.done[name] = number
                await asyncio.sleep(PAUSE)

    async def _download(self, name: str) -> None:
        """A body that is read as slowly as it takes to last, and to its end once `stop` was called."""
        size = 64 << 20
        reader, writer = await self._open("http/1.1")
        try:
            writer.write(f"GET /bytes/{size} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head.partition(b"\r\n")[0]:
                raise WrongError(head)
            digest, got = hashlib.sha256(), 0
            while data := await asyncio.wait_for(reader.read(65536), ANSWER_SECONDS):
                digest.update(data)
                got += len(data)
                self.done[name] += 1
                if not self.stopping.is_set():
                    await asyncio.sleep(0.05)
            if got != size or digest.digest() != hashlib.sha256(pattern(size)).digest():
                raise WrongError(f"{got} of {size} bytes")
        finally:
            await ended(writer)

    async def _raw(self, name: str) -> None:
        """A connection to the raw port that lasts, as ssh's would."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.raw_port)
        try:
            while not self.stopping.is_set():
                await echoed(reader, writer, b"%d\n" % self.done[name])
                self.done[name] += 1
                await asyncio.sleep(PAUSE)
        finally:
            await ended(writer)

    async def _raw_new(self, name: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.raw_port)
        try:
            await echoed(reader, writer, b"%d\n" % self.done[name])
            self.done[name] += 1
        finally:
            await ended(writer)
        await asyncio.sleep(PAUSE)


async def ended(writer: asyncio.StreamWriter) -> None:
    """Close, and wait for the edge's answer: a loop that stops before it leaves the socket of a TLS connection open."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def echoed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: bytes) -> None:
    writer.write(line)
    async with asyncio.timeout(ANSWER_SECONDS):
        if (answer := await reader.readline()) != line:
            raise WrongError(f"{answer!r} for {line!r}")


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, which: int) -> bool:
    """One request on HTTP/1.1, checked; whether the connection may be used again."""
    writer.write(REQUESTS[which])
    lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
    fields = dict(line.split(b": ", 1) for line in lines[1:] if line)
    body = await reader.readexactly(int(fields[b"content-length"]))
    if b" 200 " not in lines[0] or not CHECKS[which](body):
        raise WrongError(f"{lines[0]!r} {body[:200]!r}")
    return fields.get(b"connection") != b"close"


class Http2Session:
    """A client's connection; `leaving` once the edge takes no new requests on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._engine = Http2(serving=False)
        self.leaving = False

    async def round(self, count: int) -> None:
        """So many requests at once, each of which is answered."""
        asked: dict[int, int] = {}
        for which in range(count):
            asked[self._ask(which % 2)] = which % 2
        status: dict[int, bytes] = {}
        bodies = dict.fromkeys(asked, b"")
        while asked:
            self._writer.write(self._engine.pull(1 << 20))
            data = await self._reader.read(65536)
            if not data:
                raise WrongError(f"the connection ended under {len(asked)} requests")
            for event in self._engine.receive(data):
                if isinstance(event, GoAwayReceived):
                    self.leaving = True
                elif isinstance(event, ResponseReceived):
                    status[event.stream_id] = dict(event.headers)[b":status"]
                elif isinstance(event, DataReceived):
                    bodies[event.stream_id] += event.data
                    self._engine.owe(event.stream_id, len(event.data))
                    self._engine.pay(event.stream_id)
                elif isinstance(event, StreamClosed):
                    number = event.stream_id
                    if event.error_code or status[number] != b"200" or not CHECKS[asked.pop(number)](bodies[number]):
                        raise WrongError(f"{event.error_code} {status.get(number)!r} {bodies[number][:200]!r}")
        self._writer.write(self._engine.pull(1 << 20))

    def _ask(self, which: int) -> int:
        fields = [(b":method", b"POST" if which else b"GET"), (b":scheme", b"https"), (b":authority", HOST.encode()),
                  (b":path", b"/upload" if which else b"/")]  # fmt: skip
        number = self._engine.request(fields, end=not which)
        if which:
            self._engine.send(number, UPLOAD, end=True)
        return number
