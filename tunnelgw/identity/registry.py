"""Who may dial this edge: invitations, connectors, their grants and certificates.

Everything is in the store and decided by compare-and-set, so that any worker or command may do it. What is asked on
every dial (`authorise`) needs neither cryptography nor more than one read; only signing imports it.

Invariants: an invitation is used at most once; nobody is authorised by a certificate that is not in its record; why an
invitation was refused is never told.
"""

from __future__ import annotations

import json
import logging
import secrets
import ssl
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tunnelgw.access.grants import Grant
from tunnelgw.config.names import Bad, service_name
from tunnelgw.errors import LocalError, Refused
from tunnelgw.identity import invitations
from tunnelgw.identity.ca import Authorities
from tunnelgw.identity.claims import ClaimBook, release_operations
from tunnelgw.identity.records import BACKDATED_SECONDS, CONNECTOR, ROLES, Accepted, Connector, Issued, Pending, granted
from tunnelgw.obs.reasons import Reason
from tunnelgw.store.base import Conflict, Delete, Put
from tunnelgw.wire.control import EDGE_ITSELF

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tunnelgw.identity.claims import Held, Wish
    from tunnelgw.identity.invitations import Invitation
    from tunnelgw.identity.rotation import AuthorityState
    from tunnelgw.store.base import Store

CONNECTORS = "connectors/"
INVITATIONS = "invitations/"
OFFERS = "offers/"
GAP = "gap"
AFFINITY = "affinity"
# A renewal whose answer got lost is asked for again with the old certificate: so many stay valid until they expire.
_MAX_ISSUED = 8
# Unused invitations; each is about 300 bytes, and nobody invites so many by hand.
_MAX_INVITATIONS = 1000
_MAX_OFFERS_BYTES = 1 << 20

log = logging.getLogger(__name__)


class Registry:
    """Connectors and invitations of one edge. Times are Unix seconds. Any method may raise the store's LocalError."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._authorities = Authorities(store)
        self._claims = ClaimBook(store)
        # Compared when an invitation is unknown, so that this takes as long as a wrong secret.
        self._nothing = invitations.hash_secret(secrets.token_hex(16))

    # Invitations

    def invite(
        self,
        name: str,
        *,
        address: str,
        role: str = CONNECTOR,
        grant: Grant | None = None,
        ttl: float = 3600.0,
        now: float | None = None,
    ) -> Invitation:
        """A new invitation; for a name that exists it replaces the key when used, and what `grant` names.

        LocalError (exit 2) for a name or role that cannot be.
        """
        try:
            service_name(name)
        except Bad:
            text = f'"{name}" is not a connector name: lower-case letters, digits and hyphens, at most 63'
            raise LocalError(text, exit_code=2) from None
        if role not in ROLES:
            raise LocalError(f'"{role}" is not a role; it can be {" or ".join(ROLES)}', exit_code=2)
        self._check_free(name, role)
        now = time.time() if now is None else now
        if len(self.invitations(now=now)) >= _MAX_INVITATIONS:
            raise LocalError(f"there are {_MAX_INVITATIONS} unused invitations; wait, or revoke names nobody needs")
        made = invitations.make(address=address, pin=self._authorities.tunnels().pin, expires=int(now + ttl))
        pending = Pending(
            id=made.id,
            name=name,
            role=role,
            grant=grant or Grant(),
            expires=now + ttl,
            created=now,
            hashed=invitations.hash_secret(made.secret.reveal()),
        )
        self._store.put(INVITATIONS + made.id, pending.encode(), expect=0)
        return made

    def _check_free(self, name: str, role: str) -> None:
        """LocalError for a name that means something else: whoever has it would lose all that it serves."""
        old = self.get(name)
        if old is None:
            if name == EDGE_ITSELF:
                raise LocalError(f'"{name}" means the edge itself, to visitors; choose another name', exit_code=2)
        elif not old.revoked and old.role != role:
            text = f'"{name}" is a {old.role}; choose another name for the {role}, as {name}-{role}'
            raise LocalError(f"{text} (or revoke {name} first)", exit_code=2)

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
        pending = self.check_invitation(invitation, secret, now=now)
        from tunnelgw.identity import certs  # 10 MB: loaded when somebody joins

        key = certs.read_request(csr)
        authority = self._authorities.tunnels()
        signed = certs.sign_connector(authority, key, name=pending.name, role=pending.role, now=now)
        issued = (Issued(signed.serial, signed.not_after),)
        while True:
            old = self.get(pending.name)
            if old is not None and not old.revoked and old.role != pending.role:
                raise _invalid()  # two were invited under one name, and the other one was faster
            connector = Connector(
                name=pending.name,
                role=pending.role,
                # A grant of a revoked connector is gone with it.
                grant=granted(Grant() if old is None or old.revoked else old.grant, pending.grant),
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
            return Accepted(connector, signed.certificate, self.authority)

    def check_invitation(self, invitation: str, secret: str, *, now: float | None = None) -> Pending:
        """The invitation, still unused. Refused (INVITATION_INVALID, whatever was wrong), in the same time."""
        now = time.time() if now is None else now
        pending = self._pending(invitation)
        right = invitations.matches(secret, pending.hashed if pending else self._nothing)
        if pending is None or not right or pending.expires <= now:
            raise _invalid()
        return pending

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

    def set_grant(self, name: str, grant: Grant) -> Connector:
        """Replace what `grant` names (fields that are not empty). LocalError (exit 2) for a name that did not join."""
        while True:
            old = self.get(name)
            if old is None or old.revoked:
                waiting = any(item.name == name for item in self.invitations())
                hint = "has not joined yet; invite again with other options" if waiting else self._known()
                raise LocalError(f'"{name}" {hint}', exit_code=2)
            new = replace(old, grant=granted(old.grant, grant))
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
            if not operations:
                return False
            operations += [*release_operations(name), Delete(OFFERS + name)]
            try:
                self._store.apply(operations)
            except Conflict:
                continue
            return True

    # After a restore of an older state

    def set_gap(self, first: float, last: float) -> None:
        """Nobody knows what was signed between these moments (Unix seconds): believe the signature then."""
        self._store.put(GAP, json.dumps([first, last]).encode())

    def cancel_invitations(self) -> None:
        """None of them works any more: one that was used since would work a second time."""
        self._store.apply([Delete(INVITATIONS + item.id) for item in self.invitations()])

    def catch_up(self, newer: Iterable[Connector]) -> list[str]:
        """Keep what was decided since: who was revoked stays so (their names), replaced keys and certificates too."""
        revoked = []
        for now in newer:
            old = self.get(now.name)
            if old is None or old.revoked:
                continue
            if now.revoked:
                self.revoke(now.name)
                revoked.append(now.name)
            else:
                same = replace(old, issued=now.issued, joined=now.joined)
                self._store.put(CONNECTORS + now.name, same.encode(), expect=old.revision)
        return revoked

    def _known(self) -> str:
        names = [connector.name for connector in self.connectors() if not connector.revoked]
        return f"is not known here; connectors are: {', '.join(names) or 'none'}"

    # What connectors offer and hold

    def grant(self, name: str) -> Grant:
        """What a connector may claim; the default for one that is not known."""
        found = self.get(name)
        return found.grant if found is not None and not found.revoked else Grant()

    def hold(self, name: str, wanted: Mapping[str, Wish]) -> dict[str, Held]:
        """As `ClaimBook.hold`."""
        return self._claims.hold(name, wanted)

    def overtaken(self, name: str) -> bool:
        """As `ClaimBook.overtaken`."""
        return self._claims.overtaken(name)

    def holders(self, prefix: str) -> list[str]:
        """The connectors that hold a claim which begins like this, each once."""
        found = self._claims.holders()
        return sorted({name for claim, names in found.items() if claim.startswith(prefix) for name in names})

    def claims(self) -> dict[str, list[str]]:
        """Every claim and its holders."""
        return self._claims.holders()

    def affinity_secret(self) -> bytes:
        """What members of groups are named with in visitors' cookies: made once, for all workers and over restarts."""
        while True:
            found = self._store.get(AFFINITY)
            if found is not None:
                return found.value
            try:
                self._store.put(AFFINITY, secrets.token_bytes(32), expect=0)
            except Conflict:
                continue

    def remember_offers(self, name: str, offers: bytes) -> None:
        """Keep what a connector offered last, for the time until it is back after a restart of the edge."""
        connector = self.get(name)
        if connector is None or connector.revoked:
            return
        if len(offers) > _MAX_OFFERS_BYTES:
            log.warning("connector %s offers too much to be remembered over a restart of the edge", name)
            self._store.delete(OFFERS + name)
            return
        self._store.put(OFFERS + name, offers)

    def remembered_offers(self, name: str) -> bytes | None:
        """What `remember_offers` kept."""
        found = self._store.get(OFFERS + name)
        return found.value if found else None

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
        ends = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
        if all(item.serial != serial for item in connector.issued):
            if not self._signed_in_gap(ssl.cert_time_to_seconds(str(certificate["notBefore"])) + BACKDATED_SECONDS):
                raise Refused(
                    f"{name} joined again with another key; this one is not valid any more", reason=Reason.REVOKED
                )
            connector = self._remember(connector, Issued(serial, ends))
        if not expired and ends <= (time.time() if now is None else now):
            raise Refused(f"the certificate of {name} has expired; renew it", reason=Reason.CERTIFICATE_EXPIRED)
        return connector

    def _signed_in_gap(self, moment: float) -> bool:
        """Between a backup and its restore where nobody could say any more what was signed meanwhile."""
        found = self._store.get(GAP)
        if found is None:
            return False
        first, last = json.loads(found.value)
        return bool(first <= moment <= last)

    def _remember(self, connector: Connector, issued: Issued) -> Connector:
        """Add a certificate that this authority signed and this store does not know."""
        log.warning("connector %s shows a certificate that is newer than the restored backup", connector.name)
        new = replace(connector, issued=(issued, *connector.issued)[:_MAX_ISSUED])
        try:
            revision = self._store.put(CONNECTORS + connector.name, new.encode(), expect=connector.revision)
        except Conflict:
            raise Refused(f"{connector.name} was just changed; come again", reason=Reason.INTERNAL) from None
        return replace(new, revision=revision)

    def renew(self, name: str, csr: str, *, shown: str = "", now: float | None = None) -> Accepted:
        """A new certificate for a connector that was authorised. Refused (REVOKED), RemoteError for a bad request.

        shown: serial of the one that it has; it stays valid, however often a new one did not get there.
        """
        from tunnelgw.identity import certs

        now = time.time() if now is None else now
        key = certs.read_request(csr)
        while True:
            old = self.get(name)
            if old is None or old.revoked:
                raise Refused(f"{name} was revoked; it needs a new invitation", reason=Reason.REVOKED)
            signed = certs.sign_connector(self._authorities.tunnels(), key, name=name, role=old.role, now=now)
            kept = sorted(old.issued, key=lambda one: one.serial != shown.upper())  # that one first
            new = replace(old, issued=(Issued(signed.serial, signed.not_after), *kept)[:_MAX_ISSUED])
            try:
                revision = self._store.put(CONNECTORS + name, new.encode(), expect=old.revision)
            except Conflict:
                continue
            return Accepted(replace(new, revision=revision), signed.certificate, self.authority)

    def rotate_authority(self, seconds: int) -> None:
        """As `Authorities.rotate`."""
        self._authorities.rotate(seconds)

    def authority_state(self) -> AuthorityState:
        """What `edge status` says of the tunnels' authority."""
        rotation = self._authorities.rotation()
        return {
            "expires": float(self._authorities.tunnels().not_after),
            "step": rotation.step if rotation is not None else "",
            "until": float(rotation.until) if rotation is not None else 0.0,
            "text": rotation.text if rotation is not None else "",
        }

    @property
    def authority(self) -> str:
        """PEM of the authorities that tunnels trust; the first one signs."""
        return self._authorities.trusted()


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
