"""Can the state still be saved? Known before somebody needs it, and said once: in the log, and as a metric.

A full or failing disk harms no visitor, since the edge serves from its own copy; but what an operator or a connector
changes meanwhile is refused. Invariant: one line when it begins, one when it is over.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from tunnelgw.errors import LocalError

if TYPE_CHECKING:
    from tunnelgw.store.sqlite import SqliteStore

log = logging.getLogger(__name__)

# In looks of half a second: one small write a minute wears no disk; after a failure, the end is noticed soon.
PROBE_LOOKS = 120
RETRY_LOOKS = 10


class StateHealth:
    """Input: `look`, twice a second."""

    __slots__ = ("_said", "_store", "looks")

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.looks = 0
        self._said = False

    @property
    def failing(self) -> bool:
        """True while the last write to the store failed."""
        return bool(self._store.trouble)

    def look(self) -> None:
        """Try a write from time to time, and say what changed."""
        self.looks += 1
        if self.failing and not self._said:
            log.error("state cannot be saved: %s; visitors are served from memory", self._store.trouble)
            self._said = True
        if self.looks % (RETRY_LOOKS if self.failing else PROBE_LOOKS) == 0:
            with contextlib.suppress(LocalError):  # `trouble` remembers
                self._store.probe()
        if self._said and not self.failing:
            log.warning("state can be saved again")
            self._said = False
