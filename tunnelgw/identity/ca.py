"""The edge's two authorities and its own certificate, kept in the store.

"tunnels" signs the edge and its connectors and is what invitations pin; "visitors" signs host names where the issuer
is "self-signed". They are apart, so that whoever trusts the visitors' authority in a browser trusts no tunnel, and a
host's certificate can never pose as the edge. Made on first use by compare-and-set: workers that start together agree.

Reading needs no cryptography. Invariant: an authority that exists is never replaced here.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tunnelgw.config.files import make_private_folder, write_atomic
from tunnelgw.config.model import CertificateFiles
from tunnelgw.identity.material import Material
from tunnelgw.store.base import Conflict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tunnelgw.store.base import Store

PREFIX = "identity/"
# What the edge is called in tunnels: connectors verify the authority, not the name; workers are w0.tgw.invalid, ...
EDGE_HOSTS = ("tgw.invalid", "*.tgw.invalid")


class Authorities:
    """What the store holds of them. `now` is Unix seconds, for tests."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def tunnels(self) -> Material:
        """The authority of tunnels; made if there is none."""
        return self._found_or_made("tunnels")

    def visitors(self) -> Material:
        """The authority of self-signed host names; made if there is none."""
        return self._found_or_made("visitors")

    def edge(self, *, now: float | None = None) -> Material:
        """The edge's certificate for tunnels; made, and made anew in the last third of its life."""
        now = time.time() if now is None else now
        while True:
            found = self._store.get(PREFIX + "edge")
            if found is not None:
                edge = Material.decode(found.value)
                if not edge.due(now):
                    return edge
            from tunnelgw.identity import certs  # 10 MB: loaded when something is made

            edge = certs.make_server(self.tunnels(), EDGE_HOSTS, now=now, seconds=certs.EDGE_SECONDS)
            try:
                self._store.put(PREFIX + "edge", edge.encode(), expect=found.revision if found else 0)
            except Conflict:
                continue
            return edge

    def edge_due(self, *, now: float | None = None) -> bool:
        """True if `edge` would have to make a certificate (and load cryptography for it)."""
        found = self._store.get(PREFIX + "edge")
        return found is None or Material.decode(found.value).due(time.time() if now is None else now)

    def edge_files(self, state_dir: Path) -> CertificateFiles:
        """The edge's certificate and key as files (0600), since TLS contexts read nothing else. LocalError."""
        return write_pair(state_dir / "tunnel", "edge", self.edge())

    def host_files(self, folder: Path, hosts: Sequence[str], *, name: str = "") -> CertificateFiles:
        """A new certificate of the visitors' authority in a folder: `<first host>.crt` and `.key`."""
        from tunnelgw.identity import certs

        made = certs.make_server(self.visitors(), hosts, now=time.time())
        return write_pair(folder, (name or hosts[0]).replace("*", "_wildcard"), made)

    def _found_or_made(self, name: str) -> Material:
        found = self._store.get(PREFIX + name)
        if found is None:
            from tunnelgw.identity import certs

            made = certs.make_authority(f"tunnelgw {name}", now=time.time())
            try:
                self._store.put(PREFIX + name, made.encode(), expect=0)
            except Conflict:
                return self._found_or_made(name)
            return made
        return Material.decode(found.value)


def write_pair(folder: Path, name: str, material: Material) -> CertificateFiles:
    """`name.crt` and `name.key` in a private folder; nothing is written where both are right already.

    The key goes first: a reader between the two sees a pair that does not match and reads again.
    """
    make_private_folder(folder)
    pair = CertificateFiles(folder / f"{name}.crt", folder / f"{name}.key")
    for path, text in ((pair.key, material.key), (pair.cert, material.certificate)):
        if not path.is_file() or path.read_text() != text:
            write_atomic(path, text.encode(), mode=0o600)
    return pair
