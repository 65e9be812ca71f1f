"""What connectors offer, on its way to being decided: the latest only, one at a time for each, and soon with rests.

A decision reads and writes the store and touches every route of a connector, so a connector that says its services
without end could keep the edge busy with nothing else. Here it soon costs at most a tenth of the edge's time, or one
decision in five seconds where each takes longer than half of one; what it said meanwhile is forgotten but for the last,
which says all there is to say anyway. People change their services a few times in a row, and commands wait for the
answer: the first decisions have no rest, however long a disk took for them.

Invariant: per connector at most one decision is under way and one waits.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tunnelgw.net.tasks import spawn
from tunnelgw.wire.flow import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tunnelgw.edge.connector import Connector
    from tunnelgw.wire.control import Services

# Decisions at once without a rest, and how many of them come back each second.
BURST, PER_SECOND = 4, 1 / 15
REST = 9.0  # times as long as the decision took
REST_MOST = 5.0  # seconds: less than a command waits for its answer


class Intake:
    """Input: `offer`. Output: `decide`, which must not raise."""

    def __init__(self, decide: Callable[[Connector, Services], Awaitable[None]]) -> None:
        self._decide = decide
        self._waiting: dict[str, tuple[Connector, Services] | None] = {}  # a key: a task works for that connector
        self._free: dict[str, TokenBucket] = {}  # decisions without a rest

    def offer(self, connector: Connector, services: Services) -> None:
        """A connector says what it offers; replaces what it said and nobody decided yet."""
        name = connector.name
        working = name in self._waiting
        self._waiting[name] = (connector, services)
        if not working:
            spawn(self._work(name), name=f"claims of {name}")

    async def _work(self, name: str) -> None:
        loop = asyncio.get_running_loop()
        free = self._free.get(name)
        if free is None:
            free = self._free[name] = TokenBucket(rate=PER_SECOND, burst=BURST, now=loop.time())
        try:
            while (offered := self._waiting[name]) is not None:
                self._waiting[name] = None
                begun = loop.time()
                await self._decide(*offered)
                if not free.take(loop.time()):
                    await asyncio.sleep(min(REST * (loop.time() - begun), REST_MOST))
        finally:
            del self._waiting[name]
