"""How many UDP flows there may be, and which has to go for a new one. The same rules hold at the edge and at home.

A datagram's source address may be a lie, so a flow is at first worth nothing: it is one of the `new` ones, where the
newest is always let in and the oldest of the address with most of them goes. A flow on which the visitor went on after
it was answered is `proven`, and never goes for another one; no address has more of those than its share of what is
left (`access/shares.py`). Who blindly sends twice from invented addresses fills the proven places at most, and what has
none stays new: flows that were proven before do not notice.

Times: a flow ends after silence of its visitor. Answers do not count, or whoever once sent in somebody's name would
have them poured over that address for as long as the service likes.

Invariants: at most `new + proven` flows; a proven flow is never given up for another one; each step costs the same
however many flows there are.
PURE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from tunnelgw.access.crowd import Crowd
from tunnelgw.access.shares import Shares

if TYPE_CHECKING:
    from collections.abc import Hashable

# Of a visitor of whom one datagram came, or none after an answer. Linux's own connection tracking waits 30 s; a DNS
# question is over in one, and WireGuard's keepalives come every 25.
NEW_SECONDS = 30.0
# Both ways. RFC 4787 (REQ-5) asks for two minutes at least and Linux has that; QUIC's idle timeout and WireGuard's
# rekeying (both 120 s and a little) fit into three.
PROVEN_SECONDS = 180.0
# New flows at once: at about 1 KB each, and a socket at home, 4 MB. A question may be answered within 400 ms even while
# 10,000 invented addresses a second push.
NEW_MOST = 4096
PROVEN_MOST = 12288  # three times as many: 12 MB
# New flows of one address: a resolver that asks from a new port each time has so many within half a minute.
NEW_PER_ADDRESS = 256
# New flows of all ports in a second, and at once. Each costs 40 µs at both ends and a socket; beyond this a flood would
# only keep the processor from those who are there already, so it is dropped for a tenth of that.
BEGUN_PER_SECOND, BEGUN_BURST = 2000.0, 2048


class Flow(Protocol):
    """What is known of a flow here. `key`: of its visitor's address; None: nobody is held responsible."""

    key: str | None
    proven: bool

    def __hash__(self) -> int: ...


F = TypeVar("F", bound="Flow")


class FlowBounds(Generic[F]):
    """Inputs: `add`, `prove` and `remove`."""

    __slots__ = ("_new", "_per_key", "_proven")

    def __init__(self, *, new: int = NEW_MOST, proven: int = PROVEN_MOST, per_key: int = NEW_PER_ADDRESS) -> None:
        self._new: Crowd[F] = Crowd(new)
        self._proven = Shares(proven)
        self._per_key = per_key

    def __len__(self) -> int:
        return len(self._new) + self._proven.taken

    @property
    def proven(self) -> int:
        """How many are."""
        return self._proven.taken

    def add(self, flow: F) -> F | None:
        """One more, which is new; who has to go for it, if anybody (it is no member any more)."""
        key: Hashable | None = flow.key
        gone = self._new.take_of(key) if key is not None and self._new.count(key) >= self._per_key else None
        return self._new.add(key, flow) or gone

    def prove(self, flow: F) -> None:
        """The visitor went on after an answer: it is proven from now on, if there is room."""
        if not flow.proven and self._proven.room_for(flow.key):
            self._new.discard(flow)
            self._proven.take(flow.key)
            flow.proven = True

    def remove(self, flow: F) -> None:
        """It ended. Idempotent for one that is new or went for another."""
        if flow.proven:
            flow.proven = False
            self._proven.give_back(flow.key)
        else:
            self._new.discard(flow)


def patience(flow: Flow) -> float:
    """Seconds of the visitor's silence after which the flow ends."""
    return PROVEN_SECONDS if flow.proven else NEW_SECONDS
