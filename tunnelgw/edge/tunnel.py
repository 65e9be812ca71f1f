"""A tunnel as the edge sees it: a session, and the links that come and go under it.

What connectors (`connector.py`) and visiting machines (`visit.py`) have in common. A link belongs to the tunnel port
until its hello is accepted, and to the tunnel after that. When a link dies the session waits for another one for
`resume_seconds`.

Invariant: at most one session, carried by at most one link.
"""

from __future__ import annotations

import logging
import secrets
import time
from typing import TYPE_CHECKING

from tunnelgw.errors import RemoteError
from tunnelgw.net.timers import INF
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire.control import Notice, RenewRequest, Trust
from tunnelgw.wire.session import Session

if TYPE_CHECKING:
    from tunnelgw.edge.connectors import Connectors
    from tunnelgw.net.link import Link
    from tunnelgw.wire.control import Claims, Control, Greeting, Hello, Reachable, Renewed
    from tunnelgw.wire.events import SessionHandler
    from tunnelgw.wire.flow import SessionLimits, TokenBucket

log = logging.getLogger(__name__)


class Tunnel:
    """See the module's text. A subclass is the session's handler, and accepts hellos."""

    __slots__ = (
        "all", "armed_until", "deadline", "dial", "draining", "instance", "link", "messages", "name", "serial",
        "session", "session_id", "since", "trust",
    )  # fmt: skip

    role = ""  # as logs call who is at the other end
    limits: SessionLimits  # of its sessions
    unreturned = Reason.CONNECTOR_AWAY  # why it is given up when no link came back in time
    departed = Reason.CONNECTOR_STOPPING  # likewise, when it had said that it leaves

    def __init__(self, name: str, connectors: Connectors, messages: TokenBucket) -> None:
        self.name = name
        self.all = connectors
        self.session: Session | None = None
        self.session_id = ""
        self.link: Link | None = None
        self.instance = ""
        self.serial = ""  # of the certificate that the present link showed
        self.trust = ""  # digest of the authorities that it trusts; "" if it cannot be told others
        self.dial = -1
        self.draining = False  # it said GOAWAY: no new streams on this session
        self.since = time.time()  # of the present state
        self.messages = messages  # how many it may say
        self.deadline = INF  # when a detached session is given up
        self.armed_until = INF

    # What a subclass says.

    def give_up(self, reason: Reason) -> None:
        """End the session, and the streams that are not complete."""
        raise NotImplementedError

    def _detached(self) -> None:
        """It waits for another link."""

    # Links.

    def _release(self) -> None:
        """The old link must be closed before either side says its count: nothing may arrive on it after that."""
        old, self.link = self.link, None
        if old is not None:
            old.abort()
            self.since = time.time()

    def _resume(self, link: Link, hello: Hello) -> bool:
        session = self.session
        if session is None or not hello.session or hello.session != self.session_id:
            return False
        try:
            self._take(link)
            link.attach(session, hello.received)
        except RemoteError as error:
            self.all.counters.refuse(error.reason)
            self.all.say(f"{self.name} resumes", "%s %s: cannot resume: %s", self.role, self.name, error.text)
            return False
        return True

    def _begin(self, link: Link, handler: SessionHandler) -> Session | None:
        """A new session; the old one, which is still to be closed."""
        old = self.session
        self.session_id = secrets.token_hex(16)
        session = self.session = Session(
            opens_odd=True, handler=handler, wake=self._wake, budget=self.all.budget, now=self.all.loop.time(),
            limits=self.limits,
        )  # fmt: skip
        self._take(link)
        link.attach(session, 0)
        return old

    def _take(self, link: Link) -> None:
        link.owner = self
        self.link = link

    def _wake(self) -> None:
        if self.link is not None:
            self.link.wake()

    def greeting_received(self, link: Link, message: Greeting) -> None:  # noqa: ARG002 - LinkOwner's interface
        raise RemoteError("a greeting after the session began")

    def link_lost(self, link: Link, error: Exception | None) -> None:
        """The link died: the session waits for another one, unless the peer broke the protocol or has said goodbye."""
        if link is not self.link:
            return
        self.link = None
        session = self.session
        if session is None:
            return
        if isinstance(error, RemoteError):
            self.all.counters.refuse(error.reason)
            self.all.say(f"{self.name} broke", "%s %s broke the protocol: %s", self.role, self.name, error.text)
            self.give_up(Reason.PROTOCOL_ERROR)
            return
        now = self.all.loop.time()
        session.detach(now)
        self.since = time.time()
        # Without a stream it waits too: an end may have been lost with the link, or an OPEN that nobody here knows of.
        if self.draining or self.all.farewell is not None:
            self.give_up(self.departed)  # it dials no more, or elsewhere
            return
        self.all.wheel.arm(self, now + self.all.resume_seconds)
        log.info("%s %s: link lost (%s)", self.role, self.name, error or "closed")
        self._detached()

    def on_deadline(self, now: float) -> None:  # noqa: ARG002 - the wheel's interface
        """No link came back in time."""
        if self.link is None:
            self.give_up(self.unreturned)

    # What is said.

    def announce(self, reason: Reason) -> None:
        """Tell it that it should look for another tunnel; streams in progress go on."""
        if self.session is not None:
            self.session.go_away(reason)

    def _say_goodbye(self, reason: Reason) -> None:
        self.announce(reason)
        if self.link is not None:
            self.link.flush()

    def _cut_streams(self, reason: Reason) -> None:
        """Those that ended both ways too, which outlive a session that is just over."""
        if self.session is not None:
            for stream in list(self.session.streams.values()):
                stream.cut(reason)

    def learn(self) -> None:
        """Tell it which authorities to trust from now on, if it knows others and can be told."""
        if self.session is not None and self.trust and self.trust != self.all.trust:
            self.trust = self.all.trust
            self.tell(Trust(ca=self.all.authority))

    def tell(self, message: Claims | Notice | Reachable | Renewed | Trust) -> None:
        """Send a control message if there is a session."""
        if self.session is not None:
            self.session.send_control(message)

    def _heard(self, message: Control) -> bool:
        """Count a message, and act on those that anybody may say; False for others. RemoteError beyond the rate."""
        if not self.messages.take(self.all.loop.time()):
            raise RemoteError(f"more messages than a {self.role} can have to say", reason=Reason.RATE_LIMIT)
        if isinstance(message, RenewRequest):
            self.all.on_renew(self, message)
        elif isinstance(message, Notice):
            self.all.say(f"{self.name} says", "%s %s says: %s", self.role, self.name, message.message)
        else:
            return False
        return True
