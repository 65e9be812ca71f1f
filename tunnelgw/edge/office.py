"""The edge's office: who a certificate belongs to, and new certificates for those who may have one.

Reading is done here, in the edge. Whatever needs a private key of the authority is done by a short-lived child, so that
the edge never carries the library for it and never stands still while it signs; an invitation is checked before a child
is started, so that a stranger cannot start any.

Invariant: nobody gets a certificate without a valid invitation, or a certificate that was not revoked.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from typing import TYPE_CHECKING, Any

from tunnelgw.errors import LocalError, Refused, RemoteError
from tunnelgw.identity.ca import Authorities
from tunnelgw.net import tls
from tunnelgw.obs.reasons import BY_LABEL, Reason
from tunnelgw.store.sqlite import FILE_NAME
from tunnelgw.wire.control import Join, Joined, Renewed, RenewRequest

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping
    from pathlib import Path

    from tunnelgw.identity.records import Connector
    from tunnelgw.identity.registry import Registry
    from tunnelgw.store.base import Store

log = logging.getLogger(__name__)

CHILD_SECONDS = 60.0  # a child takes 0.3 s; a machine that swaps may take longer
CHILDREN_MAX = 2  # at once: each needs 40 MB for a moment


class Office:
    """Signs, authorises and holds the tunnels' TLS context. `await open()` before anything else."""

    def __init__(self, *, store: Store, registry: Registry, state_dir: Path, domain: str, address: str) -> None:
        self._store = store
        self._registry = registry
        self._authorities = Authorities(store)
        self._state_dir = state_dir
        self._domain = domain
        self._address = address
        self._children = asyncio.Semaphore(CHILDREN_MAX)
        self.authority = ""
        self._context: ssl.SSLContext | None = None
        self._until = 0.0  # when the edge's certificate should be made anew (Unix seconds)

    @property
    def tunnel_context(self) -> ssl.SSLContext:
        """For the handshakes of tunnels."""
        assert self._context is not None
        return self._context

    async def open(self) -> None:
        """Make what is missing, load the edge's certificate. LocalError."""
        await self.refresh()

    async def refresh(self) -> None:
        """See that the edge's own certificate is good for a while; called at the start and from time to time."""
        if time.time() < self._until:
            return
        if self._authorities.edge_due():
            await self._call({"call": "prepare"})
        material = self._authorities.edge()
        files = self._authorities.edge_files(self._state_dir)
        self.authority = self._registry.authority
        self._context = tls.tunnel_server_context(files.cert, files.key, authority=self.authority)
        self._until = material.not_after - (material.not_after - material.not_before) / 3

    def authorise(self, certificate: Mapping[str, Any], *, expired: bool = False) -> Connector:
        """As `Registry.authorise`, for those who may keep a tunnel."""
        return self._registry.authorise(certificate, expired=expired)

    async def join(self, message: Join) -> Joined:
        """A certificate for an invitation. Refused (INVITATION_INVALID), RemoteError for a bad request."""
        self._registry.check_invitation(message.invitation, message.secret)
        answer = await self._call(
            {"call": "accept", "invitation": message.invitation, "secret": message.secret, "csr": message.csr}
        )
        log.info("%s %s has joined", answer["role"], answer["name"])
        return Joined(
            name=answer["name"],
            role=answer["role"],
            certificate=answer["certificate"],
            ca=answer["authority"],
            domain=self._domain,
            address=self._address,
        )

    async def renew(self, name: str, message: RenewRequest) -> Renewed:
        """A new certificate for an identity that was authorised. Refused (REVOKED), RemoteError for a bad request."""
        answer = await self._call({"call": "renew", "name": name, "csr": message.csr})
        log.info("connector %s has a new certificate", name)
        return Renewed(certificate=answer["certificate"], ca=answer["authority"])

    async def _call(self, request: dict[str, str]) -> dict[str, Any]:
        """One call of `identity.child`; secrets go over its standard input."""
        async with self._children:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tunnelgw.identity.child", "call", str(self._state_dir / FILE_NAME),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            try:
                out, errors = await asyncio.wait_for(child.communicate(json.dumps(request).encode()), CHILD_SECONDS)
            except TimeoutError:
                child.kill()
                await child.wait()
                raise Refused("signing took too long; try again", reason=Reason.INTERNAL) from None
        if child.returncode:
            last = errors.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise LocalError(f"the signing process failed: {last}")
        answer: dict[str, Any] = json.loads(out)
        if answer["ok"]:
            return answer
        reason = BY_LABEL.get(answer["reason"], Reason.INTERNAL)
        kinds = {"refused": Refused, "remote": RemoteError}
        raise kinds.get(answer["kind"], LocalError)(answer["text"], reason=reason)
