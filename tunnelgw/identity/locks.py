"""Locks between the processes of one machine: a file, locked while somebody works, free again however they end.

Invariant: a lock is held by an open file and by nothing else; a process that dies leaves none behind.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

LOOK_SECONDS = 0.05


@asynccontextmanager
async def locked(*paths: Path) -> AsyncIterator[None]:
    """Hold one of these locks; wait for it without keeping the loop from its work."""
    while True:
        for path in paths:
            with tried(path) as ours:
                if ours:
                    yield
                    return
        await asyncio.sleep(LOOK_SECONDS)


@contextmanager
def tried(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock if it is free (True), else say so (False). `wait`: until it is, for work of milliseconds."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
