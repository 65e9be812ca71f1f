"""Who has how many connections open, and a socket that keeps the count right.

The count follows the descriptor itself (`CountedSocket`): whoever owns the socket later, transport or our own code,
closing it is what ends the count, so no path can forget to.

Invariant: a connection is counted from `admit` until its descriptor is closed, handed over or released, exactly once.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Protocol

from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Hashable

PENDING_LIMIT = 2048  # handshakes in flight, at about 50 KB each inside OpenSSL: 100 MB at the very worst
PENDING_PER_ADDRESS = 256  # handshakes in flight from one address: a household behind NAT stays far below


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
