"""What the exchanges of one visitor connection share: its routes and its kept streams.

Streams never cross visitor connections. One that is clean after an exchange is kept for the same connection's next
request to the same route; a request that must not be repeated takes it only within a second of its last use, because an
older one may be closing at this very moment. Invariant: a stream in the pool has no exchange, owes no credit and has
received nothing that no request asked for; what is kept is in order of `idle_since`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.errors import Refused, RemoteError
from tunnelgw.gateway.branch import Branch
from tunnelgw.gateway.memo import Memo
from tunnelgw.gateway.upstream1 import Upstream1
from tunnelgw.gateway.upstream2 import Trunk
from tunnelgw.http.forwarding import Forwarding, claimed_address, claimed_secure
from tunnelgw.http.head import repeatable
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from tunnelgw.gateway.opener import Visitor
    from tunnelgw.gateway.service import Gateway
    from tunnelgw.gateway.upstream import Upstream
    from tunnelgw.http.head import RequestHead
    from tunnelgw.routing.table import Route

# Idle streams of one visitor connection: as many as a browser has requests under way to one host.
_KEPT_LIMIT = 32
# A stream used this recently is not about to be closed by its service for idleness.
_FRESH_SECONDS = 1.0


class Pool:
    """One visitor connection's own streams, and what is known about its routes."""

    __slots__ = ("_covered", "_kept", "_trunks", "_trusted", "forwarding", "gateway", "memo", "visitor")

    def __init__(self, gateway: Gateway, visitor: Visitor) -> None:
        self.gateway = gateway
        self.visitor = visitor
        self._trusted = gateway.trusted(visitor.address)
        self.forwarding = Forwarding(
            address=visitor.address,
            port=visitor.edge_port,
            secure=visitor.secure,
            trusted=gateway.trusted if self._trusted else None,
        )
        settings = gateway.settings
        self.memo = Memo(settings.hsts if visitor.secure else b"", settings.request_head_bytes)
        self._covered: str | None = None  # the last host that this connection's certificate was found to cover
        self._kept: list[Upstream1] | None = None
        self._trunks: list[Trunk] | None = None

    def find_route(self, head: RequestHead) -> Route | None:
        """The route of a request, for this visitor; None: it is to be had over TLS only. Raises the refusal."""
        gateway, visitor = self.gateway, self.visitor
        host = head.host
        if host != self._covered:
            if not host:
                raise RemoteError("no host was named", reason=Reason.NO_ROUTE)
            if not gateway.covers(visitor, host):
                raise RemoteError("the connection is for another host", reason=Reason.MISDIRECTED)
            self._covered = host
        route = gateway.table.find_http(host, head.path)
        if not visitor.secure and self._elsewhere(head, route):
            return None
        if route is None:
            raise RemoteError("nothing is published there", reason=Reason.NO_ROUTE)
        if route.allow_from and not gateway.allowed(route.allow_from, self.address_of(head)):
            raise Refused("the visitor's address is not allowed", reason=Reason.ADDRESS_REFUSED)
        return route

    def _elsewhere(self, head: RequestHead, route: Route | None) -> bool:
        """Whether what was asked for on plain HTTP is to be had over TLS only."""
        plain_too = route is not None and route.plain_http
        return not (plain_too or self.secure(head)) and self.gateway.table.find_name(head.host) is not None

    def address_of(self, head: RequestHead) -> str:
        """Whose request it is: the peer's, or whose a trusted proxy says it is."""
        return (claimed_address(head, self.gateway.trusted) if self._trusted else "") or self.visitor.address

    def secure(self, head: RequestHead) -> bool:
        """Whether the request came over TLS, as far as we or a trusted proxy can say."""
        return self.visitor.secure or (self._trusted and claimed_secure(head))

    def rest(self, now: float) -> bool:
        """No exchange is under way: hold as little as possible; True if something is left to sweep."""
        self.memo.forget()
        return self.sweep(now)

    def take(self, route: Route, now: float, head: RequestHead, *, fresh: bool) -> Upstream:
        """An upstream for one exchange: one that was kept, unless it must be `fresh`, or a new one."""
        if route.kind == "h2c":
            return Branch(self._trunk(route))
        kept = self._kept
        if kept and not fresh:
            since = now - _FRESH_SECONDS
            for upstream in reversed(kept):
                if upstream.idle_since < since:  # as are those before it
                    if not repeatable(head):
                        break
                    since = now - self.gateway.settings.keep_seconds
                if upstream.route is route and upstream.idle_since >= since:
                    kept.remove(upstream)
                    upstream.reused = True
                    return upstream
        return Upstream1(self, route)

    def keep(self, upstream: Upstream1) -> None:
        """A clean upstream waits for the next exchange, from its `idle_since` on."""
        kept = self._kept
        if kept is None:
            kept = self._kept = []
        elif len(kept) >= _KEPT_LIMIT:
            kept.pop(0).retire()
        kept.append(upstream)

    def drop(self, upstream: Upstream1) -> None:
        """A kept upstream's stream is gone."""
        if self._kept and upstream in self._kept:
            self._kept.remove(upstream)

    def drop_trunk(self, trunk: Trunk) -> None:
        """A trunk is gone."""
        if self._trunks and trunk in self._trunks:
            self._trunks.remove(trunk)

    def sweep(self, now: float) -> bool:
        """Give up what was idle for too long; True if something is left to sweep."""
        since = now - self.gateway.settings.keep_seconds + 1.0  # swept once a second: never kept for longer
        for upstream in list(self._kept or ()):
            if upstream.idle_since <= since:
                self.drop(upstream)
                upstream.retire()
        for trunk in list(self._trunks or ()):
            if trunk.idle_since <= since:
                trunk.close()
        if not self._kept:
            self._kept = None
        if not self._trunks:
            self._trunks = None
        return self._kept is not None or self._trunks is not None

    def let_go(self, connector: str) -> None:
        """That connector is leaving: give up what no exchange uses."""
        for upstream in [one for one in self._kept or () if one.route.connector == connector]:
            self.drop(upstream)
            upstream.retire()
        for trunk in [one for one in self._trunks or () if one.route.connector == connector]:
            trunk.let_go()

    def close(self) -> None:
        """The visitor connection is gone."""
        kept, self._kept = self._kept, None
        for upstream in kept or ():
            upstream.retire()
        trunks, self._trunks = self._trunks, None
        for trunk in trunks or ():
            trunk.close()

    def _trunk(self, route: Route) -> Trunk:
        trunks = self._trunks
        if trunks is None:
            trunks = self._trunks = []
        for trunk in trunks:
            if trunk.route is route and trunk.open:
                return trunk
        trunk = Trunk(self, route)
        trunks.append(trunk)
        return trunk
