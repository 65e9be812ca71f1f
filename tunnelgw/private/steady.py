"""Packets as sealed datagrams of a private stream, no faster than the far end takes them.

Datagrams have no flow control, and the edge drops what is too much. So the receiver says now and then up to which
number it has heard, and the sender has no more under way than a window. What does not fit waits in the kernel, before
it was sealed. Connections inside then lose a packet at the beginning of the way, as behind any narrow link, instead of
many in its middle: one parcel carries up to 45 of them.

The window is what the way itself holds (its rate times its shortest round trip) and what may wait at its narrowest
point: `QUEUE_SECONDS` of that rate, since the edge drops what is late, and `QUEUE` at most, since it drops what is
too much.

Invariant: what is under way is at most the window and one parcel; a far end that says nothing holds us up for
`SILENT_SECONDS` at a time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.private.datagrams import Opener, Sealer
    from tunnelgw.wire.stream import Stream

HEARD = 0xFF  # the first byte of "heard", which no parcel has; 8 bytes follow, the number
QUEUE = 768 * 1024  # of the 1 MiB that a session queues
QUEUE_SECONDS = 0.15  # of the 250 ms that it keeps a datagram
LEAST = 16 * 1024  # one parcel is under way in any case
MOST = 16 * 1024 * 1024
ACK_BYTES = 128 * 1024
ACK_SECONDS = 0.02
SILENT_SECONDS = 1.0
CLOCK_SECONDS = 0.001  # what a loop's clock can tell: nothing takes no time, or rates would be endless
FORGET_SECONDS = 60.0  # ways change: the shortest round trip is looked for anew, with so little that nothing waits
FORGET_PART = 4


async def sealing() -> tuple[Callable[[], str], type[Sealer], type[Opener]]:
    """What makes keys, seals and opens: imported in a thread, for it is much, and streams go on meanwhile."""

    def load() -> tuple[Callable[[], str], type[Sealer], type[Opener]]:
        from tunnelgw.private.datagrams import Opener, Sealer, new_key

        return new_key, Sealer, Opener

    return await asyncio.get_running_loop().run_in_executor(None, load)


class Steady:
    """One end. Inputs: `send`, `has_room`, `close`; `received` gets the parcels. `stream`: the outer one."""

    __slots__ = (
        "refused", "silent", "window", "_ack", "_expiry", "_highest", "_last", "_loop", "_opener", "_received",
        "_resume", "_rtt", "_said", "_sealer", "_shortest", "_since", "_size", "_stream", "_under_way", "_unheard",
    )  # fmt: skip

    def __init__(
        self,
        stream: Stream,
        sealer: Sealer,
        opener: Opener,
        received: Callable[[bytes], None],
        *,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.window = QUEUE
        self.silent = False  # it has said nothing for `SILENT_SECONDS` of what is under way, and nothing since
        self.refused = 0  # datagrams that were not the far end's, or came again
        self._stream: Stream | None = stream
        self._sealer, self._opener = sealer, opener
        self._highest = 0  # number of a datagram that was received
        self._received = received
        self._loop = loop
        self._under_way: deque[tuple[int, int, float]] = deque()  # number, bytes, when
        self._size = 0
        self._resume: Callable[[], None] | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._rtt = self._shortest = 0.0
        self._since = 0.0  # when the window was last set
        self._last = 0.0  # when the shortest round trip was last looked for anew
        self._unheard = 0  # bytes received that the far end does not know of
        self._said = 0.0
        self._ack: asyncio.TimerHandle | None = None
        stream.on_datagram = self._arrived

    def send(self, data: bytes) -> None:
        """Send a parcel."""
        stream = self._stream
        if stream is not None:
            sealed, now = self._sealer.seal(data), self._loop.time()
            self._under_way.append((_number(sealed), len(data), now))
            self._size += len(data)
            stream.send_datagram(sealed, now)

    def offer(self, data: bytes, resume: Callable[[], None]) -> bool:
        """Send a parcel; as `has_room`. For a source that others share: a far end that is silent holds it up once, and
        what it has no room for is dropped from then on."""
        if self.silent:
            if self.has_room(resume):
                self.send(data)
            return True
        self.send(data)
        return self.has_room(resume)

    def has_room(self, resume: Callable[[], None]) -> bool:
        """Whether more should come now; if not, `resume` is called."""
        if self._size >= self.window:
            self._resume = resume
            if self._expiry is None:
                self._expiry = self._loop.call_later(SILENT_SECONDS, self._expired)
            return False
        return self._stream is None or self._stream.has_room(resume)

    def _arrived(self, sealed: bytes) -> None:
        data = self._opener.open(sealed)
        if data is None:
            self.refused += 1
            return
        self._highest = max(self._highest, _number(sealed))
        if data[:1] == b"\xff":
            self._was_heard(int.from_bytes(data[1:9], "big"))
            return
        self._unheard += len(data)
        # At once after a silence: what went alone shows the shortest round trip.
        if self._unheard >= ACK_BYTES or self._loop.time() - self._said >= ACK_SECONDS:
            self._say()
        elif self._ack is None:
            self._ack = self._loop.call_later(ACK_SECONDS, self._say)
        self._received(data)

    def close(self) -> None:
        """Nothing more is said. Idempotent."""
        for timer in (self._ack, self._expiry):
            if timer is not None:
                timer.cancel()
        self._ack = self._expiry = None
        if self._stream is not None:
            self._stream.on_datagram = None
            self._stream = None

    def _say(self) -> None:
        if self._ack is not None:
            self._ack.cancel()
            self._ack = None
        self._unheard = 0
        self._said = self._loop.time()
        if self._stream is not None:
            heard = bytes((HEARD,)) + self._highest.to_bytes(8, "big")
            self._stream.send_datagram(self._sealer.seal(heard), self._said)

    def _was_heard(self, number: int) -> None:
        under_way, sent_at = self._under_way, 0.0
        while under_way and under_way[0][0] <= number:
            _, size, sent_at = under_way.popleft()
            self._size -= size
        if sent_at:
            self.silent = False
            self._measure(self._loop.time(), sent_at)
        if self._resume is not None and self._size <= self.window * 3 // 4:
            self._go_on()

    def _measure(self, now: float, sent_at: float) -> None:
        sample = max(now - sent_at, CLOCK_SECONDS)
        self._rtt = sample if not self._rtt else self._rtt + (sample - self._rtt) / 8
        forget = now - self._last > FORGET_SECONDS
        if not self._shortest or sample < self._shortest or forget:
            self._shortest, self._last = sample, now
            if forget and self._resume is not None:
                self.window, self._since = max(self.window // FORGET_PART, LEAST), now
        if now - self._since >= self._rtt:  # once in a round trip
            self._since = now
            if self._resume is not None:  # else it is not the window that holds us up
                rate = self.window / self._rtt
                queue = min(int(rate * QUEUE_SECONDS), QUEUE)
                self.window = min(max(int(rate * self._shortest) + queue, LEAST), MOST)

    def _expired(self) -> None:
        """Lost, all of it or what was said about it; or the way takes longer than a second for so much."""
        self._expiry = None
        self.silent = True
        self.window = max(self.window // 2, LEAST)
        self._under_way.clear()
        self._size = 0
        self._go_on()

    def _go_on(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        resume, self._resume = self._resume, None
        if resume is not None:
            resume()


def _number(sealed: bytes) -> int:
    return int.from_bytes(sealed[:8], "big")
