"""What repeats is said once per interval: log lines, with how often they happened meanwhile, and notices.

Whoever makes us write chooses what about (a service name, an address), so all lines together have a bound as well:
past it they are counted, and the count is the first line of the next interval.

Invariant: lines per interval are bounded by `most`, memory by `KEYS`, whatever the keys are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

INTERVAL = 60.0
KEYS = 1024
LINES = 60  # of one logger per interval: one a second is what a person can still follow


class Interval:
    """Which things may be said: each key once per interval, and at most `most` of all. `count` is of the last key."""

    __slots__ = ("_interval", "_most", "_said", "_seen", "_until", "count", "left_out")

    def __init__(self, *, interval: float = INTERVAL, most: int = LINES) -> None:
        self._interval = interval
        self._most = most
        self._seen: dict[str, tuple[float, int]] = {}  # key: when it was last said, how often it happened since
        self._until = float("-inf")  # end of the interval that `_said` counts in
        self._said = 0
        self.count = 0  # how often the key just taken happened since it was last said
        self.left_out = 0  # since the interval began, by the bound of all

    def take(self, key: str, now: float) -> bool:
        """Whether `key` is to be said now."""
        last, count = self._seen.get(key, (float("-inf"), 0))
        if now - last < self._interval:
            self._seen[key] = (last, count + 1)
            return False
        if now >= self._until:
            self._until = now + self._interval
            self._said = 0
        if self._said >= self._most:
            self.left_out += 1
            return False
        self._said += 1
        if len(self._seen) >= KEYS and key not in self._seen:
            self._seen.clear()
        self._seen[key] = (now, 0)
        self.count = count
        return True

    def forget(self, key: str) -> None:
        """What `key` was about is over: the next time is news again."""
        self._seen.pop(key, None)


class Sparing:
    """Rate limit for one logger, per key and in all."""

    __slots__ = ("_interval", "_log")

    def __init__(self, log: logging.Logger, *, interval: float = INTERVAL, lines: int = LINES) -> None:
        self._interval = Interval(interval=interval, most=lines)
        self._log = log

    def warning(self, key: str, now: float, text: str, *values: object) -> None:
        """Log `text % values` unless `key` was logged less than an interval ago, or too much was."""
        interval = self._interval
        if not interval.take(key, now):
            return
        if interval.left_out:
            self._log.warning("%d lines like the following were left out", interval.left_out)
            interval.left_out = 0
        if interval.count:
            self._log.warning(text + " (and %d times since the last such line)", *values, interval.count)
        else:
            self._log.warning(text, *values)

    def forget(self, key: str) -> None:
        """What `key` was about is over: the next time is news again."""
        self._interval.forget(key)
