"""Listening sockets, and accepting from them without asyncio's server in between.

A raw accept callback is what lets the edge look at a connection before anything is allocated for it, and refuse before
it pays.

Invariants: one wake-up accepts a bounded number; without a free descriptor the loop never spins (the reserve descriptor
turns the oldest waiting peer away and accepting pauses).
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
from typing import TYPE_CHECKING

from tunnelgw.errors import LocalError
from tunnelgw.net.sockets import TCP_NOTSENT_LOWAT, option, stream_socket
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

log = logging.getLogger(__name__)

BACKLOG = 4096  # a burst of visitors while the loop is busy; the kernel's somaxconn may lower it
DEFER_SECONDS = 3  # measured: holds a silent peer in the kernel for 3 s, so most ClientHellos are there at accept
KEEPALIVE = (120, 30, 4)  # seconds of silence before the first probe, between probes, and how many: gone after 4 min
# What the kernel keeps unsent for one visitor, who may never read it. Without a bound it is megabytes for each, and
# thousands of slow readers fill the memory that the kernel has for all of TCP: everybody's connections stand still.
UNSENT_MOST = 256 * 1024
ACCEPTS_PER_WAKEUP = 32  # enough to drain a burst, few enough that established connections get their turn
PAUSE_SECONDS = 0.5  # accepting rests this long when descriptors or memory are out
COMPLAIN_SECONDS = 30.0  # the log hears of it this often
# Never given to visitors that stay: half of them for the store, certificates, the control socket and whatever else the
# process opens; the other half for those who leave, and for who may be a tunnel (`net/ledger.py`, BEYOND).
KEPT_DESCRIPTORS = 128
CONNECTION_BYTES = 48 * 1024  # an idle visitor on HTTP/2 over TLS, measured; on 512 MB that makes 5,461 of them
MAX_DESCRIPTORS = 1_048_576  # some systems say "unlimited", and Python closes each one it might have had
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
# What a connection that broke while it waited leaves behind, accept(2): no reason to stop accepting others.
_BROKEN = frozenset(
    {
        errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN,
        errno.EHOSTUNREACH, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.ENONET,
    }
)  # fmt: skip


def listen_on(host: str, port: int, *, defer: bool, dual_stack: bool = False) -> socket.socket:
    """A non-blocking TCP listener on a numeric address.

    `defer` wakes us only when the peer has sent something (TLS ports; never where the service may speak first).
    `dual_stack` lets "::" take IPv4 too. Raises `OSError` as bind does.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Where tunnels arrive, a connector with two uplinks may ask for MPTCP; everybody else gets plain TCP from accept().
    sock = stream_socket(family, multipath=defer)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual_stack else 1)
        if defer:
            defer_accept(sock)
        dress(sock)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def dress(listener: socket.socket) -> None:
    """Options that accepted sockets inherit, so that they cost no call for each: no delay, probes, bounded sending.

    A visitor that vanished without a word (raw TCP, WebSocket: no idle timer) is noticed after `KEEPALIVE`.
    """
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    option(listener, socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT_MOST)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    idle, interval, count = KEEPALIVE
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count)


def defer_accept(listener: socket.socket) -> None:
    """Let the kernel keep a connection until its peer has sent something, for a moment."""
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_SECONDS)


def listen_all(
    endpoints: list[tuple[str, int]], *, defer: bool, optional: bool, key: str = "listen"
) -> list[socket.socket]:
    """Listeners for a configuration key. `optional`: a family that the kernel lacks is skipped with a warning.

    Raises `LocalError` that names the address and what to do; then nothing stays open.
    """
    made: list[socket.socket] = []
    try:
        for host, port in endpoints:
            try:
                made.append(listen_on(host, port, defer=defer))
            except OSError as error:
                if optional and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    log.warning("%s: %s port %d skipped: %s", key, host, port, error.strerror)
                    continue
                raise LocalError(_bind_text(key, host, port, error)) from error
    except LocalError:
        for sock in made:
            sock.close()
        raise
    if endpoints and not made:
        raise LocalError(f"{key}: none of the addresses exists on this machine")
    return made


def _bind_text(key: str, host: str, port: int, error: OSError) -> str:
    where = f"{key}: cannot listen on {host} port {port}"
    if error.errno == errno.EADDRINUSE:
        return f"{where}: another program uses it (see: ss -ltnp 'sport = :{port}')"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{where}: not allowed; run under the systemd unit, as root, or with CAP_NET_BIND_SERVICE"
    return f"{where}: {error.strerror}"


def most_descriptors() -> int:
    """Raise this process's limit of open files as far as it may, and say what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        return soft
    return wanted


def most_connections(descriptors: int, *, workers: int = 1, memory: int | None = None) -> int:
    """How many visitors fit: in the descriptors that are not kept for others, and in its share of half the memory."""
    if memory is None:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(64, min(descriptors - KEPT_DESCRIPTORS, memory // 2 // workers // CONNECTION_BYTES))


class Reserve:
    """One spare descriptor per process, spent to turn a peer away when none is left (or it would wait unanswered)."""

    __slots__ = ("_spare",)

    def __init__(self) -> None:
        self._spare = _null()

    def turn_away(self, listener: socket.socket) -> bool:
        """Accept one and close it at once. False if even that was impossible."""
        if self._spare < 0:
            self._spare = _null()
            return False
        os.close(self._spare)
        try:
            listener.accept()[0].close()
        except OSError:
            return False
        finally:
            self._spare = _null()
        return True

    def close(self) -> None:
        """Give the descriptor back."""
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1


def _null() -> int:
    try:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _never() -> bool:
    """There is always room."""
    return False


class Acceptor:
    """Accepts from one listening socket and calls `accepted(sock, address)` for each connection.

    The listener is borrowed: `close` stops accepting and leaves it open, so that it can be handed over. `refused` hears
    of peers turned away for want of descriptors. While `waits()` says so, who comes stays in the kernel's queue for a
    turn of the loop.
    """

    __slots__ = (
        "_accepted", "_loop", "_pause", "_quiet_until", "_refused", "_reserve", "_waits", "listener",
        "running", "wakeups",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        *,
        accepted: Callable[[socket.socket, tuple[str, int]], None],
        refused: Callable[[Reason], None],
        reserve: Reserve,
        waits: Callable[[], bool] = _never,
    ) -> None:
        self._loop = loop
        self.listener = listener
        self._accepted = accepted
        self._refused = refused
        self._reserve = reserve
        self._waits = waits
        self._pause: asyncio.TimerHandle | None = None
        self._quiet_until = 0.0
        self.running = False
        self.wakeups = 0

    def start(self) -> None:
        """Begin to accept. Idempotent."""
        if not self.running:
            self.running = True
            self.listener.setblocking(False)
            self._loop.add_reader(self.listener.fileno(), self._ready)

    def close(self) -> None:
        """Stop accepting; the listener stays open. Idempotent."""
        if self.running:
            self.running = False
            if self._pause is not None:
                self._pause.cancel()
                self._pause = None
            else:
                self._loop.remove_reader(self.listener.fileno())

    def _ready(self) -> None:
        self.wakeups += 1
        accept = self.listener.accept
        for _ in range(ACCEPTS_PER_WAKEUP):
            if self._waits():
                return
            try:
                sock, address = accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _BROKEN:
                    continue
                self._rest(error)
                return
            self._accepted(sock, (address[0], address[1]))
            if not self.running:
                return

    def _rest(self, error: OSError) -> None:
        """Nothing can be accepted now: turn one away, then leave the rest in the kernel's queue for a moment."""
        now = self._loop.time()
        if error.errno in _OUT_OF_DESCRIPTORS and self._reserve.turn_away(self.listener):
            self._refused(Reason.DESCRIPTORS)
        if now >= self._quiet_until:
            self._quiet_until = now + COMPLAIN_SECONDS
            log.error("cannot accept connections: %s; trying again every %.1f s", error.strerror, PAUSE_SECONDS)
        self._loop.remove_reader(self.listener.fileno())
        self._pause = self._loop.call_later(PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self.listener.fileno(), self._ready)
