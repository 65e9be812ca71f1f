"""Listening sockets, and accepting from them without asyncio's server in between.

A raw accept callback is what lets the edge look at a connection before anything is allocated for it, and refuse before
it pays. The count of open connections follows the descriptor itself (`CountedSocket`): whoever owns the socket later,
transport or our own code, closing it is what ends the count, so no path can forget to.

Invariants: one wake-up accepts a bounded number; without a free descriptor the loop never spins (the reserve descriptor
turns the oldest waiting peer away and accepting pauses); a connection is counted until its descriptor is closed,
handed over or released, and exactly once.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
from typing import TYPE_CHECKING, Protocol

from tunnelgw.errors import LocalError
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Hashable

log = logging.getLogger(__name__)

BACKLOG = 4096  # a burst of visitors while the loop is busy; the kernel's somaxconn may lower it
DEFER_SECONDS = 3  # facts: holds a silent peer in the kernel for 3 s, so most ClientHellos are there at accept
ACCEPTS_PER_WAKEUP = 32  # enough to drain a burst, few enough that established connections get their turn
PAUSE_SECONDS = 0.5  # accepting rests this long when descriptors or memory are out
PENDING_LIMIT = 2048  # handshakes in flight, at about 50 KB each inside OpenSSL: 100 MB at the very worst
PENDING_PER_ADDRESS = 256  # handshakes in flight from one address: a household behind NAT stays far below
COMPLAIN_SECONDS = 30.0  # the log hears of it this often
KEPT_DESCRIPTORS = 128  # never given to visitors: tunnels, the store, admin, peeking while visitors have taken the rest
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
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual_stack else 1)
        if defer:
            defer_accept(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


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


class _Peer:
    """What one address has open."""

    __slots__ = ("open", "pending")

    def __init__(self) -> None:
        self.open = 0
        self.pending = 0


class ConnectionCounters(Protocol):
    """Who is told of connections that open and close, by listener ("https", "http", "tcp")."""

    def connection_opened(self, listener: str) -> None:
        """One more."""

    def connection_closed(self, listener: str) -> None:
        """One less."""


class Ledger:
    """Counts connections by address key, and how many of them are not through their handshake yet.

    `limit`: connections of one key. `open_limit`: of all; a TLS connection may still be looked at then (`full`), since
    it may be a tunnel. `pending_limit`: handshakes in flight over all keys. A key of None is not limited
    by address (a trusted proxy), but its handshakes count.
    """

    __slots__ = ("_counters", "_peers", "limit", "open", "open_limit", "pending", "pending_limit", "pending_per_key")

    def __init__(
        self,
        counters: ConnectionCounters,
        *,
        limit: int,
        open_limit: int,
        pending_limit: int = PENDING_LIMIT,
        pending_per_key: int = PENDING_PER_ADDRESS,
    ) -> None:
        self._counters = counters
        self.limit = limit
        self.open_limit = open_limit
        self.pending_limit = pending_limit
        self.pending_per_key = pending_per_key
        self.open = 0
        self.pending = 0
        self._peers: dict[Hashable, _Peer] = {}

    def admit(self, key: Hashable | None, *, listener: str, handshake: bool) -> Reason | None:
        """Count one more, or say why not. Old connections always stay: what is refused is the new one."""
        if handshake and self.pending >= self.pending_limit:
            return Reason.HANDSHAKE_LIMIT
        if not handshake and self.full:
            return Reason.DESCRIPTORS
        if key is not None:
            peer = self._peers.get(key)
            if peer is None:
                peer = self._peers[key] = _Peer()
            elif peer.open >= self.limit:
                return Reason.CONNECTION_LIMIT
            elif handshake and peer.pending >= self.pending_per_key:
                return Reason.HANDSHAKE_LIMIT
            peer.open += 1
            peer.pending += handshake
        self.open += 1
        self.pending += handshake
        self._counters.connection_opened(listener)
        return None

    @property
    def full(self) -> bool:
        """No further visitor: the descriptors that are left are for others."""
        return self.open > self.open_limit

    def settled(self, key: Hashable | None) -> None:
        """A handshake ended, well or badly."""
        self.pending -= 1
        if key is not None:
            self._peers[key].pending -= 1

    def left(self, key: Hashable | None, listener: str) -> None:
        """A connection is no longer open here."""
        self.open -= 1
        self._counters.connection_closed(listener)
        if key is not None:
            peer = self._peers[key]
            peer.open -= 1
            if not peer.open:
                del self._peers[key]


class CountedSocket(socket.socket):
    """An accepted connection that leaves its ledger when its descriptor does (close, detach or `release`)."""

    __slots__ = ("_ledger", "handshaking", "key", "listener", "local", "peer")

    key: Hashable | None
    listener: str
    peer: tuple[str, int]  # as the visitor is known: what a trusted PROXY header said, else the address itself
    local: tuple[str, int] | None  # the address it connected to, where a PROXY header said so
    handshaking: bool
    _ledger: Ledger | None

    def settle(self) -> None:
        """The handshake is over: it no longer counts against the handshakes in flight. Idempotent."""
        if self.handshaking:
            self.handshaking = False
            if self._ledger is not None:
                self._ledger.settled(self.key)

    def release(self) -> None:
        """Stop counting this one (a tunnel), though it stays open. Idempotent."""
        self.settle()
        ledger, self._ledger = self._ledger, None
        if ledger is not None:
            ledger.left(self.key, self.listener)

    def close(self) -> None:
        self.release()
        super().close()

    def detach(self) -> int:
        self.release()
        return super().detach()


def counted(
    sock: socket.socket,
    ledger: Ledger | None,
    *,
    key: Hashable | None,
    peer: tuple[str, int],
    listener: str,
    handshake: bool,
) -> CountedSocket:
    """`sock` as a counted socket; `sock` itself is empty afterwards. The ledger must have admitted it (or is None)."""
    family, kind, proto = sock.family, sock.type, sock.proto
    result = CountedSocket(family, kind, proto, fileno=sock.detach())
    result.setblocking(False)
    result._ledger = ledger
    result.key = key
    result.peer = peer
    result.local = None
    result.listener = listener
    result.handshaking = handshake
    return result


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


class Acceptor:
    """Accepts from one listening socket and calls `accepted(sock, address)` for each connection.

    The listener is borrowed: `close` stops accepting and leaves it open, so that it can be handed over. `refused` hears
    of peers turned away for want of descriptors.
    """

    __slots__ = (
        "_accepted", "_loop", "_pause", "_quiet_until", "_refused", "_reserve", "listener", "running", "wakeups",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        *,
        accepted: Callable[[socket.socket, tuple[str, int]], None],
        refused: Callable[[Reason], None],
        reserve: Reserve,
    ) -> None:
        self._loop = loop
        self.listener = listener
        self._accepted = accepted
        self._refused = refused
        self._reserve = reserve
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
