"""Bodies that no service takes yet, many at once: within `buffered_bytes`, counted, and gone afterwards."""

from __future__ import annotations

import re
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from tests.hostile.frames import DATA, PING, Visitor2, frame, request
from tests.hostile.recorder import Recorder, serve
from tests.hostile.visitor import Visitor
from tests.system.harness import World, wait_until

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

pytestmark = pytest.mark.system
MIB = 1024 * 1024
BUFFERED = 16 * MIB
# Heaps, TLS and engines of a few connections beside what is bounded; without the bound it was 115 MB.
MOST_MEMORY = BUFFERED + 48 * MIB
CONNECTIONS, STREAMS, PARTS = 6, 64, 16
PART = bytes(16000)
COMMON = [(b":scheme", b"https"), (b":authority", b"web.example.com"), (b":path", b"/answer/silent")]


@pytest.fixture(scope="module")
def end() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, end: threading.Event) -> Iterator[World]:
    recorder = Recorder()

    def silent(sock: socket.socket) -> bool:
        end.wait(120)
        return False

    recorder.scripts["silent"] = silent
    tables = f"[limits]\nbuffered_bytes = {BUFFERED}\n"
    with World(tmp_path_factory.mktemp("memory"), tables=tables) as world, serve(recorder) as target:
        world.start_edge()
        services = f"[services.web]\ntarget = {target.port}\n"
        world.connector("home", services, allow=("--allow-host", "*.example.com"))
        yield world
        end.set()


def metric(world: World, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", world.metrics(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def press(visitor: Visitor2, fields: list[tuple[bytes, bytes]]) -> None:
    """As many streams as fit, each with as much body as its window takes."""
    visitor.fill()
    for number in range(1, 2 * STREAMS, 2):
        visitor.send(request(fields, stream=number, end=False))
        for _ in range(PARTS):
            visitor.send(frame(DATA, 0, number, PART))
    visitor.send(frame(PING, 0, 0, bytes(8)))
    while not visitor.pongs and visitor.fill():
        pass


def press_all(world: World, fields: list[tuple[bytes, bytes]]) -> None:
    assert world.edge is not None
    before = world.edge.memory()
    shed = 'tunnelgw_refused_total{reason="buffer_limit"}'
    refused = metric(world, shed)
    visitors: list[Visitor2] = []
    try:
        for _ in range(CONNECTIONS):
            visitors.append(Visitor2(world))
            press(visitors[-1], fields)
        assert MIB < metric(world, "tunnelgw_buffered_bytes") <= BUFFERED
        assert metric(world, shed) > refused
        assert world.edge.memory() - before < MOST_MEMORY
        if world.connectors["home"].process is not None:
            with Visitor(world) as beside:
                assert beside.get(b"/beside").status == 200
    finally:
        for visitor in visitors:
            visitor.sock.close()
    wait_until(lambda: metric(world, "tunnelgw_buffered_bytes") < MIB)


def test_websockets_that_are_not_accepted(world: World) -> None:
    press_all(world, [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *COMMON])


def test_uploads_to_a_connector_that_is_away(world: World) -> None:
    home = world.connectors["home"]
    assert home.process is not None
    home.process.signal(signal.SIGKILL)
    home.process.popen.wait()
    home.process = None
    wait_until(lambda: 'tunnelgw_tunnels{connector="home",state="detached"} 1.0' in world.metrics())
    press_all(world, [(b":method", b"POST"), *COMMON])
