"""Which certificate a visitor is shown: one SSLContext per certificate and policy, chosen after peeking.

Certificates are pairs of PEM files that an `Issuer` knows or makes: the operator's own ("files"), the edge's own
authority ("self-signed"), or from an ACME server. They are read again when the files change.

Invariants: a pair that cannot be used is said loudly, and costs only its own names; a pair that worked stays in use
until a better one was proven by a handshake in memory. Nothing is ever made for a name without a route.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from typing import TYPE_CHECKING

from tunnelgw.errors import LocalError
from tunnelgw.identity.acme.keeper import AT_ONCE, Postponed
from tunnelgw.net import tls
from tunnelgw.net.tasks import cancel, spawn
from tunnelgw.net.timers import INF
from tunnelgw.obs.sparing import Sparing
from tunnelgw.routing.hostname import wildcard_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tunnelgw.net.issuers import Issuer, Pair
    from tunnelgw.net.timers import Wheel

log = logging.getLogger(__name__)

CHECK_SECONDS = 10.0  # how soon a changed file is noticed
RETRY_SECONDS = (60.0, 3600.0)  # an issuer that failed for a host is left alone this long, doubled each time
POSTPONED_SECONDS = 60.0  # an issuer that does not want to work now is asked again after this
TOLD_SECONDS = 60.0  # between two lines about visitors of one host who were turned away
VISITOR_SECONDS = 10.0  # a visitor waits this long for a certificate that is being made
_STAMP = tuple[int, int, int, int, int, int]
_NEVER = (0.0, RETRY_SECONDS[0] / 2)


class Loaded:
    """A pair in use: what it says, and its contexts by policy. Both are read at once, and are of the same pair."""

    __slots__ = ("_contexts", "_until", "described", "pair", "stamp")

    def __init__(self, pair: Pair) -> None:
        """Raises `OSError` (which `ssl.SSLError` is) for a pair that cannot be used."""
        self.pair = pair
        self.stamp = _stamp(pair)
        text = pair.certificate.read_text("ascii", "replace")
        self._contexts = self._read()
        self.described = tls.describe(self._contexts[True], text)
        self._until = time.monotonic() + tls.TICKET_SECONDS

    def valid(self, now: float) -> bool:
        """Would a visitor accept its dates (Unix seconds)?"""
        return self.described.not_before <= now < self.described.not_after

    def freshen(self, now: float) -> None:
        """New contexts, hence new ticket keys and no kept sessions, when it is time (monotonic seconds)."""
        if now < self._until and not any(tls.keeps_much(context) for context in self._contexts.values()):
            return
        try:
            self._contexts = self._read()
        except OSError as error:  # replaced in this very moment: the next look says what is wrong
            log.debug("certificate %s not read again: %s", self.pair.certificate, error)
        else:
            self._until = now + tls.TICKET_SECONDS

    def context(self, *, http: bool) -> ssl.SSLContext:
        """For HTTP (ALPN h2 and http/1.1), or for TCP inside TLS (`tls.RAW_ALPN`)."""
        return self._contexts[http]

    def _read(self) -> dict[bool, ssl.SSLContext]:
        """By `http`. `OSError` also for files that are no longer those of `stamp`: another pair than is described."""
        pair = self.pair
        made = {
            True: tls.visitor_context(pair.certificate, pair.key),
            False: tls.visitor_context(pair.certificate, pair.key, alpn=tls.RAW_ALPN),
        }
        if _stamp(pair) != self.stamp:
            raise OSError("it was replaced while it was read")
        return made


class Certificates:
    """All visitor certificates of this process. Inputs: routes' hosts (`want`), a timer that looks at the files."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wheel: Wheel, issuer: Issuer) -> None:
        self._loop = loop
        self._wheel = wheel
        self._issuer = issuer
        self._loaded: dict[Pair, Loaded] = {}
        self._by_name: dict[str, Loaded] = {}
        self._bad: dict[Pair, _STAMP | None] = {}  # what was complained about already; None: to be tried again
        self._asked: dict[str, asyncio.Future[None]] = {}  # hosts that an issuer is working on
        self._failed: dict[str, tuple[float, float]] = {}  # host → (until when the issuer is left alone, for how long)
        self._wanted: set[str] = set()
        self._started = False
        self._open = False  # visitors can reach the front door
        self._retired = False
        self._few = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._look: asyncio.Task[None] | None = None
        self._sparing = Sparing(log)
        self._told: dict[str, float] = {}  # host → when somebody was turned away and the log said so
        self.deadline = INF
        self.armed_until = INF

    def start(self) -> None:
        """Read what there is, and look again from time to time. What is wanted before is only noted."""
        self._started = True
        self.refresh()
        self._wheel.arm(self, self._loop.time() + CHECK_SECONDS)

    def open(self) -> None:
        """The front door is open: an issuer that looks at it from outside may begin."""
        self._open = True
        self.want(self._wanted)

    def close(self) -> None:
        """Stop looking."""
        self.deadline = INF

    def retire(self) -> None:
        """Another process looks after certificates: begin nothing more. What an issuer works on goes on."""
        self.close()
        self._retired = True
        self._wanted = set()  # of the queued ones none has its turn any more

    async def stop(self) -> None:
        """Stop looking, and end what issuers are doing, their child processes included."""
        self.close()
        tasks = tuple(self._tasks)
        for task in tasks:  # all first: each may take seconds to put things back
            task.cancel()
        for task in tasks:
            await cancel(task)

    def replace(self, issuer: Issuer) -> None:
        """Another configuration: names that it does not cover are gone at the next handshake."""
        self._issuer = issuer
        self._failed.clear()
        self.refresh()
        self.want(self._wanted)

    def want(self, hosts: Iterable[str]) -> None:
        """Routes exist for exactly these hosts (names or wildcards) now: see that they have certificates."""
        if not self._retired:
            self._wanted = set(hosts)
            self._see_to(self._wanted)

    def change(self, hosts: Mapping[str, bool]) -> None:
        """Of these hosts, routes exist (True) or not; all others are as they were."""
        if not self._retired:
            self._wanted.difference_update(host for host, wanted in hosts.items() if not wanted)
            found = [host for host, wanted in hosts.items() if wanted]
            self._wanted.update(found)
            self._see_to(found)

    def _see_to(self, hosts: Iterable[str]) -> None:
        missing = [host for host in hosts if self._needs(host)] if self._started else ()
        if missing:
            spawn(self.ensure(missing), name="certificates")

    async def ensure(self, hosts: Iterable[str]) -> None:
        """Return when each of these hosts has a certificate, or its issuer gave up (which is logged)."""
        waiting = []
        fresh = []
        for host in hosts:
            pending = self._asked.get(host)
            if pending is None and self._needs(host):
                pending = self._asked[host] = self._loop.create_future()
                fresh.append(host)
            if pending is not None:
                waiting.append(pending)
        for group in [fresh] if self._issuer.local and fresh else [[host] for host in fresh]:
            self._keep(spawn(self._obtain(group), name="issuer"))
        for pending in waiting:
            await asyncio.shield(pending)

    async def context(self, host: str, name: str, *, http: bool) -> ssl.SSLContext | None:
        """The context for a visitor of `name`, whose route says `host` (a name or wildcard); None if there is none."""
        loaded = self._find(name)
        if loaded is None:
            trouble = "none could be made"
            try:
                await asyncio.wait_for(self.ensure([host]), VISITOR_SECONDS)
            except TimeoutError:
                trouble = f"none within {VISITOR_SECONDS:g} seconds"
            loaded = self._find(name)  # also then: it may be there, and those that were asked for with it not
            if loaded is None:
                self._tell(host, trouble)
                return None
        return loaded.context(http=http)

    def challenge(self, name: str) -> ssl.SSLContext | None:
        """As `Issuer.challenge`."""
        return self._issuer.challenge(name)

    def proof(self, token: str) -> bytes | None:
        """As `Issuer.proof`."""
        return self._issuer.proof(token)

    def troubles(self, hosts: Iterable[str] | None = None) -> dict[str, tuple[int, str]]:
        """These hosts (None: all that are wanted) as far as their last order failed: how often in a row, and why."""
        found = {host: self._issuer.trouble(host) for host in (self._wanted if hosts is None else hosts)}
        return {host: trouble for host, trouble in found.items() if any(trouble)}

    def failures(self) -> dict[str, int]:
        """For wanted hosts, the orders that failed since one succeeded; nothing where nothing is ordered."""
        return {} if self._issuer.local else {host: self._issuer.trouble(host)[0] for host in self._wanted}

    def asked(self) -> frozenset[str]:
        """Hosts whose certificates are being made or ordered at this moment."""
        return frozenset(self._asked)

    def expiries(self, hosts: Iterable[str] | None = None) -> dict[str, float]:
        """These hosts (None: all that are wanted) with the end of their certificate in Unix seconds; 0.0: none yet."""
        result, now = {}, time.time()
        for host in self._wanted if hosts is None else hosts:
            loaded = self._find(host)
            usable = loaded is not None and loaded.described.not_before <= now
            result[host] = loaded.described.not_after if loaded is not None and usable else 0.0
        return result

    def on_change(self) -> None:
        """Somebody changed files: look now."""
        self.refresh()
        self.want(self._wanted)

    def on_deadline(self, now: float) -> None:
        """Time to look at the files."""
        self._wheel.arm(self, now + CHECK_SECONDS)  # first: whatever fails below, there is a next time
        self.on_change()
        if not self._issuer.local and (self._look is None or self._look.done()):
            self._look = spawn(self._ask(), name="renewal windows")
            self._keep(self._look)

    async def _ask(self) -> None:
        try:
            await self._issuer.look(self._wanted)
        except (LocalError, OSError) as error:
            self._sparing.warning("windows", self._loop.time(), "renewal windows not looked at: %s", error)

    def refresh(self) -> None:
        """Read pairs that are new or changed, forget those that are gone; if that cannot be seen, all stay."""
        try:
            pairs = tuple(self._issuer.pairs())
        except OSError as error:
            self._sparing.warning("pairs", self._loop.time(), "certificates not looked at, they stay: %s", error)
            return
        changed = False
        for pair in pairs:
            changed |= self._read(pair)
        for pair in set(self._loaded).difference(pairs):
            del self._loaded[pair]
            changed = True
        if changed:
            self._failed.clear()
        self._index()  # also without a change: one may have become valid, or expired

    def _read(self, pair: Pair) -> bool:
        old = self._loaded.get(pair)
        try:
            stamp = _stamp(pair)
        except OSError as error:
            self._complain(pair, None, error)
            return False
        if old is not None and old.stamp == stamp:
            old.freshen(time.monotonic())
            return False
        if self._bad.get(pair) == stamp:
            return False
        try:
            loaded = Loaded(pair)
        except (ssl.SSLError, KeyError, ValueError) as error:
            self._complain(pair, stamp, error)
            return False
        except OSError as error:  # says nothing about the files: they are read again at the next look
            self._complain(pair, None, error)
            return False
        self._bad.pop(pair, None)
        self._loaded[pair] = loaded
        names = ", ".join(loaded.described.names) or "no name"
        log.info("certificate %s (%s) in use", pair.certificate, names)
        if not loaded.valid(time.time()):
            when = "has expired" if loaded.described.not_after < time.time() else "is not valid yet"
            log.error("certificate %s (%s) %s: visitors will be warned", pair.certificate, names, when)
        return True

    def _complain(self, pair: Pair, stamp: _STAMP | None, error: Exception) -> None:
        if pair not in self._bad or self._bad[pair] != stamp:
            kept = "the one in use stays" if pair in self._loaded else "its names cannot be served"
            log.error("certificate %s with key %s cannot be used: %s; %s", pair.certificate, pair.key, error, kept)
        self._bad[pair] = stamp

    def _index(self) -> None:
        """Names to pairs; where several cover a name, one whose dates are good wins, then the one that lasts longer."""
        now = time.time()
        by_name: dict[str, Loaded] = {}
        for loaded in sorted(self._loaded.values(), key=lambda one: (one.valid(now), one.described.not_after)):
            by_name.update(dict.fromkeys(loaded.described.names, loaded))  # the best one last
        self._by_name = by_name

    def _find(self, name: str) -> Loaded | None:
        """Exact name first, then the one wildcard that covers it."""
        found = self._by_name.get(name)
        return found if found is not None else self._by_name.get(wildcard_of(name))

    def _needs(self, host: str) -> bool:
        """True for a host without a certificate, or with one that ends soon, whose issuer did not just fail."""
        if host in self._asked or self._failed.get(host, _NEVER)[0] > self._loop.time():
            return False
        issuer = self._issuer
        if not (issuer.local or self._open) or not self._needs_now(host):
            return False
        return not issuer.rests(host, time.time())

    def _needs_now(self, host: str) -> bool:
        loaded = self._find(host)
        return loaded is None or self._issuer.due(host, loaded.described, time.time())

    async def _obtain(self, hosts: list[str]) -> None:
        before, postponed = dict(self._failed), False
        try:
            if self._issuer.local:
                await self._issuer.obtain(hosts)
            else:
                await self._order(hosts)
        except Postponed as error:
            postponed = True
            log.info("%s", error.text)
        except (LocalError, OSError) as error:
            log.error("no certificate for %s: %s", ", ".join(hosts), error)
        finally:
            self.refresh()
            now = self._loop.time()
            for host in hosts:
                if self._needs_now(host) and (self._issuer.local or host in self._wanted):
                    last = before.get(host, _NEVER)[1]
                    wait = POSTPONED_SECONDS if postponed else min(last * 2, RETRY_SECONDS[1])
                    self._failed[host] = (now + wait, last if postponed else wait)
                future = self._asked.pop(host)
                if not future.done():
                    future.set_result(None)

    async def _order(self, hosts: list[str]) -> None:
        """From outside: few at a time, and only what is still wanted when its turn comes."""
        async with self._few:
            self.refresh()  # another worker may have been faster
            for host in hosts:
                if host in self._wanted and self._needs_now(host):
                    await self._issuer.obtain([host])

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _tell(self, host: str, what: str) -> None:
        """Say why visitors of a host are turned away, once in a while."""
        now = self._loop.time()
        if self._told.get(host, -INF) + TOLD_SECONDS <= now:
            self._told[host] = now
            why = self._issuer.trouble(host)[1]
            log.warning("visitors of %s are turned away, it has no certificate: %s", host, why or what)


def _stamp(pair: Pair) -> _STAMP:
    """What changes when a file does, links included (certbot swaps links)."""
    one, two = os.stat(pair.certificate), os.stat(pair.key)
    return one.st_mtime_ns, one.st_size, one.st_ino, two.st_mtime_ns, two.st_size, two.st_ino
