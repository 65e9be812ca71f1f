"""Who has how many connections open, who makes room when there is none, and a socket that keeps the count right.

Places are few (descriptors, memory), and a stranger may sit on as many as the edge lets it. So no address has more
under way than its share of what is left (`access/shares.py`), and when all places are taken a newcomer gets that of a
connection that is idle between requests, or where there is none, of one that is not decided yet; of the address that
has most of those, the one that rests longest. What is under way (an exchange, WebSocket, raw bytes) is never cut for
somebody else. What rests is in nobody's way: it counts for the limit of its address, and not for its share.

The count follows the descriptor itself (`CountedSocket`): whoever owns the socket later, transport or our own code,
closing it is what ends the count, so no path can forget to.

Invariants: a connection is counted from `admit` until its descriptor is closed, handed over or released, exactly once;
at most `open_limit + beyond` descriptors are open, whatever strangers do; making room costs the same however many rest.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Protocol

from tunnelgw.access.crowd import Crowd
from tunnelgw.access.shares import share
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

# Accepted and not decided yet: a socket, what was peeked at for a moment, a timer; about 3 KB each, 6 MB.
LOOKING_MAX = 2048
# Within a TLS handshake: about 100 KB each while it lasts, so 50 MB. At 2,000 a second each may still take 250 ms.
SHAKING_MAX = 512
PENDING_PER_ADDRESS = 256  # not through their handshake, of one address: a household behind NAT stays far below
# Beyond the limit: those that leave take a turn of the loop or two to close, and who may be a tunnel must be looked at.
# Twice what one wake-up accepts, and half of the descriptors that are kept (`net/accept.py`).
BEYOND = 64
LINK_DESCRIPTORS = 2  # of a tunnel's link: its socket, and another one to watch it by


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

    `limit`: connections of one key. `open_limit`: of all, and of descriptors that others `held` meanwhile; undecided
    ones may be `beyond` that, since they may be tunnels. A key of None is not limited by address (a trusted proxy).
    """

    __slots__ = (
        "_counters", "_peers", "beyond", "held", "leaving", "limit", "looking", "open", "open_limit", "pending",
        "pending_per_key", "resting", "shaking",
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
        beyond: int = BEYOND,
    ) -> None:
        self._counters = counters
        self.limit = limit
        self.open_limit = open_limit
        self.beyond = beyond
        self.pending_per_key = pending_per_key
        self.open = 0
        self.held = 0  # descriptors that tunnels and ports have: so many fewer for visitors
        self.leaving = 0  # made room, and not closed yet
        self.pending = 0
        self.looking: Crowd[CountedSocket] = Crowd(min(looking, self.quarter))  # accepted, not decided
        self.shaking: Crowd[CountedSocket] = Crowd(min(shaking, self.quarter))  # within a handshake
        self.resting: Crowd[CountedSocket] = Crowd(open_limit + beyond)  # between requests, may be asked to leave
        self._peers: dict[str, _Peer] = {}

    @property
    def quarter(self) -> int:
        """The most of one kind of half-done connections, where places are few."""
        return max(16, self.open_limit // 4)

    def admit(self, key: str | None, *, listener: str, handshake: bool, visitor: bool = False) -> Reason | None:
        """Count one more, or say why not. `handshake`: one begins, and it may be a tunnel unless it is a `visitor`."""
        refusal = None if key is None else self._refusal(key, handshake=handshake)
        if refusal is None and not self._find_room(undecided=handshake and not visitor):
            refusal = Reason.DESCRIPTORS
        if refusal is None:
            self._enter(key, handshake=handshake)
            self.open += 1
            self.pending += handshake
            self._counters.connection_opened(listener)
        return refusal

    def known_as(self, sock: CountedSocket, key: str | None) -> Reason | None:
        """A trusted proxy said whose connection this is: count it for that address, or say why not."""
        if sock.key is None and key is not None:
            refusal = self._refusal(key, handshake=sock.handshaking)
            if refusal is not None:
                return refusal
            self._enter(key, handshake=sock.handshaking)
            sock.key = key
        return None

    def _refusal(self, key: str, *, handshake: bool) -> Reason | None:
        peer = self._peers.get(key)
        if peer is None:
            return None
        if peer.open >= self.limit or self.crowded(key):
            return Reason.CONNECTION_LIMIT
        return Reason.HANDSHAKE_LIMIT if handshake and peer.pending >= self.pending_per_key else None

    def crowded(self, key: str) -> bool:
        """Whether this address has its share of the places under way already."""
        resting = self.resting
        left = self.open_limit - self.held - self.open + len(resting)
        return self._peers[key].open - resting.count(key) >= share(left)

    def _enter(self, key: str | None, *, handshake: bool) -> None:
        if key is not None:
            peer = self._peers.get(key)
            if peer is None:
                peer = self._peers[key] = _Peer()
            peer.open += 1
            peer.pending += handshake

    # Room.

    def _find_room(self, *, undecided: bool) -> bool:
        taken, room = self.open + self.held, self.open_limit + self.beyond
        if taken - self.leaving < self.open_limit:
            return taken < room
        if taken < room and (self._ask(self.resting) or undecided):
            return True
        return self._ask(self.looking) and self.open + self.held < room

    def make_room(self, sock: CountedSocket) -> bool:
        """Whether `sock`, which is beyond the limit and turned out to be a visitor, may stay for somebody else."""
        self.looking.discard(sock)
        return self._ask(self.resting) or self._ask(self.looking)

    def _ask(self, crowd: Crowd[CountedSocket]) -> bool:
        """Make one leave: the first that came of whoever has most there. False if nobody is there."""
        sock = crowd.take(self._open_of)
        if sock is None or sock.leave is None:
            return False
        leave, sock.leave = sock.leave, None
        sock.leaving = True
        self.leaving += 1
        leave()
        return True

    def _open_of(self, key: Hashable) -> int:
        """Who had something under way a moment ago does not rest yet, and is no poorer for it."""
        peer = self._peers.get(key) if isinstance(key, str) else None
        return 1 if peer is None else peer.open

    @property
    def full(self) -> bool:
        """No further visitor: the descriptors and the memory that are left are for others."""
        return self.open + self.held - self.leaving > self.open_limit

    @property
    def waits(self) -> bool:
        """There is no room at this moment, and will be in a turn of the loop: newcomers had better wait for it."""
        return self.leaving > 0 and self.open + self.held >= self.open_limit + self.beyond

    # Connections that are not through their handshake.

    def look(self, sock: CountedSocket, leave: Callable[[], None]) -> CountedSocket | None:
        """It is undecided, and `leave` ends it; who has to go for it, if anybody: it, or one that waited longer."""
        sock.leave = leave
        return self.looking.add(sock.key, sock)

    def shake(self, sock: CountedSocket) -> None:
        """It was decided, and its handshake begins; who has to go for it, if anybody, is cut."""
        self._looked(sock)
        gone = self.shaking.add(sock.key, sock)
        if gone is not None:
            with contextlib.suppress(OSError):  # its peer may have left by itself
                gone.shutdown(socket.SHUT_RDWR)  # whoever owns it sees the end, and counts it as failed

    def _looked(self, sock: CountedSocket) -> None:
        if sock in self.looking:
            self.looking.discard(sock)
            sock.leave = None

    def under_way(self, key: str | None) -> int:
        """Connections of this address that are not through their handshake; 1 where nobody is held responsible."""
        return 1 if key is None else self._peers[key].pending

    def settled(self, sock: CountedSocket) -> None:
        """A handshake ended, well or badly, or will not be."""
        self._looked(sock)
        self.shaking.discard(sock)
        self.pending -= 1
        if sock.key is not None:
            self._peers[sock.key].pending -= 1

    # The end.

    def take_back(self, key: str | None, listener: str) -> None:
        """What was admitted for a handshake did not even become a socket of ours."""
        self.pending -= 1
        if key is not None:
            self._peers[key].pending -= 1
        self.left(key, listener)

    def left(self, key: str | None, listener: str) -> None:
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

    __slots__ = ("_held", "_ledger", "handshaking", "key", "leave", "leaving", "listener", "local", "peer")

    key: str | None
    listener: str
    peer: tuple[str, int]  # as the visitor is known: what a trusted PROXY header said, else the address itself
    local: tuple[str, int] | None  # the address it connected to, where a PROXY header said so
    handshaking: bool
    leave: Callable[[], None] | None  # asks its owner to give it up; None while something is under way
    leaving: bool  # its owner was asked
    _ledger: Ledger | None
    _held: Ledger | None  # counts the descriptors of this link

    @property
    def quarter(self) -> int | None:
        """As `Ledger.quarter`; None where nobody counts."""
        return None if self._ledger is None else self._ledger.quarter

    def rest(self, leave: Callable[[], None]) -> None:
        """Nothing is under way: `leave` may be called, once, when somebody else needs the place."""
        ledger = self._ledger
        if ledger is not None and not self.leaving:
            ledger.resting.discard(self)
            self.leave = leave
            ledger.resting.add(self.key, self)

    def work(self) -> bool:
        """Something is under way (again); False if its address has its share of that already. Idempotent."""
        self.leave = None
        ledger = self._ledger
        if ledger is None or self not in ledger.resting:
            return True
        crowded = self.key is not None and ledger.crowded(self.key)
        ledger.resting.discard(self)
        return not crowded

    def settle(self) -> None:
        """The handshake is over: it no longer counts against the handshakes in flight. Idempotent."""
        if self.handshaking:
            self.handshaking = False
            if self._ledger is not None:
                self._ledger.settled(self)

    def release(self) -> None:
        """Stop counting this one, though it may stay open. Idempotent."""
        self.settle()
        self.work()
        ledger, self._ledger = self._ledger, None
        if ledger is not None:
            ledger.leaving -= self.leaving
            ledger.left(self.key, self.listener)

    def become_link(self) -> None:
        """It is a tunnel's, and no visitor: only its descriptors count, until they are closed."""
        ledger = self._ledger
        self.release()
        if ledger is not None:
            self._held = ledger
            ledger.held += LINK_DESCRIPTORS

    def close(self) -> None:
        self._end()
        super().close()

    def detach(self) -> int:
        self._end()
        return super().detach()

    def _end(self) -> None:
        self.release()
        ledger, self._held = self._held, None
        if ledger is not None:
            ledger.held -= LINK_DESCRIPTORS


def counted(
    sock: socket.socket,
    ledger: Ledger | None,
    *,
    key: str | None,
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
    result.leave = result._held = None
    result.leaving = False
    return result
