"""Runs a connector with its control socket: the one place where the two meet.

Invariant: the control socket is there before the first dial and goes last, so that a command that waits for the
connector always gets an answer.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from tunnelgw.admin.control import ControlServer
from tunnelgw.config.files import make_private_folder
from tunnelgw.config.hardening import harden
from tunnelgw.connector.app import Connector
from tunnelgw.net.loop import run
from tunnelgw.net.tasks import spawn

if TYPE_CHECKING:
    from tunnelgw.config.model import ConnectorConfig

FIRST_SECONDS = 10.0  # a command that started us asks within a moment


def run_connector(config: ConnectorConfig) -> None:
    """Serve until SIGTERM or SIGINT. Raises LocalError where it cannot begin."""
    harden()
    make_private_folder(config.state_dir)
    run(lambda: _serve(Connector(config, on_ready=_say)), require_uvloop=False)


def run_alone(config: ConnectorConfig) -> None:
    """Serve what commands share, and nothing of the file, until the last of them has ended. LocalError as above."""
    harden()
    make_private_folder(config.state_dir)
    run(lambda: _serve(Connector(config, alone=True)), require_uvloop=False)


async def _serve(connector: Connector) -> None:
    leases = {"share": connector.temporary.share}
    control = ControlServer(connector.config.state_dir, connector.handle, leases=leases)
    await control.start()
    if connector.temporary.alone:
        spawn(_end_with_the_last_lease(connector), name="last lease")
    try:
        await connector.run()
    finally:
        await control.close()


async def _end_with_the_last_lease(connector: Connector) -> None:
    temporary = connector.temporary
    try:
        await connector.until(lambda: bool(connector.edges), None)
        with contextlib.suppress(BrokenPipeError):  # who started us is gone, and nobody else will ask
            _say("ready")
            await connector.until(lambda: temporary.asked, FIRST_SECONDS)
        await connector.until(lambda: not temporary.running, None)
    finally:
        connector.stopping.set()


def _say(line: str) -> None:
    print(line, flush=True)
