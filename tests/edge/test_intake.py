"""Services that a connector says without end: the latest is decided, and the edge has time for others."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from tests.edge.front import run, until
from tunnelgw.edge.intake import Intake
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


def test_a_decision_is_followed_by_a_rest() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        spent = 0.0
        count = 0

        async def decide(connector: Any, services: Services) -> None:
            nonlocal spent, count
            begun = loop.time()
            await asyncio.sleep(0.02)
            count += 1
            if count < 4:  # the rest after the fourth is not waited for
                spent += loop.time() - begun

        intake = Intake(decide)
        home = SimpleNamespace(name="home")
        begun = loop.time()
        while count < 4:
            intake.offer(home, Services(1, []))  # type: ignore[arg-type]
            await asyncio.sleep(0.001)
        # Three rests lie between four decisions.
        assert loop.time() - begun >= 3 * 9 * 0.02
        assert spent < 0.6 * (loop.time() - begun)

    run(main)
