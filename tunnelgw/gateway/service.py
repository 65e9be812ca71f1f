"""The gateway: what all visitor connections of a process share, and where they are made.

Inputs: a route table, an opener of streams, the timer wheel, settings, and a few decisions that belong to the owner
(which hosts a server name covers, who is believed about forwarding). Output: protocols to attach to transports.

Invariant: nothing here belongs to one visitor; what does, goes away with its connection.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Protocol

from tunnelgw.access.addresses import allowed_from
from tunnelgw.gateway.doorkeeper import Doorkeeper
from tunnelgw.gateway.http1 import Http1Visitor
from tunnelgw.gateway.http2 import Http2Visitor
from tunnelgw.gateway.settings import GatewaySettings
from tunnelgw.net.sockets import dismiss, unsent
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from tunnelgw.gateway.exchange import Exchange
    from tunnelgw.gateway.opener import StreamOpener, Visitor
    from tunnelgw.gateway.pool import Pool
    from tunnelgw.http.head import RequestHead
    from tunnelgw.net.timers import Wheel
    from tunnelgw.obs.counters import ProcessCounters
    from tunnelgw.routing.table import RouteTable
    from tunnelgw.wire.flow import Budget

    LogRequest = Callable[[tuple[object, ...]], object]

_DATE = "%a, %d %b %Y %H:%M:%S GMT"  # RFC 9110 section 5.6.7; nobody here sets a locale


class Flushing(Protocol):
    """Whatever collects output during a loop turn."""

    def flush(self) -> None:
        """Write it."""


class Draining(Protocol):
    """A visitor connection."""

    pool: Pool

    def wind_down(self) -> None:
        """Serve what comes, and ask the visitor to go on elsewhere."""

    def drain(self) -> None:
        """Serve no further request."""

    def under_way(self) -> tuple[Exchange, ...]:
        """Its exchanges."""


def covers_same_host(visitor: Visitor, host: str) -> bool:
    """Whether a request for `host` belongs on this connection: over TLS, only the host that its hello named."""
    return not visitor.secure or visitor.server_name == host


def no_proof(token: str) -> bytes | None:  # noqa: ARG001 - the signature of the lookup
    """No challenge runs."""
    return None


def trusted_nobody(address: str) -> bool:  # noqa: ARG001 - the signature of the decision
    """Nobody's forwarding fields are believed."""
    return False


class Gateway:
    """The HTTP proxy of one process.

    `memory`: what bodies occupy that wait outside of streams is charged here, and they go where it is needed.
    `trusted(address)`: whether a peer's forwarding fields are believed. `allowed(allow_from, address)`: whether a route
    that names networks is open to an address.
    `covers(visitor, host)`: whether the connection's certificate and server name stand for `host` (else 421).
    `proof(token)`: the answer to a running ACME http-01 challenge, None where there is none of that token.
    `log_request`: takes one finished exchange as a tuple in the order of `obs.accesslog.Entry`; None for no log.
    """

    def __init__(
        self,
        *,
        table: RouteTable,
        opener: StreamOpener,
        wheel: Wheel,
        loop: asyncio.AbstractEventLoop,
        counters: ProcessCounters,
        memory: Budget,
        settings: GatewaySettings | None = None,
        covers: Callable[[Visitor, str], bool] = covers_same_host,
        trusted: Callable[[str], bool] = trusted_nobody,
        allowed: Callable[[tuple[str, ...], str], bool] = allowed_from,
        proof: Callable[[str], bytes | None] = no_proof,
        log_request: LogRequest | None = None,
    ) -> None:
        self.table = table
        self.opener = opener
        self.wheel = wheel
        self.counters = counters
        self.memory = memory
        self.settings = settings or GatewaySettings()
        self.covers = covers
        self.trusted = trusted
        self.allowed = allowed
        self.proof = proof
        self.log_request = log_request
        self.time = loop.time
        self.doorkeeper = Doorkeeper(loop)
        self.draining = False
        self.connections: set[Draining] = set()
        self.refused = counters.refuse
        self._loop = loop
        self._waiting: list[Flushing] = []
        self._prefix = secrets.token_hex(6).encode() + b"-"
        self._count = 0
        self._date = b""
        self._date_at = 0

    def http1(self, visitor: Visitor) -> asyncio.Protocol:
        """The protocol of a connection on which HTTP/1.1 was agreed, or nothing."""
        return Http1Visitor(self, visitor)

    def http2(self, visitor: Visitor) -> asyncio.Protocol:
        """The protocol of a connection on which `h2` was agreed."""
        return Http2Visitor(self, visitor)

    def wind_down(self) -> None:
        """Another process takes new connections: serve those that are here until their visitors know.

        A kept connection must not be closed while a request may be on its way in it. So on HTTP/1.1 the next response
        says that it is the last one, on HTTP/2 a last call goes out, and who is idle stays until its idle time is over.
        """
        self.draining = True
        for connection in list(self.connections):
            connection.wind_down()

    def drain(self) -> None:
        """Serve what is under way and nothing more; `connections` empties as visitors finish."""
        self.draining = True
        for connection in list(self.connections):
            connection.drain()

    def part(self, connection: Draining, transport: asyncio.Transport | None) -> None:
        """An idle connection ends. Nobody waits for a visitor who has everything and is slow to say goodbye in TLS."""
        if not self.unsent_bytes(transport):
            self.connections.discard(connection)

    def dismiss(self, transport: asyncio.Transport) -> None:
        """An idle connection gives its place to somebody else, at once."""
        self.refused(Reason.MADE_ROOM)
        dismiss(transport, self._loop)

    def let_go(self, connector: str) -> None:
        """That connector is leaving: end the streams to it that no exchange uses, so that it need not wait for them."""
        for connection in list(self.connections):
            connection.pool.let_go(connector)

    def send_on(self, connector: str) -> None:
        """Another process has that connector's services, and this one never will again: who rests is to dial anew.

        A request that crosses the end of its connection is the visitor's own to repeat, as at any idle time's end.
        """
        hosts = {route.host for route in self.table.routes_of(connector)}
        for connection in list(self.connections):
            name = self.table.find_name(connection.pool.visitor.server_name)
            if name is None or name.host in hosts:  # on plain HTTP any host may come
                connection.drain()

    def fail_over(self, connector: str) -> None:
        """That connector lost its link: what others can answer as well is asked of them at once."""
        if not any(route.group for route in self.table.routes_of(connector)):
            return  # nobody shares anything with it: a link that comes and goes costs no look at every visitor
        for connection in list(self.connections):
            for exchange in connection.under_way():
                exchange.fail_over(connector)

    def take_over(self, connector: str) -> None:
        """That connector can be asked from now on: it is, for what waits for the lost link of another member."""
        if not any(route.group for route in self.table.routes_of(connector)):
            return
        for connection in list(self.connections):
            for exchange in connection.under_way():
                exchange.fail_over()

    def reload(self, settings: GatewaySettings, trusted: Callable[[str], bool]) -> None:
        """Use these from the next connection or deadline on."""
        self.settings = settings
        self.trusted = trusted

    def flush_soon(self, item: Flushing) -> None:
        """See that `item.flush()` is called once, later in this loop turn."""
        waiting = self._waiting
        if not waiting:
            self._loop.call_soon(self._flush)
        waiting.append(item)

    def unsent_bytes(self, transport: asyncio.Transport | None) -> int:
        """What the kernel holds unsent. A slow reader drains that long before our transport notices anything."""
        sock = None if transport is None else transport.get_extra_info("socket")
        return unsent(sock.fileno()) if sock is not None else 0

    def new_id(self) -> bytes:
        """A request id: unique in this process, unlikely to meet another's."""
        self._count += 1
        return b"%b%x" % (self._prefix, self._count)

    def date(self) -> bytes:
        """The Date field's value now."""
        now = int(time.time())
        if now != self._date_at:
            self._date_at = now
            self._date = time.strftime(_DATE, time.gmtime(now)).encode()
        return self._date

    def secure_address(self, head: RequestHead) -> bytes:
        """Where a request on plain HTTP is sent to."""
        host = head.host.encode("ascii")
        if self.settings.https_port != 443:
            host = b"%b:%d" % (host, self.settings.https_port)
        return b"https://%b%b" % (host, b"/" if head.path == b"*" else head.path)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for item in waiting:
            item.flush()
