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
from tunnelgw.identity.material import digest
from tunnelgw.net import tls
from tunnelgw.obs.reasons import BY_LABEL, Reason
from tunnelgw.store.sqlite import FILE_NAME
from tunnelgw.wire.control import Join, Joined, Renewed, RenewRequest
from tunnelgw.wire.flow import TokenBucket

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tunnelgw.identity.records import Connector
    from tunnelgw.identity.registry import Registry
    from tunnelgw.identity.rotation import Rotation
    from tunnelgw.store.base import Store

log = logging.getLogger(__name__)

CHILD_SECONDS = 60.0  # a child takes 0.3 s; a machine that swaps may take longer
CHILDREN_MAX = 2  # at once: each needs 40 MB for a moment
RETRY_SECONDS = 60.0  # after something that was due could not be done
SHORTEST_PAUSE = 1.0  # between two times that something is due, should the store and the clock not agree
CHILDREN_WAITING = 64  # more would wait for longer than their dialler does
# Renewals of one identity: some lost answers in a row, then one in ten minutes. One certificate lives for months.
RENEWALS_BURST, RENEWALS_PER_SECOND = 8, 1 / 600


class Office:
    """Signs, authorises and holds the tunnels' TLS context. `await open()` before anything else."""

    def __init__(
        self,
        *,
        store: Store,
        registry: Registry,
        state_dir: Path,
        domain: str,
        address: str,
        teach: Callable[[str, str], None],
    ) -> None:
        """`teach(authority, trust)` is called when tunnels trust these authorities (PEM, its digest) from now on."""
        self._store = store
        self._registry = registry
        self._authorities = Authorities(store)
        self._state_dir = state_dir
        self._domain = domain
        self._address = address
        self._children = asyncio.Semaphore(CHILDREN_MAX)
        self.authority = ""  # PEM of the authorities that tunnels trust; the first one signs
        self._trust = ""  # its digest
        self._teach = teach
        self.due = 0.0  # when `refresh` should be called (Unix seconds)
        self._waiting = 0
        self._joining: set[str] = set()  # invitations that are being used
        self._renewals: dict[str, TokenBucket] = {}  # by identity
        self._context: ssl.SSLContext | None = None
        self._private: ssl.SSLContext | None = None
        self._step = ""

    @property
    def tunnel_context(self) -> ssl.SSLContext:
        """For the handshakes of tunnels."""
        assert self._context is not None
        return self._context

    @property
    def private_context(self) -> ssl.SSLContext:
        """For the handshakes of private streams that end here."""
        assert self._private is not None
        return self._private

    async def open(self) -> None:
        """Make what is missing, load the edge's certificate. LocalError."""
        await self.refresh(starting=True)

    async def refresh(self, *, starting: bool = False) -> None:
        """Take what the store says of authorities and the edge's certificate; make first what is due. LocalError."""
        now = time.time()
        self.due = now + RETRY_SECONDS  # unless it goes well
        if self._authorities.due_at(now=now) <= now or (starting and self._authorities.rotation() is not None):
            await self._call({"call": "prepare", "starting": starting})
        files = self._authorities.edge_files(self._state_dir)
        authority = self._registry.authority
        try:
            self._context = tls.tunnel_server_context(files.cert, files.key, authority=authority)
            self._private = tls.private_server_context(files.cert, files.key, authority=authority)
        except OSError as error:  # another worker is writing the pair
            raise LocalError(f"{files.cert} cannot be used: {error}") from None
        self.authority = authority
        if digest(authority) != self._trust:
            self._trust = digest(authority)
            self._teach(authority, self._trust)
        self.due = max(self._authorities.due_at(), now + SHORTEST_PAUSE)
        self._tell(self._authorities.rotation())

    async def keep_fresh(self) -> None:
        """As `refresh`, while serving: what cannot be done is logged, and tried again."""
        try:
            await self.refresh()
        except (LocalError, Refused) as error:
            log.error("the edge's certificate for tunnels stays as it is: %s", error.text)

    def _tell(self, rotation: Rotation | None) -> None:
        """Each step of a rotation is in the log of every worker once."""
        step = rotation.step if rotation is not None else ""
        if step != self._step:
            if rotation is not None:
                log.warning("the edge's authority for tunnels is being replaced: %s", rotation.text)
            else:
                log.warning("the edge's old authority for tunnels is trusted no more")
        self._step = step

    def authorise(self, certificate: Mapping[str, Any], *, expired: bool = False) -> Connector:
        """As `Registry.authorise`, for those who may keep a tunnel."""
        return self._registry.authorise(certificate, expired=expired)

    async def join(self, message: Join) -> Joined:
        """A certificate for an invitation. Refused (INVITATION_INVALID), RemoteError for a bad request."""
        self._registry.check_invitation(message.invitation, message.secret)
        if message.invitation in self._joining:  # the same invitation a hundred times at once is one child
            raise Refused("the invitation is being used at this moment", reason=Reason.INVITATION_INVALID)
        self._joining.add(message.invitation)
        try:
            answer = await self._call(
                {"call": "accept", "invitation": message.invitation, "secret": message.secret, "csr": message.csr}
            )
        finally:
            self._joining.discard(message.invitation)
        log.info("%s %s has joined", answer["role"], answer["name"])
        return Joined(
            name=answer["name"],
            role=answer["role"],
            certificate=answer["certificate"],
            ca=answer["authority"],
            domain=self._domain,
            address=self._address,
        )

    async def renew(self, name: str, message: RenewRequest, *, shown: str) -> Renewed:
        """A new certificate for an identity that was authorised. Refused (REVOKED, RATE_LIMIT), RemoteError.

        shown: the serial of the one that it has.
        """
        now = asyncio.get_running_loop().time()
        bucket = self._renewals.get(name)
        if bucket is None:
            bucket = self._renewals[name] = TokenBucket(rate=RENEWALS_PER_SECOND, burst=RENEWALS_BURST, now=now)
        if not bucket.take(now):
            raise Refused(f"{name} renews too often", reason=Reason.RATE_LIMIT)
        answer = await self._call({"call": "renew", "name": name, "csr": message.csr, "shown": shown})
        log.info("connector %s has a new certificate", name)
        return Renewed(certificate=answer["certificate"], ca=answer["authority"])

    async def _call(self, request: dict[str, Any]) -> dict[str, Any]:
        """One call of `identity.child`; secrets go over its standard input."""
        if self._waiting >= CHILDREN_WAITING:
            raise Refused("too many certificates are being signed; try again", reason=Reason.RATE_LIMIT)
        self._waiting += 1
        try:
            return await self._call_in_turn(request)
        finally:
            self._waiting -= 1

    async def _call_in_turn(self, request: dict[str, Any]) -> dict[str, Any]:
        async with self._children:
            return await call_child(self._state_dir, request)


async def call_child(state_dir: Path, request: dict[str, Any]) -> dict[str, Any]:
    """One call of `identity.child`; secrets go over its standard input. Refused, RemoteError, LocalError."""
    try:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-Pm", "tunnelgw.identity.child", "call", str(state_dir / FILE_NAME),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except OSError as error:  # no descriptors, no memory
        raise LocalError(f"the signing process could not be started: {error.strerror or error}") from None
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
