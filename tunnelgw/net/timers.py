"""One timer for all coarse deadlines: a wheel of buckets, so that a connection costs no timer object of its own.

An item carries its own `deadline`. Moving it later, or clearing it (`inf`), is one attribute write and free; the wheel
notices when the old bucket comes up and files the item again. Only moving a deadline earlier needs `arm` again.

Invariant: an item with a finite deadline that was armed is in at least one bucket that comes up no later than one
granule after that deadline. An item is never called before its deadline.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger(__name__)
INF = math.inf
LAG_SECONDS = 30.0  # `Wheel.lag` speaks of the last of these and the one before: no scrape misses the worst


class Deadlined(Protocol):
    """Whatever has a deadline: seconds of `loop.time()`, `inf` for none."""

    deadline: float
    armed_until: float  # the wheel's own note: when the item comes up next; start with inf

    def on_deadline(self, now: float) -> None:
        """The deadline passed. May set a new one and arm again."""


def _call(item: Deadlined, now: float) -> None:
    try:
        item.on_deadline(now)
    except Exception:
        log.exception("a deadline failed by our own fault")  # all others must go on: nothing else turns the wheel


class Wheel:
    """Deadlines to the nearest `granularity` seconds (late by at most one granule, never early).

    It turns all the time, so it also knows how busy the loop is: by how much a turn came late.
    """

    __slots__ = ("_before", "_buckets", "_due", "_granularity", "_handle", "_lag_until", "_loop", "_worst")

    def __init__(self, loop: asyncio.AbstractEventLoop, *, granularity: float = 0.25) -> None:
        self._loop = loop
        self._granularity = granularity
        self._buckets: dict[int, dict[Deadlined, None]] = {}
        self._handle: asyncio.TimerHandle | None = None
        self._due = 0.0  # when the next turn should come
        self._worst = self._before = 0.0  # how late turns came, within LAG_SECONDS and within those before
        self._lag_until = 0.0

    @property
    def lag(self) -> float:
        """The longest that the loop kept a turn waiting within the last minute or half of it, in seconds."""
        return max(self._worst, self._before)

    def arm(self, item: Deadlined, when: float) -> None:
        """Set `item.deadline = when` and see that the item comes up for it."""
        item.deadline = when
        if when < item.armed_until:
            self._unfile(item)
            self._file(item, when)

    def forget(self, item: Deadlined) -> None:
        """No deadline, and no reference to the item: for what is over, and large or often there."""
        item.deadline = INF
        self._unfile(item)

    def close(self) -> None:
        """Stop; nothing is called any more."""
        self._buckets.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _file(self, item: Deadlined, when: float) -> None:
        slot = int(when / self._granularity) + 1
        item.armed_until = slot * self._granularity
        self._buckets.setdefault(slot, {})[item] = None
        if self._handle is None:
            self._wind(self._loop.time())

    def _unfile(self, item: Deadlined) -> None:
        if item.armed_until < INF:
            bucket = self._buckets.get(round(item.armed_until / self._granularity))
            if bucket is not None:
                bucket.pop(item, None)
            item.armed_until = INF

    def _wind(self, now: float) -> None:
        self._due = now + self._granularity
        self._handle = self._loop.call_later(self._granularity, self._turn)

    def _note(self, late: float, now: float) -> None:
        if now >= self._lag_until:
            self._before, self._worst = self._worst, 0.0
            self._lag_until = now + LAG_SECONDS
        self._worst = max(self._worst, late)

    def _turn(self) -> None:
        now = self._loop.time()
        self._note(now - self._due, now)
        current = int(now / self._granularity)
        for slot in sorted(slot for slot in self._buckets if slot <= current):
            bucket = self._buckets.pop(slot)
            comes_up = slot * self._granularity
            for item in bucket:
                if item.armed_until != comes_up:
                    continue  # forgotten or filed anew by what another one did in this turn
                item.armed_until = INF
                if item.deadline <= now:
                    item.deadline = INF
                    _call(item, now)
                elif item.deadline < INF:
                    self._file(item, item.deadline)
        if self._buckets:
            self._wind(self._loop.time())
        else:
            self._handle = None
