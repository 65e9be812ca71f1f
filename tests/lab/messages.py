"""What is said over one connection, in order, and accounted for."""

from __future__ import annotations

import time

from tests.lab.tally import Tally, WrongError


class Messages:
    """Numbered messages of one connection: each is answered with `WORD NUMBER`, in order.

    ahead: nobody asks, the other side counts by itself; the next one is always under way.
    """

    def __init__(self, tally: Tally, word: str, *, ahead: bool = False) -> None:
        self.tally = tally
        self.word = word
        self.sent = 0
        self.received = 0
        self.ahead = ahead
        self.since = time.monotonic()
        self.last = False  # none is sent after the one that was sent last
        self.waiting = [tally.begin(self.since)] if ahead else []

    @property
    def over(self) -> bool:
        """True once the last one was answered."""
        return self.last and not self.waiting

    def next(self) -> str:
        self.waiting.append(self.tally.begin(self.since))
        self.sent += 1
        return str(self.sent - 1)

    def heard(self, text: str) -> None:
        if text != f"{self.word} {self.received}" or not self.waiting:
            raise WrongError(f"{text!r} instead of {self.word} {self.received}")
        self.received += 1
        self.tally.finish(self.waiting.pop(0))
        if self.ahead:
            self.waiting.append(self.tally.begin(self.since))

    def fail(self, error: BaseException) -> None:
        """The connection is over; what was under way failed (or, if nothing was, the connection itself)."""
        for operation in self.waiting or [self.tally.begin(self.since)]:
            self.tally.fail(operation, error)
        self.waiting = []

    def drop(self) -> None:
        """The connection ended in order: the next message was never begun."""
        for operation in self.waiting:
            self.tally.under_way.remove(operation)
            self.tally.begun -= 1
        self.waiting = []
