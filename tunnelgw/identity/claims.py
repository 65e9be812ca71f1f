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
that two connectors that claim the same host at the same moment cannot both succeed. Who holds what is also kept in
memory, where it follows the store, so that a claim costs as much whoever else there is.
Invariants: at any revision of the store, the holders of a claim have equal terms, holders of a host share a claim, and
all that is held of a port is held for one use; what is in memory is read after the guard, so what changed since cannot
be written over.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from tunnelgw.errors import Refused
from tunnelgw.obs.reasons import Reason
from tunnelgw.store.base import Check, Compacted, Conflict, Delete, Put

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tunnelgw.store.base import Operation, Store

T = TypeVar("T")
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
        self._index = _Index(store)
        self._decided: dict[str, int] = {}  # connector → the revision of its claims that `hold` read or wrote last

    def hold(self, connector: str, wanted: Mapping[str, Wish]) -> dict[str, Held]:
        """Make these the connector's claims: free ones are taken, those not wanted any more released.

        Returns those it does not get. Nothing is written where nothing changes. Refused (REVOKED) for a connector that
        is revoked or unknown, (CLAIM_UNSUPPORTED) for too many claims.
        """
        while True:
            guard = self._store.get(GUARD)  # first: see the invariant
            record = self._store.get(f"connectors/{connector}")
            if record is None or json.loads(record.value)["revoked"]:
                raise Refused(f"{connector} was revoked", reason=Reason.REVOKED)
            self._index.follow()
            before, revision = self._index.of(connector)
            refused = _refusals(
                wanted,
                before,
                lambda unit: self._index.others(unit, connector),
                lambda port: self._index.uses(port, connector),
            )
            held = {claim: wanted[claim].terms for claim in sorted(wanted) if claim not in refused}
            if held == before:
                self._decided[connector] = revision
                return refused
            value = json.dumps(held).encode()
            if len(value) > _MAX_BYTES:
                raise Refused("these are too many hosts and ports", reason=Reason.CLAIM_UNSUPPORTED)
            operations: list[Operation] = [
                Put(GUARD, b"", expect=guard.revision if guard else 0),
                Put(CLAIMS + connector, value, expect=revision),
                Check(record.key, record.revision),  # it must not be revoked in between
            ]
            try:
                self._decided[connector] = self._store.apply(operations)
            except Conflict:
                continue
            return refused

    def overtaken(self, connector: str) -> bool:
        """Did another process decide about the connector's claims after `hold` did here?"""
        self._index.follow()
        return self._index.of(connector)[1] != self._decided.get(connector, 0)

    def holders(self) -> dict[str, list[str]]:
        """Every claim and the connectors that hold it."""
        self._index.follow()
        return self._index.holders()


class _Index:
    """Who holds what as of the last `follow`, which reads what changed since the one before."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._since: int | None = None  # None: nothing was read yet
        self._held: dict[str, tuple[dict[str, str], int]] = {}  # holder → claim → terms, and the document's revision
        self._units: dict[str, dict[str, dict[str, str]]] = {}  # unit → holder → claim → terms
        self._ports: dict[str, dict[str, dict[str, None]]] = {}  # port → use → holders

    def follow(self) -> None:
        """Catch up with the store."""
        if self._since is not None:
            try:
                changes, revision = self._store.watch(self._since, CLAIMS)
            except Compacted:
                pass
            else:
                for change in changes:
                    self._set(change.key, change.value, change.revision)
                self._since = revision
                return
        found, revision = self._store.list(CLAIMS)
        self._held, self._units, self._ports = {}, {}, {}
        for item in found:
            self._set(item.key, item.value, item.revision)
        self._since = revision

    def _set(self, key: str, value: bytes | None, revision: int) -> None:
        holder = key.removeprefix(CLAIMS)
        claims = _claims(value) if value is not None else {}
        for claim in self._held.pop(holder, ({}, 0))[0]:
            _drop(self._units, _unit(claim), holder)
            port, use = _use(claim)
            _drop(self._ports.get(port, {}), use, holder)
            if port and not self._ports.get(port, True):
                del self._ports[port]
        if value is None:
            return
        self._held[holder] = claims, revision
        for claim, terms in claims.items():
            self._units.setdefault(_unit(claim), {}).setdefault(holder, {})[claim] = terms
            port, use = _use(claim)
            if port:
                self._ports.setdefault(port, {}).setdefault(use, {})[holder] = None

    def of(self, holder: str) -> tuple[Mapping[str, str], int]:
        """Its claims with their terms, and the revision of its document; 0 where there is none."""
        return self._held.get(holder, ({}, 0))

    def others(self, unit: str, holder: str) -> Mapping[str, Mapping[str, str]]:
        """Who else holds something of this unit: their claims there, with their terms. In the order of their names."""
        there = self._units.get(unit, {})
        return {name: there[name] for name in sorted(there) if name != holder}

    def uses(self, port: str, holder: str) -> Mapping[str, str]:
        """What others use a port for, and one of them for each use."""
        found = ((use, next((n for n in names if n != holder), "")) for use, names in self._ports.get(port, {}).items())
        return {use: name for use, name in found if name}

    def holders(self) -> dict[str, list[str]]:
        """Every claim and its holders."""
        found: dict[str, list[str]] = {}
        for holder in sorted(self._held):
            for claim in self._held[holder][0]:
                found.setdefault(claim, []).append(holder)
        return found


def _refusals(
    wanted: Mapping[str, Wish],
    before: Mapping[str, str],
    others: Callable[[str], Mapping[str, Mapping[str, str]]],
    uses: Callable[[str], Mapping[str, str]],
) -> dict[str, Held]:
    """Which of these claims cannot be had beside what others hold: `others(unit)`, by holder; `uses(port)`, by use."""
    refused = _otherwise_used(wanted, uses)
    by_unit: dict[str, list[str]] = {}
    for claim in wanted:
        if claim not in refused:
            by_unit.setdefault(_unit(claim), []).append(claim)
    for unit, claims in by_unit.items():
        holders = others(unit)
        # What is refused is shared with nobody, so it may take others with it that it was the bridge for.
        while found := _unit_refusals(wanted, before, holders, claims):
            refused |= found
            claims = [claim for claim in claims if claim not in found]
    return refused


def _otherwise_used(wanted: Iterable[str], uses: Callable[[str], Mapping[str, str]]) -> dict[str, Held]:
    """The claims of ports that others use in another way."""
    known: dict[str, Mapping[str, str]] = {}
    refused: dict[str, Held] = {}
    for claim in wanted:
        port, use = _use(claim)
        if port and port not in known:
            known[port] = uses(port)
        holder = next((holder for other, holder in known.get(port, {}).items() if other != use), None)
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


def _drop(table: dict[str, dict[str, T]], key: str, holder: str) -> None:
    """Take a holder out, once or again, and the key with the last one."""
    there = table.get(key, {})
    there.pop(holder, None)
    if not there:
        table.pop(key, None)


def _claims(value: bytes) -> dict[str, str]:
    """Claims and their terms. A list, without any, is what earlier versions wrote; they read the keys of ours."""
    found = json.loads(value)
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
