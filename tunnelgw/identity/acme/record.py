"""What is remembered of each certificate between orders, and when the next one is due: plain JSON beside the PEM file.

All times are Unix seconds. Invariant: a record is written before an order begins, as if it were to fail, so that a
process that dies again and again in mid-order still leaves the server alone for longer each time.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from tunnelgw.config.files import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
INTERRUPTED_SECONDS = 5.0  # first pause after an order that was cut off: a crash is seldom the server's fault
UNREACHED_SECONDS = MINUTE  # first pause where the server did not answer: nothing was counted against us
REFUSED_SECONDS = 5 * MINUTE  # first pause after a refusal; Let's Encrypt allows 5 failed validations an hour
PAUSE_MAX = 6 * HOUR  # of our own; four tries a day are enough to notice that somebody mended it
UNREACHED_MAX = HOUR
RETRY_AFTER_MAX = 7 * DAY  # what a server may ask for; longer is taken for a mistake
ASK_SECONDS = 6 * HOUR  # between two looks at a renewal window, where the server does not say (RFC 9773, 4.3.3)
ASK_MIN, ASK_MAX = 10 * MINUTE, DAY
RENEWED_LATEST = 0.9  # of a life: a window that ends later is not waited for
RENEWED_EARLIEST_SECONDS = HOUR  # after the last one: a server whose windows are always past gets no endless orders
JITTER = 0.05  # of a life, before two thirds of it: certificates of one day do not renew in one minute
_SPREAD = (0.8, 1.2)  # of a pause


@dataclass(frozen=True, slots=True)
class Record:
    """One certificate, or (for its pauses only) the server as a whole.

    failures: orders that failed since the last success; error: the last one's reason, at error_at; retry_at: not
    before. issued_at, not_before, not_after: of the certificate that there is (0: none). window_start, window_end: as
    the server last suggested; renew_at: picked within it. ask_at: when the window is to be looked at again.
    """

    failures: int = 0
    error: str = ""
    error_at: float = 0.0
    retry_at: float = 0.0
    issued_at: float = 0.0
    not_before: float = 0.0
    not_after: float = 0.0
    renew_at: float = 0.0
    ask_at: float = 0.0
    window_start: float = 0.0
    window_end: float = 0.0

    def begun(self, now: float) -> Record:
        """An order begins; if nothing more is written, it was cut off."""
        wait = min(INTERRUPTED_SECONDS * 2.0 ** min(self.failures, 20), PAUSE_MAX)
        return replace(
            self, failures=self.failures + 1, error="the last order was interrupted", error_at=now, retry_at=now + wait
        )

    def failed(self, text: str, now: float, *, retry_after: float, unreached: bool) -> Record:
        """An order failed (this is the record from before it began)."""
        first, most = (UNREACHED_SECONDS, UNREACHED_MAX) if unreached else (REFUSED_SECONDS, PAUSE_MAX)
        if self.not_after > now:
            most = max(MINUTE, min(most, (self.not_after - now) / 8))  # short-lived ones get their tries as well
        wait = min(first * 2.0 ** min(self.failures, 20), most) * random.uniform(*_SPREAD)  # noqa: S311 - no secret
        wait = max(wait, min(retry_after, RETRY_AFTER_MAX))
        return replace(self, failures=self.failures + 1, error=text, error_at=now, retry_at=now + wait)

    def issued(self, result: dict[str, Any], now: float) -> Record:
        """An order succeeded."""
        start, end = result["not_before"], result["not_after"]
        fresh = Record(issued_at=now, not_before=start, not_after=end, renew_at=_two_thirds(start, end))
        return fresh.suggested(result.get("window"), now)

    def suggested(self, window: dict[str, Any] | None, now: float) -> Record:
        """The server told when it would like the renewal; None: it does not tell."""
        if not window:
            return replace(self, ask_at=now + ASK_MAX)
        ask_at = now + min(max(window["retry_after"] or ASK_SECONDS, ASK_MIN), ASK_MAX)
        start, end = window["start"], window["end"]
        if (start, end) == (self.window_start, self.window_end) or end < start:
            return replace(self, ask_at=ask_at)
        chosen = random.uniform(start, end)  # noqa: S311 - RFC 9773, 4.2: uniform within the window
        latest = self.not_before + (self.not_after - self.not_before) * RENEWED_LATEST
        return replace(self, ask_at=ask_at, window_start=start, window_end=end, renew_at=min(chosen, latest))

    def unanswered(self, retry_after: float, now: float) -> Record:
        """The look at the window failed."""
        return replace(self, ask_at=now + min(max(retry_after, ASK_SECONDS), ASK_MAX))

    def due(self, now: float, *, not_before: float, not_after: float) -> bool:
        """Should a certificate with these dates, the one in use, be replaced?"""
        if abs(not_after - self.not_after) > 1 or not self.renew_at:  # it is not the one that this record is about
            return now > not_before + (not_after - not_before) * 2 / 3
        return now > max(self.renew_at, min(self.issued_at + RENEWED_EARLIEST_SECONDS, _two_thirds_of(self)))


def _two_thirds_of(record: Record) -> float:
    return record.not_before + (record.not_after - record.not_before) * 2 / 3


def _two_thirds(start: float, end: float) -> float:
    return start + (end - start) * (2 / 3 - random.uniform(0, JITTER))  # noqa: S311 - no secret


def read_record(path: Path) -> Record:
    """The record in a file; an empty one where there is none, or where it is damaged (then nothing is known)."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except (OSError, ValueError):
        return Record()


def write_record(path: Path, record: Record) -> None:
    """Replace it. LocalError where that is not possible."""
    write_atomic(path, json.dumps(asdict(record), indent=1).encode(), mode=0o600)
