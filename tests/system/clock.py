"""A wall clock for real processes that a test moves while they run (libfaketime); their monotonic clock goes on."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
AVAILABLE = LIBRARY is not None and shutil.which("faketime") is not None


class Clock:
    """`env` for the processes that live by it; `move` to another day."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self.days = 0
        self.move(0)
        self.env = {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",  # seconds until a move is noticed
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # Waits with a deadline would now and then be over at once, and a thread that waits for Python's lock spin:
            # an import beside the loop took ten seconds instead of 0.3.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
            "NO_FAKE_STAT": "1",
        }

    def dates(self) -> set[str]:
        """Today, as those processes see it; two days around midnight."""
        now = datetime.now(UTC) + timedelta(days=self.days)
        return {(now + timedelta(minutes=minutes)).strftime("%Y-%m-%d") for minutes in (-2, 0)}

    def move(self, days: int) -> None:
        """So many days on, or back."""
        self.days += days
        temporary = self._file.with_suffix(".new")
        temporary.write_text(f"{self.days:+d}d\n")
        temporary.replace(self._file)
