"""One visiting machine's tunnel as the edge sees it: its session, and the links that come and go.

A tunnel outlives its links as a connector's does. What it opens is decided and joined by `Visits`. Several tunnels of
one identity may be up at once, one for each process that visits.

Invariant: at most one link carries the session; when the session dies, everything that it opened is reset.
"""

from __future__ import annotations

import logging
import secrets
import time
from typing import TYPE_CHECKING

from tunnelgw.edge.greeting import welcome
from tunnelgw.errors import Refused, RemoteError
from tunnelgw.net.timers import INF
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire.control import Control, Hello, Notice, Open, Renewed, RenewRequest, Trust
from tunnelgw.wire.flow import SessionLimits, TokenBucket
from tunnelgw.wire.session import Session

if TYPE_CHECKING:
    from tunnelgw.access.grants import Grant
    from tunnelgw.edge.joint import Joint
    from tunnelgw.edge.visits import Visits
    from tunnelgw.net.link import Link
    from tunnelgw.wire.control import Greeting, Reachable
    from tunnelgw.wire.stream import Stream

log = logging.getLogger(__name__)

# A browser behind a proxy opens some hundred connections for a page, and some each second after that. One who opens
# more is refused, and cut when it does not stop.
LIMITS = SessionLimits(accepted=1024, opens_per_second=100.0)
MESSAGES_BURST, MESSAGES_PER_SECOND = 16, 0.2  # a renewal now and then is all that a visitor has to say


class Visit:
    """One process of a visiting machine: session handler, and owner of its link."""

    __slots__ = (
        "_messages", "all", "armed_until", "deadline", "dial", "draining", "grant", "instance", "joints", "key", "link",
        "local", "name", "peer", "serial", "session", "session_id", "since", "trust", "visits",
    )  # fmt: skip

    def __init__(self, visits: Visits, name: str, instance: str, grant: Grant) -> None:
        self.visits = visits
        self.all = visits.all
        self.name = name
        self.instance = instance
        self.grant = grant
        self.session: Session | None = None
        self.session_id = ""
        self.link: Link | None = None
        self.peer = ""  # address of the link's other end, the last one
        self.local = ("", 0)  # our end of it
        self.serial = ""  # of the certificate that the link showed
        self.key = ""  # the fingerprint of its key
        self.trust = ""  # digest of the authorities that it trusts
        self.dial = -1
        self.draining = False
        self.since = time.time()
        self.joints: dict[int, Joint] = {}  # by the visitor's stream
        self.deadline = INF
        self.armed_until = INF
        self._messages = TokenBucket(rate=MESSAGES_PER_SECOND, burst=MESSAGES_BURST, now=self.all.loop.time())

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
        old, self.link = self.link, None
        if old is not None:
            old.abort()  # before either side says its count
        resumed = self._resume(link, hello)
        if not resumed:
            self._begin(link)
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

    def _resume(self, link: Link, hello: Hello) -> bool:
        session = self.session
        if session is None or not hello.session or hello.session != self.session_id:
            return False
        try:
            self._take(link)
            link.attach(session, hello.received)
        except RemoteError as error:
            self.all.counters.refuse(error.reason)
            self.all.say(f"{self.name} resumes", "visitor %s: cannot resume: %s", self.name, error.text)
            return False
        return True

    def _begin(self, link: Link) -> None:
        old = self.session
        self.session_id = secrets.token_hex(16)
        session = self.session = Session(
            opens_odd=True, handler=self, wake=self._wake, budget=self.all.budget, now=self.all.loop.time(),
            limits=LIMITS,
        )  # fmt: skip
        if old is not None:
            old.close(Reason.CANCELLED)
        self._take(link)
        link.attach(session, 0)

    def _take(self, link: Link) -> None:
        link.owner = self
        self.link = link
        self.peer = link.peer
        local = link.transport.get_extra_info("sockname") if link.transport is not None else None
        self.local = (str(local[0]), int(local[1])) if local else ("", 0)

    def _wake(self) -> None:
        if self.link is not None:
            self.link.wake()

    def greeting_received(self, link: Link, message: Greeting) -> None:  # noqa: ARG002 - LinkOwner's interface
        raise RemoteError("a greeting after the session began")

    def link_lost(self, link: Link, error: Exception | None) -> None:
        """The link died: a session in which something is under way waits for another one."""
        if link is not self.link:
            return
        self.link = None
        self.since = time.time()
        session = self.session
        if session is None:
            return
        if isinstance(error, RemoteError):
            self.all.counters.refuse(error.reason)
            self.all.say(f"{self.name} broke", "visitor %s broke the protocol: %s", self.name, error.text)
            self.give_up(Reason.PROTOCOL_ERROR)
            return
        now = self.all.loop.time()
        session.detach(now)
        if self.draining or self.all.farewell is not None or not session.stream_count:
            self.give_up(Reason.CANCELLED)
            return
        self.all.wheel.arm(self, now + self.all.resume_seconds)
        log.info("visitor %s: link lost (%s)", self.name, error or "closed")

    def on_deadline(self, now: float) -> None:  # noqa: ARG002 - the wheel's interface
        """No link came back in time."""
        if self.link is None:
            self.give_up(Reason.CANCELLED)

    def give_up(self, reason: Reason) -> None:
        """End the session: every stream is reset, on both sides of the edge."""
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
        self.announce(reason)
        if self.link is not None:
            self.link.flush()
        self.give_up(reason)

    def announce(self, reason: Reason) -> None:
        """It should look for another tunnel; streams in progress go on."""
        if self.session is not None:
            self.session.go_away(reason)

    def learn(self) -> None:
        """Tell it which authorities to trust from now on, if it knows others."""
        if self.trust and self.trust != self.all.trust:
            self.trust = self.all.trust
            self.tell(Trust(ca=self.all.authority))

    def tell(self, message: Notice | Renewed | Trust | Reachable) -> None:
        """Send a control message."""
        if self.session is not None:
            self.session.send_control(message)

    # The session's handler.

    def stream_opened(self, stream: Stream, request: Open) -> None:
        self.visits.opened(self, stream, request)

    def control_received(self, message: Control) -> None:
        if not self._messages.take(self.all.loop.time()):
            raise RemoteError("more messages than a visitor can have to say", reason=Reason.RATE_LIMIT)
        if isinstance(message, RenewRequest):
            self.all.on_renew(self, message)
        elif isinstance(message, Notice):
            self.all.say(f"{self.name} says", "visitor %s says: %s", self.name, message.message)
        else:
            raise RemoteError(f"a visitor said {type(message).__name__}", reason=Reason.ROLE_REFUSED)

    def datagram_received(self, flow: int, data: bytes) -> None:
        self.visits.outwards(self, flow, data)

    def going_away(self, reason: Reason) -> None:
        self.draining = True
        log.info("visitor %s is leaving: %s", self.name, reason.text)
