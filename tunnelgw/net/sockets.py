"""Socket options of links and targets: each best effort, because kernels and MPTCP refuse some of them."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

# Linux constants that Python's socket module does not name everywhere.
IPPROTO_MPTCP = 262
TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
TCP_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", 18)
TCP_CONGESTION = getattr(socket, "TCP_CONGESTION", 13)
SIOCOUTQNSD = 0x894B
_TCP_INFO_RTT = 68  # offset of tcpi_rtt in struct tcp_info (linux/tcp.h), microseconds
# From this round trip on a path is worth pacing: a queue is building up on it, or it is long.
PACED_SECONDS = 0.005

# What passes wherever IPv6 does: 1280 bytes (RFC 8200 section 5) less its header and TCP's.
SEGMENT_SAFE = 1220
# Above this many unsent bytes in the kernel a link waits, until it knows its line (net/link.py). Small, so that a new
# stream's first byte waits behind little; large enough for full TLS records in one write.
UNSENT_MAX = 64 * 1024
# A link that cannot deliver for this long is dead to the kernel as well; the ping's deadline comes first.
USER_TIMEOUT_MS = 20_000


def option(sock: socket.socket, level: int, name: int, value: int | bytes) -> bool:
    """Set an option; False where the kernel refuses it."""
    try:
        sock.setsockopt(level, name, value)
    except OSError:
        return False
    return True


def no_delay(sock: socket.socket) -> None:
    """Send small writes at once (a no-op on Unix sockets)."""
    if sock.family != socket.AF_UNIX:
        option(sock, socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def tune_link(sock: socket.socket) -> None:
    """Options of a tunnel's link, on both sides."""
    no_delay(sock)
    allow_unsent(sock, UNSENT_MAX)
    option(sock, socket.IPPROTO_TCP, TCP_USER_TIMEOUT, USER_TIMEOUT_MS)


def small_segments(sock: socket.socket) -> None:
    """Before it connects: both directions use packets that pass everywhere.

    Some paths swallow larger ones and the ICMP that would say so (a tunnel within, a filter): small things work, then
    the first full packet is sent again for ever. What we announce also binds the other side.
    """
    option(sock, socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_SAFE)


def allow_unsent(sock: socket.socket, size: int) -> None:
    """Make the kernel say "writable" once no more than `size` bytes are unsent.

    It says so below half of TCP_NOTSENT_LOWAT (tcp_stream_memory_free) and takes no more than all of it at once: a
    flush of `size` on top of `size` just fits and is never split.
    """
    option(sock, socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, 2 * size + 4096)


def several_uplinks(routes: str | None = None, routes6: str | None = None) -> bool:
    """Whether default routes leave by more than one interface (`/proc/net/route` and `ipv6_route`; or these texts).

    Only there MPTCP has something to give. It costs: what a subflow holds unsent is bounded by nothing that we can set
    (measured on a full 20 Mbit/s uplink: 560 KB, and a small request took 270 ms instead of about 100).
    """
    found = set()
    for line in (_read("/proc/net/route") if routes is None else routes).splitlines()[1:]:
        name, destination, *_, mask = line.split()[:8]
        if destination == mask == "00000000":
            found.add(name)
    for line in (_read("/proc/net/ipv6_route") if routes6 is None else routes6).splitlines():
        destination, length, *_, name = line.split()
        if length == "00" and not destination.strip("0") and name != "lo":
            found.add(name)
    return len(found) > 1


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""


def round_trip(sock: socket.socket) -> float:
    """The kernel's smoothed round trip in seconds (TCP_INFO); 0.0 where it cannot tell."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_RTT + 4)
    except OSError:
        return 0.0
    return struct.unpack_from("I", info, _TCP_INFO_RTT)[0] / 1e6 if len(info) >= _TCP_INFO_RTT + 4 else 0.0


def pace(sock: socket.socket) -> None:
    """Use BBR, where the kernel has it: it fills a long or narrow path without filling the queues on it.

    Not from the start: on a path without delay its pacing costs a third of the throughput (measured on loopback:
    10 KiB bodies 12,400 requests/s with it and 16,000 without).
    """
    option(sock, socket.IPPROTO_TCP, TCP_CONGESTION, b"bbr")


_mark = 0  # of all TCP sockets from now on


def mark_all(mark: int) -> None:
    """Give the sockets that `stream_socket` makes from now on this mark (SO_MARK): the links of a process that sends
    everything else into its own tunnel."""
    global _mark
    _mark = mark


def stream_socket(family: int, *, multipath: bool = False) -> socket.socket:
    """A non-blocking TCP socket; MPTCP where asked for and there."""
    sock = None
    if multipath:
        with contextlib.suppress(OSError):
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, IPPROTO_MPTCP)
    if sock is None:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    if _mark:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, _mark)
    return sock


def cut(transport: asyncio.WriteTransport) -> None:
    """Abort so that the peer sees a reset. abort() alone sends FIN, which passes for the end of what was to come."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        option(sock, socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def dismiss(transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
    """Close, saying goodbye in TLS, and wait for nobody: the descriptor is free within two turns of the loop."""
    transport.close()
    loop.call_soon(transport.abort)  # what was just written leaves at the end of this turn


_count = array("i", (0,))  # may be written to, which ioctl tries first


def unsent(descriptor: int) -> int:
    """Bytes in the socket's queue that the kernel has not sent yet (SIOCOUTQNSD); 0 where it cannot tell."""
    try:
        fcntl.ioctl(descriptor, SIOCOUTQNSD, _count)
    except OSError:
        return 0
    return _count[0]
