"""The beginning of a private stream: its first message is read, then the stream is somebody else's.

`FirstMessage` is the sink until the message is whole. At the far end that is `Inside`: TLS as server, and the visitor's
`Want`, within one deadline.

Invariant: bytes behind the message go to the next sink, uncredited, in order; a peer that says nothing is gone after
`OPENING_SECONDS`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from tunnelgw.errors import Refused, RemoteError, TunnelgwError
from tunnelgw.obs.reasons import Reason
from tunnelgw.private import messages
from tunnelgw.private.messages import Reader, RefusedInside, decode_want
from tunnelgw.private.sealed import Sealed
from tunnelgw.wire.stream import NULL_SINK

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from tunnelgw.private.messages import Want
    from tunnelgw.wire.events import StreamEnd, StreamSink

log = logging.getLogger(__name__)

OPENING_SECONDS = 10.0  # for the handshake and the first message; two round trips and the visitor's own link between
REFUSED_SECONDS = 5.0  # to read why


class FirstMessage:
    """Sink of a sealed stream until its first message. `next` hears of pauses meanwhile.

    `got(message)` makes another object the stream's sink; `lost(error)` is called instead if no message will come.
    """

    __slots__ = ("_got", "_lost", "_reader", "_stream", "next")

    def __init__(
        self,
        stream: Sealed,
        decode: object,
        *,
        got: Callable[[object], None],
        lost: Callable[[TunnelgwError], None],
    ) -> None:
        self.next: StreamSink = NULL_SINK
        self._stream = stream
        self._reader = Reader(decode)
        self._got, self._lost = got, lost
        stream.sink = self

    def stream_data(self, data: bytes) -> None:
        stream = self._stream
        try:
            message = self._reader.feed(data)
        except RemoteError as error:
            stream.reset(error.reason)
            self._lost(error)
            return
        if message is None:
            stream.consumed(len(data))
            return
        rest = self._reader.rest
        stream.consumed(len(data) - len(rest))
        self._got(message)
        if rest:
            stream.sink.stream_data(rest)

    def stream_finished(self) -> None:
        self._stream.reset(Reason.PROTOCOL_ERROR)
        self._lost(RemoteError("a private stream ended before it began"))

    def stream_reset(self, reason: Reason) -> None:
        self._lost(Refused(reason.text, reason=reason))

    def pause_sending(self) -> None:
        self.next.pause_sending()

    def resume_sending(self) -> None:
        self.next.resume_sending()


class Inside:
    """The far end of one private stream until it is known what is wanted.

    `met(certificate)` as `Sealed`'s. `serve(stream, want)` gives the stream another sink, or refuses it
    (`refuse_inside`). `over(error)` is called once if it does not come to that.
    """

    __slots__ = ("_over", "_serve", "_timer", "stream")

    def __init__(
        self,
        outer: StreamEnd,
        context: ssl.SSLContext,
        *,
        met: Callable[[bytes], None],
        serve: Callable[[Sealed, Want], None],
        over: Callable[[TunnelgwError], None],
    ) -> None:
        self._serve = serve
        self._over: Callable[[TunnelgwError], None] | None = over
        self._timer = asyncio.get_running_loop().call_later(OPENING_SECONDS, self._late)
        self.stream = Sealed(outer, context, server=True, met=met, failed=self._lost)
        FirstMessage(self.stream, decode_want, got=self._wanted, lost=self._lost)

    def cut(self, reason: Reason) -> None:
        """Nobody wants it any more."""
        self.stream.reset(reason)
        self._lost(Refused(reason.text, reason=reason))

    def _wanted(self, message: object) -> None:
        self._timer.cancel()
        self._over = None
        self._serve(self.stream, message)  # type: ignore[arg-type]

    def _lost(self, error: TunnelgwError) -> None:
        self._timer.cancel()
        over, self._over = self._over, None
        if over is not None:
            over(error)

    def _late(self) -> None:
        self.stream.reset(Reason.HELLO_TIMEOUT)
        self._lost(RemoteError("a private stream said nothing in time", reason=Reason.HELLO_TIMEOUT))


def refuse_inside(
    stream: StreamEnd, reason: Reason, *, ended: Callable[[], None] | None = None, text: str = ""
) -> None:
    """Say no, and why, where the edge cannot read it; `ended` is called once when the stream is over.

    text: more than the reason says.
    """
    if stream.closed:
        if ended is not None:
            ended()
        return
    _Refusing(stream, ended)
    stream.write(messages.encode(RefusedInside(reason=reason.label, message=text or reason.text)))
    stream.finish()


class _Refusing:
    """Sink of a stream that was refused: throws away what comes until the visitor has read why."""

    __slots__ = ("_ended", "_stream", "_timer")

    def __init__(self, stream: StreamEnd, ended: Callable[[], None] | None) -> None:
        self._stream = stream
        self._ended = ended
        self._timer = asyncio.get_running_loop().call_later(REFUSED_SECONDS, self._leave)
        stream.sink = self

    def stream_data(self, data: bytes) -> None:
        self._stream.consumed(len(data))

    def stream_finished(self) -> None:
        self._end()

    def stream_reset(self, reason: Reason) -> None:  # noqa: ARG002 - it has read it, or left
        self._end()

    def pause_sending(self) -> None:
        """Nothing more is sent."""

    def resume_sending(self) -> None:
        """Nothing more is sent."""

    def _leave(self) -> None:
        self._stream.reset(Reason.CANCELLED)
        self._end()

    def _end(self) -> None:
        self._timer.cancel()
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()
