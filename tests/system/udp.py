"""UDP on loopback for system tests: a target that answers with what it got and from where, and visitors that ask it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Self


class Echo:
    """Answers each datagram with its own port, the port that it came from, and the datagram: `b"port from data"`."""

    def __init__(self, port: int = 0, name: str = "") -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", port))
        self.port: int = self.sock.getsockname()[1]
        self.name = name or str(self.port)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._stopping = False
        self._thread.start()

    def _run(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                data, source = self.sock.recvfrom(65535)
                if self._stopping:
                    return
                if len(data) > 60_000:
                    self.sock.sendto(data, source)
                else:
                    self.sock.sendto(f"{self.name} {source[1]} ".encode() + data, source)

    def stop(self) -> None:
        """No more answers, and the port refuses. Idempotent."""
        self._stopping = True
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join(5)
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._stopping:
            self.stop()


class Asking:
    """A visitor with one address and port."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.connect((host, port))

    def ask(self, data: bytes, *, seconds: float = 1.0) -> bytes:
        """The answer; b"" if there is none in time."""
        with contextlib.suppress(OSError):
            self.sock.send(data)
            return self._hear(data, seconds)
        return b""

    def _hear(self, data: bytes, seconds: float) -> bytes:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.sock.settimeout(left)
            answer = self.sock.recv(65535)
            if answer.endswith(data):  # and not a late one to another question
                return answer
        return b""

    def insist(self, data: bytes, *, seconds: float = 20.0) -> bytes:
        """Ask again and again, as programs over UDP do, until it is answered."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            answer = self.ask(data, seconds=0.3)
            if answer:
                return answer
            time.sleep(0.02)
        raise AssertionError(f"no answer to {data[:40]!r} within {seconds:g} s")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()
