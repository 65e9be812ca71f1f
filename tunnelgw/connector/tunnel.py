"""One tunnel: a session that outlives its links. The connector's `LinkOwner` and `SessionHandler` in one.

A tunnel is dialled again and again by its supervisor; between links the session stands still and its streams wait. An
edge that does not know the session any more (it restarted) gets a new one: the streams of the old one are reset, which
closes their targets.

Invariant: at most one link carries the session, a new one is dialled only after the old one is gone, so the count in
Hello is final. The edge has been told every revision of the services that a session began with or lived through.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tunnelgw import __version__
from tunnelgw.connector.dial import DIAL_SECONDS, DialRefused, open_link, server_name
from tunnelgw.errors import RemoteError
from tunnelgw.obs.reasons import Reason
from tunnelgw.obs.sparing import Sparing
from tunnelgw.wire.control import (
    PRIVATE_KINDS,
    Claims,
    Hello,
    Notice,
    Reachable,
    RefusedMessage,
    Renewed,
    Trust,
    Welcome,
)
from tunnelgw.wire.datagrams import FLOWS_BEFORE
from tunnelgw.wire.hello import VERSIONS
from tunnelgw.wire.session import Session

if TYPE_CHECKING:
    import ssl

    from tunnelgw.config.model import Endpoint
    from tunnelgw.connector.flows import HomeFlow
    from tunnelgw.connector.serve import Served
    from tunnelgw.net.link import Link
    from tunnelgw.wire.control import Control, Greeting, Open
    from tunnelgw.wire.flow import Budget
    from tunnelgw.wire.stream import Stream

log = logging.getLogger(__name__)

SOFTWARE = f"tunnelgw/{__version__}"
HANG_UP_SECONDS = 0.5  # for the last frames and TLS's goodbye
CUT = ConnectionAbortedError("cut by ourselves")


@dataclass(slots=True)
class Instance:
    """What all tunnels of this process share."""

    id: str  # random: tells the edge a restarted twin from a second dial
    budget: Budget
    served: Served
    yields: bool = False  # to another process with this identity, instead of taking over from it
    dials: int = 0

    def next_dial(self) -> int:
        """The number of a new dial: the edge keeps the link of the highest one."""
        self.dials += 1
        return self.dials


class TunnelOwner(Protocol):
    """Who hears what the edge says to this connector as a whole.

    trust: digest of the authorities that this connector trusts.
    """

    @property
    def trust(self) -> str: ...

    def claims_received(self, claims: Claims) -> None:
        """The edge's answer to our services."""

    def renewed(self, message: Renewed) -> None:
        """A new certificate."""

    def trusted(self, message: Trust) -> None:
        """Other authorities to trust from now on."""

    def opened_privately(self, stream: Stream, request: Open) -> None:
        """A visiting machine's stream, which is encrypted end to end."""

    def reachable(self, message: Reachable) -> None:
        """What a visiting machine may reach."""


class Tunnel:
    """One session and the link that carries it, if any. `changed` is set when the link is lost or the edge leaves."""

    __slots__ = (
        "_answer", "_dialling", "_health_told", "_instance", "_owner", "_sparing", "_told", "answered", "changed",
        "detached_at", "edge", "flows", "leaving", "link", "lost", "resumes", "session", "session_id", "since",
        "welcome",
    )  # fmt: skip

    def __init__(self, edge: Endpoint, *, owner: TunnelOwner, instance: Instance) -> None:
        self.edge = edge
        self.session: Session | None = None
        self.session_id = ""
        self.link: Link | None = None
        self.welcome: Welcome | None = None  # the last one
        self.since = 0.0  # loop time of the last Welcome
        self.detached_at = math.inf
        self.leaving: Reason | None = None  # GOAWAY's reason
        self.lost: Exception | None = None  # why the last link ended; None: in order
        self.resumes = 0
        self.answered = 0  # revision of our services that the edge answered in this session
        self.changed = asyncio.Event()
        self.flows: dict[int, HomeFlow] = {}  # of UDP, by the session's numbers
        self._owner = owner
        self._sparing = Sparing(log)
        self._instance = instance
        self._told = 0  # revision of the services that the session has carried
        self._health_told = 0  # likewise, of what works
        self._dialling: Link | None = None
        self._answer: asyncio.Future[Welcome] | None = None

    async def dial(self, context: ssl.SSLContext, *, worker: int | None, multipath: bool, small: bool) -> Welcome:
        """Bring up a link and attach the session. Raises DialRefused, RemoteError, OSError, ssl.SSLError."""
        loop = asyncio.get_running_loop()
        self.changed.clear()
        self.leaving = None
        answer: asyncio.Future[Welcome] = loop.create_future()
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                link = await open_link(
                    self.edge,
                    context,
                    owner=self,
                    name=server_name(self.edge, worker),
                    multipath=multipath,
                    small=small,
                )
                self._dialling, self._answer = link, answer
                link.greet(self._hello())
                return await answer
        finally:
            dialling, self._dialling, self._answer = self._dialling, None, None
            if dialling is not None and dialling is not self.link:
                dialling.abort()
            if answer.done() and not answer.cancelled():
                answer.exception()  # read, so that a refusal after our deadline is no unhandled error

    def declare(self) -> None:
        """Tell the edge what is served now, and what of it works, if this session has not told it yet."""
        served, welcome = self._instance.served, self.welcome
        understands = welcome is not None and welcome.health
        # First: with its services a connector is asked for them.
        if self.session is not None and understands and self._health_told != served.health_revision:
            self._health_told = served.health_revision
            self.session.send_control(served.health)
        if self.session is not None and self._told != served.revision:
            self._told = served.revision
            self.session.send_control(served.declaration())

    def cut(self) -> None:
        """Abort the link: it is known to be dead (the machine slept). The session waits for the next one."""
        if self.link is not None:
            self.link.abort(CUT)

    def say_goodbye(self, reason: Reason) -> None:
        """GOAWAY: the edge opens no new streams here; those in progress go on."""
        if self.session is not None and self.link is not None:
            self.session.go_away(reason)

    @property
    def said_goodbye(self) -> bool:
        """Whether the edge knows that we leave, or cannot be told."""
        return self.session is None or self.link is None or self.session.out.heard

    def drop(self, reason: Reason) -> None:
        """End the session; its streams are reset."""
        session, self.session = self.session, None
        self.session_id = ""
        self.detached_at = math.inf
        self._instance.served.flows.detached(self)
        if session is not None:
            session.close(reason)

    async def stop(self, reason: Reason) -> None:
        """Reset what is still open, let the edge know, hang up."""
        link, session = self.link, self.session
        if link is not None and session is not None:
            for stream in list(session.streams.values()):
                stream.cut(reason)  # our own end as well: it closes the target
            link.flush()
            link.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HANG_UP_SECONDS):
                    while self.link is not None:
                        self.changed.clear()
                        await self.changed.wait()
            self.cut()
        self.drop(reason)

    # LinkOwner

    def greeting_received(self, link: Link, message: Greeting) -> None:
        """The edge's answer to Hello."""
        answer = self._answer
        if answer is None or answer.done() or link is not self._dialling:
            raise RemoteError("a greeting that nobody asked for")
        if isinstance(message, RefusedMessage):
            answer.set_exception(DialRefused(message))
        elif isinstance(message, Welcome):
            self._welcomed(link, message)
            if not answer.done():  # what came with the welcome may have broken the protocol already
                answer.set_result(message)
        else:
            raise RemoteError(f"the edge answered {type(message).__name__} to Hello")

    def link_lost(self, link: Link, error: Exception | None) -> None:
        """The link is gone; the session stays, unless the edge broke the protocol."""
        if self._answer is not None and not self._answer.done() and link is self._dialling:
            self._answer.set_exception(error or ConnectionResetError("the edge hung up before it answered"))
        if link is not self.link:
            return
        self.link = None
        self.lost = error
        now = asyncio.get_running_loop().time()
        self.detached_at = now
        if self.session is not None:
            if self.session.attached:
                self.session.detach(now)
            if isinstance(error, RemoteError):
                self.drop(Reason.PROTOCOL_ERROR)
        self.changed.set()

    # SessionHandler

    def stream_opened(self, stream: Stream, request: Open) -> None:
        """The edge wants a service."""
        if request.kind in PRIVATE_KINDS:
            self._owner.opened_privately(stream, request)
        else:
            self._instance.served.open(stream, request)

    def control_received(self, message: Control) -> None:
        """The edge says something to the connector as a whole."""
        if isinstance(message, Claims):
            self.answered = message.revision
            self._owner.claims_received(message)
        elif isinstance(message, Renewed):
            self._owner.renewed(message)
        elif isinstance(message, Trust):
            self._owner.trusted(message)
        elif isinstance(message, Reachable):
            self._owner.reachable(message)
        elif isinstance(message, Notice):
            text = "the edge %s says: %s (%s)"
            now = asyncio.get_running_loop().time()
            self._sparing.warning(f"{message.message}", now, text, self.edge, message.message, message.reason)

    def datagram_received(self, flow: int, data: bytes) -> None:
        """What a visitor of a UDP port sends."""
        if flow < FLOWS_BEFORE:
            self._instance.served.flows.received(self, flow, data)

    def going_away(self, reason: Reason) -> None:
        """The edge takes no new streams on this tunnel: time for another one."""
        self.leaving = reason
        self.changed.set()

    # Inside

    def _hello(self) -> Hello:
        session = self.session
        return Hello(
            versions=list(VERSIONS),
            software=SOFTWARE,
            instance=self._instance.id,
            dial=self._instance.next_dial(),
            session=self.session_id if session is not None else "",
            received=session.received if session is not None else 0,
            trust=self._owner.trust,
            yields=self._instance.yields,
        )

    def _welcomed(self, link: Link, message: Welcome) -> None:
        if message.version not in VERSIONS:
            raise RemoteError(f"the edge chose version {message.version}, which was not offered")
        if self.session is not None and (not message.resumed or message.session != self.session_id):
            log.info("the edge %s does not know our session any more: a new one", self.edge)
            self.drop(Reason.SESSION_UNKNOWN)
        if self.session is None:
            if message.resumed:
                raise RemoteError("the edge resumed a session that we do not have")
            self.session = Session(
                opens_odd=False,
                handler=self,
                wake=self._wake,
                budget=self._instance.budget,
                now=asyncio.get_running_loop().time(),
            )
            self.session_id = message.session
            self._told = self._health_told = self.answered = 0
        else:
            self.resumes += 1
        self.welcome = message
        self.since = asyncio.get_running_loop().time()
        self.detached_at = math.inf
        self.lost = None
        self.link = link
        link.attach(self.session, message.received)
        self.declare()

    def _wake(self) -> None:
        if self.link is not None:
            self.link.wake()
