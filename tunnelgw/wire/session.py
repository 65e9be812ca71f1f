"""The session (public API; the body follows)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tunnelgw.wire.flow import DEFAULT_LIMITS, Budget, SessionLimits

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.obs.reasons import Reason
    from tunnelgw.wire.control import Control, Open
    from tunnelgw.wire.events import SessionHandler, StreamSink
    from tunnelgw.wire.stream import Stream

__all__ = ["Budget", "Session", "SessionLimits"]


class Session:
    """One tunnel's session."""

    def __init__(
        self,
        *,
        opens_odd: bool,
        handler: SessionHandler,
        wake: Callable[[], None],
        budget: Budget,
        now: float,
        limits: SessionLimits = DEFAULT_LIMITS,
    ) -> None:
        self.attached = False
        self.link_dead = False
        self.received = 0
        self.buffered = 0
        self.deadline = math.inf
        self.rtt = 0.0
        self.min_rtt = 0.0
        self.streams: dict[int, Stream] = {}

    @property
    def stream_count(self) -> int:
        """Streams that are not closed."""
        return len(self.streams)

    @property
    def retained(self) -> int:
        """Bytes kept for a resume."""
        raise NotImplementedError

    def attach(self, peer_received: int, now: float) -> None:
        """A new link is up."""
        raise NotImplementedError

    def detach(self, now: float) -> None:
        """The link is gone."""
        raise NotImplementedError

    def feed(self, data: bytes | memoryview, now: float) -> None:
        """Bytes from the link."""
        raise NotImplementedError

    def pull(self, limit: int, now: float) -> bytes:
        """Bytes for the link."""
        raise NotImplementedError

    def tick(self, now: float) -> None:
        """The deadline passed."""
        raise NotImplementedError

    def open(self, request: Open, sink: StreamSink, now: float) -> Stream:
        """Open a stream."""
        raise NotImplementedError

    def send_control(self, message: Control) -> None:
        """Send a control message."""
        raise NotImplementedError

    def send_datagram(self, flow: int, data: bytes) -> None:
        """Send a datagram."""
        raise NotImplementedError

    def go_away(self, reason: Reason) -> None:
        """Take no new streams."""
        raise NotImplementedError

    def close(self, reason: Reason) -> None:
        """End the session."""
        raise NotImplementedError

    def oldest_stalled(self, now: float) -> float:
        """Seconds that the most stalled stream has waited for its consumer; 0.0 if none waits."""
        raise NotImplementedError
