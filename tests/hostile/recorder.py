"""A local service that records every byte it receives, and answers what a case tells it to.

It reads requests with h11 after checks of its own that are stricter than h11: what it records is what a service would
have understood. `/answer/NAME` is answered with the script of that name, everything else with one line that repeats
method and target, so that an answer can be told from any other's.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import h11

from tests.system.targets import RawTarget

if TYPE_CHECKING:
    from collections.abc import Callable

HOP_BY_HOP = {b"keep-alive", b"proxy-connection", b"proxy-authorization", b"proxy", b"te", b"http2-settings", b"x-hop"}
GATEWAYS_OWN = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port", b"x-real-ip")

# After the request, with the socket: return True to serve the connection's next request.
Script = "bytes | Callable[[socket.socket], bool | None]"


@dataclass
class Request:
    """One whole request as the service understood it."""

    method: bytes
    target: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes
    trailers: list[tuple[bytes, bytes]]

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key == name]


@dataclass
class Recorder:
    """`requests`: whole ones, in order. `problems`: what no service should ever receive."""

    requests: list[Request] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    scripts: dict[str, object] = field(default_factory=dict)
    heads: int = 0  # of requests whose body may never have become whole
    connections: int = 0
    lost: int = 0  # connections that ended inside a request
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __call__(self, sock: socket.socket) -> None:
        self.connections += 1
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        raw = bytearray()
        while self._serve(sock, connection, raw):
            connection.start_next_cycle()

    def _serve(self, sock: socket.socket, connection: h11.Connection, raw: bytearray) -> bool:
        request: Request | None = None
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                if "without sending complete" not in str(error) and "peer unexpectedly closed" not in str(error):
                    self.problems.append(f"not HTTP: {error}: {bytes(raw)!r}")
                return self._lose()
            if event is h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                    connection.send(h11.InformationalResponse(status_code=100, headers=[]))
                    continue
                try:
                    data = sock.recv(65536)
                except OSError:
                    return self._lose() if request else False
                raw += data
                connection.receive_data(data)
            elif isinstance(event, h11.Request):
                head, _, rest = bytes(raw).partition(b"\r\n\r\n")
                self._judge(head)
                raw[:] = rest
                request = Request(event.method, event.target, list(event.headers), b"", [])
                with self.changed:
                    self.heads += 1
                    self.changed.notify_all()
            elif isinstance(event, h11.Data):
                assert request is not None
                request.body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert request is not None
                request.trailers = list(event.headers)
                left, _ = connection.trailing_data
                raw[:] = left
                with self.changed:
                    self.requests.append(request)
                    self.changed.notify_all()
                return self._answer(sock, connection, request)
            else:
                return False

    def _lose(self) -> bool:
        with self.changed:
            self.lost += 1
            self.changed.notify_all()
        return False

    def _answer(self, sock: socket.socket, connection: h11.Connection, request: Request) -> bool:
        connection.send(h11.Response(status_code=200, headers=[]))
        connection.send(h11.EndOfMessage())
        name = request.target.partition(b"?")[0].removeprefix(b"/answer/").decode("latin-1")
        script = self.scripts.get(name)
        if callable(script):
            keep = bool(script(sock))
        elif isinstance(script, bytes):
            sock.sendall(script)
            keep = True
        else:
            body = b"" if request.method == b"HEAD" else b"served %b %b" % (request.method, request.target)
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            keep = True
        return keep and connection.their_state is h11.DONE

    def _judge(self, head: bytes) -> None:
        """What holds for every head that leaves the gateway, whatever the visitor sent."""
        lines = head.split(b"\r\n")
        fields = [line.partition(b":") for line in lines[1:]]
        names = [name for name, _, _ in fields]
        wrong = [
            re.fullmatch(rb"[A-Z-]+ (/[!-~]*|\*) HTTP/1\.1", lines[0]) is None,
            any(re.fullmatch(rb"[!#$%&'*+\-.^_`|~0-9a-z]+: ?[\t -~\x80-\xff]*", line) is None for line in lines[1:]),
            names.count(b"host") != 1,
            names.count(b"content-length") + names.count(b"transfer-encoding") > 1,
            any(names.count(name) != 1 for name in GATEWAYS_OWN),
            any(name in HOP_BY_HOP for name in names),
            any(re.sub(rb"[^a-z0-9]", b"-", name) in (*GATEWAYS_OWN, b"content-length", b"transfer-encoding", b"host")
                for name in names if re.search(rb"[^a-z0-9-]", name)),
            any(value.strip() != b"127.0.0.1" for name, _, value in fields if name in GATEWAYS_OWN[::4]),
            b"evil" in head.lower().replace(b"/evil-", b""),
        ]  # fmt: skip
        if any(wrong):
            self.problems.append(f"rules {[index for index, bad in enumerate(wrong) if bad]}: {head!r}")

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, seconds), what


def reset(sock: socket.socket) -> None:
    """End a connection with RST."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()


def serve(recorder: Recorder) -> RawTarget:
    return RawTarget(recorder)
