"""Who has how many connections open, and a socket that keeps the count right.

Old connections stay and new ones are refused, with one exception: what is not through its handshake yet (`look`,
`shake`) makes room for newcomers, or a flood of half-done handshakes would lock everybody else out.

The count follows the descriptor itself (`CountedSocket`): whoever owns the socket later, transport or our own code,
closing it is what ends the count, so no path can forget to.

Invariant: a connection is counted from `admit` until its descriptor is closed, handed over or released, exactly once.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Protocol

from tunnelgw.access.crowd import Crowd
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Hashable

# Accepted and not decided yet: a socket, what was peeked at for a moment, a timer; about 3 KB each, 6 MB.
LOOKING_MAX = 2048
# Within a TLS handshake: about 100 KB each while it lasts, so 50 MB. At 2,000 a second each may still take 250 ms.
SHAKING_MAX = 512
PENDING_PER_ADDRESS = 256  # not through their handshake, of one address: a household behind NAT stays far below
# With three quarters of all places taken, an address that has so many gets no more of them: what is left is for others.
CROWDED_QUARTERS, FEW = 3, 32


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
    it may be a tunnel. A key of None is not limited by address (a trusted proxy).
    """

    __slots__ = (
        "_counters", "_peers", "limit", "looking", "open", "open_limit", "pending", "pending_per_key", "shaking",
    )  # fmt: skip

    def __init__(
        self,
        counters: ConnectionCounters,
        *,
        limit: int,
        open_limit: int,
        looking: int = LOOKING_MAX,
        shaking: int = SHAKING_MAX,
        pending_per_key: int = PENDING_PER_ADDRESS,
    ) -> None:
        self._counters = counters
        self.limit = limit
        self.open_limit = open_limit
        self.pending_per_key = pending_per_key
        self.open = 0
        self.pending = 0
        self.looking: Crowd[CountedSocket] = Crowd(looking)  # accepted, not decided
        self.shaking: Crowd[CountedSocket] = Crowd(shaking)  # within a handshake
        self._peers: dict[Hashable, _Peer] = {}

    def admit(self, key: Hashable | None, *, listener: str, handshake: bool) -> Reason | None:
        """Count one more, or say why not."""
        if not handshake and self.full:
            return Reason.DESCRIPTORS
        refusal = self._enter(key, handshake=handshake)
        if refusal is None:
            self.open += 1
            self.pending += handshake
            self._counters.connection_opened(listener)
        return refusal

    def _enter(self, key: Hashable | None, *, handshake: bool) -> Reason | None:
        if key is None:
            return None
        peer = self._peers.get(key)
        if peer is None:
            peer = self._peers[key] = _Peer()
        elif peer.open >= self.limit or (peer.open >= FEW and self.open * 4 >= self.open_limit * CROWDED_QUARTERS):
            return Reason.CONNECTION_LIMIT
        elif handshake and peer.pending >= self.pending_per_key:
            return Reason.HANDSHAKE_LIMIT
        peer.open += 1
        peer.pending += handshake
        return None

    def known_as(self, sock: CountedSocket, key: Hashable | None) -> Reason | None:
        """A trusted proxy said whose connection this is: count it for that address, or say why not."""
        if sock.key is None and key is not None:
            refusal = self._enter(key, handshake=sock.handshaking)
            if refusal is not None:
                return refusal
            sock.key = key
        return None

    def look(self, sock: CountedSocket) -> CountedSocket | None:
        """It is undecided; who has to go for it, if anybody: it, or one that waited longer."""
        return self.looking.add(sock.key, sock)

    def shake(self, sock: CountedSocket) -> None:
        """It was decided, and its handshake begins; who has to go for it, if anybody, is cut."""
        self.looking.discard(sock)
        gone = self.shaking.add(sock.key, sock)
        if gone is not None:
            with contextlib.suppress(OSError):  # its peer may have left by itself
                gone.shutdown(socket.SHUT_RDWR)  # whoever owns it sees the end, and counts it as failed

    def under_way(self, key: Hashable | None) -> int:
        """Connections of this address that are not through their handshake; 1 where nobody is held responsible."""
        return 1 if key is None else self._peers[key].pending

    @property
    def full(self) -> bool:
        """No further visitor: the descriptors and the memory that are left are for others."""
        return self.open > self.open_limit

    def take_back(self, key: Hashable | None, listener: str) -> None:
        """What was admitted for a handshake did not even become a socket of ours."""
        self.pending -= 1
        if key is not None:
            self._peers[key].pending -= 1
        self.left(key, listener)

    def settled(self, sock: CountedSocket) -> None:
        """A handshake ended, well or badly, or will not be."""
        self.looking.discard(sock)
        self.shaking.discard(sock)
        self.pending -= 1
        if sock.key is not None:
            self._peers[sock.key].pending -= 1

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
                self._ledger.settled(self)

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
