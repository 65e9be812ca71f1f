"""The edge's two authorities and its own certificate, kept in the store.

"tunnels" signs the edge and its connectors and is what invitations pin; "visitors" signs host names where the issuer
is "self-signed". They are apart, so that whoever trusts the visitors' authority in a browser trusts no tunnel, and a
host's certificate can never pose as the edge. Made on first use by compare-and-set: workers that start together agree.

Reading needs no cryptography. Invariant: an authority is replaced only by a rotation (`rotation.py`), step by step,
each step being one write that succeeds as a whole.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tunnelgw.config.files import make_private_folder, write_atomic
from tunnelgw.config.model import CertificateFiles
from tunnelgw.errors import LocalError
from tunnelgw.identity.material import Material
from tunnelgw.identity.rotation import BEFORE_END_SECONDS, DAY, SHORTEST_SECONDS, STEP_SECONDS, Rotation
from tunnelgw.store.base import Conflict, Delete, Put

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tunnelgw.store.base import KeyValue, Store

PREFIX = "identity/"
# What the edge is called in tunnels: connectors verify the authority, not the name; workers are w0.tgw.invalid, ...
EDGE_HOSTS = ("tgw.invalid", "*.tgw.invalid")


class Authorities:
    """What the store holds of them. `now` is Unix seconds, for tests."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def tunnels(self) -> Material:
        """The authority that signs for tunnels; made if there is none."""
        return self._found_or_made("tunnels")

    def visitors(self) -> Material:
        """The authority of self-signed host names; made if there is none."""
        return self._found_or_made("visitors")

    def trusted(self) -> str:
        """PEM of the authorities that tunnels trust now; the first one signs."""
        found = self._all()  # one look: a step between two would show one authority twice, and not the other
        signing = Material.decode(found["tunnels"]) if "tunnels" in found else self.tunnels()
        return signing.certificate + (
            Rotation.decode(found["rotation"]).other.certificate if "rotation" in found else ""
        )

    def rotation(self) -> Rotation | None:
        """The change of the tunnels' authority that is under way."""
        found = self._store.get(PREFIX + "rotation")
        return Rotation.decode(found.value) if found is not None else None

    def rotate(self, seconds: int, *, now: float | None = None) -> None:
        """Begin to replace the tunnels' authority; each of both steps lasts `seconds`. LocalError (exit 2)."""
        now = time.time() if now is None else now
        if seconds < SHORTEST_SECONDS:
            raise LocalError(f"a step must last {SHORTEST_SECONDS} seconds at least", exit_code=2)
        from tunnelgw.identity import certs

        successor = certs.make_authority("tunnelgw tunnels", now=now)
        begun = Rotation("learning", successor, until=int(now) + seconds, seconds=seconds)
        try:
            self._store.put(PREFIX + "rotation", begun.encode(), expect=0)
        except Conflict:
            raise LocalError("the authority is being changed already; see tunnelgw edge status", exit_code=2) from None

    def advance(self, *, now: float | None = None, starting: bool = False) -> None:
        """Take the steps that are due: begin before the end of the authority, switch, retire.

        starting: connectors could not learn while the edge was switched off, so learning is not over at once.
        """
        now = time.time() if now is None else now
        found = self._store.get(PREFIX + "rotation")
        if found is None:
            if now > self.tunnels().not_after - BEFORE_END_SECONDS:
                self.rotate(STEP_SECONDS, now=now)
            return
        rotation = Rotation.decode(found.value)
        learned = int(now) + min(rotation.seconds, DAY)
        try:
            if rotation.step == "learning" and starting and rotation.until < learned:
                late = Rotation("learning", rotation.other, until=learned, seconds=rotation.seconds)
                self._store.put(found.key, late.encode(), expect=found.revision)
            elif now >= rotation.until:
                self._step(found, rotation, now)
        except Conflict:
            return  # another worker took the step

    def _step(self, found: KeyValue, rotation: Rotation, now: float) -> None:
        signing = self._store.get(PREFIX + "tunnels")
        if rotation.step == "retiring":
            self._store.delete(found.key, expect=found.revision)
        elif signing is not None:
            retiring = rotation.retired(Material.decode(signing.value), now)
            self._store.apply(
                [
                    Put(signing.key, rotation.other.encode(), expect=signing.revision),
                    Put(found.key, retiring.encode(), expect=found.revision),
                    Delete(PREFIX + "edge"),  # the next one is signed by the successor
                ]
            )

    def edge(self, *, now: float | None = None) -> Material:
        """The edge's certificate for tunnels; made anew in the last third of its life, or by another authority."""
        now = time.time() if now is None else now
        while True:
            signing = self.tunnels()
            found = self._store.get(PREFIX + "edge")
            if found is not None:
                edge = Material.decode(found.value)
                if edge.issuer == signing.pin and not edge.due(now):
                    return edge
            from tunnelgw.identity import certs  # 10 MB: loaded when something is made

            edge = certs.make_server(signing, EDGE_HOSTS, now=now, seconds=certs.EDGE_SECONDS)
            try:
                self._store.put(PREFIX + "edge", edge.encode(), expect=found.revision if found else 0)
            except Conflict:
                continue
            return edge

    def due_at(self, *, now: float | None = None) -> float:
        """When something has to be made or decided here, in Unix seconds: then call `advance` and `edge`."""
        now = time.time() if now is None else now
        found = self._all()
        if "tunnels" not in found or "edge" not in found:
            return 0.0
        signing, edge = Material.decode(found["tunnels"]), Material.decode(found["edge"])
        if edge.issuer != signing.pin or edge.due(now):
            return 0.0
        if "rotation" in found:
            return min(edge.renew_at, Rotation.decode(found["rotation"]).until)
        return min(edge.renew_at, signing.not_after - BEFORE_END_SECONDS)

    def edge_files(self, state_dir: Path) -> CertificateFiles:
        """The edge's certificate and key as files (0600), since TLS contexts read nothing else. LocalError."""
        return write_pair(state_dir / "tunnel", "edge", self.edge())

    def host_files(self, folder: Path, hosts: Sequence[str], *, name: str = "") -> CertificateFiles:
        """A new certificate of the visitors' authority in a folder: `<first host>.crt` and `.key`."""
        from tunnelgw.identity import certs

        made = certs.make_server(self.visitors(), hosts, now=time.time())
        return write_pair(folder, (name or hosts[0]).replace("*", "_wildcard"), made)

    def _all(self) -> dict[str, bytes]:
        return {item.key.removeprefix(PREFIX): item.value for item in self._store.list(PREFIX)[0]}

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
