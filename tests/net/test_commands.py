"""Programs that could not be started: never more than a `LocalError`."""

from __future__ import annotations

import asyncio
import errno
import os

import pytest

from tunnelgw.errors import LocalError
from tunnelgw.net import commands


def test_a_program_that_is_missing() -> None:
    with pytest.raises(LocalError, match="no-such-program is missing"):
        asyncio.run(commands.run("no-such-program"))


def test_nothing_left_to_start_it_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill switch stays in force then: whoever looks after it tries again."""

    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "memfd_create", none_left)
    with pytest.raises(LocalError, match="true cannot be started: Too many open files"):
        asyncio.run(commands.run("true"))
    assert not asyncio.run(commands.attempt("true"))
