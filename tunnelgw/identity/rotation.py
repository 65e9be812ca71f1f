"""A change of the tunnels' authority, without a break: what is under way, and for how long.

    learning   a successor was made. It is trusted beside the present authority, and connectors are told. Nothing is
               signed with it yet: a connector that is away has until `until` to come and learn.
    retiring   the successor signs; the edge's own certificate and, one after another, the connectors' are new. What
               the old one signed is still believed until `until`. Its key is gone.

Invariant: whoever was connected once in each step trusts the edge, and is trusted, at every moment.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal, TypedDict

from tunnelgw.identity.material import Material

if TYPE_CHECKING:
    Step = Literal["learning", "retiring"]

DAY = 86400
# Each step, when it begins by itself: longer than a connector's certificate lives (90 days), so that whoever renews
# learns even if he understands no message about it.
STEP_SECONDS = 180 * DAY
# Begun by itself when the authority has this long to live: both steps, and a year for an edge that was switched off.
BEFORE_END_SECONDS = 2 * 365 * DAY
# The shortest step that can be asked for: connectors that are up learn in a second, and renew within some minutes.
SHORTEST_SECONDS = 60


class AuthorityState(TypedDict):
    """The tunnels' authority in `edge status`: when it ends; the step of its replacement ("" for none), until when."""

    expires: float
    step: str
    until: float
    text: str


@dataclass(frozen=True, slots=True)
class Rotation:
    """other: the successor while learning, the predecessor (without its key) while retiring. until: Unix seconds.

    seconds: how long each step lasts.
    """

    step: Step
    other: Material
    until: int
    seconds: int

    def encode(self) -> bytes:
        """For the store."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, value: bytes) -> Rotation:
        """From the store."""
        found = json.loads(value)
        return cls(**{**found, "other": Material(**found["other"])})

    @property
    def text(self) -> str:
        """Where it stands, for a person."""
        day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.until))
        if self.step == "learning":
            return f"connectors learn the new one; it signs from {day} on"
        return f"the new one signs; the old one is trusted until {day}"

    def retired(self, old: Material, now: float) -> Rotation:
        """The next step: `old` signed until now."""
        until = int(now) + self.seconds
        return Rotation("retiring", replace(old, key=""), until=until, seconds=self.seconds)
