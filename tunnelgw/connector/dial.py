"""One dial: from an edge's name to a link with TLS done and the protocol agreed.

Strategy: the name is resolved anew each time, its addresses are raced, the socket is MPTCP where that can help, and
TLS 1.3 with our certificate is checked against the pinned authority. Greetings are the caller's: a tunnel answers them
itself (`tunnel.py`), join and renewal hold a `Conversation`.

Invariant: a link that is returned speaks `tgw/1` with an edge that showed a certificate of the pinned authority (or,
for a join, whose certificate is still to be checked); everything has one deadline; nothing is left behind on failure.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING, TypeVar

from tunnelgw.errors import Refused, RemoteError, TunnelgwError
from tunnelgw.net import eyeballs, sockets
from tunnelgw.net.link import Link
from tunnelgw.net.loop import adopt
from tunnelgw.net.tls import TUNNEL_ALPN
from tunnelgw.obs.reasons import BY_LABEL, Reason
from tunnelgw.wire.control import RefusedMessage

if TYPE_CHECKING:
    from tunnelgw.config.model import Endpoint
    from tunnelgw.net.link import LinkOwner
    from tunnelgw.wire.control import Greeting

DIAL_SECONDS = 10.0  # resolving, connecting, TLS and the greeting together
# Until a certificate: the edge makes a process for the signature, perhaps after those for others, and gives it 60 s.
# Whoever left before that would have used up an invitation for nothing.
ANSWER_SECONDS = 90.0
NO_NAME = "tgw.invalid"  # SNI where the edge is known by an address only

G = TypeVar("G", bound="Greeting")


class DialRefused(Refused):
    """The edge said no: why, what would help, and when to try again (0.0: unsaid)."""

    def __init__(self, message: RefusedMessage) -> None:
        reason = BY_LABEL.get(message.reason, Reason.INTERNAL)
        super().__init__(message.message or reason.text, reason=reason)
        self.hint = message.hint
        self.retry_seconds = message.retry_seconds


def server_name(edge: Endpoint, worker: int | None) -> str:
    """The SNI of a dial: a certain worker's, the edge's host name, or `tgw.invalid` for an address."""
    if worker is not None:
        return f"w{worker}.{NO_NAME}"
    return NO_NAME if eyeballs.literal(edge.host, edge.port) or ":" in edge.host else edge.host


async def open_link(
    edge: Endpoint, context: ssl.SSLContext, *, owner: LinkOwner, name: str, multipath: bool = True, small: bool = True
) -> Link:
    """Connect and shake hands; the caller sets the deadline. Raises OSError (ssl.SSLError included), RemoteError.

    small: with packets that pass everywhere; a tunnel's bulk goes faster without, where the path takes it.
    """
    loop = asyncio.get_running_loop()

    def make_socket(family: int) -> socket.socket:
        sock = sockets.stream_socket(family, multipath=multipath)
        sockets.tune_link(sock)
        if small:
            sockets.small_segments(sock)
        return sock

    places = await eyeballs.resolve(edge.host, edge.port)
    sock = await eyeballs.connect(places, make_socket=make_socket)
    link = Link(owner, loop=loop)
    transport = await adopt(sock, link, ssl=context, server_hostname=name, ssl_handshake_timeout=DIAL_SECONDS)
    if tls_of(transport).selected_alpn_protocol() != TUNNEL_ALPN:
        link.abort()
        raise RemoteError(f"{edge} does not speak the tunnel protocol: is another server on that port?")
    return link


def tls_of(transport: asyncio.BaseTransport) -> ssl.SSLObject:
    """The TLS object of a link's transport."""
    found: ssl.SSLObject = transport.get_extra_info("ssl_object")
    return found


def explain(error: BaseException, edge: Endpoint) -> str:
    """Why a dial failed, for a person."""
    if isinstance(error, TunnelgwError):
        return error.text
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"{edge} shows a certificate that is not of the edge this machine joined ({error.verify_message}); "
            "somebody may be in between: not connecting. If the edge was made anew, or changed its authority while "
            "this machine was away, join it again: on the edge, run tunnelgw edge invite NAME"
        )
    if isinstance(error, ssl.SSLError) and error.reason == "TLSV1_ALERT_UNKNOWN_CA":
        return (
            f"{edge} does not know who signed this machine's certificate: it changed its authority while this machine "
            "was away. Join it again: on the edge, run tunnelgw edge invite NAME"
        )
    if isinstance(error, ssl.SSLError):
        return f"TLS with {edge} failed: {error.reason or error}"
    if isinstance(error, socket.gaierror):
        return f"the name {edge.host} cannot be resolved: {error.strerror}"
    if isinstance(error, TimeoutError):
        return f"no answer from {edge} in time"
    if isinstance(error, OSError):
        return f"cannot connect to {edge}: {error.strerror or str(error) or 'it hung up'}"
    return str(error)


class Conversation:
    """Greetings by question and answer on one link (join, renewal of an expired certificate). A `LinkOwner`."""

    __slots__ = ("_answer", "_link", "_loop", "_lost")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[Greeting] | None = None
        self._link: Link | None = None
        self._lost: Exception | None = None

    async def open(self, edge: Endpoint, context: ssl.SSLContext) -> Link:
        """Dial; raises as `open_link` does, TimeoutError after 20 s: nobody dials a second time for a command."""
        async with asyncio.timeout(2 * DIAL_SECONDS):
            self._link = await open_link(edge, context, owner=self, name=server_name(edge, None))
        return self._link

    async def ask(self, message: Greeting, kind: type[G]) -> G:
        """Send `message` and wait for an answer of `kind`. Raises DialRefused, RemoteError, OSError (TimeoutError)."""
        if self._lost is not None or self._link is None:
            raise self._lost or ConnectionResetError("the link is not open")
        self._answer = self._loop.create_future()
        self._link.greet(message)
        async with asyncio.timeout(ANSWER_SECONDS):
            answer = await self._answer
        if isinstance(answer, RefusedMessage):
            raise DialRefused(answer)
        if not isinstance(answer, kind):
            raise RemoteError(f"the edge answered {type(answer).__name__} instead of {kind.__name__}")
        return answer

    def close(self) -> None:
        """Hang up."""
        if self._link is not None:
            self._link.close()

    def greeting_received(self, link: Link, message: Greeting) -> None:  # noqa: ARG002 - there is one link
        """An answer arrived."""
        if self._answer is None or self._answer.done():
            raise RemoteError("a greeting that nobody asked for")
        self._answer.set_result(message)

    def link_lost(self, link: Link, error: Exception | None) -> None:  # noqa: ARG002 - there is one link
        """The edge hung up."""
        self._lost = error or ConnectionResetError("the edge hung up")
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(self._lost)
