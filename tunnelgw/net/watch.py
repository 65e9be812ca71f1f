"""Notice that a configuration file changed, by looking once a second at its inode, size and time.

Looking is enough and works everywhere (network folders, container mounts, editors that rename over the file), where
inotify does not. Invariant: a change is reported once, and only after the file looked the same in two looks, so a file
that is being written is not read half.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable
    from pathlib import Path

INTERVAL = 1.0

_Facts = tuple[tuple[int, int, int, int] | None, ...]


class FileWatch:
    """Calls `changed()` when one of the files changed, appeared or vanished. `close()` ends it."""

    __slots__ = ("_changed", "_handle", "_interval", "_known", "_last", "_loop", "_paths")

    def __init__(
        self,
        paths: Iterable[Path],
        changed: Callable[[], None],
        *,
        loop: asyncio.AbstractEventLoop,
        interval: float = INTERVAL,
    ) -> None:
        self._paths = tuple(paths)
        self._changed = changed
        self._loop = loop
        self._interval = interval
        self._known = self._last = self._look()
        self._handle = loop.call_later(interval, self._turn)

    def seen(self) -> None:
        """The owner has just read the files for another cause (a signal, a command): what is there now is known."""
        self._known = self._last = self._look()

    def follow(self, paths: Iterable[Path]) -> None:
        """Look at these from now on; what is there now is known, for the owner has just read it."""
        self._paths = tuple(paths)
        self.seen()

    def close(self) -> None:
        """Stop looking."""
        self._handle.cancel()

    def _turn(self) -> None:
        self._handle = self._loop.call_later(self._interval, self._turn)
        facts = self._look()
        settled = facts == self._last
        self._last = facts
        if settled and facts != self._known:
            self._known = facts
            self._changed()

    def _look(self) -> _Facts:
        return tuple(_facts(path) for path in self._paths)


def _facts(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
