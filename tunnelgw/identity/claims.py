"""Which connector holds a host name or a public port, for all workers and over restarts.

A claim is a text: `host:<name><path>`, `port:<number>` (TCP), `udp:<number>`, or, for a host on a TCP port that several
may share, `name:<number>:<protocol>:<name>`. A host belongs to one connector as a whole, whatever paths it serves; a
TCP port is held raw, or for one protocol. A claim stays with its connector for as long as its configuration asks for
it, also while it is away, and is free again when the connector withdraws it or is revoked. Whether a grant allows it is
decided before.

A claim with terms (a text that says what all members of a group agree on) can be held by several connectors: by those
whose terms are equal, and whose grant names it where somebody holds it already. Who shares one claim of a host may hold
other paths of it beside the others.

All claims of a connector are one document; every change also writes one guard key at the revision it was read at, so
that two connectors that claim the same host at the same moment cannot both succeed.
Invariant: at any revision of the store, the holders of a claim have equal terms, holders of a host share a claim, and
all that is held of a port is held for one use.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunnelgw.errors import Refused
from tunnelgw.obs.reasons import Reason
from tunnelgw.store.base import Conflict, Delete, Put

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tunnelgw.store.base import KeyValue, Store

CLAIMS = "claims/"
GUARD = "claims"
_MAX_BYTES = 1 << 20  # the store's bound for a value: about 20,000 claims


HELD = "held"  # by a connector that shares it with nobody
USED = "used"  # a port, for another protocol or raw
TERMS = "terms"  # by one of the same group, on other terms
UNNAMED = "unnamed"  # it could be shared, if the grant named it


@dataclass(frozen=True, slots=True)
class Wish:
    """On which terms a claim is wanted ("": for oneself alone), and whether the grant names it."""

    terms: str = ""
    named: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """Who has a claim that was not given, and why it is not shared: HELD, USED, TERMS or UNNAMED."""

    holder: str
    why: str = HELD


class ClaimBook:
    """Claims of one edge."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def hold(self, connector: str, wanted: Mapping[str, Wish]) -> dict[str, Held]:
        """Make these the connector's claims: free ones are taken, those not wanted any more released.

        Returns those it does not get. Nothing is written where nothing changes. Refused (REVOKED) for a connector that
        is revoked or unknown, (CLAIM_UNSUPPORTED) for too many claims.
        """
        while True:
            guard = self._store.get(GUARD)
            record = self._store.get(f"connectors/{connector}")
            if record is None or json.loads(record.value)["revoked"]:
                raise Refused(f"{connector} was revoked", reason=Reason.REVOKED)
            mine: KeyValue | None = None
            others: dict[str, dict[str, dict[str, str]]] = {}  # unit → holder → claim → terms
            for item in self._store.list(CLAIMS)[0]:
                holder = item.key.removeprefix(CLAIMS)
                if holder == connector:
                    mine = item
                    continue
                for claim, terms in _claims(item).items():
                    others.setdefault(_unit(claim), {}).setdefault(holder, {})[claim] = terms
            before = _claims(mine) if mine else {}
            refused = _refusals(wanted, before, others)
            held = {claim: wanted[claim].terms for claim in sorted(wanted) if claim not in refused}
            if held == before:
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

    def holders(self) -> dict[str, list[str]]:
        """Every claim and the connectors that hold it."""
        found: dict[str, list[str]] = {}
        for item in self._store.list(CLAIMS)[0]:
            for claim in _claims(item):
                found.setdefault(claim, []).append(item.key.removeprefix(CLAIMS))
        return found


def _refusals(
    wanted: Mapping[str, Wish], before: Mapping[str, str], others: Mapping[str, Mapping[str, Mapping[str, str]]]
) -> dict[str, Held]:
    """Which of these claims cannot be had beside what others hold."""
    refused = _otherwise_used(wanted, others)
    by_unit: dict[str, list[str]] = {}
    for claim in wanted:
        if claim not in refused:
            by_unit.setdefault(_unit(claim), []).append(claim)
    for unit, claims in by_unit.items():
        # What is refused is shared with nobody, so it may take others with it that it was the bridge for.
        while found := _unit_refusals(wanted, before, others.get(unit, {}), claims):
            refused |= found
            claims = [claim for claim in claims if claim not in found]
    return refused


def _otherwise_used(wanted: Iterable[str], others: Mapping[str, Mapping[str, Mapping[str, str]]]) -> dict[str, Held]:
    """The claims of ports that others use in another way."""
    uses: dict[str, dict[str, str]] = {}  # port → use → one holder
    for unit, holders in others.items():
        port, use = _use(unit)
        if port:
            uses.setdefault(port, {}).setdefault(use, next(iter(holders)))
    refused: dict[str, Held] = {}
    for claim in wanted:
        port, use = _use(claim)
        holder = next((holder for other, holder in uses.get(port, {}).items() if other != use), None)
        if holder is not None:
            refused[claim] = Held(holder, USED)
    return refused


def _unit_refusals(
    wanted: Mapping[str, Wish], before: Mapping[str, str], holders: Mapping[str, Mapping[str, str]], claims: list[str]
) -> dict[str, Held]:
    """The same for these claims of one host or port."""
    refused: dict[str, Held] = {}
    for holder, theirs in holders.items():
        shared = [claim for claim in claims if wanted[claim].terms and theirs.get(claim) == wanted[claim].terms]
        # What was shared before may stay; what is new must be named. Who shares nothing gets no path either.
        kept = [claim for claim in shared if before.get(claim) == wanted[claim].terms]
        for claim in claims:
            terms, named = wanted[claim].terms, wanted[claim].named
            if claim in theirs and claim not in shared:
                alike = terms and _group(theirs[claim]) == _group(terms)
                refused.setdefault(claim, Held(holder, TERMS if alike else HELD))
            elif not shared:
                refused.setdefault(claim, Held(holder))
            elif not named and (claim not in kept if claim in theirs else not kept):
                refused.setdefault(claim, Held(holder, UNNAMED))
    return refused


def release_operations(connector: str) -> Iterable[Delete]:
    """What to write to release all claims of a connector."""
    return (Delete(CLAIMS + connector),)


def _claims(item: KeyValue) -> dict[str, str]:
    """Claims and their terms. A list, without any, is what earlier versions wrote; they read the keys of ours."""
    found = json.loads(item.value)
    return {str(claim): str(found[claim]) if isinstance(found, dict) else "" for claim in found}


def _group(terms: str) -> str:
    """The part of the terms that names the group and the service."""
    return terms.rpartition(" ")[0]


def _unit(claim: str) -> str:
    """What belongs to one connector as a whole: the host without its path, or the port."""
    return claim.partition("/")[0]


def _use(claim: str) -> tuple[str, str]:
    """The TCP port of a claim and the protocol it is held for ("": raw); no port for what only has one use."""
    kind, port, protocol, *_ = [*claim.split(":"), ""]
    return ("", "") if kind not in ("port", "name") else (port, protocol if kind == "name" else "")
