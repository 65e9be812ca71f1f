"""A small DNS forwarder: the far side's answers names of its own network, a visitor's asks where each name belongs.

It changes nothing in questions and answers. It only asks the servers that it is told to, one after the other, from a
new port each time. Names in `remember` are answered with what was last heard when nobody answers: the edge's own name
must be found while the tunnel to it is down.

Invariant: what a client controls is bounded: questions under way, their length, connections and their time.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import socket
from typing import TYPE_CHECKING, Any

from tunnelgw.errors import LocalError
from tunnelgw.net.tasks import cancel, spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

log = logging.getLogger(__name__)

PORT = 53
ASKED_MAX = 256  # questions under way; more are not answered, and asked again by whoever asked
CONNECTIONS_MAX = 32
CONNECTION_SECONDS = 20.0
ANSWER_SECONDS = 2.0  # of each server
REMEMBERED_MAX = 16
SERVFAIL = 2
A, AAAA = 1, 28


def question(message: bytes) -> tuple[str, bytes] | None:
    """The name that is asked for, in lower case, and the whole question; None if this is no question."""
    if len(message) < 12 or message[2] & 0x80 or message[4:6] != b"\0\1":
        return None
    labels, at = [], 12
    while at < len(message) and message[at]:
        length = message[at]
        if length > 63:
            return None
        labels.append(message[at + 1 : at + 1 + length])
        at += 1 + length
    if at + 5 > len(message) or at > 12 + 254:
        return None
    return b".".join(labels).decode("latin-1").lower(), message[12 : at + 5]


def failed(message: bytes) -> bytes:
    """SERVFAIL, as an answer to this question."""
    asked = question(message)
    return (
        message[:2] + bytes((0x80 | message[2] & 0x79, 0x80 | SERVFAIL)) + b"\0\1" + bytes(6) + (asked or ("", b""))[1]
    )


def ask(name: str, kind: int) -> bytes:
    """A question."""
    labels = name.encode("idna").rstrip(b".").split(b".")
    asked = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    return os.urandom(2) + b"\1\0\0\1" + bytes(6) + asked + kind.to_bytes(2, "big") + b"\0\1"


def answers(message: bytes) -> list[str]:
    """The addresses in an answer; none where it cannot be read."""
    found, at = [], 12
    try:
        counts = int.from_bytes(message[4:6], "big"), int.from_bytes(message[6:8], "big")
        for _ in range(min(counts[0], 4)):
            at = _skip(message, at) + 4
        for _ in range(min(counts[1], 64)):
            at = _skip(message, at)
            kind, length = int.from_bytes(message[at : at + 2], "big"), int.from_bytes(message[at + 8 : at + 10], "big")
            data = message[at + 10 : at + 10 + length]
            at += 10 + length
            if (kind, len(data)) in ((A, 4), (AAAA, 16)):
                found.append(str(ipaddress.ip_address(data)))
    except IndexError:
        return found
    return found


def _skip(message: bytes, at: int) -> int:
    """Behind the name that begins there."""
    while message[at]:
        if message[at] >= 0xC0:
            return at + 2
        at += 1 + message[at]
    return at + 1


def within(name: str, domains: Sequence[str]) -> bool:
    """Whether the name is one of these or below one of them."""
    return any(name == domain or name.endswith(f".{domain}") for domain in domains)


class _Asking(asyncio.DatagramProtocol):
    """One question to one server."""

    def __init__(self, message: bytes, answer: asyncio.Future[bytes]) -> None:
        self.message = message
        self.answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.sendto(self.message)  # type: ignore[attr-defined]

    def datagram_received(self, data: bytes, _address: Any) -> None:
        same = data[:2] == self.message[:2] and len(data) >= 12 and data[2] & 0x80
        if same and not self.answer.done():
            self.answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


class Forwarder(asyncio.DatagramProtocol):
    """Listens on one address, UDP and TCP. `servers(name)`: addresses to ask, and the mark of the sockets for it."""

    def __init__(self, servers: Callable[[str], tuple[Sequence[str], int]], *, remember: Sequence[str] = ()) -> None:
        self._servers = servers
        self._remember = frozenset(remember)
        self._known: dict[bytes, bytes] = {}
        self._under_way: set[asyncio.Task[None]] = set()
        self._connections = 0
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None

    async def listen(self, address: str, port: int) -> int:
        """Begin; the port, which is a free one for 0. `LocalError`."""
        loop = asyncio.get_running_loop()
        try:
            self._tcp = await asyncio.start_server(self._connected, address, port, limit=65537)
            port = self._tcp.sockets[0].getsockname()[1]
            self._udp, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(address, port))
        except OSError as error:
            await self.close()
            raise LocalError(f"{address} port {port} cannot be used for names: {error.strerror or error}") from None
        return port

    async def close(self) -> None:
        """End, with what is under way. Idempotent."""
        if self._udp is not None:
            self._udp.abort()
        if self._tcp is not None:
            self._tcp.close()
        for task in list(self._under_way):
            await cancel(task)

    # UDP.

    def datagram_received(self, data: bytes, address: Any) -> None:
        if len(self._under_way) < ASKED_MAX and question(data) is not None:
            self._begin(self._reply(data, address))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = spawn(work, name="a question")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _reply(self, message: bytes, address: Any) -> None:
        answer = await self.ask(message)
        if self._udp is not None and not self._udp.is_closing():
            self._udp.sendto(answer, address)

    async def ask(self, message: bytes, *, stream: bool = False) -> bytes:
        """The answer to this question, SERVFAIL if there is none."""
        found = question(message)
        if found is None:
            return failed(message) if len(message) >= 12 else b""
        name, asked = found
        servers, mark = self._servers(name)
        for server in servers:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    answer = await (self._by_tcp if stream else self._by_udp)(message, server, mark)
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                log.debug("no answer from %s about %s: %s", server, name, error)
                continue
            if name in self._remember and not answer[3] & 15 and len(self._known) < REMEMBERED_MAX:
                self._known[asked] = answer
            return answer
        if asked in self._known:
            return message[:2] + self._known[asked][2:]
        return failed(message)

    async def _by_udp(self, message: bytes, server: str, mark: int) -> bytes:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()
        sock = _socket(server, socket.SOCK_DGRAM, mark)
        try:
            sock.connect((server, PORT))
            transport, _ = await loop.create_datagram_endpoint(lambda: _Asking(message, answer), sock=sock)
        except BaseException:
            sock.close()
            raise
        try:
            return await answer
        finally:
            transport.abort()

    async def _by_tcp(self, message: bytes, server: str, mark: int) -> bytes:
        sock = _socket(server, socket.SOCK_STREAM, mark)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (server, PORT))
            reader, writer = await asyncio.open_connection(sock=sock)
        except BaseException:
            sock.close()
            raise
        try:
            writer.write(len(message).to_bytes(2, "big") + message)
            return await _framed(reader)
        finally:
            writer.close()

    # TCP.

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= CONNECTIONS_MAX:
                with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                    async with asyncio.timeout(CONNECTION_SECONDS):
                        while answer := await self.ask(await _framed(reader), stream=True):
                            writer.write(len(answer).to_bytes(2, "big") + answer)
                            await writer.drain()
        finally:
            self._connections -= 1
            writer.close()


async def _framed(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))


def _socket(server: str, kind: int, mark: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, kind | socket.SOCK_NONBLOCK)
    if mark:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    return sock
