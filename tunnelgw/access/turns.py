"""Whose turn it is when more want in than can be served at once: addresses with little under way first, then in turn.

Whoever joins says how much its address has under way already; the class is the power of two of that. A class is served
only while those below it are empty, and within a class addresses take turns: one that joins a thousand times delays
another by one turn, and a visitor with one connection comes before everybody who floods.

Invariant: every item comes out at most once, and nothing that waits is forgotten.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

T = TypeVar("T")

CLASSES = 9  # one, two or three, up to seven, ... 256 and more: what one address may have under way at most


class Turns(Generic[T]):
    """Inputs: `join`; output: `take`."""

    __slots__ = ("_classes", "_count")

    def __init__(self) -> None:
        self._classes: tuple[dict[Hashable, deque[T]], ...] = tuple({} for _ in range(CLASSES))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def join(self, key: Hashable, item: T, under_way: int) -> None:
        """`item` waits for its turn, as one of `key`'s, which has so many under way, this one included."""
        waiting = self._classes[min(max(under_way, 1).bit_length(), CLASSES) - 1]
        there = waiting.get(key)
        if there is None:
            waiting[key] = deque((item,))
        else:
            there.append(item)
        self._count += 1

    def take(self) -> T | None:
        """Whose turn it is; None if nobody waits."""
        if not self._count:
            return None
        self._count -= 1
        waiting = next(found for found in self._classes if found)
        key = next(iter(waiting))
        there = waiting.pop(key)
        item = there.popleft()
        if there:
            waiting[key] = there  # to the end of the round
        return item
