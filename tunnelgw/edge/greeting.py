"""The edge's answer to an accepted hello."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw import __version__
from tunnelgw.wire.control import Welcome

if TYPE_CHECKING:
    from tunnelgw.edge.tunnel import Tunnel


def welcome(guest: Tunnel, *, version: int, resumed: bool, received: int) -> Welcome:
    """What this worker says of itself and of the session."""
    everybody = guest.all
    return Welcome(
        version=version,
        software=f"tunnelgw/{__version__}",
        session=guest.session_id,
        resumed=resumed,
        received=received,
        worker=everybody.worker,
        workers=everybody.workers,
        domain=everybody.domain,
        name=guest.name,
        resume_seconds=everybody.resume_seconds,
        health=True,
    )
