"""What a process says of failures that nobody caught."""

from __future__ import annotations

import asyncio
import gc

import pytest

from tunnelgw.net.loop import run


@pytest.mark.parametrize(
    ("error", "said"),
    [(ConnectionResetError("reset"), False), (BrokenPipeError("pipe"), False), (RuntimeError("a mistake"), True)],
)
def test_only_handshakes_that_were_given_up_may_fail_unheard(
    error: Exception, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        asyncio.get_running_loop().create_future().set_exception(error)
        gc.collect()

    run(main, require_uvloop=True)
    assert ("never retrieved" in caplog.text) == said


def test_a_task_that_fails_unheard_is_never_silent(caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> None:
        raise ConnectionResetError

    async def main() -> None:
        task = asyncio.ensure_future(fails())  # noqa: TID251 - a test's own task
        await asyncio.wait([task])
        del task
        gc.collect()

    run(main, require_uvloop=True)
    assert "never retrieved" in caplog.text
