"""Event loops of tests."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def runner(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> Iterator[asyncio.Runner]:
    """As `asyncio.Runner`, but left open when the test fails: uvloop waits for ever for what it left behind."""
    opened = asyncio.Runner(loop_factory=loop_factory)
    yield opened
    opened.close()
