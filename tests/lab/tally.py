"""What one kind of load began, what became of it, and how long it waited.

Invariant: whatever was begun is under way, finished or failed; begun = finished + failed + under way at any moment.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import math
import ssl
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

FAILURES_KEPT = 2000


class WrongError(Exception):
    """An answer that is not what was asked for: never explained by any fault."""


class AnsweredError(Exception):
    """An answer of the edge's own: its status and what it says."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status} {text[:120]}")


def cause_of(error: BaseException) -> str:
    """One word or two for a failure; what is wrong rather than broken begins with "wrong"."""
    if isinstance(error, WrongError):
        return f"wrong: {error}"
    if isinstance(error, AnsweredError):
        return f"answered {error}".strip()
    if isinstance(error, asyncio.IncompleteReadError):
        return "cut short" if error.partial else "closed before an answer"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, ConnectionResetError | BrokenPipeError | ConnectionAbortedError):
        return "reset"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    return f"{type(error).__name__}: {error}"[:160]


class Operation:
    """One request, transfer or message."""

    __slots__ = ("began", "method", "moved", "number", "since")

    def __init__(self, number: int, began: float, since: float, method: str) -> None:
        self.number = number
        self.method = method  # of a request
        self.began = began
        self.since = since  # when the connection was begun that carries it
        self.moved = began  # when something of it was last seen to move


class Tally:
    """Of one kind. `longest`: the longest wait since `mark`, of what is still under way too."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.begun = 0
        self.finished = 0
        self.retried = 0
        self.bytes = 0
        self.fresh = 0.0  # when the latest one began that finished
        self.longest = 0.0
        self.marked = 0.0
        self.under_way: set[Operation] = set()
        self.causes: collections.Counter[str] = collections.Counter()
        self.failures: list[dict[str, Any]] = []

    def begin(self, since: float = 0.0, method: str = "") -> Operation:
        """since: when its connection was begun, if not for it."""
        self.begun += 1
        now = time.monotonic()
        operation = Operation(self.begun, now, since or now, method)
        self.under_way.add(operation)
        return operation

    def moved(self, operation: Operation, size: int = 0) -> None:
        """Bytes of it arrived or were taken: what counts as a wait starts anew."""
        self._wait(operation)
        operation.moved = time.monotonic()
        self.bytes += size

    def finish(self, operation: Operation) -> None:
        self._wait(operation)
        self.under_way.remove(operation)
        self.finished += 1
        self.fresh = max(self.fresh, operation.began)

    def fail(self, operation: Operation, error: BaseException | str) -> None:
        self._wait(operation)
        self.under_way.remove(operation)
        cause = error if isinstance(error, str) else cause_of(error)
        self.causes[cause] += 1
        if len(self.failures) < FAILURES_KEPT:
            self.failures.append({
                "kind": self.kind, "cause": cause, "method": operation.method, "number": operation.number,
                "began": operation.began, "since": operation.since, "ended": time.monotonic(),
            })  # fmt: skip

    @contextlib.contextmanager
    def operation(self, since: float = 0.0, method: str = "") -> Iterator[Operation]:
        """Begin one; it finishes with the block, or fails with what the block raises (which goes no further)."""
        operation = self.begin(since, method)
        try:
            yield operation
        except (OSError, EOFError, WrongError, AnsweredError) as error:
            self.fail(operation, error)
        else:
            self.finish(operation)

    def mark(self) -> None:
        self.longest = 0.0
        self.marked = time.monotonic()

    def _wait(self, operation: Operation) -> None:
        since = max(operation.moved, self.marked)
        self.longest = max(self.longest, time.monotonic() - since)

    def report(self) -> dict[str, Any]:
        for operation in self.under_way:
            self._wait(operation)
        return {
            "begun": self.begun, "finished": self.finished, "under_way": len(self.under_way), "retried": self.retried,
            "failed": dict(self.causes), "longest": round(self.longest, 3), "fresh": self.fresh, "bytes": self.bytes,
            "oldest": min((operation.began for operation in self.under_way), default=math.inf),
        }  # fmt: skip
