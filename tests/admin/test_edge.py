"""The edge's process: what it says about itself while it begins and ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.edge.front import run
from tunnelgw.admin.crew import Single
from tunnelgw.admin.listeners import Listeners
from tunnelgw.admin.setup import create_state
from tunnelgw.config.load import load_edge
from tunnelgw.store.sqlite import FILE_NAME, SqliteStore

if TYPE_CHECKING:
    from pathlib import Path


def test_ready_exactly_while_it_serves(tmp_path: Path) -> None:
    state, file = tmp_path / "state", tmp_path / "edge.toml"
    file.write_text(f'domain = "example.com"\nstate_dir = "{state}"\n[tls]\nissuer = "self-signed"\n')
    create_state(state)

    async def main() -> None:
        store = SqliteStore(state / FILE_NAME)
        crew = Single(load_edge(file), store)
        assert crew.missing()
        await crew.start(Listeners())
        assert crew.missing()
        crew.accept()
        assert crew.missing() is None
        await crew.stop()
        assert crew.missing()
        store.close()

    run(main)


def test_what_never_began_can_be_stopped(tmp_path: Path) -> None:
    state, file = tmp_path / "state", tmp_path / "edge.toml"
    file.write_text(f'domain = "example.com"\nstate_dir = "{state}"\n[tls]\nissuer = "self-signed"\n')
    create_state(state)

    async def main() -> None:
        store = SqliteStore(state / FILE_NAME)
        await Single(load_edge(file), store).stop()
        store.close()

    run(main)
