"""Whose turn it is when more want in than can be served at once: addresses that ask rarely first, each in its turn.

An address is calm until it has joined `calm` times within a window; after that its joins wait behind everybody calm.
Within each of the two classes addresses take turns, so one that joins a thousand times delays another by one turn.

Invariant: every item comes out at most once, and nothing that is waiting is forgotten; memory is bounded by what waits
and by `ADDRESSES_MAX` counts.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

T = TypeVar("T")

ADDRESSES_MAX = 16384  # remembered within one window, about 100 bytes each; the counts begin anew when there are more


class Turns(Generic[T]):
    """Inputs: `join`; output: `take`. `window`: seconds for which joins are counted."""

    __slots__ = ("_calm", "_counts", "_first", "_second", "_until", "_window")

    def __init__(self, *, calm: int, window: float) -> None:
        self._calm = calm
        self._window = window
        self._until = 0.0
        self._counts: dict[Hashable, int] = {}
        self._first: dict[Hashable, deque[T]] = {}
        self._second: dict[Hashable, deque[T]] = {}

    def __bool__(self) -> bool:
        return bool(self._first or self._second)

    def join(self, key: Hashable, item: T, now: float) -> None:
        """`item` waits for its turn, as one of `key`'s."""
        counts = self._counts
        if now >= self._until or len(counts) >= ADDRESSES_MAX:
            counts.clear()
            self._until = now + self._window
        count = counts[key] = counts.get(key, 0) + 1
        lists = self._first if count <= self._calm else self._second
        waiting = lists.get(key)
        if waiting is None:
            lists[key] = deque((item,))
        else:
            waiting.append(item)

    def take(self) -> T | None:
        """Whose turn it is; None if nobody waits."""
        lists = self._first or self._second
        if not lists:
            return None
        key = next(iter(lists))
        waiting = lists.pop(key)
        item = waiting.popleft()
        if waiting:
            lists[key] = waiting  # to the end of the round
        return item
