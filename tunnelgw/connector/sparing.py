"""Log lines that repeat: say each once per interval, with how often it happened meanwhile.

Invariant: memory is bounded by `KEYS`, whatever the keys are (a hostile edge chooses service names).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

INTERVAL = 60.0
KEYS = 256


class Sparing:
    """Rate limit for one logger, per key."""

    __slots__ = ("_interval", "_log", "_seen")

    def __init__(self, log: logging.Logger, *, interval: float = INTERVAL) -> None:
        self._log = log
        self._interval = interval
        self._seen: dict[str, tuple[float, int]] = {}  # key: when it was last logged, how often since

    def warning(self, key: str, now: float, text: str, *values: object) -> None:
        """Log `text % values` unless `key` was logged less than an interval ago."""
        last, count = self._seen.get(key, (float("-inf"), 0))
        if now - last < self._interval:
            self._seen[key] = (last, count + 1)
            return
        if len(self._seen) >= KEYS and key not in self._seen:
            self._seen.clear()
        self._seen[key] = (now, 0)
        if count:
            self._log.warning(text + " (and %d times since the last such line)", *values, count)
        else:
            self._log.warning(text, *values)

    def forget(self, key: str) -> None:
        """What `key` was about is over: the next time is news again."""
        self._seen.pop(key, None)
