"""Health checks: which services' targets work, found out here at home and told to the edges when it changes.

One small task for each checked service looks, waits, and looks again. Imported when a service has `health`.

Invariants: a target that was not looked at yet counts as not working; an opinion changes only after `threshold` looks
in a row that contradict it (the first look makes one); edges are told at most once in TELL_SECONDS.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from tunnelgw.connector.lookout import look
from tunnelgw.connector.origins import Origin
from tunnelgw.net.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.config.model import ConnectorConfig, HealthConfig, ServiceConfig

log = logging.getLogger(__name__)

TELL_SECONDS = 1.0
LOOKS_MOST = 32  # at once: thousands of services must not need as many descriptors at one moment


class Check:
    """One service that is checked. `works` is None before the first look."""

    __slots__ = ("_in_a_row", "_threshold", "task", "trouble", "works")

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self._in_a_row = 0
        self.works: bool | None = None
        self.trouble = ""  # of the last look
        self.task: asyncio.Task[None] | None = None

    def note(self, trouble: str) -> bool:
        """The result of a look; True if it changes the opinion."""
        self.trouble = trouble
        well = not trouble
        if well == self.works:
            self._in_a_row = 0
            return False
        self._in_a_row += 1
        if self.works is not None and self._in_a_row < self._threshold:
            return False
        self.works, self._in_a_row = well, 0
        return True


class Checks:
    """Inputs: `replace` (configuration), `close`. Output: `tell(unhealthy)`, names in the file's order."""

    __slots__ = ("_checks", "_looks", "_tell", "_telling", "_told")

    def __init__(self, tell: Callable[[list[str]], None]) -> None:
        self._tell = tell
        self._checks: dict[ServiceConfig, Check] = {}
        self._looks = asyncio.Semaphore(LOOKS_MOST)
        self._told: list[str] = []
        self._telling: asyncio.TimerHandle | None = None

    def replace(self, config: ConnectorConfig) -> None:
        """Check what this configuration says from now on; a service that did not change keeps what is known of it."""
        before, self._checks = self._checks, {}
        for service in config.services:
            if service.health is not None:
                check = before.pop(service, None)
                if check is None:
                    check = Check(service.health.threshold)
                    check.task = spawn(self._watch(check, service, service.health), name=f"health of {service.name}")
                self._checks[service] = check
        for gone in before.values():
            if gone.task is not None:
                gone.task.cancel()
        if self._telling is None:
            self._say()  # now: edges are about to hear of the services themselves

    def unhealthy(self) -> list[str]:
        """The services whose targets do not work, or were not looked at yet."""
        return [service.name for service, check in self._checks.items() if not check.works]

    def state(self, service: ServiceConfig) -> str:
        """For `status`: "healthy", what is wrong, or "" where nothing is checked."""
        check = self._checks.get(service)
        if check is None:
            return ""
        if check.works:
            return "healthy"
        return f"unhealthy: {check.trouble}" if check.works is False and check.trouble else "not known yet"

    async def close(self) -> None:
        """End every check."""
        if self._telling is not None:
            self._telling.cancel()
        tasks = [check.task for check in self._checks.values() if check.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _watch(self, check: Check, service: ServiceConfig, health: HealthConfig) -> None:
        origin = Origin(service)
        try:
            while True:
                async with self._looks:
                    trouble = await look(origin, health)
                if check.note(trouble):
                    if check.works:
                        log.info("service %s: its target works", service.name)
                    else:
                        log.warning("service %s: its target does not work: %s", service.name, trouble)
                    if self._telling is None:
                        self._say()
                await asyncio.sleep(health.interval)
        finally:
            await origin.close()

    def _say(self) -> None:
        self._telling = None
        unhealthy = self.unhealthy()
        if unhealthy != self._told:
            self._told = unhealthy
            self._telling = asyncio.get_running_loop().call_later(TELL_SECONDS, self._say)
            self._tell(unhealthy)
