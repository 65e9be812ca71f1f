"""Visitors who ask for the same small page again and again, on kept connections, in HTTP/1.1 and HTTP/2.

Threads of the test: what each request got, and how long it took, is kept for the checker. A connection that breaks is
a failure, since an edge that lives has no reason for it.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from tunnelgw.http.h2 import DataReceived, Http2, ResponseReceived, StreamClosed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.system.harness import World


@dataclass(frozen=True)
class Answer:
    """One request: when it began (monotonic seconds), how long it took, what came. status 0: the connection broke."""

    begun: float
    seconds: float
    status: int
    body: str


class Visitor1:
    """A connection in HTTP/1.1."""

    def __init__(self, world: World, host: str) -> None:
        self._host = host
        self._connection = http.client.HTTPConnection("127.0.0.1", world.port)
        self._connection.sock = world.tls(host, alpn=["http/1.1"])
        self._connection.auto_open = 0  # a second connection would hide that the first one broke

    def get(self, path: str) -> tuple[int, str]:
        self._connection.request("GET", path, headers={"host": self._host})
        response = self._connection.getresponse()
        return response.status, response.read().decode()

    def close(self) -> None:
        self._connection.close()


class Visitor2:
    """A connection in HTTP/2, one stream at a time."""

    def __init__(self, world: World, host: str) -> None:
        self._host = host.encode()
        self._sock = world.tls(host, alpn=["h2"])
        self._engine = Http2(serving=False)

    def get(self, path: str) -> tuple[int, str]:
        fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", self._host), (b":path", path.encode())]
        stream = self._engine.request(fields, end=True)
        status, body = 0, b""
        while True:
            while data := self._engine.pull(65536):
                self._sock.sendall(data)
            received = self._sock.recv(65536)
            if not received:
                raise ConnectionError("the edge closed the connection")
            for event in self._engine.receive(received):
                if getattr(event, "stream_id", 0) != stream:
                    continue
                if isinstance(event, ResponseReceived):
                    status = int(dict(event.headers)[b":status"])
                elif isinstance(event, DataReceived):
                    body += event.data
                ended = isinstance(event, ResponseReceived | DataReceived) and event.end_stream
                if ended or isinstance(event, StreamClosed):
                    return status, body.decode()

    def close(self) -> None:
        self._sock.close()


class Load:
    """Runs while the block lasts. `answers` is whole after it."""

    def __init__(self, world: World, host: str, path: str = "/", *, each: int = 2, pause: float = 0.01) -> None:
        self._stopping = threading.Event()
        self._pause = pause
        self._path = path
        self.answers: list[Answer] = []
        makers: list[Callable[[], Visitor1 | Visitor2]] = []
        for _ in range(each):
            makers += [lambda: Visitor1(world, host), lambda: Visitor2(world, host)]
        self._threads = [threading.Thread(target=self._visit, args=(make,), daemon=True) for make in makers]

    def _visit(self, make: Callable[[], Visitor1 | Visitor2]) -> None:
        visitor: Visitor1 | Visitor2 | None = None
        while not self._stopping.wait(self._pause):
            begun = time.monotonic()
            try:
                visitor = visitor or make()
                status, body = visitor.get(self._path)
            except (OSError, http.client.HTTPException) as error:
                status, body = 0, repr(error)
            self.answers.append(Answer(begun, time.monotonic() - begun, status, body))
            if not status and visitor:
                visitor.close()
                visitor = None
        if visitor:
            visitor.close()

    def since(self, moment: float) -> list[Answer]:
        """Requests that began at or after this moment."""
        return [answer for answer in tuple(self.answers) if answer.begun >= moment]

    def failures(self) -> list[Answer]:
        """Whatever was not the page."""
        return [answer for answer in self.answers if answer.status != 200]

    def slowest(self) -> float:
        """Seconds."""
        return max(answer.seconds for answer in self.answers)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a request that is never answered"


@contextlib.contextmanager
def visitor(world: World, host: str, *, h2: bool = False):
    """One visitor's connection."""
    made = (Visitor2 if h2 else Visitor1)(world, host)
    try:
        yield made
    finally:
        made.close()
