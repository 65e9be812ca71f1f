"""What a machine keeps of each edge that it joined: `state_dir/identities/<edge>/`, as a visitor `visits/<edge>/`.

`identity.json` (0600) holds everything and is replaced as a whole, so key, certificate and authority always belong
together; `identity.pem` is made from it, since TLS contexts read certificates from files only. The key is made here and
never leaves. Invariant: after a crash at any moment the folder holds the old identity or the new one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tunnelgw.config.files import make_private_folder, write_atomic
from tunnelgw.errors import LocalError, RemoteError, TunnelgwError
from tunnelgw.identity.records import CONNECTOR, VISITOR

if TYPE_CHECKING:
    from pathlib import Path

    from tunnelgw.config.secret import Secret

_TEXTS = ("edge", "name", "role", "domain", "key", "certificate", "authority")
_FOLDERS = {CONNECTOR: "identities", VISITOR: "visits"}
_NUMBERS = ("not_before", "not_after")
_LATER = {"outdated": 0}  # numbers that older files do not have


@dataclass(slots=True)
class HomeIdentity:
    """One edge, seen from home. `install` changes it in place; everything else reads.

    edge: host:port that was joined. domain: of the edge. authority: PEM of those that are trusted; the first one
    signs. not_before, not_after: of the certificate. outdated: 1 if another authority signed it.
    """

    folder: Path
    edge: str
    name: str
    role: str
    domain: str
    key: str = field(repr=False)
    certificate: str = field(repr=False)
    authority: str = field(repr=False)
    not_before: int
    not_after: int
    outdated: int = 0

    @property
    def certificate_path(self) -> Path:
        """PEM with the certificate and the key."""
        return self.folder / "identity.pem"

    @property
    def key_path(self) -> Path:
        """The same file."""
        return self.certificate_path

    @property
    def expires(self) -> float:
        """Unix seconds."""
        return float(self.not_after)

    @property
    def renew_at(self) -> float:
        """When a third of its life is left; at once if its authority is being replaced."""
        return 0.0 if self.outdated else self.not_after - (self.not_after - self.not_before) / 3

    def make_request(self) -> str:
        """A request (PEM) for a new certificate of the same key."""
        from tunnelgw.identity import certs

        return certs.make_request(self.key)

    def install(self, certificate: str, authority: str) -> None:
        """Take over a renewed certificate. RemoteError if it is not ours; LocalError if it cannot be written."""
        from tunnelgw.identity import certs

        name, start, end = certs.check_issued(certificate, authority_pem=authority, key_pem=self.key)
        if name != self.name:
            raise RemoteError(f"the edge sent the certificate of {name}")
        self._replace(certificate=certificate, authority=authority, not_before=start, not_after=end)

    def learn(self, authority: str) -> None:
        """Trust these authorities (PEM) from now on. RemoteError if none was trusted before; LocalError."""
        from tunnelgw.identity import certs

        certs.check_trust(authority, known=self.authority)
        self._replace(authority=authority)

    def _replace(self, **changed: Any) -> None:
        """All of it, in memory and on disk, or nothing."""
        from tunnelgw.identity import certs

        previous = {name: getattr(self, name) for name in (*changed, "outdated")}
        for name, value in changed.items():
            setattr(self, name, value)
        try:
            self.outdated = int(not certs.is_of(self.certificate, self.authority))
            self._save()
        except TunnelgwError:
            for name, value in previous.items():
                setattr(self, name, value)
            raise

    def _save(self) -> None:
        found: dict[str, Any] = {name: getattr(self, name) for name in (*_TEXTS, *_NUMBERS, *_LATER)}
        make_private_folder(self.folder)
        write_atomic(self.folder / "identity.json", json.dumps(found, indent=1).encode(), mode=0o600)
        self._write_pem()

    def _write_pem(self) -> None:
        text = self.certificate + self.key
        path = self.certificate_path
        if not path.is_file() or path.read_text() != text:
            write_atomic(path, text.encode(), mode=0o600)


def folder_of(state_dir: Path, edge: str, role: str = CONNECTOR) -> Path:
    """Where the identity for an edge (host:port) is: a machine can be both a connector and a visitor there."""
    host, _, port = edge.rpartition(":")
    return state_dir / _FOLDERS[role] / f"{host.strip('[]').replace(':', '-').replace('%', '-')}_{port}"


def load(state_dir: Path, edge: str) -> HomeIdentity | None:
    """The identity for an edge; None if it was not joined. LocalError if it cannot be read."""
    folder = folder_of(state_dir, edge)
    return _load(folder) if (folder / "identity.json").exists() else None


def load_all(state_dir: Path, role: str = CONNECTOR) -> list[HomeIdentity]:
    """Every edge that was joined in this role, by name of its folder. LocalError."""
    try:
        return [_load(path.parent) for path in sorted((state_dir / _FOLDERS[role]).glob("*/identity.json"))]
    except PermissionError:
        raise LocalError(f"{state_dir} may not be read by this user; run it as its owner") from None


def _load(folder: Path) -> HomeIdentity:
    path = folder / "identity.json"
    try:
        found = json.loads(path.read_bytes())
        values: dict[str, Any] = {name: str(found[name]) for name in _TEXTS}
        values.update({name: int(found[name]) for name in _NUMBERS})
        values.update({name: int(found.get(name, default)) for name, default in _LATER.items()})
    except OSError as error:
        raise LocalError(f"cannot read {path}: {error.strerror}; run it as the owner of state_dir") from None
    except (ValueError, KeyError, TypeError):
        raise LocalError(f"{path} is damaged; remove {folder} and join again") from None
    identity = HomeIdentity(folder=folder, **values)
    identity._write_pem()
    return identity


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """A new key (PEM) and the certificate request (PEM) for it."""

    key: Secret = field(repr=False)
    csr: str


def new_request() -> KeyRequest:
    """Make the key for a join."""
    from tunnelgw.config.secret import Secret
    from tunnelgw.identity import certs

    key = certs.make_key()
    return KeyRequest(Secret(key), certs.make_request(key))


def check_edge(authority: str, *, pin: str, leaf: bytes) -> None:
    """Is this the edge that made the invitation? leaf: DER of what TLS showed. RemoteError (unauthenticated)."""
    from tunnelgw.identity import certs

    certs.check_edge(authority, pin=pin, leaf=leaf)


def save_joined(
    state_dir: Path,
    *,
    edge: str,
    request: KeyRequest,
    pin: str,
    name: str,
    role: str,
    domain: str,
    certificate: str,
    authority: str,
) -> HomeIdentity:
    """Keep what a join brought, replacing an older identity for the same edge.

    RemoteError if certificate and authority are not what the invitation and our key ask for; LocalError.
    """
    from tunnelgw.identity import certs

    key = request.key.reveal()
    certs.check_pin(authority, pin=pin)
    found, start, end = certs.check_issued(certificate, authority_pem=authority, key_pem=key)
    if found != name:
        raise RemoteError(f"the edge sent the certificate of {found}, not of {name}")
    if role not in _FOLDERS:
        raise RemoteError(f"the edge gave this machine a role that it does not know: {role}")
    identity = HomeIdentity(
        folder=folder_of(state_dir, edge, role),
        edge=edge,
        name=name,
        role=role,
        domain=domain,
        key=key,
        certificate=certificate,
        authority=authority,
        not_before=start,
        not_after=end,
    )
    identity._save()
    return identity
