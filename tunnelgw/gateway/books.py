"""What is written down of one request: its bytes and its status in the route's numbers, and one line of the access log.

Invariant: each request is counted and logged once, when it is over; its bytes are counted while it lasts, each once.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tunnelgw.gateway.holding import Holding

if TYPE_CHECKING:
    from tunnelgw.gateway.pool import Pool
    from tunnelgw.http.head import RequestHead
    from tunnelgw.routing.table import Route

_LOGGED_BYTES = 256  # of what came instead of a request


class Books(Holding):
    """The part of an exchange that counts. `account` closes the books; `head` and `route` are None then."""

    __slots__ = ("bytes_in", "bytes_out", "counted_in", "counted_out", "head", "pool", "route", "started", "status")

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool = pool
        self.head: RequestHead | None = None
        self.route: Route | None = None
        self.started = 0.0
        self.bytes_in = 0  # payload from the visitor: neither heads nor the framing of bodies
        self.bytes_out = 0  # payload to the visitor, likewise
        self.counted_in = self.counted_out = 0  # of both, what the route's numbers hold already
        self.status = 0

    def keep(self, size: int) -> None:
        """So many bytes from the visitor wait here from now on. An exchange that is over keeps nothing."""
        self.hold(size if self.head is not None else 0, self.pool.gateway)

    def account(self, now: float, status: int = 0) -> None:
        """The exchange is over: count it, log it, let go of what it held."""
        gateway = self.pool.gateway
        route, head = self.route, self.head
        status = status or self.status
        if route is not None:
            received, sent = self.bytes_in - self.counted_in, self.bytes_out - self.counted_out
            route.counters.observe(status, now - self.started, received, sent)
        log = gateway.log_request
        if log is not None and head is not None:
            log((
                time.time(), self.pool.visitor.address, "" if route is None else route.label, head.method, head.host,
                head.path, head.version, status, self.bytes_out, now - self.started, head.request_id,
            ))  # fmt: skip
        self.head = None
        self.route = None
        if self.weight:
            self.keep(0)

    def log_refused(self, method: bytes, line: bytes, version: int, since: float) -> None:
        """Log what was refused before there was a head: `line` is as the visitor sent it, to be escaped by the log."""
        gateway = self.pool.gateway
        if gateway.log_request is not None:
            gateway.log_request((
                time.time(), self.pool.visitor.address, "", method[:_LOGGED_BYTES], "", line[:_LOGGED_BYTES], version,
                self.status, self.bytes_out, gateway.time() - since, b"",
            ))  # fmt: skip

    def count(self) -> None:
        """Bring the route's bytes up to date: an exchange may last for days."""
        if self.route is not None:
            counters = self.route.counters
            counters.bytes_in += self.bytes_in - self.counted_in
            counters.bytes_out += self.bytes_out - self.counted_out
            self.counted_in, self.counted_out = self.bytes_in, self.bytes_out
