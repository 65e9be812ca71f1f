"""Which connector holds a host name or a public port, for all workers and over restarts.

A host belongs to one connector as a whole, whatever paths it serves, so two connectors never share one. A claim stays
with its connector for as long as its configuration asks for it, also while it is away, and is free again when the
connector withdraws it or is revoked. Whether a grant allows the claim is decided before (`access/grants.py`).

Invariant: a claim has at most one holder at any revision of the store.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunnelgw.store.base import Conflict, Delete, Put

if TYPE_CHECKING:
    from collections.abc import Collection

    from tunnelgw.store.base import Store

CLAIMS = "claims/"


def host_claim(host: str) -> str:
    """The claim of a host name or wildcard."""
    return f"host/{host}"


def port_claim(port: int) -> str:
    """The claim of a public TCP port."""
    return f"port/{port}"


@dataclass(frozen=True, slots=True)
class ClaimOutcome:
    """held: what the connector holds now. refused: what it does not, and who does."""

    held: frozenset[str]
    refused: dict[str, str]


class ClaimBook:
    """Claims of one edge."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def set(self, connector: str, wanted: Collection[str]) -> ClaimOutcome:
        """Make these the connector's claims: new ones taken if they are free, those not wanted any more released.

        Nothing is written where nothing changes. A revoked or unknown connector ends up with none.
        """
        while True:
            known = _holds_record(self._store, connector)
            held = {item.key.removeprefix(CLAIMS): item for item in self._store.list(CLAIMS)[0]}
            owners = {claim: _owner(item.value) for claim, item in held.items()}
            wishes = set(wanted) if known else set()
            refused = {claim: owners[claim] for claim in wishes if owners.get(claim, connector) != connector}
            value = json.dumps({"connector": connector}).encode()
            operations: list[Put | Delete] = [
                Delete(CLAIMS + claim, expect=held[claim].revision)
                for claim, owner in owners.items()
                if owner == connector and claim not in wishes
            ]
            operations += [Put(CLAIMS + claim, value, expect=0) for claim in sorted(wishes - owners.keys())]
            if operations:
                try:
                    self._store.apply(operations)
                except Conflict:
                    continue
                if known and not _holds_record(self._store, connector):
                    continue  # revoked in between: take it all back
            return ClaimOutcome(frozenset(wishes - refused.keys()), refused)

    def holders(self) -> dict[str, str]:
        """Every claim and the connector that holds it."""
        return {item.key.removeprefix(CLAIMS): _owner(item.value) for item in self._store.list(CLAIMS)[0]}

    def holder(self, claim: str) -> str:
        """The connector that holds a claim, or empty."""
        found = self._store.get(CLAIMS + claim)
        return _owner(found.value) if found else ""


def release_operations(store: Store, connector: str) -> list[Put | Delete]:
    """What to write to release all claims of a connector."""
    found = store.list(CLAIMS)[0]
    return [Delete(item.key, expect=item.revision) for item in found if _owner(item.value) == connector]


def _owner(value: bytes) -> str:
    return str(json.loads(value)["connector"])


def _holds_record(store: Store, connector: str) -> bool:
    """True if the connector has joined and is not revoked."""
    found = store.get(f"connectors/{connector}")
    return found is not None and not json.loads(found.value)["revoked"]
