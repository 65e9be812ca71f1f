"""A link: one TLS connection that carries a tunnel for a while.

Two phases. First greetings: whole messages go to the owner, who answers with `greet`. Then `attach` joins the link to a
session, and from then on the link does three things: bytes in go to `session.feed`, output goes out once per loop turn,
and it sends just in time.

Just in time means: what the kernel has not sent yet stays short, so that a small frame never waits behind a second of
bulk data. Before a flush the unsent queue is read (SIOCOUTQNSD, only after enough bytes went out to matter); above the
threshold the link waits until the socket is writable, which TCP_NOTSENT_LOWAT makes mean "nearly nothing unsent". The
watcher sits on a dup of the descriptor, since the loop owns the original.

Invariant: after `lost` nothing is written, the dup is closed, and the owner has been told exactly once.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Protocol, cast

from tunnelgw.errors import RemoteError
from tunnelgw.net import sockets
from tunnelgw.net.loop import KEPT_BYTES, give_back
from tunnelgw.wire import hello

if TYPE_CHECKING:
    from tunnelgw.wire.control import Greeting
    from tunnelgw.wire.session import Session

log = logging.getLogger(__name__)

# What may be unsent before a link waits, and what one flush adds to it at most: four full TLS records, to begin with.
BATCH_LEAST = sockets.UNSENT_MAX
# A link that drains a batch at once gets twice as much, up to this: larger writes cost less per byte.
BATCH_MOST = 4 * BATCH_LEAST
# One that needs long gets half as much, down to one full record: up to twice as much is unsent, and small answers wait
# behind it (beside four downloads at 20 Mbit/s 35 ms instead of 65, at 2 Mbit/s 370 instead of 700; p99 49 and 500).
BATCH_NARROW = BATCH_LEAST // 4
# Seconds that a link waited until it was writable, which is how long its batch took to drain: below the first its batch
# doubles, above the second it is no large one; on a narrow line it is kept between the other two.
FAST, SLOW, SHORT, LONG = 0.002, 0.004, 0.003, 0.010
# Bytes of all links arrive in this one buffer: they are copied out, once, before the loop can read again. (The TLS
# layer below would otherwise make an object per record and join them: two more copies of everything.)
_ARRIVALS = memoryview(bytearray(256 * 1024))
# The unsent queue is looked at only after this many bytes went out since the last look.
LOOK_BYTES = 32 * 1024


class LinkOwner(Protocol):
    """The tunnel port at the edge, the dialler at home."""

    def greeting_received(self, link: Link, message: Greeting) -> None:
        """A whole greeting message. `RemoteError` and `Refused` may be raised: the link is then refused and closed."""

    def link_lost(self, link: Link, error: Exception | None) -> None:
        """The link is gone (once). The session, if any, is still attached: detach it.

        A `RemoteError` means that the peer broke the protocol: the session must end, not resume.
        """


class Link(asyncio.BufferedProtocol):
    """One TLS connection of a tunnel; see the module's text."""

    __slots__ = (
        "_batch", "_blocked", "_dup", "_full", "_given_back", "_loop", "_lost", "_moved", "_paced", "_reader",
        "_scheduled", "_since_look", "_timer", "_timer_at", "_watched_at", "_watching", "owner", "peer", "session",
        "transport",
    )  # fmt: skip

    def __init__(self, owner: LinkOwner, *, loop: asyncio.AbstractEventLoop) -> None:
        self.owner = owner
        self.session: Session | None = None
        self.transport: asyncio.Transport | None = None
        self.peer = ""  # the other side's address, for logs
        self._loop = loop
        self._reader: hello.GreetingReader | None = hello.GreetingReader()
        self._dup = -1
        self._watching = False
        self._batch = BATCH_LEAST
        self._full = False
        self._watched_at = 0.0
        self._blocked = False
        self._paced = False
        self._moved = self._given_back = 0  # bytes of the session: at the last tick, and when memory was given back
        self._scheduled = False
        self._since_look = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._lost = False

    # The transport's side.

    def connection_made(self, made: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", made)  # uvloop's is no subclass
        if self._lost:  # given up while it shook hands
            transport.abort()
            return
        self.transport = transport
        transport.set_write_buffer_limits(BATCH_LEAST, BATCH_LEAST // 2)
        address = transport.get_extra_info("peername")
        self.peer = f"{address[0]}:{address[1]}" if address else ""
        sock = transport.get_extra_info("socket")
        if sock is not None:
            self._dup = os.dup(sock.fileno())

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the loop's interface
        return _ARRIVALS

    def buffer_updated(self, nbytes: int) -> None:
        if self.session is None:
            self._greetings(bytes(_ARRIVALS[:nbytes]))
        else:
            self._feed(_ARRIVALS[:nbytes])

    def _feed(self, data: bytes | memoryview) -> None:
        session = self.session
        assert session is not None
        try:
            session.feed(data, self._loop.time())
        except RemoteError as error:
            self._broken(error)
            return
        if session.deadline < self._timer_at:
            self._rearm()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        self.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._close(exc)

    # The owner's side.

    def greet(self, message: Greeting) -> None:
        """Send a greeting message."""
        if self.transport is not None and not self._lost:
            self.transport.write(hello.encode_greeting(message))

    def attach(self, session: Session, peer_received: int) -> None:
        """Greetings are over: this link carries `session`, whose peer has `peer_received` counted bytes.

        Raises `RemoteError` where that count cannot be.
        """
        reader = self._reader
        rest = reader.rest if reader is not None else b""
        session.attach(peer_received, self._loop.time())
        self._reader = None
        self.session = session
        self._timer_at = float("inf")
        self._rearm()
        if rest:
            self._feed(rest)
        self.wake()

    def wake(self) -> None:
        """The session has output: flush at the end of this loop turn, so that a busy turn costs one write.

        (Writing a turn's first output at once, to let the other side begin, was tried: 15 % fewer requests a second.)
        """
        session = self.session
        if not (self._blocked or self._watching or self._lost) and session is not None:
            if session.scheduler.hot:
                self.flush()
            self._again()

    def close(self) -> None:
        """Close in order: what was written goes out first."""
        if self.transport is not None and not self._lost:
            self._unwatch()
            self.transport.close()

    def abort(self, error: Exception | None = None) -> None:
        """Cut the link at once and tell the owner before this returns."""
        transport = self.transport
        self._close(error)
        if transport is not None:
            transport.abort()

    # Inside.

    def _greetings(self, data: bytes) -> None:
        reader = self._reader
        if reader is None or self._lost:
            return
        try:
            message = reader.feed(data)
            while message is not None:
                self.owner.greeting_received(self, message)
                if self.session is not None or self._lost:
                    return  # attach() took the rest
                message = reader.feed(b"")
        except RemoteError as error:
            self._broken(error)

    def _broken(self, error: RemoteError) -> None:
        self.abort(error)  # the owner knows whose it is, and how often that was said

    def _turn_ended(self) -> None:
        self._scheduled = False
        self.flush()

    def flush(self) -> None:
        """Write what the session has, as far as just-in-time sending allows."""
        session, transport = self.session, self.transport
        if session is None or transport is None or self._blocked or self._watching or self._lost:
            return
        if self._since_look >= min(LOOK_BYTES, self._batch):
            self._since_look = 0
            unsent = sockets.unsent(self._dup)
            if unsent > self._batch:
                self._watch()
                return
            if self._full and not unsent:
                self._resize(2 * self._batch)
        data = session.pull(self._batch, self._loop.time())
        if data:
            self._since_look += len(data)
            self._full = 2 * len(data) > self._batch
            transport.write(data)
        if not session.quiet:
            self._again()  # as much as one turn may write: the loop hands it to the kernel first
        if session.deadline < self._timer_at:
            self._rearm()

    def _again(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn_ended)

    def _watch(self) -> None:
        if not self._watching and self._dup >= 0:
            self._watching = True
            self._watched_at = self._loop.time()
            self._loop.add_writer(self._dup, self._writable)

    def _writable(self) -> None:
        self._unwatch()
        waited, batch = self._loop.time() - self._watched_at, self._batch
        if waited < (FAST if batch >= BATCH_LEAST else SHORT):
            self._resize(2 * batch)
        elif waited > LONG:
            self._resize(max(min(batch, BATCH_LEAST) // 2, BATCH_NARROW))
        elif waited > SLOW:
            self._resize(min(batch, BATCH_LEAST))
        self.flush()

    def _resize(self, batch: int) -> None:
        """Let the kernel hold another number of unsent bytes."""
        batch = min(batch, BATCH_MOST)
        transport = self.transport
        if batch == self._batch or transport is None:
            return
        sock = transport.get_extra_info("socket")
        if sock is not None:  # the TLS layer below may have lost it already, and tell us later in this turn
            self._batch = batch
            transport.set_write_buffer_limits(batch, batch // 2)
            sockets.allow_unsent(sock, batch)

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            self._loop.remove_writer(self._dup)

    def _rearm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        session = self.session
        if session is None or self._lost:
            return
        self._timer_at = session.deadline
        if self._timer_at != float("inf"):
            self._timer = self._loop.call_at(self._timer_at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._timer_at = float("inf")
        session = self.session
        if session is None or self._lost:
            return
        session.tick(self._loop.time())
        self._pace_if_far()
        self._give_back_if_quiet(session)
        if session.link_dead:
            log.warning("link %s is dead: no answer to a ping", self.peer)
            self.abort(TimeoutError("no answer to a ping"))
            return
        self._rearm()

    def _pace_if_far(self) -> None:
        sock = self.transport.get_extra_info("socket") if self.transport is not None and not self._paced else None
        if sock is not None and sockets.round_trip(sock) >= sockets.PACED_SECONDS:
            self._paced = True
            sockets.pace(sock)

    def _give_back_if_quiet(self, session: Session) -> None:
        moved = session.received + session.retained_frames.sent
        if moved == self._moved and moved - self._given_back >= KEPT_BYTES:
            self._given_back = moved
            give_back()
        self._moved = moved

    def _close(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        self._unwatch()
        if self._dup >= 0:
            os.close(self._dup)
            self._dup = -1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.owner.link_lost(self, error)
        self.session = None
        self.transport = None  # it refers to us: half a megabyte of TLS buffers would wait for the cyclic collector
