"""Ten thousand connections that do nothing: memory of each at both ends, and a small request beside them.

HTTP/1.1 and HTTP/2 after one request each, and WebSockets after one message each, which hold a connection to a service
at home. A little fewer where the limit of open files does not let a proxy have two for each.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loadtest.scenario import HOST, Measurement, RunError, Scenario, Setup, Target
from loadtest.scenes.children import ROOT, latency
from tests.ports import free_port

if TYPE_CHECKING:
    from loadtest.measures import Visitor
    from loadtest.processes import Group

COUNT = 10_000
FILES = 2  # that a front reckons with for a connection, in both directions
SPARE = 200  # that a process opens beside those of its visitors
REST = 6.0  # seconds after the first request until memory is what it is when idle
PROBE_RATE, PROBE_SECONDS = 100.0, 5.0
KEY = base64.b64encode(bytes(16))
GREETING = b"hello from web\n"  # what the service of the tests says at /


def accept_key(key: bytes) -> bytes:
    """What the other side makes of a WebSocket's key (RFC 6455, 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())


def message(text: bytes) -> bytes:
    """A short text frame of a client; its mask is zeros."""
    if len(text) > 125:
        raise ValueError("a short one")
    return bytes((0x81, 0x80 | len(text))) + bytes(4) + text


def websocket(text: bytes) -> type[Visitor]:
    """A visitor that upgrades, says a text, gets its echo, and stays."""
    from loadtest.measures import Visitor

    upgrade = (
        b"GET /ws HTTP/1.1\r\nHost: %b\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: %b\r\n\r\n"
    ) % (HOST.encode(), KEY)
    echo = b"echo " + text
    expected = bytes((0x81, len(echo))) + echo

    class Socket(Visitor):
        received = b""

        def ask(self) -> None:
            self.transport.write(upgrade)

        def data_received(self, data: bytes) -> None:
            self.received += data
            head, end, rest = self.received.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 101 ") or accept_key(KEY) not in head:
                self.done(False)
            elif head is not None and not rest and not self.said:
                self.said = True
                self.transport.write(message(text))
            elif len(rest) >= len(expected):
                self.done(rest == expected)

        said = False

    return Socket


@dataclass(frozen=True)
class Echoes:
    """The tests' service at home, which echoes WebSocket messages."""

    def start(self, group: Group) -> int:
        """Start it."""
        port = free_port()
        command = [sys.executable, "-m", "tests.system.service", str(port), "web"]
        group.start("echoes", command, ready="ready", cwd=ROOT)
        return port


class Idle(Scenario):
    """KiB of the front for each; those of the other end, and a small request's p99, beside it."""

    long = True
    unit = "KiB"
    higher_is_better = False
    fresh = True  # memory that an earlier load left would be used again
    rounds = 1
    seconds = PROBE_SECONDS

    def __init__(self, kind: str) -> None:
        self.name = f"{COUNT:,} idle {kind}s, memory each"
        self.kind, self.http2 = kind, kind.startswith("h2")
        self.count = min(COUNT, (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - SPARE) // FILES)
        self.setup = Setup(home=Echoes()) if kind == "WebSocket" else Setup()

    def run(self, target: Target, seconds: float) -> Measurement:
        """Memory before, with all of them, and what a request sees meanwhile."""
        from loadtest import measures

        measures.open_files()
        web = self.kind == "WebSocket"
        probe = {"path": "/", "body": GREETING.hex()} if web else {}
        visitor = {"h1 visitor": measures.Visitor, "h2 visitor": measures.VisitorH2}.get(self.kind)
        quiet = latency(target, rate=PROBE_RATE, seconds=seconds, channels=4, **probe)
        time.sleep(REST)
        before = memory(target)
        found: list[tuple[dict[str, int], dict[str, Any]]] = []

        def look() -> None:
            after = memory(target)
            found.append((after, latency(target, rate=PROBE_RATE, seconds=seconds, channels=4, **probe)))

        served = held(target.port, self.count, visitor or websocket(b"a text of 20 letters"), look)
        if served != self.count:
            raise RunError(f"{self.count - served} of {self.count} were not served, or were hung up on")
        ((after, beside),) = found
        return self._measurement(before, after, quiet["p99_ms"], beside)

    def _measurement(
        self, before: dict[str, int], after: dict[str, int], quiet: float, beside: dict[str, Any]
    ) -> Measurement:
        each = {part: (after[part] - before[part]) / self.count / 1024 for part in before}
        front, *others = each
        extra = {f"{part} KiB": round(each[part], 2) for part in others}
        extra |= {"p99 ms beside": beside["p99_ms"], "p99 ms before": quiet, "connections": self.count}
        return Measurement(value=round(each[front], 2), requests=self.count + beside["requests"], extra=extra)


def memory(target: Target) -> dict[str, int]:
    """Resident bytes of each part."""
    return {part: target.group.memory(part) for part in target.parts}


def held(port: int, count: int, visitor: type[Visitor], look: Callable[[], None]) -> int:
    """How many were served and stayed."""
    import uvloop

    from loadtest.measures import visit

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(visit(port, count, visitor, look=look))
        except OSError as error:
            raise RunError(f"a visitor was not let in: {error}") from None


SCENARIOS = [Idle("h1 visitor"), Idle("h2 visitor"), Idle("WebSocket")]
