"""Services that a connector says without end: the latest is decided, and the edge has time for others."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from tests.edge.front import run, until
from tunnelgw.edge.intake import BURST, Intake
from tunnelgw.wire.control import Services


def test_only_the_latest_is_decided_and_never_two_at_once() -> None:
    async def main() -> None:
        decided: list[tuple[str, int]] = []
        busy: set[str] = set()
        gate = asyncio.Event()

        async def decide(connector: Any, services: Services) -> None:
            assert connector.name not in busy
            busy.add(connector.name)
            await gate.wait()
            busy.discard(connector.name)
            decided.append((connector.name, services.revision))

        intake = Intake(decide)
        home, other = SimpleNamespace(name="home"), SimpleNamespace(name="other")
        for revision in range(1, 5):
            intake.offer(home, Services(revision, []))  # type: ignore[arg-type]
        intake.offer(other, Services(1, []))  # type: ignore[arg-type]
        await until(lambda: len(busy) == 2)
        for revision in range(5, 1000):
            intake.offer(home, Services(revision, []))  # type: ignore[arg-type]
        gate.set()
        await until(lambda: ("home", 999) in decided)
        assert sorted(decided) == [("home", 4), ("home", 999), ("other", 1)]
        await until(lambda: not intake._waiting)

    run(main)


def test_decisions_without_end_rest_in_between() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        took: list[float] = []
        ended: list[float] = []

        async def decide(connector: Any, services: Services) -> None:
            begun = loop.time()
            await asyncio.sleep(0.02)
            took.append(loop.time() - begun)
            ended.append(loop.time())

        intake = Intake(decide)
        home = SimpleNamespace(name="home")
        while len(took) < BURST + 4:
            intake.offer(home, Services(1, []))  # type: ignore[arg-type]
            await asyncio.sleep(0.001)
        for number in range(BURST, BURST + 3):
            assert ended[number + 1] - ended[number] >= 9 * took[number]

    run(main)


def test_the_first_decisions_follow_each_other_however_slow_the_disk_is() -> None:
    """Commands wait for them."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        spent: list[float] = []

        async def decide(connector: Any, services: Services) -> None:
            begun = loop.time()
            await asyncio.sleep(0.3)
            spent.append(loop.time() - begun)

        intake = Intake(decide)
        home = SimpleNamespace(name="home")
        begun = loop.time()
        for number in range(1, BURST + 1):
            intake.offer(home, Services(number, []))  # type: ignore[arg-type]
            await until(lambda number=number: len(spent) == number)  # type: ignore[misc]
        assert loop.time() - begun < sum(spent) + 9 * 0.3, "not one rest"

    run(main)
