"""HTTP/2 in both roles: a thin wrapper of ngh2 (libnghttp2) that sets every limit and keeps the debts.

ngh2 has no connection-level acknowledgement: what one stream does not acknowledge is missing for all. So the
connection's window is many stream windows wide, and every byte received is a debt kept here until it is paid, at the
latest when its stream closes.

Heads come out as they arrived; `pseudo` reads them. Invariants: what is owed is what was received and not paid; a
peer's error surfaces as `RemoteError` and nothing else; sending to a stream that is already gone is no error.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import ngh2
from ngh2 import (
    ConnectionClosed,
    DataReceived,
    ErrorCode,
    Event,
    GoAwayReceived,
    InformationalResponseReceived,
    PingAcknowledged,
    RequestReceived,
    ResponseReceived,
    Setting,
    StreamClosed,
    StreamReset,
    TrailersReceived,
)

from tunnelgw.errors import RemoteError
from tunnelgw.http.guard import FrameError, FrameGuard
from tunnelgw.http.strict import REQUEST_HEAD_BYTES
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from tunnelgw.http.guard import Increment
    from tunnelgw.http.head import Fields

__all__ = [
    "ConnectionClosed", "DataReceived", "ErrorCode", "Event", "FrameError", "GoAwayReceived", "Http2",
    "InformationalResponseReceived", "PingAcknowledged", "RequestReceived", "ResponseReceived", "StreamClosed",
    "StreamReset", "TrailersReceived",
]  # fmt: skip

# One stream's window: 256 KiB carries 20 Mbit/s over 100 ms, and is what one stalled upload may occupy.
STREAM_WINDOW = 256 * 1024
# The same for an upload that has proved to move: 160 Mbit/s over 100 ms. The connection's window still bounds them all.
WIDE_WINDOW = 2 * 1024 * 1024
# The connection's: 64 stalled streams before the rest is held up.
CONNECTION_WINDOW = 16 * 1024 * 1024
# Streams of one visitor connection at a time. Browsers use up to about 100.
STREAM_LIMIT = 128
HEAD_FIELDS = 200
_MOST_WINDOW = (1 << 31) - 1  # RFC 9113 section 6.9.1
_INCREMENT_BYTES = 13  # of a WINDOW_UPDATE frame


@functools.lru_cache(maxsize=4)
def _serving(head_bytes: int) -> tuple[ngh2.Configuration, dict[Setting, int]]:
    """Configuration and settings for heads of this size. Up to twice that is let through, to be answered with 431."""
    most = 2 * head_bytes + 32 * HEAD_FIELDS  # 32 bytes are counted for each field (RFC 9113 section 6.5.2)
    configuration = ngh2.Configuration(
        auto_window_update=False,
        max_inbound_header_list_size=most,
        max_inbound_header_count=HEAD_FIELDS,
        max_outbound_ack=256,  # a peer that floods PING or SETTINGS and reads nothing
        max_settings=16,
        max_continuations=most // 16384 + 4,
        stream_reset_rate_limit=(200, 33),  # rapid reset (CVE-2023-44487): a tab full of images closed at once is 100
        glitch_rate_limit=(1000, 33),  # empty DATA, odd PRIORITY, MadeYouReset (CVE-2025-8671)
    )
    settings = {
        Setting.MAX_CONCURRENT_STREAMS: STREAM_LIMIT,
        Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
        Setting.MAX_HEADER_LIST_SIZE: most,
        Setting.ENABLE_CONNECT_PROTOCOL: 1,
        Setting.NO_RFC7540_PRIORITIES: 1,
    }
    return configuration, settings


_ASKING = ngh2.Configuration(
    auto_window_update=False,
    max_inbound_header_list_size=64 * 1024,
    max_inbound_header_count=HEAD_FIELDS,
    max_outbound_ack=256,
    max_settings=16,
    max_reserved_remote_streams=0,
)
_ASKING_SETTINGS = {
    Setting.ENABLE_PUSH: 0,
    Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
    Setting.MAX_HEADER_LIST_SIZE: 64 * 1024,
}


class Http2:
    """One connection's engine. `receive` bytes and act on the events; `pull` bytes and act on the `events` again.

    Sending to a stream that is already gone is no error: its `StreamClosed` is among the next events.
    `head_bytes`: the largest head that is served; the caller refuses those that are somewhat larger.
    """

    __slots__ = ("_core", "_debts", "events", "guard", "queued")

    def __init__(self, *, serving: bool, head_bytes: int = REQUEST_HEAD_BYTES) -> None:
        configuration, settings = _serving(head_bytes) if serving else (_ASKING, _ASKING_SETTINGS)
        core = ngh2.Connection(ngh2.Role.SERVER if serving else ngh2.Role.CLIENT, configuration)
        core.initiate_connection(settings)
        core.set_local_window_size(CONNECTION_WINDOW)
        self._core = core
        self.guard = FrameGuard() if serving else None
        self._debts: dict[int, int] = {}
        self.events = core.events
        self.queued = core.queued_body_size

    def receive(self, data: bytes, now: float = 0.0) -> list[ngh2.Event]:
        """What `data` means. `FrameError` if the peer broke the protocol or a limit: say `last_words`, then close."""
        guard = self.guard
        large = None
        try:
            if guard is not None:
                large = guard.feed(data, now)
        except FrameError as error:
            self._receive_before(data, error)
            raise
        try:
            if large:
                data = self._receive_increments(data, large)
            self._core.receive_data(data)
        except ngh2.DenialOfServiceError as error:
            raise FrameError(str(error), ErrorCode.ENHANCE_YOUR_CALM, reason=Reason.RATE_LIMIT) from None
        except (ngh2.NGH2Error, ValueError) as error:
            raise FrameError(str(error), ErrorCode.PROTOCOL_ERROR) from None
        return self._core.events()

    def _receive_before(self, data: bytes, error: FrameError) -> None:
        """What came before the frame that is refused: where that is wrong too, the engine's word comes first."""
        try:
            self._core.receive_data(data[: error.offset])
        except ngh2.DenialOfServiceError:
            error.code, error.reason = ErrorCode.ENHANCE_YOUR_CALM, Reason.RATE_LIMIT
        except (ngh2.NGH2Error, ValueError):
            error.code = ErrorCode.PROTOCOL_ERROR

    def _receive_increments(self, data: bytes, large: list[Increment]) -> bytes:
        """Receive `data` up to the last of these; what follows.

        The engine ends the connection where a stream's window overflows; RFC 9113 section 6.9.1 ends the stream.
        """
        done = 0
        for offset, stream, increment in large:
            self._core.receive_data(data[done:offset])
            done = offset
            try:
                overflows = self._core.stream_remote_window_size(stream) + increment > _MOST_WINDOW
            except ngh2.NGH2Error:
                continue  # it is gone: the engine knows what to do
            if overflows:
                self.reset(stream, ErrorCode.FLOW_CONTROL_ERROR)
                done += _INCREMENT_BYTES
        return data[done:]

    def pull(self, limit: int) -> bytes:
        """About `limit` bytes of output at most; b"" if there is none that the peer's windows allow."""
        try:
            data = self._core.data_to_send(limit)
        except ngh2.NGH2Error as error:
            raise RemoteError(str(error), reason=Reason.PROTOCOL_ERROR) from None
        guard = self.guard
        if guard is not None and guard.noise:
            guard.forgive(len(data))
        return data

    def widen(self, stream: int) -> None:
        """Give an upload that moves a larger window."""
        try:
            self._core.set_local_window_size(WIDE_WINDOW, stream_id=stream)
        except ngh2.NGH2Error:
            return

    def owe(self, stream: int, count: int) -> None:
        """Payload arrived and is not passed on yet."""
        debts = self._debts
        debts[stream] = debts.get(stream, 0) + count

    def debt(self, stream: int) -> int:
        """What this stream has not been acknowledged."""
        return self._debts.get(stream, 0)

    def pay(self, stream: int, count: int = -1) -> None:
        """Payload was passed on (all of it by default): let the peer send as much again."""
        owed = self._debts.get(stream, 0)
        if count < 0 or count >= owed:
            count = owed
            self._debts.pop(stream, None)
        else:
            self._debts[stream] = owed - count
        if count:
            try:
                self._core.acknowledge_received_data(count, stream)
            except (ngh2.NGH2Error, ValueError):
                return  # the connection ends: nobody waits for a window

    def request(self, fields: Fields, *, end: bool) -> int:
        """Send a request; its stream. `RemoteError` if the peer takes no more on this connection."""
        try:
            return self._core.send_request(fields, end_stream=end)
        except ngh2.NGH2Error as error:
            raise RemoteError(str(error), reason=Reason.TARGET_RESET) from None

    def interim(self, stream: int, fields: Fields) -> None:
        """Send a 1xx response."""
        try:
            self._core.send_informational_response(stream, fields)
        except ngh2.NGH2Error:
            return

    def respond(self, stream: int, fields: Fields, *, end: bool) -> None:
        """Send the final response's head."""
        try:
            self._core.send_response(stream, fields, end_stream=end)
        except ngh2.NGH2Error:
            return

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Queue payload."""
        try:
            self._core.send_data(stream, data, end_stream=end)
        except ngh2.NGH2Error:
            return

    def end(self, stream: int, trailers: Fields) -> None:
        """End our direction, with trailers if there are any."""
        try:
            if trailers:
                self._core.send_trailers(stream, trailers)
            else:
                self._core.send_data(stream, b"", end_stream=True)
        except ngh2.NGH2Error:
            return

    def reset(self, stream: int, code: int) -> None:
        """RST_STREAM."""
        try:
            self._core.reset_stream(stream, code)
        except ngh2.NGH2Error:
            return

    def window(self, stream: int) -> int:
        """What the peer allows us to send on this stream now; 0 if it is gone."""
        try:
            return min(self._core.remote_window_size, self._core.stream_remote_window_size(stream))
        except ngh2.NGH2Error:
            return 0

    def last_call(self) -> None:
        """A GOAWAY that lets every stream in, and a PING: `PingAcknowledged` once the peer knows (RFC 9113, 6.8)."""
        try:
            self._core.send_shutdown_notice()
            self._core.ping(b"lastcall")
        except ngh2.NGH2Error:
            return

    def refuse_more(self) -> None:
        """GOAWAY: what is under way is finished, nothing new is served."""
        try:
            self._core.send_goaway()
        except ngh2.NGH2Error:
            return

    def last_words(self, code: int) -> bytes:
        """GOAWAY after the peer broke the protocol: the engine's own, or one by hand where it is beyond words."""
        try:
            self._core.terminate_connection(code)
        except ngh2.NGH2Error:
            pass  # the engine said it by itself, or is beyond it
        try:
            data = self._core.data_to_send()
        except ngh2.NGH2Error:
            data = b""
        # RFC 9113 section 6.8; the last stream that may have been acted on: any.
        return data or b"\0\0\x08\x07\0\0\0\0\0\x7f\xff\xff\xff" + code.to_bytes(4, "big")

    def terminate(self, code: int = 0) -> None:
        """GOAWAY and no more."""
        try:
            self._core.terminate_connection(code)
        except ngh2.NGH2Error:
            return
