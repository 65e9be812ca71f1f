"""What the store says: a command, another worker and this one all agree, since each follows it by revision.

Invariant: a change is looked at until it could be put in force; one that fails keeps no other from being seen.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from tunnelgw.errors import LocalError, TunnelgwError
from tunnelgw.identity.ca import PREFIX as IDENTITY
from tunnelgw.identity.claims import CLAIMS
from tunnelgw.identity.records import VISITOR
from tunnelgw.identity.registry import CONNECTORS
from tunnelgw.net.tasks import spawn
from tunnelgw.obs.reasons import Reason
from tunnelgw.store.base import Compacted

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from tunnelgw.edge.app import Edge

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5  # how soon a grant or a revocation made by another process is in force
# What the store did not let us do is tried at each look a few times (another worker was writing), and then once in so
# many looks, ten seconds (the disk is full).
SOON, RETRY_LOOKS = 3, 20


class Follower:
    """Looks at the store for one edge: `begin` before its state is read, `start` once it serves, `stop` at its end.

    overdue: names whose change could not be put in force, and how often in a row.
    """

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self.overdue: dict[str, int] = {}
        self._applying: set[str] = set()  # it may wait for a decision under way
        self._revision = 0
        self._look_handle: asyncio.TimerHandle | None = None
        self._reopening = False

    def begin(self) -> None:
        """What changes from now on is looked at."""
        self._revision = self._edge.store.revision()

    def start(self) -> None:
        """Look by itself from now on, and at once: somebody else may have served until now."""
        self._look_handle = self._edge.loop.call_later(0.0, self._look_soon)

    def stop(self) -> None:
        """No more."""
        if self._look_handle is not None:
            self._look_handle.cancel()

    def _look_soon(self) -> None:
        self._look_handle = self._edge.loop.call_later(LOOK_SECONDS, self._look_soon)
        self._edge.health.look()
        self._edge.connectors.renew_worn()
        spawn(self.look(), name="look at the store")
        spawn(self.reopen(), name="try ports again")
        if time.time() >= self._edge.office.due and not self._edge.left:
            spawn(self._edge.office.keep_fresh(), name="edge certificate")

    async def look(self) -> None:
        """Put in force what changed in the store: revocations, grants, replaced keys, names that came free."""
        try:
            if self._edge.store.revision() == self._revision:
                await self._retry()
                return
            try:
                changes, revision = self._edge.store.watch(self._revision)
                keys = [change.key for change in changes]
                names = self._named(keys)
            except Compacted:
                revision = self._edge.store.revision()
                keys, names = [IDENTITY], self._everybody()
        except LocalError as error:
            log.error("the store cannot be read; what was in force stays: %s", error.text)
            return
        self._revision = revision  # only now: what could not be read is looked for again
        for name in names:
            await self._apply(name)
        if any(key.startswith(IDENTITY) for key in keys) and not self._edge.left:
            await self._edge.office.keep_fresh()

    def _named(self, keys: Sequence[str]) -> list[str]:
        """Whom changes of these keys are about; not those whose claims were decided here, since that was then."""
        names = [key.removeprefix(CONNECTORS) for key in keys if key.startswith(CONNECTORS)]
        holders = [key.removeprefix(CLAIMS) for key in keys if key.startswith(CLAIMS)]
        names += [name for name in holders if self._edge.registry.overtaken(name)]
        waiting = self._edge.claims.waiting if holders else set()  # after those who may have let go of something
        return [name for name in dict.fromkeys(names) if name not in waiting] + sorted(waiting)

    def _everybody(self) -> list[str]:
        """The whole store is another one (a restore): those that it knows, and those that it knows no more."""
        self._edge.certificates.refresh()
        known = [record.name for record in self._edge.registry.connectors()]
        connectors = self._edge.connectors
        seen = (*(one.name for one in connectors), *(one.name for one in connectors.visits))
        return sorted({*known, *seen})

    async def _retry(self) -> None:
        if self._edge.health.looks % RETRY_LOOKS == 0:
            names = {*self.overdue, *self._edge.claims.unrouted}
        else:
            names = {name for name, failures in self.overdue.items() if failures <= SOON}
        for name in sorted(names - self._applying):
            await self._apply(name)

    def postpone(self, name: str) -> None:
        """A connector's change could not be put in force: it is tried again."""
        self.overdue[name] = self.overdue.get(name, 0) + 1

    async def reopen(self) -> None:
        """Try ports that something else held: nobody says when it lets go. `look` never waits for this."""
        if self._reopening or self._edge.left:
            return
        self._reopening = True
        try:
            for name in self._edge.claims.shut.due(time.monotonic()):
                async with self._edge.lock(name):
                    await self._reopen(name)
        finally:
            self._reopening = False

    async def _reopen(self, name: str) -> None:
        connector = self._edge.connectors.by_name.get(name)
        if connector is None:  # revoked meanwhile
            return
        try:
            await self._edge.claims.reopen(connector)
        except TunnelgwError as error:
            self.postpone(name)
            log.error("ports of connector %s are not tried again yet: %s", name, error.text)

    async def _apply(self, name: str) -> None:
        """One connector's change; what fails is tried again later, and keeps nobody else's from being seen."""
        self._applying.add(name)
        try:
            await self._apply_now(name)
        except TunnelgwError as error:
            self.postpone(name)
            log.error("a change of connector %s is not in force yet: %s", name, error.text)
        else:
            self.overdue.pop(name, None)
        finally:
            self._applying.discard(name)

    async def _apply_now(self, name: str) -> None:
        record = self._edge.registry.get(name)
        if record is None or record.revoked:
            self._edge.connectors.remove(name, Reason.REVOKED)  # at once
            async with self._edge.lock(name):  # a decision under way must not put back what goes now
                self._edge.claims.withdraw(name)
            return
        if record.role == VISITOR:
            self._edge.connectors.visits.changed(record)  # at once, as it was read
            if name in self._edge.connectors.by_name:  # it was revoked, and joined anew as this
                self._edge.connectors.dismiss(name, Reason.REVOKED)
                async with self._edge.lock(name):
                    self._edge.claims.withdraw(name)
            return
        self._edge.connectors.visits.remove(name, Reason.REVOKED)  # likewise
        connector = self._edge.connectors.known(name)
        if connector.serial and all(issued.serial != connector.serial for issued in record.issued):
            log.warning("connector %s joined again with another key: the old one is cut", name)
            connector.cut(Reason.REVOKED)
        async with self._edge.lock(name):
            if not self._edge.left:
                await self._edge.claims.again(connector)
