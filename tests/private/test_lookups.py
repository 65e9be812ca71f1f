"""Threads for names: one visitor whose names nobody answers keeps nobody else waiting."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from tunnelgw.private.lookups import MOST, LookUps

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future


class Resolver:
    """Answers when it is told to; `names` are those that it was asked for."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.answering = threading.Event()
        self.asked = threading.Condition()

    def look_up(self, name: str) -> str:
        with self.asked:
            self.names.append(name)
            self.asked.notify_all()
        assert self.answering.wait(30)
        return name.upper()

    def wait_for(self, *names: str) -> None:
        """Until it was asked for these."""
        with self.asked:
            assert self.asked.wait_for(lambda: set(names) <= set(self.names), timeout=30), self.names


@pytest.fixture
def resolver() -> Iterator[Resolver]:
    found = Resolver()
    yield found
    found.answering.set()


def ask(look_ups: LookUps, resolver: Resolver, visitor: str, count: int) -> list[Future[str]]:
    share = look_ups.of(visitor)
    return [share.submit(resolver.look_up, f"{visitor}{number}") for number in range(count)]


def test_one_visitor_never_has_all(resolver: Resolver) -> None:
    look_ups = LookUps()
    greedy = ask(look_ups, resolver, "greedy", 200)
    resolver.wait_for(*(f"greedy{number}" for number in range(MOST // 8)))
    others = [asked for number in range(5) for asked in ask(look_ups, resolver, f"v{number}-", 1)]
    resolver.wait_for(*(f"v{number}-0" for number in range(5)))
    assert look_ups._shares.taken < MOST
    assert sum(name.startswith("greedy") for name in resolver.names) <= MOST // 4
    resolver.answering.set()
    assert [one.result(30) for one in others] == [f"V{number}-0" for number in range(5)]
    assert [one.result(30) for one in greedy] == [f"GREEDY{number}" for number in range(200)]
    with look_ups._lock:
        assert not look_ups._waiting


def test_what_nobody_waits_for_any_more_is_not_asked(resolver: Resolver) -> None:
    look_ups = LookUps()
    asked = ask(look_ups, resolver, "one", 60)
    assert all(one.cancel() for one in asked[20:])
    resolver.answering.set()
    for one in asked[:20]:
        one.result(30)
    late = look_ups.of("one").submit(resolver.look_up, "late")
    assert late.result(30) == "LATE"
    assert len(resolver.names) == 21


def test_an_error_reaches_who_asked() -> None:
    def fails() -> None:
        raise OSError("no such name")

    look_ups = LookUps()
    for _ in range(2 * MOST):  # and gives its place back
        with pytest.raises(OSError, match="no such name"):
            look_ups.of("one").submit(fails).result(30)
