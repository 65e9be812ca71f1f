"""HTTP clients that hide nothing: no retry, no pool, every byte of an answer looked at."""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from tests.lab.tally import AnsweredError, WrongError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GOAWAY = 7  # RFC 9113 section 6.8
PATIENCE = 150.0  # seconds without an answer that are a failure: longer than a sleep of 90 s


def trusting(*alpn: str) -> ssl.SSLContext:
    """A context that checks no certificate: other tests do."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(alpn)
    return context


class H1:
    """One HTTP/1.1 connection over TLS."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self.reader = reader
        self.writer = writer
        self.host = host
        self.closes = False  # the server said that it closes
        self.since = time.monotonic()

    @classmethod
    async def connect(cls, host: str, port: int) -> H1:
        context = trusting("http/1.1")
        async with asyncio.timeout(PATIENCE):
            return cls(*await asyncio.open_connection(host, port, ssl=context, server_hostname=host), host)

    @property
    def usable(self) -> bool:
        """False once it is known that nothing more can be asked on it."""
        reader = self.reader
        return not (self.closes or self.writer.is_closing() or reader.at_eof() or reader.exception() is not None)

    async def ask(self, method: str, path: str, *, length: int = 0) -> None:
        """Send a head; a body of `length` bytes may follow through `writer`."""
        framing = f"Content-Length: {length}\r\n" if length or method == "POST" else ""
        self.writer.write(f"{method} {path} HTTP/1.1\r\nHost: {self.host}\r\n{framing}\r\n".encode())
        await self.writer.drain()

    async def answer(self, *, pause: float = PATIENCE) -> AsyncIterator[bytes]:
        """The body, part by part. AnsweredError if the status is not 200, IncompleteReadError if it is cut short."""
        async with asyncio.timeout(pause):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        status = int(head.split()[1])
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        self.closes = fields.get("connection") == "close"
        if "content-length" not in fields:
            raise WrongError(f"no length in {head!r}")
        left = int(fields["content-length"])
        text = b""
        while left:
            async with asyncio.timeout(pause):
                data = await self.reader.read(min(left, 65536))
            if not data:
                raise asyncio.IncompleteReadError(b"head", left)
            left -= len(data)
            if status == 200:
                yield data
            else:
                text += data
        if status != 200:
            raise AnsweredError(status, text.decode("latin-1").strip())

    async def get(self, path: str) -> bytes:
        """The body; raises as `answer` does."""
        await self.ask("GET", path)
        return b"".join([part async for part in self.answer()])

    @property
    def broken(self) -> BaseException | None:
        """Why it is over, unless it was closed in order."""
        return self.reader.exception()

    def close(self) -> None:
        self.writer.transport.abort()


class UnprocessedError(ConnectionError):
    """The server said that it never looked at this request (RFC 9113 section 6.8): anyone would send it again."""


class H2(asyncio.Protocol):
    """One HTTP/2 connection over TLS, for small GETs, many at once."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.state = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.transport: asyncio.Transport | None = None
        self.waiting: dict[int, asyncio.Future[bytes]] = {}
        self.heads: dict[int, int] = {}
        self.bodies: dict[int, bytes] = {}
        self.usable = True  # for new requests
        self.unread = b""  # the beginning of a frame
        self.broken: BaseException | None = None  # why it is over, unless it was closed in order
        self.since = time.monotonic()

    @classmethod
    async def connect(cls, host: str, port: int) -> H2:
        context = trusting("h2")
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE):
            _, made = await loop.create_connection(lambda: cls(host), host, port, ssl=context, server_hostname=host)
        return made

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.state.initiate_connection()
        self.flush()

    def flush(self) -> None:
        data = self.state.data_to_send()
        if data and self.transport is not None:
            self.transport.write(data)

    async def get(self, path: str) -> bytes:
        """The body; `AnsweredError` if the status is not 200."""
        if not self.usable:
            raise UnprocessedError("the connection is over")
        stream = self.state.get_next_available_stream_id()
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.waiting[stream] = answer
        head = [(":method", "GET"), (":scheme", "https"), (":authority", self.host), (":path", path)]
        self.state.send_headers(stream, head, end_stream=True)
        self.flush()
        try:
            async with asyncio.timeout(PATIENCE):
                return await answer
        finally:
            self.waiting.pop(stream, None)

    def data_received(self, data: bytes) -> None:
        try:
            events = self.state.receive_data(self.without_goaway(data))
        except h2.exceptions.ProtocolError as error:
            self.fail_all(WrongError(f"broken HTTP/2: {error}"))
            self.transport.abort()
            return
        for event in events:
            if isinstance(event, h2.events.ResponseReceived):
                self.heads[event.stream_id] = int(dict(event.headers)[":status"])
            elif isinstance(event, h2.events.DataReceived):
                self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
                self.state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self.ended(event.stream_id)
            elif isinstance(event, h2.events.StreamReset):
                self.fail(event.stream_id, ConnectionResetError(f"stream reset with {event.error_code}"))
        self.flush()

    def without_goaway(self, data: bytes) -> bytes:
        """Whole frames: after a GOAWAY the library would refuse the answers that are still to come."""
        data, kept, at = self.unread + data, b"", 0
        while len(data) - at >= 9:
            end = at + 9 + int.from_bytes(data[at : at + 3], "big")
            if len(data) < end:
                break
            if data[at + 3] == GOAWAY:
                self.usable = False
                last = int.from_bytes(data[at + 9 : at + 13], "big")
                for stream in [stream for stream in self.waiting if stream > last]:
                    self.fail(stream, UnprocessedError("GOAWAY"))
            else:
                kept += data[at:end]
            at = end
        self.unread = data[at:]
        return kept

    def ended(self, stream: int) -> None:
        status, body = self.heads.pop(stream, 0), self.bodies.pop(stream, b"")
        if status == 200:
            answer = self.waiting.pop(stream)
            if not answer.done():
                answer.set_result(body)
        else:
            self.fail(stream, AnsweredError(status, body.decode("latin-1").strip()))

    def fail(self, stream: int, error: Exception) -> None:
        self.heads.pop(stream, None)
        self.bodies.pop(stream, None)
        answer = self.waiting.pop(stream, None)
        if answer is not None and not answer.done():
            answer.set_exception(error)

    def fail_all(self, error: Exception) -> None:
        self.usable = False
        for stream in tuple(self.waiting):
            self.fail(stream, error)

    def connection_lost(self, exc: Exception | None) -> None:
        self.broken = exc
        self.fail_all(exc or ConnectionResetError("closed"))

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()
