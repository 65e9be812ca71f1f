"""The shared state of an edge: a small key-value store with revisions.

Shaped after etcd, so that a distributed store can take the place of a file: every write gets the next revision,
compare-and-set is by the revision of the key, changes can be followed from a revision, and keys may hang on a lease
and vanish with their owner. Values are whole documents (JSON, PEM); keys are paths like `connectors/home`.

Invariant: a write that returned is durable and visible to every process; one that raised changed nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class Conflict(Exception):  # noqa: N818 - what happened, not an error of anybody
    """A key is not at the revision that the writer expected: read again, decide again."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


class Compacted(Exception):  # noqa: N818 - as above
    """Deletions since that revision are no longer remembered: list everything again."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key as it is. revision: of its last write. lease: the id of the lease it hangs on, or empty."""

    key: str
    value: bytes
    revision: int
    lease: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """The latest state of a key that changed: its value, or None if it is gone."""

    key: str
    value: bytes | None
    revision: int


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key. expect: its revision must be this; 0: it must not exist; None: whatever it is."""

    key: str
    value: bytes
    expect: int | None = None
    lease: str = ""


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a key; no error if it does not exist, unless `expect` says which revision it must have."""

    key: str
    expect: int | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """Write nothing, but let the others be written only if the key is at this revision; 0: if it does not exist."""

    key: str
    expect: int


Operation = Put | Delete | Check


class Lease(Protocol):
    """A promise to be alive: its keys vanish `ttl_seconds` after the last renewal."""

    id: str
    ttl_seconds: float

    def renew(self) -> bool:
        """Live on; False if the lease has already ended (its keys are gone)."""

    def revoke(self) -> None:
        """End it now, with its keys."""


class Store(Protocol):
    """What tunnelgw needs of a store. All methods may raise LocalError when the store itself fails."""

    def get(self, key: str) -> KeyValue | None:
        """The key, or None."""

    def list(self, prefix: str = "") -> tuple[list[KeyValue], int]:
        """All keys that begin with the prefix, in order, and the revision they were read at."""

    def put(self, key: str, value: bytes, *, expect: int | None = None, lease: str = "") -> int:
        """Write one key; the new revision. Conflict."""

    def delete(self, key: str, *, expect: int | None = None) -> int:
        """Remove one key; the revision after. Conflict."""

    def apply(self, operations: Sequence[Operation]) -> int:
        """All or none of several writes, at one revision. Conflict."""

    def lease(self, ttl_seconds: float) -> Lease:
        """A new lease."""

    def watch(self, since: int, prefix: str = "") -> tuple[Sequence[Change], int]:
        """What changed after a revision (each key once, as it is now), and the revision to ask from next. Compacted."""

    def close(self) -> None:
        """Nothing works afterwards."""
