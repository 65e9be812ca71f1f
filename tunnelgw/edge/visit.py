"""One visiting machine's tunnel as the edge sees it: its session, and the links that come and go.

A tunnel outlives its links as a connector's does. What it opens is decided and joined by `Visits`. Several tunnels of
one identity may be up at once, one for each process that visits.

Invariant: at most one link carries the session; when the session dies, everything that it opened is reset, but for
streams that ended both ways, whose last bytes are passed on; a cut spares nothing.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from tunnelgw.edge.greeting import welcome
from tunnelgw.edge.tunnel import Tunnel
from tunnelgw.errors import Refused, RemoteError
from tunnelgw.net.timers import INF
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire.flow import SessionLimits, TokenBucket

if TYPE_CHECKING:
    from tunnelgw.access.grants import Grant
    from tunnelgw.edge.joint import Joint
    from tunnelgw.edge.visits import Visits
    from tunnelgw.net.link import Link
    from tunnelgw.wire.control import Control, Hello, Open
    from tunnelgw.wire.stream import Stream

log = logging.getLogger(__name__)

# A browser behind a proxy opens some hundred connections for a page, and some each second after that. One who opens
# more is refused, and cut when it does not stop.
LIMITS = SessionLimits(accepted=1024, opens_per_second=100.0)
MESSAGES_BURST, MESSAGES_PER_SECOND = 16, 0.2  # a renewal now and then is all that a visitor has to say


class Visit(Tunnel):
    """One process of a visiting machine: session handler, and owner of its link."""

    __slots__ = ("grant", "joints", "key", "local", "peer", "visits")

    role = "visitor"
    limits = LIMITS
    unreturned = departed = Reason.CANCELLED

    def __init__(self, visits: Visits, name: str, instance: str, grant: Grant) -> None:
        messages = TokenBucket(rate=MESSAGES_PER_SECOND, burst=MESSAGES_BURST, now=visits.all.loop.time())
        super().__init__(name, visits.all, messages)
        self.visits = visits
        self.instance = instance
        self.grant = grant
        self.peer = ""  # address of the link's other end, the last one
        self.local = ("", 0)  # our end of it
        self.key = ""  # the fingerprint of the key that its link proved
        self.joints: dict[int, Joint] = {}  # by the visitor's stream

    @property
    def state(self) -> str:
        """ "up" or "detached"."""
        return "up" if self.link is not None else "detached"

    # Links.

    def accept(self, link: Link, hello: Hello, *, version: int, serial: str, key: str) -> None:
        """An authenticated hello: resume or begin, and answer Welcome. Refused (SUPERSEDED) for an older dial."""
        if hello.dial <= self.dial:
            raise Refused("a later dial of this visitor was accepted already", reason=Reason.SUPERSEDED)
        self.dial, self.serial, self.key = hello.dial, serial, key
        self._release()
        resumed = self._resume(link, hello)
        if not resumed:
            if self.session is not None:  # first: what the new one opens has the same numbers
                self.session.close(Reason.CANCELLED)
            self._begin(link, self)
        self.deadline = INF
        self.draining = False
        self.since = time.time()
        session = self.session
        if session is None:  # what came with the hello broke the protocol
            return
        link.greet(welcome(self, version=version, resumed=resumed, received=session.received))
        log.info("visitor %s: %s from %s", self.name, "resumed" if resumed else "connected", link.peer)
        self.trust = hello.trust
        self.learn()
        self.tell(self.visits.reachable(self.grant))
        if self.all.farewell is not None:
            self.announce(self.all.farewell)

    def _take(self, link: Link) -> None:
        super()._take(link)
        self.peer = link.peer
        local = link.transport.get_extra_info("sockname") if link.transport is not None else None
        self.local = (str(local[0]), int(local[1])) if local else ("", 0)

    def give_up(self, reason: Reason) -> None:
        """End the session, and the streams that are not complete, on both sides of the edge."""
        session, self.session = self.session, None
        link, self.link = self.link, None
        self.deadline = INF
        self.visits.forget(self)
        if session is not None:
            session.close(reason)
        if link is not None:
            link.close()

    def cut(self, reason: Reason) -> None:
        """Say why, then end it."""
        self._say_goodbye(reason)
        self._cut_streams(reason)
        self.give_up(reason)

    # The session's handler.

    def stream_opened(self, stream: Stream, request: Open) -> None:
        self.visits.opened(self, stream, request)

    def control_received(self, message: Control) -> None:
        if not self._heard(message):
            raise RemoteError(f"a visitor said {type(message).__name__}", reason=Reason.ROLE_REFUSED)

    def datagram_received(self, flow: int, data: bytes) -> None:
        self.visits.outwards(self, flow, data)

    def going_away(self, reason: Reason) -> None:
        self.draining = True
        log.info("visitor %s is leaving: %s", self.name, reason.text)
