"""How a stream that nobody needs any more is ended: FIN, a short wait for the other side's, then a reset.

A service that keeps its half open for ever must not keep a stream for ever. Invariant: a stream given to
`say_farewell` is closed within `_GRACE_SECONDS` and one granule of the wheel.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from tunnelgw.gateway.service import Gateway
    from tunnelgw.net.timers import Wheel
    from tunnelgw.wire.events import StreamEnd

_GRACE_SECONDS = 4.0


class Farewell:
    """The last sink of a stream: reads nothing of interest, and resets what does not end."""

    __slots__ = ("_stream", "_wheel", "armed_until", "deadline")

    def __init__(self, stream: StreamEnd, wheel: Wheel) -> None:
        self._stream = stream
        self._wheel = wheel
        self.deadline = math.inf
        self.armed_until = math.inf

    def stream_data(self, data: bytes) -> None:  # noqa: ARG002 - nobody is left to read it
        """More than the end: the service does not take the hint."""
        self._wheel.forget(self)
        self._stream.reset(Reason.CANCELLED)

    def stream_finished(self) -> None:
        """The other half ended, perhaps before ours has left."""
        if self._stream.closed:
            self._wheel.forget(self)
            self._stream.reset(Reason.CANCELLED)  # what its last reader held is not waited for

    def stream_reset(self, reason: Reason) -> None:  # noqa: ARG002 - it is over either way
        """The other side gave up first."""
        self._wheel.forget(self)

    def pause_sending(self) -> None:
        """Nothing is sent any more."""

    def resume_sending(self) -> None:
        """Nothing is sent any more."""

    def on_deadline(self, now: float) -> None:  # noqa: ARG002 - the wheel's signature
        """The other half never ended, or nobody has read it."""
        self._stream.reset(Reason.CANCELLED)


def say_farewell(stream: StreamEnd, gateway: Gateway) -> None:
    """End our half of `stream` and see that the rest ends soon."""
    stream.finish()
    if not stream.closed:
        farewell = Farewell(stream, gateway.wheel)
        stream.sink = farewell
        gateway.wheel.arm(farewell, gateway.time() + _GRACE_SECONDS)
