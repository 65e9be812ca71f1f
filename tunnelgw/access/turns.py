"""Whose turn it is when more want in than can be served at once: addresses with little under way first, then in turn.

Whoever joins says how much its address has under way already; the class is the power of two of that. A class is served
only while those below it are empty, and within a class addresses take turns: one that joins a thousand times delays
another by one turn, and a visitor with one connection comes before everybody who floods.

Invariant: every item comes out at most once; what waits and was not discarded is never forgotten, and nothing else is
kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

T = TypeVar("T", bound="Hashable")

CLASSES = 9  # one, two or three, up to seven, ... 256 and more: what one address may have under way at most


class Turns(Generic[T]):
    """Inputs: `join`, `discard`; output: `take`."""

    __slots__ = ("_classes", "_places")

    def __init__(self) -> None:
        # By class, then by key in the order of turns, the items of each in theirs.
        self._classes: tuple[dict[Hashable, dict[T, None]], ...] = tuple({} for _ in range(CLASSES))
        self._places: dict[T, tuple[int, Hashable]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def join(self, key: Hashable, item: T, under_way: int) -> None:
        """`item`, which does not wait yet, waits for its turn; with it, `key` has so many under way."""
        place = min(max(under_way, 1).bit_length(), CLASSES) - 1
        self._places[item] = place, key
        self._classes[place].setdefault(key, {})[item] = None

    def take(self) -> T | None:
        """Whose turn it is; None if nobody waits."""
        if not self._places:
            return None
        waiting = next(found for found in self._classes if found)
        key = next(iter(waiting))
        there = waiting.pop(key)
        item = next(iter(there))
        del there[item], self._places[item]
        if there:
            waiting[key] = there  # to the end of the round
        return item

    def discard(self, item: T) -> None:
        """It waits no more. Idempotent."""
        place = self._places.pop(item, None)
        if place is None:
            return
        number, key = place
        there = self._classes[number][key]
        del there[item]
        if not there:
            del self._classes[number][key]
