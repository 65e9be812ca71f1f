"""One near end of a stream (public API; the body follows)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunnelgw.obs.reasons import Reason
    from tunnelgw.wire.control import Open
    from tunnelgw.wire.events import StreamSink
    from tunnelgw.wire.session import Session


class Stream:
    """One near end of a stream."""

    __slots__ = ("id", "sink", "request", "owner", "queued", "unread", "sent_anything", "_session")

    def __init__(self, session: Session, number: int, request: Open, sink: StreamSink) -> None:
        self._session = session
        self.id = number
        self.request = request
        self.sink: StreamSink = sink
        self.owner: object = None
        self.queued = 0
        self.unread = 0
        self.sent_anything = False

    @property
    def closed(self) -> bool:
        """Both halves are done, or the stream was reset."""
        raise NotImplementedError

    def write(self, data: bytes | memoryview) -> None:
        """Queue immutable bytes."""
        raise NotImplementedError

    def finish(self) -> None:
        """End our half after what is queued."""
        raise NotImplementedError

    def reset(self, reason: Reason) -> None:
        """Give up both halves."""
        raise NotImplementedError

    def consumed(self, count: int) -> None:
        """The next transport accepted `count` bytes."""
        raise NotImplementedError
