"""The front door: every connection from the internet is accepted, looked at and sent where it belongs.

Accept → limits → (PROXY header) → ClientHello, peeked → by ALPN, then by name: a tunnel, a stream with the bytes
untouched, a TLS handshake with exactly one certificate, or an alert that shows no certificate at all.

Who owns a connection: this file until it is decided; then the tunnel handler, a passage, or the loop's transport with
its gateway protocol. Invariants: nothing is consumed before the decision (but a PROXY header, to the byte); each
connection is decided once; a peer's failure is counted by reason and never a traceback.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tunnelgw.access.addresses import address_key
from tunnelgw.edge.addressing import plain_address, visitor_of, worker_of
from tunnelgw.edge.passthrough import Live, RawPassage, TlsPassage
from tunnelgw.edge.undecided import Undecided
from tunnelgw.net import tls
from tunnelgw.net.accept import Acceptor, Reserve, defer_accept, dress, most_connections, most_descriptors
from tunnelgw.net.farewell import Farewell
from tunnelgw.net.handshake import shake_hands
from tunnelgw.net.ledger import CountedSocket, Ledger, counted
from tunnelgw.net.peek import Peek
from tunnelgw.net.proxyproto import ProxyHeader, parse_proxy_header
from tunnelgw.net.tasks import spawn
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.clienthello import Alert, ClientHello, alert_record, hello_needs, parse_client_hello

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Sequence

    from tunnelgw.edge.workers import Peers
    from tunnelgw.gateway.opener import StreamOpener, Visitor
    from tunnelgw.net.certificates import Certificates
    from tunnelgw.net.timers import Wheel
    from tunnelgw.obs.counters import ProcessCounters
    from tunnelgw.routing.table import NameEntry, RouteTable

log = logging.getLogger(__name__)

HELLO_SECONDS = 10.0  # absolute, from accept to a whole ClientHello
_TLS_RECORD = b"\x16\x03"  # a handshake record: whoever sends it understands an alert
_METHODS = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"CONNECT ", b"TRACE ", b"PRI ")
_PLAIN_TEXT = b"This port speaks TLS: use https://\n"
_PLAIN_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
    % (len(_PLAIN_TEXT), _PLAIN_TEXT)
)


class Proxy(Protocol):
    """What the door needs of the HTTP gateway."""

    def http1(self, visitor: Visitor) -> asyncio.Protocol:
        """A protocol for one HTTP/1.1 connection."""

    def http2(self, visitor: Visitor) -> asyncio.Protocol:
        """A protocol for one HTTP/2 connection."""


@dataclass(frozen=True, slots=True)
class DoorRules:
    """What configuration says about strangers; swapped as a whole at a reload.

    trusted: is this address a trusted proxy? allowed: may this address use a route with this `allow_from`?
    """

    trusted: Callable[[str], bool]
    allowed: Callable[[tuple[str, ...], str], bool]
    connections_per_address: int = 1024
    proxy_protocol: bool = False


class FrontDoor(Undecided):
    """Inputs: listening sockets (`serve`, `serve_plain`), rules, and sockets another worker handed over (`adopt`).

    `descriptors`: how many files this process may open; None: as many as the system lets it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        wheel: Wheel,
        table: RouteTable,
        certificates: Certificates,
        gateway: Proxy,
        opener: StreamOpener,
        tunnel: Callable[[CountedSocket, ClientHello], None],
        peers: Peers,
        counters: ProcessCounters,
        rules: DoorRules,
        live: Live,
        descriptors: int | None = None,
    ) -> None:
        if descriptors is None:
            descriptors = most_descriptors()
        most = most_connections(descriptors, workers=peers.count)
        ledger = Ledger(counters, limit=rules.connections_per_address, open_limit=most)
        super().__init__(loop, wheel=wheel, ledger=ledger, counters=counters)
        self._table = table
        self._certificates = certificates
        self._gateway = gateway
        self._opener = opener
        self._tunnel = tunnel
        self._peers = peers
        self._rules = rules
        self._live = live
        self.reserve = Reserve()
        self._acceptors: list[Acceptor] = []

    def serve(self, listeners: Sequence[socket.socket]) -> None:
        """Accept TLS visitors and tunnels. The listeners stay the caller's; who made them does not matter."""
        for listener in listeners:
            defer_accept(listener)
        self._accept_from(listeners, self._accepted)

    def serve_plain(self, listeners: Sequence[socket.socket]) -> None:
        """Accept plain HTTP: redirects, ACME http-01, routes that ask for it."""
        self._accept_from(listeners, self._accepted_plain)

    def reload(self, rules: DoorRules) -> None:
        """New rules, for connections from now on."""
        self._rules = rules
        self.ledger.limit = rules.connections_per_address

    def pause(self) -> None:
        """Accept nobody until `resume`. Idempotent."""
        for acceptor in self._acceptors:
            acceptor.close()

    def resume(self) -> None:
        """Accept again. Idempotent."""
        for acceptor in self._acceptors:
            acceptor.start()

    def stop_accepting(self) -> None:
        """No new connections here; those that are being looked at go on."""
        for acceptor in self._acceptors:
            acceptor.close()
        self._acceptors.clear()

    def close(self) -> None:
        """Stop, and drop what is not decided yet. Decided connections belong to others."""
        self.stop_accepting()
        self._drop_all("https")
        self.reserve.close()

    def adopt(self, descriptor: int, peer: tuple[str, int]) -> None:
        """A tunnel's socket that another worker accepted and peeked: its ClientHello is still in it."""
        sock = self._admit(socket.socket(fileno=descriptor), peer, listener="https", handshake=True)
        if sock is not None:
            self._look(sock, self._loop.time() + HELLO_SECONDS, self._adopted)

    # Accepting.

    def _accept_from(
        self, listeners: Iterable[socket.socket], accepted: Callable[[socket.socket, tuple[str, int]], None]
    ) -> None:
        for listener in listeners:
            dress(listener)  # it may come from systemd
            refused, waits = self._counters.refuse, lambda: self.ledger.waits
            acceptor = Acceptor(
                self._loop, listener, accepted=accepted, refused=refused, reserve=self.reserve, waits=waits
            )
            acceptor.start()
            self._acceptors.append(acceptor)

    def _admit(
        self, sock: socket.socket, address: tuple[str, int], *, listener: str, handshake: bool
    ) -> CountedSocket | None:
        """Count it, or close it at once."""
        host = plain_address(address[0])
        key = None if self._rules.trusted(host) else address_key(host)
        refusal = self.ledger.admit(key, listener=listener, handshake=handshake)
        if refusal is not None:
            self._counters.refuse(refusal)
            sock.close()
            return None
        ours = counted(sock, self.ledger, key=key, peer=(host, address[1]), listener=listener, handshake=handshake)
        if not handshake:
            return ours
        gone = self.ledger.look(ours, lambda: self._crowded_out(ours))
        if gone is not None and gone.leave is not None:
            gone.leave()
        return None if gone is ours else ours

    def _accepted(self, raw: socket.socket, address: tuple[str, int]) -> None:
        sock = self._admit(raw, address, listener="https", handshake=True)
        if sock is None:
            return
        until = self._loop.time() + HELLO_SECONDS
        if not self._rules.proxy_protocol:
            self._look(sock, until, self._greeted)
        elif self._rules.trusted(sock.peer[0]):
            self._look_for_proxy(sock, until)
        else:
            self._drop(sock, Reason.PROXY_HEADER)

    def _accepted_plain(self, raw: socket.socket, address: tuple[str, int]) -> None:
        sock = self._admit(raw, address, listener="http", handshake=False)
        if sock is not None:
            visitor = visitor_of(sock, secure=False, server_name="", alpn="http/1.1")
            spawn(self._plain(sock, visitor), name="visitor")

    async def _plain(self, sock: CountedSocket, visitor: Visitor) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: self._gateway.http1(visitor), sock)
        except OSError as error:
            log.debug("a visitor left before it was served: %s", error)
            sock.close()

    # Looking.

    def _look_for_proxy(self, sock: CountedSocket, until: float) -> None:
        peek = Peek(
            self._loop, sock, parse=parse_proxy_header, needs=_one_more, done=self._proxied, failed=self._not_proxied
        )
        self._peeks[sock] = peek
        peek.start(self._wheel, until)

    def _look(self, sock: CountedSocket, until: float, done: Callable[[Peek[ClientHello], ClientHello], None]) -> None:
        peek = Peek(self._loop, sock, parse=parse_client_hello, needs=hello_needs, done=done, failed=self._not_tls)
        self._peeks[sock] = peek
        peek.start(self._wheel, until)

    def _proxied(self, peek: Peek[ProxyHeader], header: ProxyHeader) -> None:
        sock = peek.sock
        del self._peeks[sock]
        sock.recv(header.length)  # was peeked, so it is all there
        if header.source is not None:
            host = plain_address(header.source[0])
            sock.peer = (host, header.source[1])
            sock.local = header.destination
            refusal = None if self._rules.trusted(host) else self.ledger.known_as(sock, address_key(host))
            if refusal is not None:
                self._drop(sock, refusal)
                return
        self._look(sock, peek.until, self._greeted)

    def _not_proxied(self, peek: Peek[ProxyHeader], reason: Reason, seen: bytes) -> None:  # noqa: ARG002 - Peek's interface
        del self._peeks[peek.sock]
        self._drop(peek.sock, reason)

    def _not_tls(self, peek: Peek[ClientHello], reason: Reason, seen: bytes) -> None:
        del self._peeks[peek.sock]
        if seen.startswith(_METHODS):
            self._counters.refuse(reason)
            peek.sock.settle()
            Farewell(self._loop, self._wheel, peek.sock, _PLAIN_ANSWER)
        elif reason is Reason.HELLO_INVALID and seen.startswith(_TLS_RECORD):
            self._alert(peek.sock, Alert.ILLEGAL_PARAMETER, reason)
        else:
            self._drop(peek.sock, reason)

    # Deciding.

    def _greeted(self, peek: Peek[ClientHello], hello: ClientHello) -> None:
        """The decision: by ALPN, then by name."""
        sock = peek.sock
        if tls.TUNNEL_ALPN.encode() in hello.alpn:
            worker = worker_of(hello.server_name)
            if worker is not None and worker != self._peers.index and self._peers.hand_over(worker, sock):
                del self._peeks[sock]
                return
            self._adopted(peek, hello)
            return
        del self._peeks[sock]
        name, entry = self._find(hello.server_name)
        acme = tls.ACME_ALPN.encode() in hello.alpn and bool(name)
        if self.ledger.full and not self.ledger.make_room(sock):
            self._drop(sock, Reason.DESCRIPTORS)
        elif entry is None and not acme:
            self._alert(sock, Alert.UNRECOGNIZED_NAME, Reason.NAME_UNKNOWN)
        elif entry is not None and entry.kind in ("tls", "home"):
            self._pass_through(sock, hello, name, entry)
        elif entry is None or acme:
            self._answer_acme(sock, name, until=peek.until)  # perhaps of a host on a shared port alone
        elif entry.kind == "http" and not tls.negotiated(hello.alpn):
            self._alert(sock, Alert.NO_APPLICATION_PROTOCOL, Reason.ALPN_UNKNOWN)
        elif not self._may_enter(sock, entry):
            self._drop(sock, Reason.ADDRESS_REFUSED)
        else:
            self._handshakes.join(
                sock, lambda: spawn(self._terminate(sock, hello, name, entry), name="handshake"), until=peek.until
            )

    def _adopted(self, peek: Peek[ClientHello], hello: ClientHello) -> None:
        """A tunnel for this worker: the tunnel port stops counting it once it knows whose it is."""
        sock = peek.sock
        del self._peeks[sock]
        self._handshakes.join(sock, lambda: self._tunnel(sock, hello), until=peek.until)

    def _find(self, server_name: str) -> tuple[str, NameEntry | None]:
        """The name as it came out of the hello, in its one spelling; "" is nobody's."""
        return server_name, self._table.find_name(server_name) if server_name else None

    def _may_enter(self, sock: CountedSocket, entry: NameEntry) -> bool:
        route = entry.route
        if entry.kind == "home":
            return True  # its paths have rules of their own, which only who sees the path can apply: the connector
        return route is None or not route.allow_from or self._rules.allowed(route.allow_from, sock.peer[0])

    def _pass_through(self, sock: CountedSocket, hello: ClientHello, name: str, entry: NameEntry) -> None:
        if entry.route is None or not self._may_enter(sock, entry):
            self._drop(sock, Reason.ADDRESS_REFUSED)
            return
        sock.settle()
        visitor = visitor_of(sock, secure=False, server_name=name, alpn=_text(hello.alpn))
        RawPassage(self._opener, self._live, entry.route, visitor, sock=sock, refused=self._no_stream).start()

    def _no_stream(self, sock: CountedSocket, reason: Reason) -> None:
        self._alert(sock, Alert.INTERNAL_ERROR, reason)

    def _answer_acme(self, sock: CountedSocket, name: str, *, until: float) -> None:
        """tls-alpn-01 (RFC 8737) for a name whose TLS ends here: the handshake itself is the answer."""
        context = self._certificates.challenge(name)
        if context is None:
            self._alert(sock, Alert.NO_APPLICATION_PROTOCOL, Reason.ALPN_UNKNOWN)
        else:
            self._handshakes.join(sock, lambda: spawn(self._prove(sock, context), name="acme"), until=until)

    async def _prove(self, sock: CountedSocket, context: ssl.SSLContext) -> None:
        transport = await shake_hands(sock, asyncio.Protocol(), context, failed=self._counters.refuse)
        if transport is not None:
            transport.close()

    async def _terminate(self, sock: CountedSocket, hello: ClientHello, name: str, entry: NameEntry) -> None:
        """End TLS here and serve what is inside."""
        is_tcp = entry.kind == "tcp" and entry.route is not None
        context = await self._certificates.context(entry.host, name, http=not is_tcp)
        if context is None:
            self._alert(sock, Alert.INTERNAL_ERROR, Reason.NAME_UNKNOWN)
            return
        if is_tcp:
            assert entry.route is not None
            visitor = visitor_of(sock, secure=True, server_name=name, alpn="")
            protocol: asyncio.Protocol = TlsPassage(
                self._opener, self._live, entry.route, visitor, refused=self._counters.refuse
            )
            await shake_hands(sock, protocol, context, failed=self._counters.refuse)
            return
        # The peeked hello is the one that OpenSSL reads, so what it will pick is known before the handshake.
        alpn = tls.negotiated(hello.alpn)
        visitor = visitor_of(sock, secure=True, server_name=name, alpn=alpn)
        protocol = self._gateway.http2(visitor) if alpn == "h2" else self._gateway.http1(visitor)
        transport = await shake_hands(sock, protocol, context, failed=self._counters.refuse)
        if transport is None:
            return
        picked = transport.get_extra_info("ssl_object").selected_alpn_protocol()
        if picked != alpn and (picked or hello.alpn):
            log.error("TLS picked %r where %r was expected", picked, alpn)
            transport.abort()

    # Refusing.

    def _alert(self, sock: CountedSocket, code: Alert, reason: Reason) -> None:
        self._say(sock, alert_record(code), reason)


def _one_more(data: bytes) -> int:
    return len(data) + 1


def _text(alpn: tuple[bytes, ...]) -> str:
    return alpn[0].decode("ascii", "replace") if alpn else ""
