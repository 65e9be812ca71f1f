"""Raw ports, TCP and UDP, opened and closed while the edge runs, as routes come and go.

`want` is told the whole set of ports that routes hold; ports that are new are opened, ports that nobody holds any more
are closed. A connection finds its route when it arrives, by port, so a port may change its service without closing.
Ports that hosts share are listened on here as well; what their visitors say first is looked at in `named.py`. A UDP
port is opened in each worker and read by one of them (`mine`): what one visitor sends must not be scattered.

Invariants: closing a port never touches connections that are already through it (`Live.cut` does, for a service that is
withdrawn); a raw port never waits for the visitor to speak first (no TCP_DEFER_ACCEPT), since ssh's target does.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, Protocol

from tunnelgw.access.addresses import address_key
from tunnelgw.edge.addressing import plain_address, visitor_of
from tunnelgw.edge.named import NamedPorts
from tunnelgw.edge.passthrough import Live, RawPassage
from tunnelgw.edge.udpport import UdpPort, bind_udp
from tunnelgw.errors import Refused
from tunnelgw.net.accept import Acceptor, Reserve, listen_on
from tunnelgw.net.ledger import CountedSocket, Ledger, counted
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.units import unit_text

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable, Iterable, Mapping

    from tunnelgw.edge.flows import Flows
    from tunnelgw.edge.public import DoorRules
    from tunnelgw.gateway.opener import StreamOpener
    from tunnelgw.net.certificates import Certificates
    from tunnelgw.net.timers import Wheel
    from tunnelgw.obs.counters import ProcessCounters
    from tunnelgw.routing.table import RouteTable
    from tunnelgw.routing.units import PortUnit

log = logging.getLogger(__name__)


TAKEN = "another program on the edge's machine uses it"


class PortRefused(Refused):
    """A port cannot be opened; cause: why, without the port."""

    def __init__(self, port: PortUnit, cause: str) -> None:
        super().__init__(f"{unit_text(port)}: {cause}", reason=Reason.PORT_UNAVAILABLE)
        self.cause = cause


class PortOpener(Protocol):
    """Makes the listening socket of a public port: here, or in the supervisor where there are several workers."""

    async def open_port(self, port: PortUnit) -> socket.socket:
        """A listener on that port, or its socket for UDP. Raises `PortRefused` with the cause."""

    def close_port(self, port: PortUnit) -> None:
        """This process no longer listens there."""


class LocalPorts:
    """`PortOpener` of the process that makes them. `bind` is `port_bind` of the configuration.

    A listener that was inherited is used instead of a new one, so a port that an upgrade hands over is never closed.
    """

    __slots__ = ("_bind", "_inherited")

    def __init__(self, bind: str) -> None:
        self._bind = bind
        self._inherited: dict[PortUnit, socket.socket] = {}

    def inherit(self, listeners: Mapping[PortUnit, socket.socket]) -> None:
        """These ports are open already, with these listeners, ours from here on."""
        self._inherited.update(listeners)

    def forget(self) -> None:
        """Close the inherited ones that nobody asked for."""
        for listener in self._inherited.values():
            listener.close()
        self._inherited.clear()

    def take(self, port: PortUnit) -> socket.socket:
        """As `open_port`."""
        inherited = self._inherited.pop(port, None)
        return inherited if inherited is not None else bind_port(self._bind, port)

    async def open_port(self, port: PortUnit) -> socket.socket:
        return self.take(port)

    def close_port(self, port: PortUnit) -> None:
        """Closing the listener was all."""


def bind_port(bind: str, port: PortUnit) -> socket.socket:
    """A listener for a raw port, both families where `bind` is "::". Raises `PortRefused`."""
    try:
        return _bind_tcp(bind, port) if isinstance(port, int) else bind_udp(bind, port[1])
    except OSError as error:
        raise PortRefused(port, _cause(error)) from None


def _bind_tcp(bind: str, port: int) -> socket.socket:
    try:
        return listen_on(bind, port, defer=False, dual_stack=True)
    except OSError as error:
        if bind != "::" or error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        return listen_on("0.0.0.0", port, defer=False)  # a kernel without IPv6


def _cause(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return TAKEN
    if error.errno in (errno.EACCES, errno.EPERM):
        return "the edge may not open ports below 1024 (it needs CAP_NET_BIND_SERVICE)"
    return str(error.strerror)


class Ports:
    """The raw ports of this process.

    Inputs: `open`/`close` from whoever applies claims, and connections. Owns its listeners; connections go to passages.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        opener: PortOpener,
        table: RouteTable,
        streams: StreamOpener,
        live: Live,
        ledger: Ledger,
        reserve: Reserve,
        counters: ProcessCounters,
        rules: DoorRules,
        wheel: Wheel,
        certificates: Certificates,
        flows: Flows,
        mine: Callable[[int], bool] = lambda _port: True,
    ) -> None:
        """`mine`: whether it is this worker that reads a UDP port."""
        self._loop = loop
        self._flows = flows
        self._mine = mine
        self._opener = opener
        self._table = table
        self._streams = streams
        self._live = live
        self._ledger = ledger
        self._reserve = reserve
        self._counters = counters
        self._rules = rules
        self._named = NamedPorts(
            loop,
            wheel=wheel,
            table=table,
            certificates=certificates,
            streams=streams,
            live=live,
            ledger=ledger,
            counters=counters,
            rules=rules,
        )
        self._acceptors: dict[PortUnit, Acceptor | UdpPort] = {}
        self._paused = False
        self._over = False

    def pause(self) -> None:
        """Accept nobody until `resume`; ports are opened and closed all the same. Idempotent."""
        self._paused = True
        for acceptor in self._acceptors.values():
            acceptor.close()

    def resume(self) -> None:
        """Accept again. Idempotent."""
        self._paused = False
        for acceptor in self._acceptors.values():
            acceptor.start()

    def reload(self, rules: DoorRules) -> None:
        """New rules, for connections and flows from now on."""
        self._rules = self._named.rules = self._flows.rules = rules

    async def open(self, port: PortUnit) -> None:
        """Listen on a port. Idempotent. Raises `PortRefused`; the caller tells the connector."""
        if port in self._acceptors:
            return
        self._check_room(port)
        listener = await self._opener.open_port(port)
        if port in self._acceptors or self._over:  # two claims at once: one socket is enough
            listener.close()
            if self._over:
                self._opener.close_port(port)
            return
        self._acceptors[port] = acceptor = self._acceptor(port, listener)
        if not self._paused:
            acceptor.start()
        self._ledger.held += 1
        log.info("%s is open", unit_text(port))

    def _check_room(self, port: PortUnit) -> None:
        """A port is a descriptor that no visitor can have: a range must not shut everybody out."""
        most = self._ledger.quarter
        if len(self._acceptors) >= most:
            raise PortRefused(port, f"{most} ports are open, a quarter of what the edge may open; allow it more files")

    def _acceptor(self, port: PortUnit, listener: socket.socket) -> Acceptor | UdpPort:
        if not isinstance(port, int):
            return UdpPort(self._loop, listener, port[1], self._flows, mine=self._mine(port[1]))
        return Acceptor(
            self._loop,
            listener,
            accepted=lambda sock, address: self._accepted(port, sock, address),
            refused=self._counters.refuse,
            reserve=self._reserve,
            waits=lambda: self._ledger.waits,
        )

    def close(self, port: PortUnit, *, withdrawn: bool = True) -> None:
        """Stop listening there; connections that came through it stay, flows do not. Idempotent.

        withdrawn: nobody offers it any more, so its connector hears that flows are over; else they go on elsewhere.
        """
        acceptor = self._acceptors.pop(port, None)
        if acceptor is not None:
            acceptor.close()
            if isinstance(acceptor, UdpPort):
                self._flows.end_all(acceptor, Reason.WITHDRAWN if withdrawn else None)
            acceptor.listener.close()
            self._ledger.held -= 1
            self._opener.close_port(port)
            log.info("%s is closed", unit_text(port))

    def keep(self, ports: Iterable[PortUnit]) -> None:
        """Close every port that is not among these."""
        for port in set(self._acceptors) - set(ports):
            self.close(port)

    def close_all(self) -> None:
        """The edge stops, or another process of it goes on: no new visitors, those being looked at go on.

        Connectors keep their side of flows. What is being opened at this moment is closed at once.
        """
        self._over = True
        for port in tuple(self._acceptors):
            self.close(port, withdrawn=False)

    def drop(self) -> None:
        """Drop who is not decided yet."""
        self._named.close()

    def __contains__(self, port: PortUnit) -> bool:
        return port in self._acceptors

    def listeners(self) -> dict[PortUnit, socket.socket]:
        """Open ports with their listeners, for an upgrade."""
        return {port: acceptor.listener for port, acceptor in self._acceptors.items()}

    def _accepted(self, port: int, raw: socket.socket, address: tuple[str, int]) -> None:
        protocol = self._table.protocol(port)
        if protocol:
            self._named.accepted(raw, address, port, protocol)
            return
        host = plain_address(address[0])
        route = self._table.find_port(port)
        key = None if self._rules.trusted(host) else address_key(host)
        if route is None:
            refusal: Reason | None = Reason.NO_ROUTE
        elif route.allow_from and not self._rules.allowed(route.allow_from, host):
            refusal = Reason.ADDRESS_REFUSED
        else:
            refusal = self._ledger.admit(key, listener="tcp", handshake=False)
        if refusal is not None or route is None:
            self._counters.refuse(refusal or Reason.NO_ROUTE)
            raw.close()
            return
        sock = counted(raw, self._ledger, key=key, peer=(host, address[1]), listener="tcp", handshake=False)
        visitor = visitor_of(sock, secure=False, server_name="", alpn="")
        RawPassage(self._streams, self._live, route, visitor, sock=sock, refused=self._refused).start()

    def _refused(self, sock: CountedSocket, reason: Reason) -> None:
        """No stream: a raw port has no way to say why, so the visitor sees the connection close."""
        self._counters.refuse(reason)
        sock.close()
