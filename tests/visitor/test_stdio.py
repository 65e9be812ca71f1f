"""Standard input and output of `visit --stdio`, whatever they are."""

from __future__ import annotations

import asyncio
import os

import pytest

from tunnelgw.visitor.stdio import Stdio

LARGE = os.urandom(1 << 20)


@pytest.mark.parametrize("blocking", [True, False])
def test_all_bytes_each_way(blocking: bool) -> None:
    """Whoever shares a pipe or terminal with us may have made it non-blocking, as rsync and Node.js do."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        (source, typed), (shown, sink) = os.pipe(), os.pipe()
        for descriptor in (source, sink):
            os.set_blocking(descriptor, blocking)
        ends = Stdio(source, sink)
        with os.fdopen(typed, "wb") as typing, os.fdopen(shown, "rb") as screen:
            sending = loop.create_task(loop.sock_sendall(ends.sock, LARGE))
            await asyncio.to_thread(lambda: (typing.write(b"hello"), typing.close()))
            assert await loop.sock_recv(ends.sock, 100) == b"hello"
            assert await loop.sock_recv(ends.sock, 100) == b"", "the end of standard input"
            reading = loop.create_task(asyncio.to_thread(screen.read))
            await sending
            ends.sock.close()
            assert await reading == LARGE
        await ends.done()
        os.close(source)
        ends._ours.close()

    asyncio.run(asyncio.wait_for(main(), 20))
