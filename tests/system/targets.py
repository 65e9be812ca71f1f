"""Local services with exact bytes: plain sockets in threads of the test, where aiohttp would be too polite."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable


class RawTarget:
    """Listens on a free port; each connection runs `handle(sock)` in a thread of its own and is closed afterwards.

    Errors of a handler other than OSError fail the test at the end.
    """

    def __init__(self, handle: Callable[[socket.socket], None], *, port: int = 0) -> None:
        self.listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self.listener.getsockname()[1]
        self._handle = handle
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._errors: list[BaseException] = []
        self._start(self._accept)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            sock.settimeout(30)
            self._open.add(sock)
            self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        try:
            with sock:
                self._handle(sock)
        except OSError:
            pass
        except BaseException as error:
            self._errors.append(error)
        finally:
            self._open.discard(sock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for sock in tuple(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        assert not self._errors, self._errors


def read_head(sock: socket.socket) -> bytes:
    """One HTTP/1.1 head, byte by byte so that nothing after it is taken."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte:
            break
        head += byte
    return head


def read_all(sock: socket.socket) -> bytes:
    """Everything until the other side is done."""
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


def read_exactly(sock: socket.socket, count: int) -> bytes:
    """`count` bytes, or fewer where the other side is done."""
    data = bytearray()
    while len(data) < count and (part := sock.recv(min(count - len(data), 262144))):
        data += part
    return bytes(data)


def both_ways(sock: ssl.SSLSocket, data: bytes) -> bytes:
    """Sends `data` and reads as many bytes meanwhile, in one thread: two must not share a TLS socket."""
    received, left = bytearray(), memoryview(data)
    end = time.monotonic() + 60
    sock.setblocking(False)
    while len(received) < len(data) and time.monotonic() < end:
        readable, writable, _ = select.select([sock], [sock] if left else [], [], 0 if sock.pending() else 1)
        if readable or sock.pending():
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                if not (part := sock.recv(65536)):
                    break
                received += part
        if writable:
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                left = left[sock.send(left[:65536]) :]
    return bytes(received)
