"""`tunnelgw join`: from an invitation to an identity and a configuration that names the edge."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tunnelgw.admin.call import NotRunningError, call
from tunnelgw.cli.common import option, say
from tunnelgw.config.load import load_connector
from tunnelgw.config.paths import CONNECTOR, config_path, default_state_dir
from tunnelgw.errors import LocalError
from tunnelgw.identity.records import VISITOR

if TYPE_CHECKING:
    from argparse import Namespace

    from tunnelgw.config.model import Endpoint
    from tunnelgw.identity.home import HomeIdentity


def run(arguments: Namespace) -> int:
    """Join; a further edge is added to the ones that are there."""
    from tunnelgw.cli import service
    from tunnelgw.config import edit

    if arguments.service:
        service.require()
    path = config_path(CONNECTOR, arguments.config)
    invitation = _invitation(arguments.invitation)
    edge = _edge(arguments.edge)
    state_dir = _state_dir(path, arguments.state_dir)
    if path.exists():
        identity = _join(invitation, state_dir, edge)
        # The file's edges are those that this machine offers services to.
        written = path if identity.role == VISITOR else edit.add_edge(path, identity.edge)
    else:
        identity = _join_first(path, invitation, state_dir, edge)
        written = path
    say(f"joined {identity.edge} as {identity.name}", f"wrote {identity.folder}", f"wrote {written}")
    if identity.role == VISITOR:
        if arguments.service:
            say("a visitor offers nothing, so there is no service to start")
        say(f"reach a private service with: tunnelgw visit NAME{option(path, CONNECTOR)}")
        return 0
    if arguments.service:
        say(f"wrote {service.install('connector', config=path, state_dir=state_dir)}")
        say("the connector runs; publish something with: tunnelgw expose NAME TARGET")
        return 0
    try:
        call(state_dir, {"command": "reload"})
        say("the running connector serves it from now on")
    except NotRunningError:
        say(f"start the connector with: tunnelgw connect{option(path, CONNECTOR)}")
    return 0


def _invitation(given: str) -> str:
    """The text; from standard input for "-", so that it is in no shell history and no process list."""
    from tunnelgw.identity.invitations import decode

    text = (sys.stdin.readline(4096) if given == "-" else given).strip()
    decode(text)
    return text


def _edge(given: str | None) -> Endpoint | None:
    from tunnelgw.config.names import Bad, endpoint

    try:
        return endpoint(given, default_port=443) if given else None
    except Bad as error:
        raise LocalError(f"--edge: {error}", exit_code=2) from None


def _state_dir(path: Path, given: str | None) -> Path:
    """Where the identity goes: what the file says, else the option, else the default."""
    named = Path(given).absolute() if given else None
    if not path.exists():
        return named or default_state_dir(CONNECTOR)
    configured = load_connector(path).state_dir
    if named is not None and named != configured:
        raise LocalError(f"{path} says state_dir = {configured}; leave out --state-dir", exit_code=2)
    if not os.access(path, os.W_OK):
        raise LocalError(f"{path}: no permission to change it; run this as root or as the owner")
    return configured


def _join_first(path: Path, invitation: str, state_dir: Path, edge: Endpoint | None) -> HomeIdentity:
    """The file comes first: an invitation works once, and must not be used up by a folder that cannot be written."""
    from tunnelgw.config import edit
    from tunnelgw.identity.invitations import decode

    address = str(edge) if edge is not None else decode(invitation).address
    text = edit.initial_connector(path, edge=address, state_dir=str(state_dir))
    edit.create(path, text, role=CONNECTOR)
    try:
        return _join(invitation, state_dir, edge)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _join(invitation: str, state_dir: Path, edge: Endpoint | None) -> HomeIdentity:
    from tunnelgw.config.files import make_private_folder
    from tunnelgw.connector.join import join_or_explain
    from tunnelgw.net.loop import run as run_loop

    make_private_folder(state_dir)
    return run_loop(lambda: join_or_explain(invitation, state_dir=state_dir, edge=edge), require_uvloop=False)
