"""Joining an edge with an invitation: the key is made here, the edge is checked before the secret is said.

Strategy: one link, two questions. The edge shows its authority; its public key must have the invitation's pin, and the
TLS certificate of this very link must be signed by it. Only then does the secret go out, with a certificate request.

Invariant: the secret is never sent to whoever cannot prove to be the edge that made the invitation; there is no option
that skips the check. Nothing is written unless everything fits together.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tunnelgw.config.names import endpoint
from tunnelgw.connector.dial import Conversation, DialRefused, explain, tls_of
from tunnelgw.errors import LocalError, RemoteError
from tunnelgw.identity import home, invitations
from tunnelgw.net.tls import joining_context
from tunnelgw.wire.control import Authority, Join, Joined, JoinStart
from tunnelgw.wire.hello import VERSIONS

if TYPE_CHECKING:
    from pathlib import Path

    from tunnelgw.config.model import Endpoint
    from tunnelgw.identity.home import HomeIdentity, KeyRequest
    from tunnelgw.identity.invitations import Invitation


async def join(text: str, *, state_dir: Path, edge: Endpoint | None = None) -> HomeIdentity:
    """Use an invitation; `edge` is dialled instead of the address in it. The identity is saved in `state_dir`.

    Raises LocalError (a bad invitation, no way to write), DialRefused, RemoteError (an impostor), OSError.
    """
    invitation = invitations.decode(text)
    place = edge or endpoint(invitation.address)
    loop = asyncio.get_running_loop()
    request = await loop.run_in_executor(None, home.new_request)
    joined = await _converse(invitation, place, request)

    def save() -> HomeIdentity:
        return home.save_joined(
            state_dir,
            edge=str(place),
            request=request,
            pin=invitation.pin,
            name=joined.name,
            role=joined.role,
            domain=joined.domain,
            certificate=joined.certificate,
            authority=joined.ca,
        )

    return await loop.run_in_executor(None, save)


async def _converse(invitation: Invitation, place: Endpoint, request: KeyRequest) -> Joined:
    conversation = Conversation()
    try:
        link = await conversation.open(place, joining_context())
        if link.transport is None:
            raise ConnectionResetError("the edge hung up")
        leaf = tls_of(link.transport).getpeercert(binary_form=True) or b""
        authority = await conversation.ask(JoinStart(versions=list(VERSIONS)), Authority)
        if authority.version not in VERSIONS:
            raise RemoteError(f"the edge chose version {authority.version}, which was not offered")
        await _check(authority, invitation, place, leaf)
        secret = invitation.secret.reveal()
        return await conversation.ask(Join(invitation=invitation.id, secret=secret, csr=request.csr), Joined)
    finally:
        conversation.close()


async def _check(authority: Authority, invitation: Invitation, place: Endpoint, leaf: bytes) -> None:
    loop = asyncio.get_running_loop()
    try:
        await loop.run_in_executor(None, lambda: home.check_edge(authority.ca, pin=invitation.pin, leaf=leaf))
    except RemoteError as error:
        raise RemoteError(f"NOT JOINED, {place}: {error.text}; the secret was not sent", reason=error.reason) from None


async def join_or_explain(text: str, *, state_dir: Path, edge: Endpoint | None = None) -> HomeIdentity:
    """The same for commands: whatever goes wrong is a LocalError with one line for a person."""
    try:
        return await join(text, state_dir=state_dir, edge=edge)
    except (DialRefused, RemoteError, OSError) as error:
        raise as_local(error, edge or endpoint(invitations.decode(text).address)) from None


def as_local(error: DialRefused | RemoteError | OSError, place: Endpoint) -> LocalError:
    """What ended a join, as the one line that a command prints."""
    if isinstance(error, DialRefused):
        hint = f"; {error.hint}" if error.hint else ""
        return LocalError(f"the edge {place} refused: {error.text}{hint}", reason=error.reason)
    if isinstance(error, RemoteError):
        return LocalError(error.text, reason=error.reason)
    return LocalError(explain(error, place))
