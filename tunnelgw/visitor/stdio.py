"""Standard input and output as one end of a socket pair, for ssh's ProxyCommand and pipes.

Whatever the two are (pipes, sockets, files, a terminal), two threads copy, so that the loop sees a socket like any
other. The end of standard input ends that half alone, as a command's input does.

Invariant: standard output carries the far side's bytes and nothing else, all of them before `done`.
"""

from __future__ import annotations

import asyncio
import functools
import os
import select
import socket
import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

PIECE = 64 * 1024


class Stdio:
    """`sock` is for the loop; `done()` waits until all that came was written, or nobody reads it any more."""

    def __init__(self, source: int = 0, sink: int = 1) -> None:
        self.sock, self._ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._written = asyncio.Event()
        # Daemons: one may wait for a terminal's input when everything else is over.
        threading.Thread(target=self._read, args=(source,), daemon=True).start()
        threading.Thread(target=self._write, args=(sink,), daemon=True).start()

    async def done(self) -> None:
        """See the class."""
        await self._written.wait()

    def _read(self, source: int) -> None:
        try:
            while data := _patiently(source, select.POLLIN, lambda: os.read(source, PIECE)):
                self._ours.sendall(data)
            self._ours.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the far side is gone

    def _write(self, sink: int) -> None:
        try:
            while data := self._ours.recv(PIECE):
                view = memoryview(data)
                while view:
                    written = _patiently(sink, select.POLLOUT, functools.partial(os.write, sink, view))
                    view = view[written:]
            os.close(sink)  # the end of this half, which a reader may wait for before it ends its own
        except OSError:
            self._shut()
        finally:
            self._loop.call_soon_threadsafe(self._written.set)

    def _shut(self) -> None:
        try:
            self._ours.shutdown(socket.SHUT_RDWR)  # nobody reads: the far side need not go on
        except OSError:
            return


def _patiently(descriptor: int, event: int, call: Callable[[], T]) -> T:
    """What `call` gives. The descriptor may not block, if somebody who shares it (rsync, Node.js) made it so."""
    while True:
        try:
            return call()
        except BlockingIOError:
            poll = select.poll()
            poll.register(descriptor, event)
            poll.poll()
