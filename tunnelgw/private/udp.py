"""UDP on behalf of a visitor: one flow is one port of this machine, from which it speaks to whatever it may reach.

Strategy: plain sockets that never wait, one for each family, made when first needed. What cannot go at once is dropped,
as UDP does. Names are looked up here; what a look-up or a check found is kept for a minute.
Only who was sent to may answer, from that address and port: the flow is no open door.

Invariant: everything a visitor or a stranger controls is bounded: destinations, look-ups, datagrams that wait for one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import socket
from typing import TYPE_CHECKING

from tunnelgw.access.reach import parse_host
from tunnelgw.errors import Refused
from tunnelgw.net.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.net.eyeballs import Place
    from tunnelgw.private.egress import Egress

IDLE_SECONDS = 300.0  # RFC 4787 REQ-5: at least two minutes, five recommended
KNOWN_SECONDS = 60.0  # what a name means, and what the policy said: a changed grant reaches old flows within it
DESTINATIONS = 512  # of one flow: a DHT asks hundreds, and forgetting one only costs a new check
LOOKUPS = 16  # at once
WAITING = 8  # datagrams of one name while it is looked up
READS = 64  # datagrams of one wake-up: others have their turn, too
LARGEST = 65535
BUFFER = 1 << 20  # of a socket, if the kernel allows: a burst of 700 packets


class EgressFlow:
    """A flow. Inputs: `send`, `close`; `received(data, address, port)` for each datagram; `ended` once, when idle."""

    __slots__ = (
        "_egress", "_ended", "_known", "_loop", "_lookups", "_peers", "_received", "_sockets", "_timer", "_used",
        "_waiting", "dropped",
    )  # fmt: skip

    def __init__(
        self, egress: Egress, received: Callable[[bytes, str, int], None], ended: Callable[[], None] | None = None
    ) -> None:
        self._egress = egress
        self._received: Callable[[bytes, str, int], None] | None = received
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._sockets: dict[int, socket.socket] = {}
        self._known: dict[tuple[str, int], tuple[float, Place | None]] = {}  # until when, and where; None: nowhere
        self._peers: dict[tuple[str, int], None] = {}  # who may answer, oldest first
        self._lookups: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._waiting: dict[tuple[str, int], list[bytes]] = {}
        self._used = self._loop.time()
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(IDLE_SECONDS, self._look)
        self.dropped = 0

    def send(self, data: bytes, host: str, port: int) -> None:
        """Send one datagram, or drop it."""
        if self._received is None or len(data) > LARGEST:
            return
        now = self._used = self._loop.time()
        key = (host, port)
        until, place = self._known.get(key, (-math.inf, None))
        if now < until:
            if place is not None:
                self._send(data, place)
            else:
                self.dropped += 1
            return
        try:
            found = parse_host(host)
        except ValueError:
            found = ""
        if isinstance(found, str):
            self._look_up(data, key)
            return
        try:
            place = self._egress.place(found, port)
        except Refused:
            self.dropped += 1
            place = None  # what was known of it is over
        self._note(key, place)
        if place is not None:
            self._send(data, place)

    def close(self) -> None:
        """Free the port. Idempotent."""
        if self._received is None:
            return
        self._received = None
        if self._timer is not None:
            self._timer.cancel()
        for task in self._lookups.values():
            task.cancel()
        self._lookups.clear()  # one that had not begun yet never says that it ended
        self._waiting.clear()
        for sock in self._sockets.values():
            self._loop.remove_reader(sock)
            sock.close()
        self._sockets.clear()

    def _look(self) -> None:
        idle = self._loop.time() - self._used
        if idle < IDLE_SECONDS:
            self._timer = self._loop.call_later(IDLE_SECONDS - idle, self._look)
            return
        self.close()
        if self._ended is not None:
            self._ended()

    # Where to.

    def _look_up(self, data: bytes, key: tuple[str, int]) -> None:
        waiting = self._waiting.get(key)
        if waiting is not None:
            if len(waiting) < WAITING:
                waiting.append(data)
            else:
                self.dropped += 1
        elif len(self._lookups) < LOOKUPS:
            self._waiting[key] = [data]
            self._lookups[key] = spawn(self._resolve(key), name="udp look-up")
        else:
            self.dropped += 1

    async def _resolve(self, key: tuple[str, int]) -> None:
        place: Place | None = None
        try:
            with contextlib.suppress(Refused, OSError):
                place = (await self._egress.resolve(*key))[0]
        finally:
            self._lookups.pop(key, None)
            waiting = self._waiting.pop(key, [])
        self._note(key, place)
        for data in waiting:
            if place is None:
                self.dropped += 1
            else:
                self._send(data, place)

    def _note(self, key: tuple[str, int], place: Place | None) -> None:
        known = self._known
        known.pop(key, None)
        if len(known) >= DESTINATIONS:
            del known[next(iter(known))]
        known[key] = (self._loop.time() + KNOWN_SECONDS, place)
        if place is not None:
            peer = _peer(place[1])
            self._peers.pop(peer, None)
            if len(self._peers) >= DESTINATIONS:
                del self._peers[next(iter(self._peers))]
            self._peers[peer] = None

    # Sockets.

    def _send(self, data: bytes, place: Place) -> None:
        family, address = place
        try:
            sock = self._sockets.get(family) or self._open(family)
            sock.sendto(data, address)
        except OSError:  # full, too large for the path, no such family: all of it is UDP's usual fate
            self.dropped += 1

    def _open(self, family: int) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", 0))
        except OSError:
            sock.close()
            raise
        self._sockets[family] = sock
        self._loop.add_reader(sock, self._readable, sock)
        return sock

    def _readable(self, sock: socket.socket) -> None:
        for _ in range(READS):
            try:
                data, address = sock.recvfrom(LARGEST)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:  # an ICMP error of an earlier datagram
                continue
            peer = _peer(address)
            if peer in self._peers and self._received is not None:
                self._used = self._loop.time()
                self._received(data, *peer)
            if self._received is None:
                return


def _peer(address: tuple[object, ...]) -> tuple[str, int]:
    host, port = str(address[0]), address[1]
    assert isinstance(port, int)
    return str(ipaddress.ip_address(host.partition("%")[0])), port
