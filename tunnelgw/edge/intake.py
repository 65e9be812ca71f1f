"""What connectors offer, on its way to being decided: the latest only, one at a time for each, with rests between.

A decision reads and writes the store and touches every route of a connector, so a connector that says its services
without end could keep the edge busy with nothing else. Here it costs at most a tenth of the edge's time; what it said
meanwhile is forgotten but for the last, which says all there is to say anyway.

Invariant: per connector at most one decision is under way and one waits.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tunnelgw.net.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tunnelgw.edge.connector import Connector
    from tunnelgw.wire.control import Services

REST = 9.0  # times as long as the decision took
REST_MOST = 30.0  # seconds; a disk that stood still for once is no reason to wait for ever


class Intake:
    """Input: `offer`. Output: `decide`, which must not raise."""

    def __init__(self, decide: Callable[[Connector, Services], Awaitable[None]]) -> None:
        self._decide = decide
        self._waiting: dict[str, tuple[Connector, Services] | None] = {}  # a key: a task works for that connector

    def offer(self, connector: Connector, services: Services) -> None:
        """A connector says what it offers; replaces what it said and nobody decided yet."""
        name = connector.name
        working = name in self._waiting
        self._waiting[name] = (connector, services)
        if not working:
            spawn(self._work(name), name=f"claims of {name}")

    async def _work(self, name: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            while (offered := self._waiting[name]) is not None:
                self._waiting[name] = None
                begun = loop.time()
                await self._decide(*offered)
                await asyncio.sleep(min(REST * (loop.time() - begun), REST_MOST))
        finally:
            del self._waiting[name]
