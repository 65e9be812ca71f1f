"""The tunnel port: from a peeked connection with ALPN `tgw/1` to an accepted hello, a join or a renewal.

The front door hands over a raw socket; this file does the TLS 1.3 handshake and reads one greeting. Who shows no
certificate of the edge's authority may only join; who shows an expired one may only renew it. Every refusal carries a
typed reason, is counted, and is logged once per interval and address, so that an attacker cannot fill the disk.

Invariants: nothing is allocated for a session before the hello is authenticated and authorised; a guest that says
nothing is gone after twice GREETING_SECONDS; an invitation's secret is only looked at below the attempt limit; a guest
is answered as often as one join needs, and no more.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from functools import partial
from typing import TYPE_CHECKING, Any

from tunnelgw.access.addresses import address_key
from tunnelgw.errors import LocalError, Refused, RemoteError, TunnelgwError
from tunnelgw.identity.records import VISITOR
from tunnelgw.net import sockets
from tunnelgw.net.link import Link
from tunnelgw.net.tasks import spawn
from tunnelgw.net.timers import INF, Wheel
from tunnelgw.obs.reasons import Reason
from tunnelgw.obs.sparing import Sparing
from tunnelgw.private.spki import key_fingerprint
from tunnelgw.wire import hello
from tunnelgw.wire.control import (
    Authority,
    Greeting,
    Hello,
    Join,
    Joined,
    JoinStart,
    RefusedMessage,
    RenewRequest,
)
from tunnelgw.wire.flow import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.edge.connectors import Connectors
    from tunnelgw.edge.office import Office
    from tunnelgw.identity.records import Connector as Record
    from tunnelgw.net.ledger import CountedSocket
    from tunnelgw.obs.counters import ProcessCounters

log = logging.getLogger(__name__)

GREETING_SECONDS = 10.0  # for the handshake; twice that for handshake and greeting together
LINGER_SECONDS = 5.0  # a refused guest may read why
# Failed authentications of one address (IPv4, or IPv6 /64) in ATTEMPT_WINDOW seconds before it is turned away unheard.
ATTEMPTS_MAX = 20
ATTEMPT_WINDOW = 60.0
# Handshakes and greetings under way, at about 50 KB each; a restart brings every connector at once. At the bound the
# one that waits longest leaves: who has something to say does so within a round trip, a flood only waits.
GUESTS_MAX = 1024  # and no more than a quarter of all places
GUESTS_PER_ADDRESS = 128  # one house or office, whose connectors all come back at once; a flood needs eight addresses
ADDRESSES_MAX = 4096  # remembered at once; the oldest are forgotten first
# Accepted hellos of one identity: an edge's restart with all workers at once, then one dial in five seconds.
HELLOS_BURST, HELLOS_PER_SECOND = 64, 0.2
VISITS_BURST, VISITS_PER_SECOND = 128, 2.0  # a visitor's: each ssh is a dial, and a script runs one after the other
_RETRY = {Reason.RATE_LIMIT: ATTEMPT_WINDOW, Reason.SUPERSEDED: 15.0}
# Refused, but no guess: neither a dial of a known identity, nor one that was not heard.
_NO_ATTEMPT = frozenset((Reason.SUPERSEDED, Reason.RATE_LIMIT, Reason.HANDSHAKE_LIMIT))


class Attempts:
    """Failed authentications per address in the present window."""

    __slots__ = ("_counts", "_loop", "_until")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._counts: dict[Any, int] = {}
        self._until = 0.0

    def _roll(self) -> None:
        now = self._loop.time()
        if now >= self._until:
            self._counts.clear()
            self._until = now + ATTEMPT_WINDOW

    def failed(self, key: object) -> int:
        """Note a failure; how many there were in this window."""
        self._roll()
        if key not in self._counts and len(self._counts) >= ADDRESSES_MAX:
            del self._counts[next(iter(self._counts))]
        count = self._counts[key] = self._counts.get(key, 0) + 1
        return count

    def too_many(self, key: object) -> bool:
        """True once this address has used up its attempts."""
        self._roll()
        return self._counts.get(key, 0) >= ATTEMPTS_MAX


class Guest:
    """Owner of a link until its greeting is answered."""

    __slots__ = ("accepted", "answered", "armed_until", "busy", "deadline", "key", "link", "port", "shown")

    def __init__(self, port: TunnelPort, key: object, *, accepted: Callable[[], None]) -> None:
        self.port = port
        self.key = key
        self.accepted = accepted
        self.link: Link | None = None
        self.busy = False  # a certificate is being signed for it
        self.shown = False  # the authority, once
        self.answered = False  # refused or served: it has nothing more to ask
        self.deadline = INF
        self.armed_until = INF

    def on_deadline(self, now: float) -> None:  # noqa: ARG002 - the wheel's interface
        if self.link is not None:
            self.link.abort(TimeoutError("no greeting in time"))

    def link_lost(self, link: Link, error: Exception | None) -> None:
        """It left, was too slow, or spoke nonsense."""
        self.leave()
        if isinstance(error, RemoteError):
            self.port.note_refusal(self.key, link.peer, error)
        log.debug("guest %s left: %s", link.peer, error)

    def greeting_received(self, link: Link, message: Greeting) -> None:
        """One greeting; what may be said is in `_LEGAL`."""
        if self.busy or self.answered:
            raise RemoteError("another greeting before or after the answer to the last one")
        try:
            # Who has a certificate guesses nothing, and must get in whatever a neighbour behind the same NAT does.
            if isinstance(message, JoinStart | Join) and self.port.attempts.too_many(self.key):
                raise _too_many()
            handler = _LEGAL.get(type(message))
            if handler is None:
                raise RemoteError(f"{type(message).__name__} is not for an edge")
            handler(self, link, message)
        except Refused as refusal:
            self.refuse(link, refusal)
        except LocalError as error:
            self.excuse(link, error)

    def excuse(self, link: Link, error: LocalError) -> None:
        """Our own fault, which is no stranger's business: let it come again."""
        log.error("tunnel from %s cannot be answered: %s", link.peer, error.text)
        self.refuse(link, Refused("the edge has a problem of its own; its log says more", reason=Reason.INTERNAL))

    def refuse(self, link: Link, refusal: TunnelgwError) -> None:
        """Say why, and close once it had the time to read it."""
        self.answered = True
        self.port.note_refusal(self.key, link.peer, refusal)
        link.greet(
            RefusedMessage(
                reason=refusal.reason.label,
                message=refusal.text[:1000],
                retry_seconds=_RETRY.get(refusal.reason, 0.0),
            )
        )
        link.close()
        self.port.wheel.arm(self, self.port.loop.time() + LINGER_SECONDS)

    def hello(self, link: Link, message: Hello) -> None:
        """A connector or a visiting machine with a certificate wants its tunnel."""
        version = hello.negotiate(message.versions)
        certificate = _certificate(link)
        identity = self.port.office.authorise(certificate)
        self.port.count_hello(identity)
        serial, connectors = str(certificate["serialNumber"]), self.port.connectors
        if identity.role == VISITOR:
            key = _key(link)
            connectors.visits.accept(link, message, version=version, identity=identity, serial=serial, key=key)
        else:
            connectors.known(identity.name).accept(link, message, version=version, serial=serial)
        self.leave()
        self.accepted()

    def leave(self) -> None:
        """No longer a guest."""
        self.deadline = INF
        self.port.guest_left(self)

    def join_start(self, link: Link, message: JoinStart) -> None:
        """Show the authority, so that the joiner can check it before it says its secret; once, since it is long."""
        if self.shown:
            raise RemoteError("the authority was shown already")
        self.shown = True
        version = hello.negotiate(message.versions)
        link.greet(Authority(version=version, ca=self.port.office.authority))

    def join(self, link: Link, message: Join) -> None:
        """Exchange an invitation for a certificate; the signing happens outside of the loop."""
        self._wait()
        spawn(self._answer(link, self._join, message), name="join")

    def renew(self, link: Link, message: RenewRequest) -> None:
        """A new certificate for an expired one that was not revoked."""
        certificate, office = _certificate(link), self.port.office
        name = office.authorise(certificate, expired=True).name
        self._wait()
        work = partial(office.renew, shown=str(certificate["serialNumber"]))
        spawn(self._answer(link, work, name, message), name="renewal")

    async def _join(self, message: Join) -> Joined:
        # Looked at again: of a hundred guesses that came in one turn of the loop, each must know of those before.
        if self.port.attempts.too_many(self.key):
            raise _too_many()
        return await self.port.office.join(message)

    def _wait(self) -> None:
        """The office has its own deadline, and what it signed must not be lost to ours."""
        self.busy = True
        self.deadline = INF

    async def _answer(self, link: Link, work: Callable[..., Any], *arguments: object) -> None:
        try:
            link.greet(await work(*arguments))
        except (Refused, RemoteError) as refusal:
            self.refuse(link, refusal)
        except LocalError as error:
            self.excuse(link, error)
        else:
            self.answered = True
            link.close()
            self.port.wheel.arm(self, self.port.loop.time() + LINGER_SECONDS)


_LEGAL: dict[type, Callable[[Guest, Link, Any], None]] = {
    Hello: Guest.hello,
    JoinStart: Guest.join_start,
    Join: Guest.join,
    RenewRequest: Guest.renew,
}


def _too_many() -> Refused:
    return Refused("too many failed attempts from this address", reason=Reason.RATE_LIMIT)


def _certificate(link: Link) -> dict[str, Any]:
    """What the peer proved in TLS; `Refused` for none."""
    assert link.transport is not None
    tls_object: ssl.SSLObject | None = link.transport.get_extra_info("ssl_object")
    certificate = tls_object.getpeercert() if tls_object is not None else None
    if not certificate:
        raise Refused("no certificate of this edge was shown: join first", reason=Reason.UNAUTHENTICATED)
    return dict(certificate)


def _key(link: Link) -> str:
    """The fingerprint of the key that the peer proved in TLS."""
    assert link.transport is not None
    return key_fingerprint(link.transport.get_extra_info("ssl_object").getpeercert(binary_form=True) or b"")


class TunnelPort:
    """Takes sockets from the front door."""

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        wheel: Wheel,
        counters: ProcessCounters,
        connectors: Connectors,
        office: Office,
    ) -> None:
        self.loop = loop
        self.wheel = wheel
        self.counters = counters
        self.connectors = connectors
        self.office = office
        self.attempts = Attempts(loop)
        self.guests: dict[Guest, None] = {}  # oldest first
        self._of_key: dict[object, int] = {}
        self._hellos: dict[str, TokenBucket] = {}  # by identity
        self._sparing = Sparing(log)

    def take(self, sock: CountedSocket, address: str) -> None:
        """A connection whose ClientHello says `tgw/1`; nothing of it was read. Owned here from now on.

        It counts as a stranger's until its hello is accepted, or a flood of guests would escape every limit.
        """
        key = address_key(address)
        if self._of_key.get(key, 0) >= GUESTS_PER_ADDRESS or not self._make_room(sock.quarter):
            self.note_refusal(key, address, Refused("too many guests wait", reason=Reason.HANDSHAKE_LIMIT))
            sock.close()
            return
        guest = Guest(self, key, accepted=sock.become_link)
        # Before the handshake: its end, the greeting and the peer's leaving can all come in one turn of the loop.
        self.guests[guest] = None
        self._of_key[key] = self._of_key.get(key, 0) + 1
        self.wheel.arm(guest, self.loop.time() + 2 * GREETING_SECONDS)
        spawn(self._handshake(guest, sock, address), name="tunnel handshake")

    def guest_left(self, guest: Guest) -> None:
        """It was answered, or is gone. Idempotent."""
        if guest in self.guests:
            del self.guests[guest]
            left = self._of_key[guest.key] - 1
            if left:
                self._of_key[guest.key] = left
            else:
                del self._of_key[guest.key]

    def count_hello(self, identity: Record) -> None:
        """An identity dials; `Refused` (RATE_LIMIT) for one that does nothing else."""
        now = self.loop.time()
        bucket = self._hellos.get(identity.name)
        if bucket is None:
            visits = identity.role == VISITOR
            rate, burst = (VISITS_PER_SECOND, VISITS_BURST) if visits else (HELLOS_PER_SECOND, HELLOS_BURST)
            bucket = self._hellos[identity.name] = TokenBucket(rate=rate, burst=burst, now=now)
        if not bucket.take(now):
            raise Refused(f"{identity.name} dials too often", reason=Reason.RATE_LIMIT)

    def _make_room(self, quarter: int | None) -> bool:
        """Whether there is room for one more guest, perhaps since the oldest that can leave had to."""
        if len(self.guests) < min(GUESTS_MAX, quarter or GUESTS_MAX):
            return True
        oldest = next((guest for guest in self.guests if not guest.busy and guest.link is not None), None)
        if oldest is None or oldest.link is None:
            return False
        self.counters.refuse(Reason.HANDSHAKE_LIMIT)
        oldest.link.abort(ConnectionAbortedError("made room for a newer guest"))
        return True

    def close(self) -> None:
        """Turn everybody away who has not said hello yet."""
        for guest in tuple(self.guests):
            if guest.link is not None:
                guest.link.abort()

    async def _handshake(self, guest: Guest, sock: CountedSocket, address: str) -> None:
        link = guest.link = Link(guest, loop=self.loop)
        sockets.tune_link(sock)
        try:
            await self.loop.connect_accepted_socket(
                lambda: link,
                sock,
                ssl=self.office.tunnel_context,
                ssl_handshake_timeout=GREETING_SECONDS,
                ssl_shutdown_timeout=LINGER_SECONDS,
            )
        except (OSError, ssl.SSLError, asyncio.TimeoutError) as error:  # noqa: UP041 - uvloop raises its own on 3.11
            guest.leave()
            sock.close()
            self.note_refusal(guest.key, address, RemoteError(f"TLS: {error}", reason=Reason.HANDSHAKE_FAILED))
        finally:
            sock.settle()

    def note_refusal(self, key: object, peer: str, refusal: TunnelgwError) -> None:
        """Count it; log it at most once a minute for each address and reason, and not for every address of many."""
        self.counters.refuse(refusal.reason)
        if refusal.reason not in _NO_ATTEMPT:
            self.attempts.failed(key)
        label = refusal.reason.label
        self._sparing.warning(
            f"{key} {label}", self.loop.time(), "tunnel from %s refused (%s): %s", peer, label, refusal.text
        )
