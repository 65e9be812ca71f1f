"""Which edges to serve, with which identity; a machine that has none joins with the invitation it was given.

Invariant: an identity is made only where the configuration wants an edge that none of the saved ones is for, and an
invitation is looked at only then (it may be gone once it was used).
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunnelgw.config.names import endpoint
from tunnelgw.config.secret import read_secret
from tunnelgw.connector.backoff import Backoff
from tunnelgw.connector.dial import DialRefused, explain
from tunnelgw.connector.join import as_local, join
from tunnelgw.errors import LocalError, RemoteError
from tunnelgw.identity import home, invitations
from tunnelgw.identity.records import VISITOR

if TYPE_CHECKING:
    from tunnelgw.config.model import ConnectorConfig, Endpoint
    from tunnelgw.identity.home import HomeIdentity

log = logging.getLogger(__name__)

VARIABLE = "TUNNELGW_INVITATION"


@dataclass(frozen=True, slots=True)
class Place:
    """An edge to dial, and who we are there."""

    endpoint: Endpoint
    identity: HomeIdentity


async def edges_to_serve(config: ConnectorConfig, *, may_join: bool = True) -> list[Place]:
    """Every edge with its identity. LocalError if there is none and no invitation, or the edge refuses it.

    `may_join`: use the invitation, which waits until its edge can be reached.
    """
    loop = asyncio.get_running_loop()
    identities = await loop.run_in_executor(None, home.load_all, config.state_dir)
    places, missing = _match(config, identities)
    if may_join and (missing or not places):
        invitation = _invitation(config)
        if invitation:
            identity = await _join(invitation, config, missing[0] if len(missing) == 1 else None)
            log.info("joined edge %s as %s", identity.edge, identity.name)
            places, missing = _match(config, [*_others(identities, identity), identity])
    for edge in missing:
        log.error("edge %s was not joined: run on the edge: tunnelgw edge invite NAME, then here: tunnelgw join", edge)
    visits = await loop.run_in_executor(None, lambda: home.load_all(config.state_dir, VISITOR))
    if not places and visits:
        raise LocalError(
            "this machine has joined as a visitor: reach services with tunnelgw visit NAME; to offer some it needs "
            "an invitation without --role visitor"
        )
    if not places:
        raise LocalError(
            f"no edge was joined yet (looked in {config.state_dir}): run tunnelgw join INVITATION, "
            f"or give {VARIABLE} or invitation_file"
        )
    return places


def _match(config: ConnectorConfig, identities: list[HomeIdentity]) -> tuple[list[Place], list[Endpoint]]:
    """The edges that can be served, and those that nobody joined."""
    by_edge = {identity.edge: identity for identity in identities}
    if not config.edge:
        return [Place(endpoint(identity.edge), identity) for identity in identities], []
    if len(config.edge) == 1 and len(identities) == 1:
        return [Place(config.edge[0], identities[0])], []  # the edge may have moved to another address since the join
    places = [Place(edge, by_edge[str(edge)]) for edge in config.edge if str(edge) in by_edge]
    return places, [edge for edge in config.edge if str(edge) not in by_edge]


def _others(identities: list[HomeIdentity], joined: HomeIdentity) -> list[HomeIdentity]:
    return [identity for identity in identities if identity.edge != joined.edge]


def _invitation(config: ConnectorConfig) -> str:
    """The text of the invitation that this machine was given; empty if none."""
    text = os.environ.get(VARIABLE, "").strip()
    if not text and config.invitation is not None:
        text = config.invitation.reveal()
    if not text and config.invitation_file is not None:
        text = read_secret(config.invitation_file).reveal()
    return text


async def _join(text: str, config: ConnectorConfig, edge: Endpoint | None) -> HomeIdentity:
    """Join; an edge that cannot be reached yet is tried again (a container may be up before the network is)."""
    loop = asyncio.get_running_loop()
    backoff = Backoff(random=random.random)
    place = edge or endpoint(invitations.decode(text).address)
    while True:
        try:
            return await join(text, state_dir=config.state_dir, edge=place)
        except (DialRefused, RemoteError) as error:
            raise as_local(error, place) from None
        except OSError as error:
            log.warning("cannot join yet: %s", explain(error, place))
            await asyncio.sleep(backoff.failed(loop.time()))
