"""When the machine's network is looked at: once for many changes, never twice at a time, again where it failed."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from tunnelgw.errors import LocalError
from tunnelgw.net import upkeep
from tunnelgw.net.upkeep import Upkeep

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Kernel:
    """What it tells comes from the test."""

    def __init__(self, patch: pytest.MonkeyPatch, look: Callable[[], Awaitable[None]]) -> None:
        patch.setattr(upkeep, "SETTLE", 0.01)
        patch.setattr(upkeep, "AGAIN", 0.02)
        patch.setattr(upkeep, "SHARE", 0)
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.near.setblocking(False)
        self.upkeep = Upkeep(look)

    def tell(self, times: int) -> None:
        for _ in range(times):
            self.far.send(b"a change")
        self.upkeep._heard(self.near)

    async def close(self) -> None:
        await self.upkeep.close()
        self.near.close()
        self.far.close()


def test_many_changes_are_one_look_and_one_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        looks = asyncio.Queue[int]()

        async def look() -> None:
            looks.put_nowait(1)

        kernel = Kernel(monkeypatch, look)
        kernel.tell(50)
        async with asyncio.timeout(5):
            await looks.get()
            await looks.get()
        with pytest.raises(TimeoutError):  # as long as two looks more would take
            async with asyncio.timeout(0.1):
                await looks.get()
        await kernel.close()

    asyncio.run(main())


def test_looks_never_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    """What changes during one is looked at after it."""

    async def main() -> None:
        begun, go_on = asyncio.Queue[int](), asyncio.Event()
        under_way = 0

        async def look() -> None:
            nonlocal under_way
            under_way += 1
            assert under_way == 1
            begun.put_nowait(1)
            await go_on.wait()
            under_way -= 1

        kernel = Kernel(monkeypatch, look)
        kernel.tell(1)
        async with asyncio.timeout(5):
            await begun.get()
            kernel.tell(1)
            while not kernel.upkeep._missed:  # noqa: ASYNC110 - nobody else is told
                await asyncio.sleep(0.001)
            assert begun.empty()
            go_on.set()
            await begun.get()
        await kernel.close()

    asyncio.run(main())


def test_what_failed_is_tried_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        looks = asyncio.Queue[int]()

        async def look() -> None:
            looks.put_nowait(1)
            raise LocalError("no right")

        kernel = Kernel(monkeypatch, look)
        kernel.tell(1)
        async with asyncio.timeout(5):
            for _ in range(4):
                await looks.get()
        await kernel.close()

    asyncio.run(main())
    assert "could not be mended: no right" in caplog.text


def test_nothing_comes_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def look() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        kernel = Kernel(monkeypatch, look)
        kernel.tell(1)
        async with asyncio.timeout(5):
            await begun.wait()
            await kernel.close()
        assert ended.is_set()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_it_begins_once_and_holds_nothing_in_the_end() -> None:
    async def main() -> None:
        async def look() -> None:
            raise AssertionError("nothing was told")

        ours = Upkeep(look)
        ours.start()
        sockets = list(ours._sockets)
        ours.start()
        assert ours._sockets == sockets
        assert len(sockets) == 2
        await ours.close()
        await ours.close()
        assert [sock.fileno() for sock in sockets] == [-1, -1]

    asyncio.run(main())
