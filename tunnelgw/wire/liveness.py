"""Whether the link still lives, and how long its round trip is.

Silence alone proves nothing on an idle link, so a ping goes out every 5 s, below the idle time of common CGNATs.
What decides is an unanswered question: a ping, or counted bytes, which a living peer acknowledges within 100 ms.
A frame that was begun must end within FRAME_SECONDS, or a peer that drips a byte now and then would live for ever.

Invariant: any received byte proves life, until a frame takes too long; nothing but the passed deadline of a question or
a frame declares death, and a deadline that we ourselves slept through (the process was stopped) is asked once more.
"""

from __future__ import annotations

import math

PING_IDLE = 5.0  # seconds between pings; with REPLY_IDLE and a timer's grain a silent death shows within 10 s
REPLY_IDLE = 4.75
PING_BUSY = 1.0  # while counted bytes wait for their acknowledgement
SILENCE_BUSY = 3.0  # of nothing at all, while counted bytes wait
SILENCE_ROUNDS = 8.0  # but never fewer than so many round trips: a slow link that loses packets is not dead
SILENCE_MOST = 10.0
FRAME_SECONDS = 30.0  # from a frame's first byte to its last: a full one takes as long at 4.4 kbit/s
LATE = 1.0  # a tick this late means that we slept, not the peer
MAX_ASKED = 16  # pings whose time of sending is remembered


class Liveness:
    """Inputs: `start`, `hear`, `ask`, `pinged`, `answered`, `forgive`, `begun`. Outputs: `ask_at`, `dead_at`."""

    __slots__ = (
        "_asked", "_number", "_sent", "_unanswered", "begun", "forgiven", "heard", "min_rtt", "outstanding", "rtt",
    )  # fmt: skip

    def __init__(self) -> None:
        self.rtt = 0.0
        self.min_rtt = 0.0
        self.heard = 0.0
        self.outstanding = math.inf  # since when counted bytes wait for their acknowledgement
        self.begun = math.inf  # when the frame that is half received began
        self.forgiven = False
        self._asked = 0.0
        self._unanswered = math.inf  # the first ping since anything was heard
        self._number = 0
        self._sent: dict[int, float] = {}

    def start(self, now: float, *, outstanding: bool) -> None:
        """A new link: another path, so the shortest round trip is unknown again."""
        self.heard = self._asked = now
        self.min_rtt = 0.0
        self.outstanding = now if outstanding else math.inf
        self.begun = math.inf
        self.forgiven = False
        self._unanswered = math.inf
        self._sent.clear()

    def hear(self, now: float) -> None:
        """Bytes arrived."""
        self.heard = now
        self._unanswered = math.inf
        self.forgiven = False

    def ask(self, now: float) -> None:
        """A ping is wanted from now on, whether or not the link takes it at once."""
        self._asked = now
        if self._unanswered == math.inf:
            self._unanswered = now

    @property
    def next_number(self) -> int:
        """The number that the next ping carries."""
        return self._number + 1

    def pinged(self, now: float) -> None:
        """A ping left."""
        self._number += 1
        if len(self._sent) >= MAX_ASKED:
            del self._sent[next(iter(self._sent))]
        self._sent[self._number] = now

    def answered(self, number: int, now: float) -> None:
        """A pong came: measure. A number that was not asked (or was answered before) says nothing."""
        at = self._sent.pop(number, None)
        if at is None:
            return
        sample = max(now - at, 1e-6)
        self.rtt = sample if self.rtt == 0.0 else self.rtt + (sample - self.rtt) / 8
        if self.min_rtt == 0.0 or sample < self.min_rtt:
            self.min_rtt = sample

    def ask_at(self) -> float:
        """When the next ping is due."""
        return self._asked + (PING_IDLE if self.outstanding == math.inf else PING_BUSY)

    def dead_at(self) -> float:
        """When the link is dead if nothing is heard until then."""
        when = self._unanswered + REPLY_IDLE
        if self.outstanding != math.inf:
            silence = min(max(SILENCE_BUSY, SILENCE_ROUNDS * self.rtt), SILENCE_MOST)
            when = min(when, max(self.heard, self.outstanding) + silence)
        return min(when, self.begun + FRAME_SECONDS)

    def silence(self, now: float) -> float:
        """Seconds for which a living peer would have said something; 0.0 where it owes no answer."""
        return max(0.0, now - max(self.heard, self.outstanding)) if self.outstanding != math.inf else 0.0

    def forgive(self, now: float) -> None:
        """We slept past the deadline: start the waiting anew, once."""
        self.forgiven = True
        self.heard = now
        self._unanswered = math.inf
        if self.begun != math.inf:
            self.begun = now
        self.ask(now)
