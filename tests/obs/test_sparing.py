"""Repeated warnings: once per interval, with a count, in bounded memory."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tunnelgw.obs.sparing import KEYS, Sparing

if TYPE_CHECKING:
    import pytest


def test_once_per_interval(caplog: pytest.LogCaptureFixture) -> None:
    sparing = Sparing(logging.getLogger("test"), interval=60.0)
    for second in range(0, 60, 10):
        sparing.warning("a", float(second), "target %s is down", "x")
    sparing.warning("b", 1.0, "other")
    sparing.warning("a", 60.0, "target %s is down", "x")
    sparing.forget("a")
    sparing.warning("a", 61.0, "target %s is down", "x")
    assert caplog.messages == [
        "target x is down",
        "other",
        "target x is down (and 5 times since the last such line)",
        "target x is down",
    ]


def test_memory_is_bounded() -> None:
    sparing = Sparing(logging.getLogger("test.silent"))
    logging.getLogger("test.silent").setLevel(logging.CRITICAL)
    for number in range(KEYS * 3):
        sparing.warning(f"service {number}", 0.0, "unknown")
    assert len(sparing._interval._seen) <= KEYS


def test_all_lines_together_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    sparing = Sparing(logging.getLogger("test"), interval=60.0, lines=3)
    for number in range(1000):
        sparing.warning(f"service {number}", number / 100, "unknown service %d", number)
    sparing.warning("later", 61.0, "later")
    assert caplog.messages == [
        "unknown service 0",
        "unknown service 1",
        "unknown service 2",
        "997 lines like the following were left out",
        "later",
    ]
