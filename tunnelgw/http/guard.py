"""A visitor's HTTP/2 frames, looked at before the engine: what libnghttp2 forgives and a gateway should not.

Only frame headers are read (and the first four octets of PRIORITY and WINDOW_UPDATE). Three things come out of it:
frames on streams that the visitor itself has ended are errors, frames that mean nothing are rationed, and whether the
visitor is in the middle of a head is known at any time.
What must never break: nothing that a correct peer sends is refused, late frames on a stream that we have reset
included; memory does not grow with what the peer sends; the verdict does not depend on how the bytes were cut.
"""

from __future__ import annotations

import struct

from tunnelgw.errors import RemoteError
from tunnelgw.obs.reasons import Reason

_PREFACE_BYTES = 24
_HEADER_BYTES = 9
_WITH_NUMBER_BYTES = 13
_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _WINDOW_UPDATE, _CONTINUATION = 0, 1, 2, 3, 8, 9
_END_STREAM, _END_HEADERS, _PADDED = 1, 4, 8
_PADDING_BYTES = 256  # of a DATA frame that may hold nothing else
# RFC 9113 section 7.
_PROTOCOL_ERROR, _STREAM_CLOSED, _ENHANCE_YOUR_CALM = 1, 5, 11

# Streams that a visitor may still send on. 128 are open at a time; those that we have reset stay until it noticed, or
# until this many newer ones came: then frames on them are no longer judged here.
_SENDING_LIMIT = 1024
# Frames that mean nothing: PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty or padded small DATA, others. A peer that
# acknowledges each small DATA frame twice stays below one for each 32 octets it was sent; a browser begins with 50.
NOISE_BURST = 2000
_NOISE_RATE = 200.0  # a second
_NOISE_SHIFT = 5
# Increments from here on may overflow a window; smaller ones need more frames than the ration above allows.
_LARGE_INCREMENT = 1 << 20

_header = struct.Struct(">IBI").unpack_from
_number = struct.Struct(">I").unpack_from

# (offset in the data that was fed, stream, increment) of a WINDOW_UPDATE
Increment = tuple[int, int, int]


class FrameError(RemoteError):
    """The visitor broke HTTP/2; `code` is what GOAWAY says, `offset` where in the data it happened."""

    def __init__(self, text: str, code: int, *, reason: Reason = Reason.PROTOCOL_ERROR) -> None:
        super().__init__(text, reason=reason)
        self.code = code
        self.offset = 0


class FrameGuard:
    """One visitor connection's frames. `feed` all bytes in order; `inside` tells where they stopped."""

    __slots__ = ("_block", "_calm_since", "_floor", "_held", "_kind", "_last", "_left", "_sending", "inside", "noise")

    def __init__(self) -> None:
        self._left = _PREFACE_BYTES  # octets of the frame under way that are still to come
        self._kind = -1  # of that frame
        self._held = b""  # the beginning of a frame header, not yet whole
        self._block = False  # between HEADERS and END_HEADERS
        self._last = 0  # the highest stream that the visitor opened
        self._floor = 0  # streams up to here are not judged
        self._sending: dict[int, None] = {}  # streams whose visitor's half is open, oldest first
        self._calm_since = 0.0
        self.inside = True  # the visitor owes the rest of a head, or of another frame but DATA
        self.noise = 0  # frames that meant nothing, less what was forgiven

    def forgive(self, sent: int) -> None:
        """So many octets went to the visitor, who may have something to say to that."""
        self.noise = max(0, self.noise - (sent >> _NOISE_SHIFT) - 1)

    def feed(self, data: bytes, now: float) -> list[Increment]:
        """`FrameError` for what must not reach the engine; else WINDOW_UPDATE frames of streams that may overflow.

        Those are found only where the frame is whole in `data`: of one that is cut the engine makes a connection error.
        """
        large: list[Increment] = []
        before = 0
        if self._held:
            before = len(self._held)
            data = self._held + data
            self._held = b""
        position, end = self._left, len(data)
        try:
            while position + _HEADER_BYTES <= end:
                word, flags, stream = _header(data, position)
                kind = word & 0xFF
                if kind == _HEADERS:
                    self._headers(stream & 0x7FFFFFFF, flags)
                elif kind == _DATA:
                    self._data(stream & 0x7FFFFFFF, flags, word >> 8)
                elif kind in (_PRIORITY, _WINDOW_UPDATE):
                    if position + _WITH_NUMBER_BYTES > end:
                        break
                    number = _number(data, position + _HEADER_BYTES)[0] & 0x7FFFFFFF
                    if self._numbered(kind, stream & 0x7FFFFFFF, number) and position >= before:
                        large.append((position - before, stream & 0x7FFFFFFF, number))
                else:
                    self._other(kind, stream & 0x7FFFFFFF, flags)
                self._kind = kind
                position += _HEADER_BYTES + (word >> 8)
            if self.noise > NOISE_BURST:
                self._calm(now)
        except FrameError as error:
            error.offset = max(0, position - before)
            raise
        if position == end:
            self._left = 0
            self.inside = self._block
        elif position < end:
            self._held = data[position:]
            self._left = 0
            self.inside = True
        else:
            self._left = position - end
            self.inside = self._block or self._kind != _DATA  # the rest of DATA is a body's business
        return large

    def _other(self, kind: int, stream: int, flags: int) -> None:
        if kind == _CONTINUATION:
            self._block = self._block and not flags & _END_HEADERS
        elif kind == _RST_STREAM:
            self._sending.pop(stream, None)
        else:
            self.noise += 1

    def _numbered(self, kind: int, stream: int, number: int) -> bool:
        """Whether this is a WINDOW_UPDATE that deserves a second look."""
        self.noise += 1
        if kind == _PRIORITY:
            if not stream or stream == number:
                raise FrameError("a priority of nothing, or one that depends on itself", _PROTOCOL_ERROR)
            return False
        return stream != 0 and number >= _LARGE_INCREMENT

    def _headers(self, stream: int, flags: int) -> None:
        sending = self._sending
        if stream > self._last:
            self._last = stream
            if not flags & _END_STREAM:
                sending[stream] = None
                if len(sending) > _SENDING_LIMIT:
                    self._floor = next(iter(sending))
                    del sending[self._floor]
        elif stream in sending:  # trailers
            if flags & _END_STREAM:
                del sending[stream]
        elif stream > self._floor and not self._block:
            raise FrameError("a head on a stream that is over", _STREAM_CLOSED)
        self._block = not flags & _END_HEADERS

    def _data(self, stream: int, flags: int, length: int) -> None:
        sending = self._sending
        if stream not in sending:
            if self._floor < stream <= self._last and not self._block:  # within a head it is wrong in another way
                raise FrameError("data on a stream that is over", _STREAM_CLOSED)
        elif flags & _END_STREAM:
            del sending[stream]
        elif length <= _PADDING_BYTES and (flags & _PADDED or not length):
            self.noise += 1

    def _calm(self, now: float) -> None:
        forgiven = (now - self._calm_since) * _NOISE_RATE
        self._calm_since = now
        self.noise = max(0, self.noise - int(forgiven))
        if self.noise > NOISE_BURST:
            raise FrameError("too many frames that mean nothing", _ENHANCE_YOUR_CALM, reason=Reason.RATE_LIMIT)
