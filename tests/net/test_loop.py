"""What a process says of failures that nobody caught, and whose a descriptor is."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
import struct
from typing import Any, cast

import pytest

from tunnelgw.net.loop import adopt, run


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

    gc.collect()  # others' garbage is no business of this test
    caplog.clear()
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


class Leaving(asyncio.Protocol):
    """Closes at once, or writes to a peer that is gone."""

    def __init__(self, how: str) -> None:
        self.how = how

    def connection_made(self, made: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", made)
        if self.how in ("abort", "close"):
            getattr(transport, self.how)()
        elif self.how != "stay":
            transport.write(b"x" * 100)


def gone(peer: socket.socket) -> None:
    """The peer of a connection resets it."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


async def pair(family: int) -> tuple[socket.socket, socket.socket]:
    """A connected, non-blocking socket and its peer."""
    if family == socket.AF_UNIX:
        near, far = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            near = socket.create_connection(listener.getsockname())
            far, _ = listener.accept()
    near.setblocking(False)
    return near, far


@pytest.mark.parametrize("uvloop", [True, False])
@pytest.mark.parametrize("how", ["stay", "abort", "close", "write", "handshake", "cancel"])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_a_descriptor_has_one_owner(family: int, how: str, uvloop: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever gets its number after the transport closed it keeps it."""

    async def main() -> None:
        near, far = await pair(family)
        number = near.fileno()
        options: dict[str, Any] = {}
        if how in ("write", "handshake"):
            gone(far)
        if how == "handshake":
            options = {"ssl": ssl.create_default_context(), "server_hostname": "example.com"}
        adopting = asyncio.ensure_future(adopt(near, Leaving(how), **options))  # noqa: TID251 - a test's own task
        if how == "cancel":
            asyncio.get_running_loop().call_soon(adopting.cancel)
        await asyncio.wait([adopting])
        if adopting.cancelled() or adopting.exception():
            assert how in ("handshake", "cancel")
        elif how == "stay":
            adopting.result().abort()
        for _ in range(3):
            await asyncio.sleep(0)
        assert near.fileno() == -1
        taken = os.open(os.devnull, os.O_RDONLY)
        assert taken <= number, "it was closed"
        del near, adopting
        gc.collect()
        os.fstat(taken)
        os.close(taken)
        far.close()

    if not uvloop:
        monkeypatch.setattr("tunnelgw.net.loop.loop_factory", lambda **_: asyncio.new_event_loop)
    run(main, require_uvloop=uvloop)


def test_what_is_given_up_with_bytes_unsent_is_still_ended_by_its_loop() -> None:
    """asyncio watches the descriptor until they left or the peer is gone: nobody else may close it before."""

    class Large(asyncio.Protocol):
        def __init__(self) -> None:
            self.lost = asyncio.Event()

        def connection_made(self, made: asyncio.BaseTransport) -> None:
            cast("asyncio.Transport", made).write(bytes(1 << 20))
            adopting.cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            self.lost.set()

    async def main() -> None:
        nonlocal adopting
        near, far = await pair(socket.AF_UNIX)
        protocol = Large()
        adopting = asyncio.ensure_future(adopt(near, protocol))  # noqa: TID251 - a test's own task
        await asyncio.wait([adopting])
        assert adopting.cancelled()
        assert not protocol.lost.is_set()
        far.close()
        async with asyncio.timeout(5):
            await protocol.lost.wait()
        assert near.fileno() == -1

    adopting: asyncio.Future[Any]
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(main())
