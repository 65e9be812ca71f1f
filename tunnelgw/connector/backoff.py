"""When to dial again after a link was lost or a dial failed.

Strategy: the first dial after a loss is immediate, later ones wait a random time below a ceiling that doubles up to
4 s ("full jitter": after an edge's restart a hundred connectors do not come back in step). An outage of more than five
minutes raises the ceiling to 15 s. A link that dies soon after it came up counts as a failed dial, so a flapping edge
is not dialled in a tight loop. A refusal raises the floor to what the refusal asks for.

Invariant: however long the outage, the next dial is at most `LONG_CEILING` seconds away, unless the edge itself said
no (then at most `REFUSED_CEILING`). Pure: time and randomness come in as arguments.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_CEILING = 0.25
SHORT_CEILING = 4.0
LONG_CEILING = 15.0
LONG_OUTAGE = 300.0
SETTLED = 1.0  # a link that lived this long proves that the edge works: its loss may dial at once
REFUSED_CEILING = 60.0


class Backoff:
    """The dialling rhythm of one tunnel. Inputs: `connected`, `lost`, `failed`; output: seconds until the next dial."""

    __slots__ = ("_attempts", "_connected_at", "_outage_since", "_random")

    def __init__(self, *, random: Callable[[], float]) -> None:
        """`random` gives floats in [0, 1)."""
        self._random = random
        self._attempts = 0
        self._outage_since = math.inf
        self._connected_at = math.inf

    def connected(self, now: float) -> None:
        """A link is up (greeting done)."""
        self._connected_at = now

    def lost(self, now: float) -> float:
        """The link that was up is gone: seconds until the next dial, 0.0 if it had settled (or once if not)."""
        settled = now - self._connected_at >= SETTLED
        self._connected_at = math.inf
        if settled:
            self._attempts = 0
            self._outage_since = now
            return 0.0
        if self._attempts == 0:
            self._attempts = 1  # the first short life is forgiven
            return 0.0
        return self.failed(now)

    def failed(self, now: float, *, floor: float = 0.0) -> float:
        """A dial failed: seconds until the next one. `floor`: the least wait that a refusal asks for."""
        if self._outage_since == math.inf:
            self._outage_since = now
        if now - self._outage_since >= LONG_OUTAGE:
            ceiling = LONG_CEILING
        else:
            ceiling = min(SHORT_CEILING, FIRST_CEILING * 2.0 ** min(self._attempts, 16))
        self._attempts += 1
        floor = min(floor, REFUSED_CEILING)
        # The jitter comes on top of a floor (a quarter of it at most), so that refused connectors spread out as well.
        return floor + self._random() * (min(ceiling, floor / 4) if floor else ceiling)
