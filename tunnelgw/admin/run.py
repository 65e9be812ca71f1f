"""Runs a connector with its control socket: the one place where the two meet.

Invariant: the control socket is there before the first dial and goes last, so that a command that waits for the
connector always gets an answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.admin.control import ControlServer
from tunnelgw.config.files import make_private_folder
from tunnelgw.config.hardening import harden
from tunnelgw.connector.app import Connector
from tunnelgw.net.loop import run

if TYPE_CHECKING:
    from tunnelgw.config.model import ConnectorConfig


def run_connector(config: ConnectorConfig) -> None:
    """Serve until SIGTERM or SIGINT. Raises LocalError where it cannot begin."""
    harden()
    make_private_folder(config.state_dir)
    run(lambda: _serve(config), require_uvloop=False)


async def _serve(config: ConnectorConfig) -> None:
    connector = Connector(config, on_ready=lambda line: print(line, flush=True))
    control = ControlServer(config.state_dir, connector.handle)
    await control.start()
    try:
        await connector.run()
    finally:
        await control.close()
