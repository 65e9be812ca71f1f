"""Which connector holds a host name or a public port, for all workers and over restarts.

A claim is a text: `host:<name><path>` or `port:<number>`. A host belongs to one connector as a whole, whatever paths it
serves. A claim stays with its connector for as long as its configuration asks for it, also while it is away, and is
free again when the connector withdraws it or is revoked. Whether a grant allows it is decided before.

All claims of a connector are one document; every change also writes one guard key at the revision it was read at, so
that two connectors that claim the same host at the same moment cannot both succeed.
Invariant: a claim, and a host, has at most one holder at any revision of the store.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tunnelgw.errors import Refused
from tunnelgw.obs.reasons import Reason
from tunnelgw.store.base import Conflict, Delete, Put

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from tunnelgw.store.base import KeyValue, Store

CLAIMS = "claims/"
GUARD = "claims"
_MAX_BYTES = 1 << 20  # the store's bound for a value: about 20,000 claims


class ClaimBook:
    """Claims of one edge."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def hold(self, connector: str, wanted: Collection[str]) -> dict[str, str]:
        """Make these the connector's claims: free ones are taken, those not wanted any more released.

        Returns those it does not get, with their holders. Nothing is written where nothing changes. Refused (REVOKED)
        for a connector that is revoked or unknown, (CLAIM_UNSUPPORTED) for too many claims.
        """
        while True:
            guard = self._store.get(GUARD)
            record = self._store.get(f"connectors/{connector}")
            if record is None or json.loads(record.value)["revoked"]:
                raise Refused(f"{connector} was revoked", reason=Reason.REVOKED)
            found = self._store.list(CLAIMS)[0]
            others: dict[str, str] = {}
            mine: KeyValue | None = None
            for item in found:
                holder = item.key.removeprefix(CLAIMS)
                if holder == connector:
                    mine = item
                else:
                    others.update((_unit(claim), holder) for claim in _claims(item))
            refused = {claim: others[_unit(claim)] for claim in wanted if _unit(claim) in others}
            held = sorted(set(wanted) - refused.keys())
            if held == (_claims(mine) if mine else []):
                return refused
            value = json.dumps(held).encode()
            if len(value) > _MAX_BYTES:
                raise Refused("these are too many hosts and ports", reason=Reason.CLAIM_UNSUPPORTED)
            operations = [
                Put(GUARD, b"", expect=guard.revision if guard else 0),
                Put(CLAIMS + connector, value, expect=mine.revision if mine else 0),
                # Unchanged, but it must not be revoked in between.
                Put(record.key, record.value, expect=record.revision),
            ]
            try:
                self._store.apply(operations)
            except Conflict:
                continue
            return refused

    def holders(self) -> dict[str, str]:
        """Every claim and the connector that holds it."""
        found = self._store.list(CLAIMS)[0]
        return {claim: item.key.removeprefix(CLAIMS) for item in found for claim in _claims(item)}


def release_operations(connector: str) -> Iterable[Delete]:
    """What to write to release all claims of a connector."""
    return (Delete(CLAIMS + connector),)


def _claims(item: KeyValue) -> list[str]:
    return [str(claim) for claim in json.loads(item.value)]


def _unit(claim: str) -> str:
    """What belongs to one connector as a whole: the host without its path, or the port."""
    return claim.partition("/")[0]
