"""New TLS connections with one request each, full handshakes or resumed ones.

    python -m loadtest.scenes.handshakes PORT [--resume] [--seconds 5] [--width 32] [--source 127.0.0.2] [--ca FILE]

A process of this is one client; the scene runs several and says how busy each was: a client that is at the end of its
core measures itself. Sockets without an event loop around them: a connection costs about a third of what it does on
uvloop, which cannot resume either. Prints one line of JSON; a wrong or lost answer ends it with an error.
"""

from __future__ import annotations

import argparse
import errno
import json
import select
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Any

from loadtest.scenario import ADDRESS, HOST, Measurement, Scenario, Setup, Target
from loadtest.scenes.answers import WrongAnswerError, complete, request
from loadtest.scenes.children import together, visits
from loadtest.scenes.latency import PATIENCE, SMALL, visitor
from loadtest.scenes.samples import milliseconds

CLIENTS = 2  # processes: each is a part of a core
WIDTH = 16  # connections that each has under way
BUSY = 0.9  # of a core: from here on, whoever is that busy is what bounds


@dataclass
class Slot:
    """A place for one connection after the other; `session` is what the last one left for the next."""

    session: ssl.SSLSession | None = None
    sock: socket.socket | None = None
    began: float = 0.0
    stage: str = "connecting"
    data: bytes = b""


class Client:
    """`run()` opens connections until the time is over."""

    def __init__(
        self, address: tuple[str, int], *, seconds: float, width: int = WIDTH, resume: bool = False, source: str = "",
        ca: str = "", host: str = HOST, pause: float = 0.0,
    ) -> None:  # fmt: skip
        self.address, self.source, self.host = address, source, host
        self.seconds, self.resume, self.pause = seconds, resume, pause
        self.context = visitor(ca)
        self.question = request(host, "/small")
        self.slots = [Slot() for _ in range(width)]
        self.poll = select.epoll()
        self.by_descriptor: dict[int, Slot] = {}
        self.times: list[float] = []
        self.resumed = 0
        self.opened = 0

    def run(self) -> dict[str, Any]:
        """Every connection that was opened is answered, or WrongAnswerError."""
        begin, spent = time.monotonic(), time.process_time()
        until = begin + self.seconds
        for slot in self.slots:
            self._open(slot)
        while self.by_descriptor:
            ready = self.poll.poll(0.5)
            now = time.monotonic()
            if any(now - slot.began > PATIENCE for slot in self.by_descriptor.values()):
                raise WrongAnswerError(f"a connection was not answered in {PATIENCE:g} s")
            for descriptor, _ in ready:
                slot = self.by_descriptor[descriptor]
                if self._step(slot):
                    self._done(slot)
                    if time.monotonic() < until:
                        time.sleep(self.pause)
                        self._open(slot)
        elapsed = time.monotonic() - begin
        return {
            "connections": len(self.times),
            "resumed": self.resumed,
            "per_second": round(len(self.times) / elapsed, 1),
            **milliseconds(self.times),
            "client_cpu": round((time.process_time() - spent) / elapsed, 3),
        }

    def _open(self, slot: Slot) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.source:
            sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: ports are chosen per peer
            sock.bind((self.source, 0))
        if (error := sock.connect_ex(self.address)) not in (0, errno.EINPROGRESS):
            raise WrongAnswerError(f"connect: {errno.errorcode[error]}")
        slot.sock, slot.stage, slot.data, slot.began = sock, "connecting", b"", time.monotonic()
        self.by_descriptor[sock.fileno()] = slot
        self.poll.register(sock.fileno(), select.EPOLLOUT)
        self.opened += 1

    def _step(self, slot: Slot) -> bool:
        """Go on as far as it can; True once the answer is there."""
        if slot.stage == "connecting":
            self._begin_tls(slot)
        sock = slot.sock
        assert isinstance(sock, ssl.SSLSocket)
        try:
            if slot.stage == "handshake":
                sock.do_handshake()
                if sock.send(self.question) != len(self.question):
                    raise WrongAnswerError("a request was not taken at once")
                slot.stage = "answer"
            while data := sock.recv(65536):
                slot.data += data
                if complete(slot.data, SMALL):
                    return True
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError as error:
            raise WrongAnswerError(f"{slot.stage}: {error}") from None
        raise WrongAnswerError("the connection ended before its answer")

    def _begin_tls(self, slot: Slot) -> None:
        assert slot.sock is not None
        descriptor = slot.sock.fileno()
        if error := slot.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise WrongAnswerError(f"connect: {errno.errorcode[error]}")
        slot.sock = self.context.wrap_socket(
            slot.sock, server_hostname=self.host, do_handshake_on_connect=False,
            session=slot.session if self.resume else None,
        )  # fmt: skip
        slot.stage = "handshake"
        self.poll.modify(descriptor, select.EPOLLIN)  # the same one: wrap_socket detaches it from the plain socket

    def _done(self, slot: Slot) -> None:
        sock = slot.sock
        assert isinstance(sock, ssl.SSLSocket)
        self.times.append(time.monotonic() - slot.began)
        self.resumed += bool(sock.session_reused)
        if self.resume:
            slot.session = sock.session  # with the ticket that came before the answer
        del self.by_descriptor[sock.fileno()]
        self.poll.unregister(sock.fileno())
        sock.close()


class Handshakes(Scenario):
    """Several clients at once; connections per second, and how many of them were resumed."""

    unit = "conn/s"
    setup = Setup()

    def __init__(self, name: str, *, resume: bool) -> None:
        self.name = name
        self.resume = resume

    def run(self, target: Target, seconds: float) -> Measurement:
        """The clients' sum, and what bounded it."""
        before = {part: target.group.cpu(part) for part in target.parts}
        clients = [
            visits(target, "handshakes", "--source", f"127.0.0.{2 + number}", *(["--resume"] if self.resume else []),
                   seconds=seconds)
            for number in range(CLIENTS)
        ]  # fmt: skip
        found = together(clients, seconds=seconds)
        busy = {part: (target.group.cpu(part) - before[part]) / seconds for part in target.parts}
        return measurement(found, busy)


def measurement(found: list[dict[str, Any]], busy: dict[str, float]) -> Measurement:
    """What the clients' figures come to; busy: cores that each part of the target used."""
    count = sum(one["connections"] for one in found)
    rate = sum(one["per_second"] for one in found)
    front = max(busy.values())
    return Measurement(
        value=rate,
        requests=count,
        extra={
            "resumed %": round(100 * sum(one["resumed"] for one in found) / count, 1),
            "p50 ms": max(one["p50_ms"] for one in found),
            "p99 ms": max(one["p99_ms"] for one in found),
            "busiest client, cores": max(one["client_cpu"] for one in found),
            "busiest part, cores": round(front, 2),
            "client bounds": float(front < BUSY <= max(one["client_cpu"] for one in found)),
            "CPU µs of the parts per connection": round(sum(busy.values()) / rate * 1e6, 1),
        },
    )


SCENARIOS = [
    Handshakes("new TLS connections, full", resume=False),
    Handshakes("new TLS connections, resumed", resume=True),
]


def main() -> None:
    """One client."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--address", default=ADDRESS)
    parser.add_argument("--host", default=HOST)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--source", default="")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two, with --width 1")
    parser.add_argument("--ca", default="")
    given = vars(parser.parse_args())
    address = (given.pop("address"), given.pop("port"))
    print(json.dumps(Client(address, **given).run()), flush=True)


if __name__ == "__main__":
    main()
