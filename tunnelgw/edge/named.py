"""Ports that several hosts share: what a visitor says first in the port's protocol chooses the service.

Accept → limits → first bytes, peeked → the protocol's matcher (`routing/protocols.py`) → by the name in them: a stream
with the bytes untouched, or TLS that ends here, or one last word in the visitor's own protocol.

Who owns a connection: this file until it is decided; then a passage, or the loop's transport with its passage.
Invariants: nothing is consumed but what a matcher says that was asked for (`Asked`), to the byte; each connection is
decided once, within `SAY_SECONDS` of its arrival; a peer's failure is counted by reason and never a traceback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.access.addresses import address_key
from tunnelgw.edge.addressing import plain_address, visitor_of
from tunnelgw.edge.passthrough import Live, RawPassage, TlsPassage
from tunnelgw.edge.undecided import Undecided
from tunnelgw.net.handshake import shake_hands
from tunnelgw.net.ledger import CountedSocket, Ledger, counted
from tunnelgw.net.peek import Peek
from tunnelgw.net.tasks import spawn
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.clienthello import Alert, alert_record
from tunnelgw.routing.matching import Asked, Found, Matcher, Named, Turned
from tunnelgw.routing.protocols import PROTOCOLS

if TYPE_CHECKING:
    import asyncio
    import socket

    from tunnelgw.edge.public import DoorRules
    from tunnelgw.gateway.opener import StreamOpener
    from tunnelgw.net.certificates import Certificates
    from tunnelgw.net.timers import Wheel
    from tunnelgw.obs.counters import ProcessCounters
    from tunnelgw.routing.table import Route, RouteTable

SAY_SECONDS = 10.0  # absolute, from accept until a visitor has said a name: as for a ClientHello on 443
_TLS_RECORD = b"\x16\x03"  # whoever sends it understands an alert


class NamedPorts(Undecided):
    """Inputs: `accepted` (a connection of a port that hosts share), `close`. The ledger is that of all listeners."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        wheel: Wheel,
        table: RouteTable,
        certificates: Certificates,
        streams: StreamOpener,
        live: Live,
        ledger: Ledger,
        counters: ProcessCounters,
        rules: DoorRules,
    ) -> None:
        super().__init__(loop, wheel=wheel, ledger=ledger, counters=counters)
        self._table = table
        self._certificates = certificates
        self._streams = streams
        self._live = live
        self.rules = rules

    def accepted(self, raw: socket.socket, address: tuple[str, int], port: int, protocol: str) -> None:
        """A visitor of a shared port: count it and look at what it says."""
        host = plain_address(address[0])
        key = None if self.rules.trusted(host) else address_key(host)
        refusal = self.ledger.admit(key, listener="tcp", handshake=True, visitor=True)
        if refusal is not None:
            self._counters.refuse(refusal)
            raw.close()
            return
        sock = counted(raw, self.ledger, key=key, peer=(host, address[1]), listener="tcp", handshake=True)
        gone = self.ledger.look(sock, lambda: self._crowded_out(sock))
        if gone is not None and gone.leave is not None:
            gone.leave()
        if gone is not sock:
            self._look(sock, port, PROTOCOLS[protocol].matcher, self._loop.time() + SAY_SECONDS)

    def close(self) -> None:
        """Drop what is not decided yet. Decided connections belong to others."""
        self._drop_all("tcp")

    # Looking.

    def _look(self, sock: CountedSocket, port: int, matcher: Matcher, until: float) -> None:
        peek = Peek(
            self._loop,
            sock,
            parse=matcher.read,
            needs=matcher.needs,
            done=lambda peek, found: self._found(peek, found, port),
            failed=self._failed,
        )
        self._peeks[sock] = peek
        peek.start(self._wheel, until)

    def _found(self, peek: Peek[Found], found: Found, port: int) -> None:
        sock = peek.sock
        del self._peeks[sock]
        if isinstance(found, Asked):
            self._answer(sock, found, port, peek.until)
        elif isinstance(found, Named):
            self._named(sock, found, self._table.find_named(port, found.host), peek.until)
        elif isinstance(found, Turned):
            self._say(sock, found.answer, found.reason)
        else:
            self._nameless(sock, self._table.find_alone(port))

    def _answer(self, sock: CountedSocket, asked: Asked, port: int, until: float) -> None:
        try:
            sock.recv(asked.size)  # was peeked, so it is all there
            sock.send(asked.answer)  # a byte into an empty send buffer: all or nothing
        except OSError:
            self._drop(sock, Reason.HANDSHAKE_FAILED)
        else:
            self._look(sock, port, asked.then, until)

    def _failed(self, peek: Peek[Found], reason: Reason, seen: bytes) -> None:
        sock = peek.sock
        del self._peeks[sock]
        if seen.startswith(_TLS_RECORD):
            self._say(sock, alert_record(Alert.ILLEGAL_PARAMETER), reason)
        else:
            self._drop(sock, reason)

    # Deciding.

    def _named(self, sock: CountedSocket, named: Named, route: Route | None, until: float) -> None:
        if route is None:
            self._say(sock, named.tell(Reason.NO_ROUTE), Reason.NO_ROUTE)
        elif not self._may_enter(sock, route):
            self._drop(sock, Reason.ADDRESS_REFUSED)
        elif named.tls and route.kind == "tcp":
            begin = self._terminate
            self._handshakes.join(sock, lambda: spawn(begin(sock, named, route), name="handshake"), until=until)
        else:
            self._pass(sock, route, named)

    def _nameless(self, sock: CountedSocket, route: Route | None) -> None:
        """Bytes that belong to nobody by name go to who has the port alone, as they would on a raw port."""
        if route is None or route.kind != "tcp":
            self._drop(sock, Reason.NO_ROUTE)
        elif not self._may_enter(sock, route):
            self._drop(sock, Reason.ADDRESS_REFUSED)
        else:
            self._pass(sock, route, None)

    def _may_enter(self, sock: CountedSocket, route: Route) -> bool:
        return not route.allow_from or self.rules.allowed(route.allow_from, sock.peer[0])

    def _pass(self, sock: CountedSocket, route: Route, named: Named | None) -> None:
        sock.settle()
        visitor = visitor_of(sock, secure=False, server_name="" if named is None else named.host, alpn="")

        def refused(sock: CountedSocket, reason: Reason) -> None:
            self._say(sock, b"" if named is None else named.tell(reason), reason)

        RawPassage(self._streams, self._live, route, visitor, sock=sock, refused=refused).start()

    async def _terminate(self, sock: CountedSocket, named: Named, route: Route) -> None:
        """End TLS here, with the certificate of the name; the inside goes to the target."""
        context = await self._certificates.context(route.host, named.host, http=False)
        if context is None:
            self._say(sock, named.tell(Reason.NAME_UNKNOWN), Reason.NAME_UNKNOWN)
            return
        visitor = visitor_of(sock, secure=True, server_name=named.host, alpn="")
        refused = self._counters.refuse
        passage = TlsPassage(self._streams, self._live, route, visitor, refused=refused, tell=named.inside)
        await shake_hands(sock, passage, context, failed=refused)
