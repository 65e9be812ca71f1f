"""What a session tells its owner, as calls: no event object per frame.

`StreamSink` is the owner of one stream's near end (a splice, an HTTP upstream), and `StreamEnd` what it owns: a
tunnel's `Stream`, or one of two ends that meet in this process (`net.pair`). `SessionHandler` is the owner of
the session (edge or connector). Every call comes from `Session.feed`, `tick`, `attach`, `pull` or `close`, never
from another thread, and may call back into the session at once (write, finish, reset, open).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tunnelgw.obs.reasons import Reason
    from tunnelgw.wire.control import Control, Open
    from tunnelgw.wire.stream import Stream


class StreamSink(Protocol):
    """Receives one stream's bytes. After `stream_reset` no other call comes."""

    def stream_data(self, data: bytes) -> None:
        """Bytes arrived (never empty, immutable). Call `stream.consumed(len(data))` once they are passed on."""

    def stream_finished(self) -> None:
        """The peer's half ended (FIN): no more `stream_data`."""

    def stream_reset(self, reason: Reason) -> None:
        """Both halves are gone: the peer reset the stream, or the session ended."""

    def pause_sending(self) -> None:
        """The stream's send queue is above its high-water mark: stop writing soon. Idempotent."""

    def resume_sending(self) -> None:
        """The queue drained: go on. Idempotent."""


class StreamEnd(Protocol):
    """What the owner of a stream's near end may do with it; the contract is `wire.stream.Stream`'s."""

    sink: StreamSink

    @property
    def queued(self) -> int:
        """Bytes written and not yet passed on."""

    @property
    def sent_anything(self) -> bool:
        """False while the other side cannot know of the stream."""

    @property
    def closed(self) -> bool:
        """Both halves are done, or the stream was reset."""

    @property
    def linked(self) -> bool:
        """False while nothing can move, through nobody's fault at either end."""

    @property
    def leaving(self) -> bool:
        """Whether the other side takes no further streams."""

    def write(self, data: bytes | memoryview) -> None:
        """Queue bytes that will not change."""

    def hurry(self) -> None:
        """What was written may go out before this turn of the loop ends. Sinks may be told to go on: call it last."""

    def lend(self, data: memoryview) -> None:
        """As `write` and `hurry`, of bytes in a buffer that the caller uses again: what stays here is copied."""

    def finish(self) -> None:
        """End our half after what is queued. Idempotent."""

    def reset(self, reason: Reason) -> None:
        """Give up both halves; the sink gets no further call. Idempotent."""

    def consumed(self, count: int) -> None:
        """`count` of the bytes given to the sink were passed on."""


class SessionHandler(Protocol):
    """Receives what concerns the session as a whole."""

    def stream_opened(self, stream: Stream, request: Open) -> None:
        """The peer opened a stream. Must set `stream.sink`, or call `stream.reset(reason)`, before it returns."""

    def control_received(self, message: Control) -> None:
        """A typed control message arrived."""

    def datagram_received(self, flow: int, data: bytes) -> None:
        """A whole datagram (up to 65,535 bytes) arrived for a flow."""

    def going_away(self, reason: Reason) -> None:
        """The peer will take no new streams on this tunnel (GOAWAY)."""
