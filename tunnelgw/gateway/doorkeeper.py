"""Asks for a name and a password where a route wants them (HTTP Basic, RFC 7617).

A bcrypt hash takes milliseconds to a second of the processor, so it is computed in one thread beside the loop, and what
was right is remembered for a while: by a keyed digest, so that neither passwords nor anything that could be searched
for them is kept. Who guesses is turned away after a few failures; who has few under way comes first; the queue is
bounded, and the oldest of whoever has most makes room.

Invariants: a request reaches its service only after its own credentials were found right, now or within
`REMEMBER_SECONDS`, against the hash that is in force; each name takes as long as the dearest hash of its file, whether
it exists or not; only requests that wait are kept, at most `WAITING_MAX`.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tunnelgw.access.addresses import address_key
from tunnelgw.access.crowd import Crowd
from tunnelgw.access.passwords import cost_of, credentials, users_of
from tunnelgw.access.turns import Turns
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from tunnelgw.gateway.exchange import Exchange
    from tunnelgw.http.head import Fields
    from tunnelgw.routing.table import Route

REMEMBER_SECONDS = 300.0  # a password that was changed in the file is another hash: that is in force at once
REMEMBERED_MAX = 4096  # credentials, about 150 bytes each
FAILURES_MAX, FAILURE_SECONDS = 10, 60.0  # wrong passwords of one address in a window, before it is not heard
ADDRESSES_MAX = 4096  # with failures, remembered at once; the oldest are forgotten first
WAITING_MAX = 64  # requests that wait for the thread: a few seconds of its work


def verify(hashed: bytes, password: bytes, cost: int) -> bool:
    """Whether the password belongs to the hash, after the work of a hash of that cost, which may be higher.

    In a thread; bcrypt lets the loop run meanwhile.
    """
    import bcrypt

    for spare in range(cost_of(hashed), cost):  # each doubles what the hash itself takes: together, all of `cost`
        bcrypt.hashpw(b"", b"$2b$%02d$" % spare + b"." * 22)
    try:
        return bcrypt.checkpw(password[:72], hashed)  # bcrypt never looks at more
    except ValueError:
        return False


class Examination:
    """A request whose password is being looked at: an `Upstream` that is not ready, so its body waits."""

    __slots__ = (
        "_left", "cost", "digest", "exchange", "hashed", "heard", "key", "known", "linked", "password", "ready",
        "reused", "unsent",
    )  # fmt: skip

    def __init__(
        self,
        exchange: Exchange,
        key: str,
        *,
        digest: bytes,
        hashed: bytes,
        cost: int,
        password: bytes,
        known: bool,
        left: Callable[[Examination], None],
    ) -> None:
        self.exchange: Exchange | None = exchange
        self._left = left
        self.key = key
        self.cost = cost
        self.digest = digest
        self.hashed = hashed
        self.password = password
        self.known = known
        self.ready = False
        self.reused = False
        self.linked = True
        self.heard = False
        self.unsent = True

    @property
    def route(self) -> Route:
        """As `Upstream.route`: where the request will go, if it may."""
        assert self.exchange is not None
        assert self.exchange.route is not None
        return self.exchange.route

    def finish(self, refusal: Reason | None) -> None:
        """The answer; nothing if the visitor left."""
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            return
        if refusal is None:
            exchange.admitted()
        else:
            exchange.upstream_failed(refusal, heard=True, reused=False)

    # Upstream.

    def start(self, exchange: Exchange) -> None:
        """It began when it was made."""

    def send_body(self, data: bytes) -> None:
        """Never: not ready."""

    def send_end(self, trailers: Fields) -> None:
        """Never: not ready."""

    def release(self, held: int = 0) -> None:
        """Nothing came from here."""

    def done(self, now: float) -> None:  # noqa: ARG002 - the interface
        """The visitor got another answer."""
        self.exchange = None
        self._left(self)

    def abort(self, reason: Reason) -> None:  # noqa: ARG002 - the interface
        """The visitor left."""
        self.exchange = None
        self._left(self)


class Doorkeeper:
    """Input: `examine`, once for each request of a route with users."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._secret = os.urandom(32)
        self._remembered: OrderedDict[bytes, float] = OrderedDict()  # digest → until
        self._failures: dict[str, int] = {}
        self._failures_until = 0.0
        self._waiting: Crowd[Examination] = Crowd(WAITING_MAX)
        self._turns: Turns[Examination] = Turns()
        self._executor: ThreadPoolExecutor | None = None
        self._busy = False

    def examine(self, exchange: Exchange, route: Route, address: str) -> bool:
        """True: come in. False: the exchange is answered, or will hear (`admitted`, or a refusal) later."""
        assert exchange.head is not None
        given = credentials(exchange.head.fields)
        if given is None:
            exchange.refuse(Reason.PASSWORD_NEEDED)
            return False
        value, name, password = given
        users = users_of(route.users)
        known = name in users.hashes
        hashed = users.hashes[name] if known else users.dearest
        digest = hashlib.blake2b(hashed + value, key=self._secret, digest_size=32).digest()
        if known and self._remembers(digest):
            return True
        key = address_key(address)
        if self._tired_of(key):
            exchange.refuse(Reason.RATE_LIMIT)
            return False
        examination = Examination(
            exchange, key, digest=digest, hashed=hashed, cost=users.cost, password=password, known=known,
            left=self._forget,
        )  # fmt: skip
        exchange.upstream = examination
        self._turns.join(key, examination, 1 + self._failures.get(key, 0))
        gone = self._waiting.add(key, examination)
        if gone is not None:
            self._turns.discard(gone)
            gone.finish(Reason.RATE_LIMIT)
        self._next()
        return False

    def _forget(self, examination: Examination) -> None:
        """Nobody waits for the answer any more."""
        self._waiting.discard(examination)
        self._turns.discard(examination)

    def _next(self) -> None:
        while not self._busy:
            examination = self._turns.take()
            if examination is None:
                return
            self._waiting.discard(examination)
            if examination.known and self._remembers(examination.digest):  # a page asks for all its parts at once
                examination.finish(None)
            elif self._tired_of(examination.key):
                examination.finish(Reason.RATE_LIMIT)
            else:
                self._ask(examination)

    def _ask(self, examination: Examination) -> None:
        self._busy = True
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="passwords")
        work = self._loop.run_in_executor(
            self._executor, verify, examination.hashed, examination.password, examination.cost
        )
        work.add_done_callback(lambda done: self._examined(examination, done))

    def _examined(self, examination: Examination, done: asyncio.Future[bool]) -> None:
        self._busy = False
        if done.cancelled():
            return
        if done.result() and examination.known:
            self._remembered[examination.digest] = self._loop.time() + REMEMBER_SECONDS
            if len(self._remembered) > REMEMBERED_MAX:
                self._remembered.popitem(last=False)
            examination.finish(None)
        else:
            if examination.key not in self._failures and len(self._failures) >= ADDRESSES_MAX:
                del self._failures[next(iter(self._failures))]
            self._failures[examination.key] = self._failures.get(examination.key, 0) + 1
            examination.finish(Reason.PASSWORD_NEEDED)
        self._next()

    def _remembers(self, digest: bytes) -> bool:
        until = self._remembered.get(digest)
        if until is None:
            return False
        if until < self._loop.time():
            del self._remembered[digest]
            return False
        self._remembered.move_to_end(digest)
        return True

    def _tired_of(self, key: str) -> bool:
        now = self._loop.time()
        if now >= self._failures_until:
            self._failures.clear()
            self._failures_until = now + FAILURE_SECONDS
        return self._failures.get(key, 0) >= FAILURES_MAX
