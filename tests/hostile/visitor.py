"""A visitor that sends exact bytes over TLS and reads answers strictly, one after the other."""

from __future__ import annotations

import functools
import re
import socket
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from tests.system.harness import World

HOST = b"web.example.com"


@functools.cache
def context(alpn: str) -> ssl.SSLContext:
    """One for all connections: loading the machine's authorities for each would cost more than a case."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.set_alpn_protocols([alpn])
    return made


def connect(world: World, name: str, alpn: str) -> ssl.SSLSocket:
    """A TLS connection to the edge; nothing verified."""
    sock = socket.create_connection(("127.0.0.1", world.port), timeout=30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return context(alpn).wrap_socket(sock, server_hostname=name)


@dataclass
class Answer:
    """One response. `cut`: its framing promised more than came."""

    status: int
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    cut: bool = False

    def value(self, name: bytes) -> bytes:
        return next((value for key, value in self.fields if key == name), b"")

    @property
    def closes(self) -> bool:
        return self.value(b"connection") == b"close"


class Ended(Exception):  # noqa: N818 - an answer
    """The edge closed the connection between two answers."""


class Peer:
    """A connection that a case may find closed."""

    sock: ssl.SSLSocket

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> bool:
        """False where the edge closed already, which is no error of the case."""
        try:
            self.sock.sendall(data)
        except OSError:
            return False
        return True


class Visitor(Peer):
    """One HTTP/1.1 connection."""

    def __init__(self, world: World, name: str = "web.example.com") -> None:
        self.sock = connect(world, name, "http/1.1")
        self.buffer = b""

    def fill(self) -> bool:
        try:
            data = self.sock.recv(65536)
        except TimeoutError:
            raise AssertionError(f"the edge neither answers nor closes; so far {self.buffer!r}") from None
        except (ConnectionError, ssl.SSLError):
            data = b""
        self.buffer += data
        return data != b""

    def answer(self, method: bytes = b"GET") -> Answer:
        """The next response, interim ones left out; `Ended` where none comes."""
        while True:
            answer = self._head()
            if answer.status >= 200 or answer.status == 101:
                break
        if answer.status not in (101, 204, 304) and method != b"HEAD":
            self._body(answer)
        return answer

    def _head(self) -> Answer:
        while b"\r\n\r\n" not in self.buffer:
            if not self.fill():
                if self.buffer:
                    raise AssertionError(f"half a head: {self.buffer!r}")
                raise Ended
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        found = re.fullmatch(rb"HTTP/1\.1 ([1-5][0-9][0-9])(?: [\t -~\x80-\xff]*)?", lines[0])
        assert found, f"no status line: {head!r}"
        assert all(re.fullmatch(rb"[!#$%&'*+\-.^_`|~0-9a-z]+: [\t -~\x80-\xff]*", line) for line in lines[1:]), head
        fields = [line.split(b": ", 1) for line in lines[1:]]
        names = [name for name, _ in fields]
        assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1, head
        return Answer(int(found[1]), [(name, value) for name, value in fields])

    def _body(self, answer: Answer) -> None:
        length = answer.value(b"content-length")
        if length:
            answer.body = self._take(int(length))
            answer.cut = len(answer.body) < int(length)
        elif answer.value(b"transfer-encoding"):
            self._chunks(answer)
        else:
            while self.fill():
                pass
            answer.body, self.buffer = self.buffer, b""

    def _take(self, count: int) -> bytes:
        while len(self.buffer) < count and self.fill():
            pass
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def _chunks(self, answer: Answer) -> None:
        while True:
            while b"\r\n" not in self.buffer:
                if not self.fill():
                    answer.cut = True
                    return
            size, _, self.buffer = self.buffer.partition(b"\r\n")
            count = int(size, 16)
            if not count:
                break
            data = self._take(count + 2)
            answer.body += data[:count]
            if len(data) < count + 2:
                answer.cut = True
                return
        while True:  # trailers
            while b"\r\n" not in self.buffer:
                if not self.fill():
                    answer.cut = True
                    return
            line, _, self.buffer = self.buffer.partition(b"\r\n")
            if not line:
                return
            name, _, value = line.partition(b": ")
            answer.fields.append((b"trailer:" + name, value))

    def get(self, target: bytes, host: bytes = HOST) -> Answer:
        """A good request, and its answer."""
        self.send(b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (target, host))
        return self.answer()
