"""Messages with descriptors between processes of one edge (SCM_RIGHTS over a SOCK_SEQPACKET pair).

A message is a JSON object and up to `MAX_DESCRIPTORS` descriptors. Long ones go as several packets; the descriptors
travel with the last. Both ends are our own processes, so a broken message closes the channel instead of being repaired.

Invariant: a descriptor that was received is either given to the receiver's callback or closed; the sender's copy of one
that was sent is closed when, and only when, the kernel took it (or the channel ended).
"""

from __future__ import annotations

import array
import json
import logging
import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

log = logging.getLogger(__name__)

PACKET = 32 * 1024  # payload of one packet; well under the default SO_SNDBUF
MAX_DESCRIPTORS = 64  # the kernel's own bound is 253 (SCM_MAX_FD)
MAX_MESSAGE = 64 * 1024 * 1024  # a snapshot of thousands of routes stays below 10 MB
MAX_QUEUED = 4096  # packets; a process that does not read for that long is stuck
_MORE, _LAST = b"+", b"."


def channel_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends; neither blocks."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in pair:
        end.setblocking(False)
    return pair


class Channel:
    """One end: `send` queues, `received(message, descriptors)` is called per message, `closed()` once at the end.

    The receiver of a callback owns the descriptors it was given.
    """

    __slots__ = ("_closed", "_loop", "_parts", "_queue", "_received", "_size", "_sock", "_writing")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        *,
        received: Callable[[dict[str, Any], list[int]], None],
        closed: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._sock: socket.socket | None = sock
        self._received = received
        self._closed = closed
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._parts: list[bytes] = []
        self._size = 0
        self._writing = False
        sock.setblocking(False)
        loop.add_reader(sock.fileno(), self._readable)

    @property
    def open(self) -> bool:
        """False once either end closed."""
        return self._sock is not None

    def send(self, message: dict[str, Any], descriptors: list[int] | None = None) -> bool:
        """Queue a message. The channel owns `descriptors` from here on. False (and closed descriptors) if it ended."""
        descriptors = descriptors or []
        if self._sock is None or len(self._queue) > MAX_QUEUED:
            _close_all(descriptors)
            return False
        text = json.dumps(message, separators=(",", ":")).encode()
        start = 0
        while len(text) - start > PACKET:
            self._queue.append((_MORE + text[start : start + PACKET], []))
            start += PACKET
        self._queue.append((_LAST + text[start:], descriptors))
        self._flush()
        return True

    def hear_out(self) -> None:
        """Let the other side say nothing more: what it has said is received now, and whatever it says later fails."""
        if self._sock is not None:
            self._sock.shutdown(socket.SHUT_RD)
        while self._sock is not None:
            self._readable()

    def close(self) -> None:
        """End it; what is queued is dropped. `closed` is called, once."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        self._loop.remove_reader(sock.fileno())
        if self._writing:
            self._loop.remove_writer(sock.fileno())
        sock.close()
        for _, descriptors in self._queue:
            _close_all(descriptors)
        self._queue.clear()
        self._closed()

    def _flush(self) -> None:
        sock = self._sock
        while sock is not None and self._queue:
            packet, descriptors = self._queue[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            try:
                sock.sendmsg([packet], rights)
            except BlockingIOError:
                if not self._writing:
                    self._writing = True
                    self._loop.add_writer(sock.fileno(), self._flush)
                return
            except OSError:
                self.close()
                return
            self._queue.popleft()
            _close_all(descriptors)
        if self._writing and sock is not None:
            self._writing = False
            self._loop.remove_writer(sock.fileno())

    def _readable(self) -> None:
        sock = self._sock
        if sock is None:
            return
        room = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
        try:
            packet, ancillary, flags, _ = sock.recvmsg(PACKET + 1, room, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        descriptors = _descriptors(ancillary)
        if not packet or flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
            _close_all(descriptors)
            self.close()
            return
        self._packet(packet, descriptors)

    def _packet(self, packet: bytes, descriptors: list[int]) -> None:
        self._parts.append(packet[1:])
        self._size += len(packet)
        if packet[:1] == _MORE and self._size <= MAX_MESSAGE:
            return
        text = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        try:
            message = json.loads(text)
        except ValueError:
            log.error("a process of this edge sent a malformed message")
            _close_all(descriptors)
            self.close()
            return
        self._received(message, descriptors)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
            found.extend(numbers)
    return found


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
