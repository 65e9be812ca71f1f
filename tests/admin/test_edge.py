"""The edge's process: what it says about itself while it begins and ends."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.edge.front import ADDRESS, run, until
from tunnelgw.admin.crew import Single
from tunnelgw.admin.listeners import Listeners
from tunnelgw.admin.setup import create_state
from tunnelgw.config.load import load_edge
from tunnelgw.edge import app
from tunnelgw.net.accept import listen_on
from tunnelgw.net.tasks import spawn
from tunnelgw.obs.reasons import Reason
from tunnelgw.store.sqlite import FILE_NAME, SqliteStore

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator
    from pathlib import Path


@asynccontextmanager
async def made(folder: Path) -> AsyncIterator[Single]:
    """A crew that has not begun; stopped at the end."""
    state, file = folder / "state", folder / "edge.toml"
    file.write_text(f'domain = "example.com"\nstate_dir = "{state}"\n[tls]\nissuer = "self-signed"\n')
    create_state(state)
    store = SqliteStore(state / FILE_NAME)
    crew = Single(load_edge(file), store)
    yield crew
    await crew.stop()
    store.close()


async def visited(crew: Single) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, socket.socket]:
    """A visitor whose one request was answered, with the socket that listens."""
    http = listen_on(ADDRESS, 0, defer=False)
    port = http.getsockname()[1]
    await crew.start(Listeners(http=[http]))
    crew.accept()
    reader, writer = await asyncio.open_connection(ADDRESS, port)
    writer.write(b"GET / HTTP/1.1\r\nHost: none.example.com\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]))
    return reader, writer, http


def test_ready_exactly_while_it_serves(tmp_path: Path) -> None:
    async def main() -> None:
        async with made(tmp_path) as crew:
            assert crew.missing()
            await crew.start(Listeners())
            assert crew.missing()
            crew.accept()
            assert crew.missing() is None
        assert crew.missing()

    run(main)


def test_what_never_began_can_be_stopped(tmp_path: Path) -> None:
    async def main() -> None:
        async with made(tmp_path) as crew:
            pass
        assert crew.missing() == "not serving"

    run(main)


@pytest.mark.parametrize("leaves", [True, False])
def test_who_leaves_waits_for_its_visitors_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    monkeypatch.setattr(app, "DRAIN_SECONDS", 60.0 if leaves else 3.0)

    async def main() -> None:
        async with made(tmp_path) as crew:
            _, writer, http = await visited(crew)
            crew.leave()
            assert crew.missing()
            assert http.fileno() < 0
            drained = spawn(crew.drained(), name="drain")
            done, _ = await asyncio.wait([drained], timeout=0.3)
            assert not done
            if leaves:
                writer.close()
            await asyncio.wait_for(drained, 20)
        writer.close()

    run(main)


def test_visitors_are_sent_on_when_connectors_have_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else all who keep a connection would come back at once to a process that has no tunnel yet, and wait there."""
    monkeypatch.setattr(app, "MOVE_SECONDS", 0.2)

    async def main() -> None:
        async with made(tmp_path) as crew:
            await crew.start(Listeners())
            crew.accept()
            crew.leave()
            assert crew._edge.connectors.farewell is not None
            assert not crew._edge.gateway.draining
            await until(lambda: crew._edge.gateway.draining)

    run(main)


@pytest.mark.parametrize("when", ["before", "after"])
def test_visitors_follow_a_connector_that_is_lost(tmp_path: Path, when: str) -> None:
    """It comes back to the new process alone: in this one every further request would be refused."""

    async def main() -> None:
        async with made(tmp_path) as crew:
            reader, writer, _ = await visited(crew)
            connectors = crew._edge.connectors
            if when == "before":
                connectors.known("home").give_up(Reason.CONNECTOR_STOPPING)
                assert crew._edge.gateway.connections  # here they wait until it is back
                crew.leave()
            else:
                crew.leave()
                assert crew._edge.gateway.connections
                connectors.known("home").give_up(Reason.CONNECTOR_STOPPING)
            assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()

    run(main)
