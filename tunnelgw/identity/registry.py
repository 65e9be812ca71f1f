"""Who may dial this edge: invitations, connectors, their grants and certificates.

Everything is in the store and decided by compare-and-set, so that any worker or command may do it. What is asked on
every dial (`authorise`) needs neither cryptography nor more than one read; only signing imports it.

Invariants: an invitation is used at most once; nobody is authorised by a certificate that is not in its record; why an
invitation was refused is never told.
"""

from __future__ import annotations

import secrets
import ssl
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tunnelgw.config.names import Bad, service_name
from tunnelgw.errors import LocalError, Refused
from tunnelgw.identity import invitations
from tunnelgw.identity.ca import Authorities
from tunnelgw.identity.claims import release_operations
from tunnelgw.identity.records import CONNECTOR, ROLES, Accepted, Allow, Connector, Issued, Pending
from tunnelgw.obs.reasons import Reason
from tunnelgw.store.base import Conflict, Delete, Put

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunnelgw.identity.invitations import Invitation
    from tunnelgw.store.base import Store

CONNECTORS = "connectors/"
INVITATIONS = "invitations/"
# A renewal whose answer got lost is asked for again with the old certificate: so many stay valid until they expire.
_MAX_ISSUED = 8
# Unused invitations; each is about 300 bytes, and nobody invites so many by hand.
_MAX_INVITATIONS = 1000


class Registry:
    """Connectors and invitations of one edge. Times are Unix seconds. Any method may raise the store's LocalError."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._authorities = Authorities(store)
        # Compared when an invitation is unknown, so that this takes as long as a wrong secret.
        self._nothing = invitations.hash_secret(secrets.token_hex(16))

    # Invitations

    def invite(
        self,
        name: str,
        *,
        address: str,
        role: str = CONNECTOR,
        allow: Allow | None = None,
        ttl: float = 3600.0,
        now: float | None = None,
    ) -> Invitation:
        """A new invitation; for a name that exists it replaces the key when used, and what `allow` names of its grant.

        LocalError (exit 2) for a name or role that cannot be.
        """
        try:
            service_name(name)
        except Bad:
            text = f'"{name}" is not a connector name: lower-case letters, digits and hyphens, at most 63'
            raise LocalError(text, exit_code=2) from None
        if role not in ROLES:
            raise LocalError(f'"{role}" is not a role; it can be {" or ".join(ROLES)}', exit_code=2)
        now = time.time() if now is None else now
        if len(self.invitations(now=now)) >= _MAX_INVITATIONS:
            raise LocalError(f"there are {_MAX_INVITATIONS} unused invitations; wait, or revoke names nobody needs")
        made = invitations.make(address=address, pin=self._authorities.tunnels().pin, expires=int(now + ttl))
        pending = Pending(
            id=made.id,
            name=name,
            role=role,
            allow=allow or Allow(),
            expires=now + ttl,
            created=now,
            hashed=invitations.hash_secret(made.secret.reveal()),
        )
        self._store.put(INVITATIONS + made.id, pending.encode(), expect=0)
        return made

    def invitations(self, *, now: float | None = None) -> list[Pending]:
        """Invitations that can still be used; expired ones are removed on the way."""
        now = time.time() if now is None else now
        found = [Pending.decode(item.value, item.revision) for item in self._store.list(INVITATIONS)[0]]
        expired: list[Put | Delete] = [Delete(INVITATIONS + item.id) for item in found if item.expires <= now]
        if expired:
            self._store.apply(expired)
        return [item for item in found if item.expires > now]

    def accept(self, invitation: str, secret: str, csr: str, *, now: float | None = None) -> Accepted:
        """Use an invitation. Refused (INVITATION_INVALID, whatever was wrong); RemoteError for a bad request."""
        now = time.time() if now is None else now
        pending = self._pending(invitation)
        right = invitations.matches(secret, pending.hashed if pending else self._nothing)
        if pending is None or not right or pending.expires <= now:
            raise _invalid()
        from tunnelgw.identity import certs  # 10 MB: loaded when somebody joins

        key = certs.read_request(csr)
        authority = self._authorities.tunnels()
        signed = certs.sign_connector(authority, key, name=pending.name, role=pending.role, now=now)
        issued = (Issued(signed.serial, signed.not_after),)
        while True:
            old = self.get(pending.name)
            connector = Connector(
                name=pending.name,
                role=pending.role,
                # A grant of a revoked connector is gone with it.
                allow=(Allow() if old is None or old.revoked else old.allow).updated(pending.allow),
                issued=issued,
                joined=now,
            )
            used = Delete(INVITATIONS + pending.id, expect=pending.revision)
            joined = Put(CONNECTORS + connector.name, connector.encode(), expect=old.revision if old else 0)
            try:
                self._store.apply([used, joined])
            except Conflict as conflict:
                if conflict.key == used.key:
                    raise _invalid() from None
                continue
            return Accepted(connector, signed.certificate, authority.certificate)

    def _pending(self, invitation: str) -> Pending | None:
        if len(invitation) != 16 or not invitation.isalnum():
            return None
        found = self._store.get(INVITATIONS + invitation)
        return Pending.decode(found.value, found.revision) if found else None

    # Connectors

    def connectors(self) -> list[Connector]:
        """All that joined, by name; revoked ones too."""
        return [Connector.decode(item.value, item.revision) for item in self._store.list(CONNECTORS)[0]]

    def get(self, name: str) -> Connector | None:
        """One connector."""
        found = self._store.get(CONNECTORS + name) if name else None
        return Connector.decode(found.value, found.revision) if found else None

    def set_grant(self, name: str, allow: Allow) -> Connector:
        """Replace what `allow` names. LocalError (exit 2) if nobody of that name has joined."""
        while True:
            old = self.get(name)
            if old is None or old.revoked:
                waiting = any(item.name == name for item in self.invitations())
                hint = "has not joined yet; invite again with other options" if waiting else self._known()
                raise LocalError(f'"{name}" {hint}', exit_code=2)
            new = replace(old, allow=old.allow.updated(allow))
            try:
                revision = self._store.put(CONNECTORS + name, new.encode(), expect=old.revision)
            except Conflict:
                continue
            return replace(new, revision=revision)

    def revoke(self, name: str) -> bool:
        """Refuse a connector from now on, cancel its invitations, release its claims; False if it was so already.

        LocalError (exit 2) if there is neither a connector nor an invitation of that name.
        """
        while True:
            old = self.get(name)
            waiting = [item for item in self.invitations() if item.name == name]
            if old is None and not waiting:
                raise LocalError(f'"{name}" {self._known()}', exit_code=2)
            operations: list[Put | Delete] = [Delete(INVITATIONS + item.id, expect=item.revision) for item in waiting]
            if old is not None and not old.revoked:
                gone = replace(old, revoked=True, issued=())
                operations.append(Put(CONNECTORS + name, gone.encode(), expect=old.revision))
            operations += release_operations(self._store, name)
            if not operations:
                return False
            try:
                self._store.apply(operations)
            except Conflict:
                continue
            return True

    def _known(self) -> str:
        names = [connector.name for connector in self.connectors() if not connector.revoked]
        return f"is not known here; connectors are: {', '.join(names) or 'none'}"

    # Certificates

    def authorise(
        self, certificate: Mapping[str, Any] | None, *, now: float | None = None, expired: bool = False
    ) -> Connector:
        """The connector that showed this certificate (`ssl.getpeercert()`, already verified against our authority).

        expired: accept one whose time is over, for its renewal. Refused: UNAUTHENTICATED, REVOKED, CERTIFICATE_EXPIRED.
        """
        name = _common_name(certificate)
        if not certificate or not name:
            raise Refused("no certificate of a connector was shown", reason=Reason.UNAUTHENTICATED)
        connector = self.get(name)
        if connector is None:
            raise Refused(f"{name} is not known to this edge; join again", reason=Reason.UNAUTHENTICATED)
        if connector.revoked:
            raise Refused(f"{name} was revoked; it needs a new invitation", reason=Reason.REVOKED)
        serial = str(certificate.get("serialNumber", "")).upper()
        if all(item.serial != serial for item in connector.issued):
            raise Refused(
                f"{name} joined again with another key; this one is not valid any more", reason=Reason.REVOKED
            )
        ends = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
        if not expired and ends <= (time.time() if now is None else now):
            raise Refused(f"the certificate of {name} has expired; renew it", reason=Reason.CERTIFICATE_EXPIRED)
        return connector

    def renew(self, name: str, csr: str, *, now: float | None = None) -> Accepted:
        """A new certificate for a connector that was authorised. Refused (REVOKED), RemoteError for a bad request."""
        from tunnelgw.identity import certs

        now = time.time() if now is None else now
        key = certs.read_request(csr)
        authority = self._authorities.tunnels()
        while True:
            old = self.get(name)
            if old is None or old.revoked:
                raise Refused(f"{name} was revoked; it needs a new invitation", reason=Reason.REVOKED)
            signed = certs.sign_connector(authority, key, name=name, role=old.role, now=now)
            issued = (Issued(signed.serial, signed.not_after), *old.issued)[:_MAX_ISSUED]
            new = replace(old, issued=issued)
            try:
                revision = self._store.put(CONNECTORS + name, new.encode(), expect=old.revision)
            except Conflict:
                continue
            return Accepted(replace(new, revision=revision), signed.certificate, authority.certificate)

    @property
    def authority(self) -> str:
        """PEM of the authority that tunnels trust."""
        return self._authorities.tunnels().certificate


def _common_name(certificate: Mapping[str, Any] | None) -> str:
    """The one CN of a `getpeercert` dictionary; empty unless there is exactly one that is a name."""
    subject = (certificate or {}).get("subject", ())
    names = [value for part in subject for key, value in part if key == "commonName"]
    if len(names) != 1:
        return ""
    try:
        return service_name(str(names[0]))
    except Bad:
        return ""


def _invalid() -> Refused:
    return Refused("the invitation is not known, was used or has expired", reason=Reason.INVITATION_INVALID)
