"""At the end of the run every log of every process is searched for what no log may hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.system import planted

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", autouse=True)
def nothing_leaked() -> Iterator[None]:
    """An error of the session names the log: each world was searched for its own secrets when it closed."""
    yield
    assert planted.leaks(planted.every_log, [planted.MARK.encode()]) == []
