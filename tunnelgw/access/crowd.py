"""Who has to go when there is no room: whoever holds most, oldest first.

What a stranger may hold before anything is known of it (a half-read ClientHello, a handshake, a greeting) is bounded in
number. Refusing the newcomer at that bound would let a flood keep everybody out; so the newcomer always gets in, and
the oldest member of the address with most members goes. A visitor who is served within a moment never meets it.

Invariant: at most `most` members after each `add`; every step costs the same however many members and addresses.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

_EQUALS = 16  # of the addresses with most members, looked at for the one that weighs most

T = TypeVar("T", bound="Hashable")


class Crowd(Generic[T]):
    """Members by the address key they count for; a key of None (nobody is held responsible) is each member's own."""

    __slots__ = ("_by_size", "_keys", "_largest", "_members", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self._keys: dict[T, Hashable] = {}
        self._members: dict[Hashable, dict[T, None]] = {}  # of each key, oldest first
        self._by_size: dict[int, dict[Hashable, None]] = {}  # keys by how many members they have
        self._largest = 0

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[T]:
        return iter(self._keys)

    def __contains__(self, member: T) -> bool:
        return member in self._keys

    def count(self, key: Hashable) -> int:
        """How many members of this address there are."""
        return len(self._members.get(key, ()))

    def add(self, key: Hashable | None, member: T) -> T | None:
        """One more; who has to go for it, if anybody (it is no member any more)."""
        if key is None:
            key = member
        self._keys[member] = key
        members = self._members.setdefault(key, {})
        members[member] = None
        self._moved(key, len(members) - 1, len(members))
        return self.take() if len(self._keys) > self.most else None

    def discard(self, member: T) -> None:
        """One less. Idempotent."""
        key = self._keys.pop(member, None)
        if key is None:
            return
        members = self._members[key]
        del members[member]
        if not members:
            del self._members[key]
        self._moved(key, len(members) + 1, len(members))

    def take(self, weigh: Callable[[Hashable], int] | None = None) -> T | None:
        """Who has to go now (it is no member any more); None if nobody is there.

        weigh: what else an address key holds; of some with equally many members the one goes that holds most.
        """
        if not self._keys:
            return None
        equals = self._by_size[self._largest]
        key = next(iter(equals)) if weigh is None else max(islice(equals, _EQUALS), key=weigh)
        member = next(iter(self._members[key]))
        self.discard(member)
        return member

    def take_of(self, key: Hashable) -> T | None:
        """The oldest member of this address (it is no member any more); None if it has none."""
        member = next(iter(self._members.get(key, ())), None)
        if member is not None:
            self.discard(member)
        return member

    def _moved(self, key: Hashable, before: int, after: int) -> None:
        keys = self._by_size.get(before)
        if keys is not None:
            del keys[key]
            if not keys:
                del self._by_size[before]
        if after:
            self._by_size.setdefault(after, {})[key] = None
        if after > self._largest or (before == self._largest and before not in self._by_size):
            self._largest = after  # sizes change by one, so the next largest is this one
