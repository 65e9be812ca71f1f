"""How much of what is scarce one address may hold: no more than a quarter of what is left.

A fixed number is either too small for a crowd behind one address (an office, a provider's NAT) or too large for a flood
from many. A share of what is left is both: while there is plenty, one address gets thousands; the more is taken, the
less each further address gets, so that something is left for the next newcomer. However greedy, n addresses leave one
part in 1 + n/4 of the whole: one takes a fifth, 256 leave a sixty-fifth.

Invariant: a key never gets one more while it holds `share(left)`; `taken` is the sum of what all hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

PART = 4
FEW = 3  # always allowed while anything is left: a page and what it fetches beside it


def share(left: int) -> int:
    """How many one address may hold while so many are left for all."""
    return max(FEW, left // PART)


class Shares:
    """`most` things of one kind, and who holds how many. A key of None (nobody is held responsible) only counts."""

    __slots__ = ("_held", "most", "taken")

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0
        self._held: dict[Hashable, int] = {}

    def room_for(self, key: Hashable | None, count: int = 1) -> bool:
        """Whether `key` may have `count` more."""
        left = self.most - self.taken
        return left >= count and (key is None or self._held.get(key, 0) < share(left))

    def take(self, key: Hashable | None, count: int = 1) -> None:
        """`key` has `count` more, whether there was room or not."""
        self.taken += count
        if key is not None:
            self._held[key] = self._held.get(key, 0) + count

    def give_back(self, key: Hashable | None, count: int = 1) -> None:
        """`key` has `count` less."""
        self.taken -= count
        if key is not None:
            held = self._held[key] - count
            if held:
                self._held[key] = held
            else:
                del self._held[key]
