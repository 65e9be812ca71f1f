"""One public UDP port: its socket, read a bounded number of datagrams at a time, and how answers leave by it.

Each datagram is read behind one free byte, so that it is a message of the tunnel after the one copy that keeps it. On
a socket that is bound to every address, the kernel says which of ours a datagram was sent to: answers leave from there,
or a visitor of our second address would get them from the first one and drop them.

While the connector of a port is away for a moment, nothing is read: what comes waits in the kernel's buffer.

Invariant: nothing per datagram makes a task, a future or a timer; what cannot be sent at once is dropped.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
from typing import TYPE_CHECKING, Any, Protocol

from tunnelgw.edge.addressing import plain_address
from tunnelgw.net.sockets import option

if TYPE_CHECKING:
    import asyncio

    from tunnelgw.edge.flows import EdgeFlow

log = logging.getLogger(__name__)

# Datagrams of one turn, so that one port never keeps others, and streams, waiting: half a millisecond at 8 µs each.
PER_TURN = 64
# Asked for; the kernel's own limit (net.core.rmem_max, 208 KiB as it comes) may give less. A loop that is busy for
# 20 ms must not lose what comes meanwhile.
RECEIVE_BYTES = 1 << 20
HELD_TURN = 0.05  # seconds between two looks at whether a connector is back
# For so long what comes is kept in the kernel: a connector that changes to another process of the edge, or whose link
# is dialled anew, is back before that. Later nobody waits for an answer to it any more.
HELD_SECONDS = 2.0
LOCALS_MOST = 256  # addresses of this machine that are remembered for one port
IP_PKTINFO = 8  # Linux; Python 3.11 has no name for it
_WILDCARDS = ("0.0.0.0", "::")
_BUFFER = bytearray(1 + 65536)  # DATA's byte, then the datagram; all ports read into this one, one after another
_WHOLE = memoryview(_BUFFER)
_BEHIND = (_WHOLE[1:],)
_LINK_LOCAL = b"\xfe\x80"

Ancillary = list[tuple[int, int, bytes]]


class Reader(Protocol):
    """Who takes what arrives; `edge.flows.Flows`."""

    def arrived(self, port: UdpPort, message: bytes, address: tuple[Any, ...], local: Local, now: float) -> None:
        """A datagram, behind DATA's byte."""

    def away(self, port: UdpPort, now: float) -> bool:
        """Whether nobody can take it now, and somebody may soon."""


class Local:
    """One address of ours: as text, and what makes an answer leave from it (nothing where that goes without saying)."""

    __slots__ = ("ancillary", "text")

    def __init__(self, text: str, ancillary: Ancillary) -> None:
        self.text = text
        self.ancillary = ancillary


class UdpPort:
    """Reads one socket for a `Reader`. `close` stops reading, and leaves the socket open: as `net.accept.Acceptor`.

    mine: False in a worker that only keeps the port open; another one reads it, so that one visitor's datagrams stay
    together and in order.
    """

    __slots__ = (
        "_held_until", "_locals", "_loop", "_reader", "_resuming", "_specific", "flows", "listener", "mine", "number",
        "running",
    )  # fmt: skip

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, number: int, reader: Reader, *, mine: bool
    ) -> None:
        self.listener = sock
        self.number = number
        self.mine = mine
        self.flows: dict[tuple[Any, ...], EdgeFlow] = {}  # by the visitor's address, as the socket gives it
        self.running = False
        self._loop = loop
        self._reader = reader
        self._held_until = 0.0
        self._resuming: asyncio.TimerHandle | None = None
        self._locals: dict[bytes, Local] = {}
        bound = sock.getsockname()[0]
        self._specific = None if bound in _WILDCARDS else Local(plain_address(bound), [])

    def start(self) -> None:
        """Begin to read. Idempotent."""
        if self.mine and not self.running:
            self.running = True
            self.listener.setblocking(False)
            self._loop.add_reader(self.listener.fileno(), self._ready)

    def close(self) -> None:
        """Stop reading; the socket, and the flows, stay. Idempotent."""
        if self.running:
            self.running = False
            if self._resuming is not None:
                self._resuming.cancel()
                self._resuming = None
            else:
                self._loop.remove_reader(self.listener.fileno())

    def send(self, data: memoryview, address: tuple[Any, ...], local: Local) -> None:
        """An answer; dropped where the kernel does not take it now, as a network would."""
        try:
            if local.ancillary:
                self.listener.sendmsg((data,), local.ancillary, 0, address)
            else:
                self.listener.sendto(data, address)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:  # too large for the path, no route back, a firewall
            log.debug("udp port %d: an answer to %s was not sent: %s", self.number, address, error)

    def _ready(self) -> None:
        now = self._loop.time()
        reader = self._reader
        if reader.away(self, now):
            if not self._held_until:
                self._held_until = now + HELD_SECONDS
            if now < self._held_until:
                self._loop.remove_reader(self.listener.fileno())
                self._resuming = self._loop.call_later(HELD_TURN, self._resume)
                return
        else:
            self._held_until = 0.0
        for _ in range(PER_TURN):
            try:
                if self._specific is None:
                    size, found, _, address = self.listener.recvmsg_into(_BEHIND, 64)
                    local = self._local(found)
                else:
                    size, address = self.listener.recvfrom_into(_BEHIND[0])
                    local = self._specific
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:  # an ICMP answer to what we sent, or no memory for a moment
                log.debug("udp port %d: %s", self.number, error)
                return
            reader.arrived(self, bytes(_WHOLE[: size + 1]), address, local, now)
            if not self.running:
                return

    def _resume(self) -> None:
        self._resuming = None
        self._loop.add_reader(self.listener.fileno(), self._ready)

    def _local(self, ancillary: Ancillary) -> Local:
        """Which address of ours a datagram was sent to."""
        if not ancillary:
            return Local("", [])
        level, kind, info = ancillary[0]
        known = self._locals.get(info)
        if known is None:
            if len(self._locals) >= LOCALS_MOST:
                self._locals.clear()
            known = self._locals[info] = _local_of(level, kind, info)
        return known


def _local_of(level: int, kind: int, info: bytes) -> Local:
    """An answer may leave by another interface than the question came by, but for addresses that exist on each."""
    if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
        address = info[:16]
        back = info if address.startswith(_LINK_LOCAL) else address + bytes(4)
        return Local(plain_address(socket.inet_ntop(socket.AF_INET6, address)), [(level, kind, back)])
    if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
        address = info[4:8]
        return Local(socket.inet_ntop(socket.AF_INET, address), [(level, kind, struct.pack("=i4s4x", 0, address))])
    return Local("", [])


def bind_udp(bind: str, port: int) -> socket.socket:
    """A socket for a public UDP port, both families where `bind` is "::". Raises `OSError` as bind does."""
    try:
        return _bound(bind, port)
    except OSError as error:
        if bind != "::" or error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        return _bound("0.0.0.0", port)  # a kernel without IPv6


def _bound(bind: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if bind == "::" else 1)
            option(sock, socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            option(sock, socket.IPPROTO_IP, IP_PKTINFO, 1)
        option(sock, socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        option(sock, socket.SOL_SOCKET, socket.SO_SNDBUF, RECEIVE_BYTES)
        # No SO_REUSEADDR: for UDP it would let another program of the same user take the port from us.
        sock.bind((bind, port))
    except OSError:
        sock.close()
        raise
    return sock
