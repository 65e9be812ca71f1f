"""Where a message body ends: by length, by chunks, or by the end of the connection.

Each reader is fed whatever bytes arrived and gives back the payload among them and where the next message begins. A
reader never looks beyond its body's last byte.
What must never break: a body is complete only when its framing says so; anything that two parsers could read
differently is an error, never a guess. Results do not depend on how the bytes were cut.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NoReturn, Protocol

from tunnelgw.errors import OriginError, RemoteError
from tunnelgw.http.fields import VALUE, allowed_trailers
from tunnelgw.http.strict import trailer_fields
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from tunnelgw.http.head import Fields

LAST_CHUNK = b"0\r\n\r\n"

MAX_SIZE_LINE = 256  # bytes of one chunk's size line, extension included; none in use comes near
MAX_EXTENSIONS = 4096  # bytes of extensions over a whole body, so that they cannot carry data past the limits
MAX_TRAILERS = 8192  # bytes of a trailer section; gRPC's status message is the long one in use
MAX_TRAILER_FIELDS = 32

# RFC 9112 section 7.1, without space before the extension's semicolon. 16 digits: above 2**63 nothing ever arrives.
_size_line = re.compile(rb"([0-9A-Fa-f]{1,16})(;" + VALUE + rb"*+)?").fullmatch
_size_line_start = re.compile(rb"[0-9A-Fa-f]{1,16}(?:;" + VALUE + rb"*+)?\r?").fullmatch


class BodyReader(Protocol):
    """`feed` until `done`; `eof` when the connection ends first."""

    done: bool
    trailers: Fields

    def feed(self, data: bytes, start: int = 0) -> tuple[bytes, int]:
        """(payload found, offset of the first byte not used). Offset == len(data) unless `done`.

        Gives `data` itself where all of it is payload. `RemoteError`, or `OriginError` for a response's body.
        """
        ...

    def eof(self) -> None:
        """The connection ended: fine for `CloseBody` (then `done`), an error where the framing promised more."""
        ...


def _fail(text: str, *, origin: bool, reason: Reason = Reason.BAD_REQUEST) -> NoReturn:
    if origin:
        raise OriginError(text)
    raise RemoteError(text, reason=reason)


class LengthBody:
    """A body of exactly `length` bytes. `origin`: it is a response's, so errors are the target's."""

    __slots__ = ("_origin", "done", "remaining", "trailers")

    def __init__(self, length: int, *, origin: bool = False) -> None:
        self.remaining = length
        self.done = length == 0
        self.trailers: Fields = []
        self._origin = origin

    def feed(self, data: bytes, start: int = 0) -> tuple[bytes, int]:
        """See `BodyReader`."""
        available = len(data) - start
        remaining = self.remaining
        if available < remaining:
            self.remaining = remaining - available
            return (data[start:] if start else data), len(data)
        self.remaining = 0
        self.done = True
        end = start + remaining
        return (data[start:end] if start or end != len(data) else data), end

    def eof(self) -> None:
        """See `BodyReader`."""
        if not self.done:
            _fail("the body is shorter than its Content-Length", origin=self._origin)


class CloseBody:
    """A response's body that ends with the connection."""

    __slots__ = ("done", "trailers")

    def __init__(self) -> None:
        self.done = False
        self.trailers: Fields = []

    def feed(self, data: bytes, start: int = 0) -> tuple[bytes, int]:
        """See `BodyReader`."""
        return (data[start:] if start else data), len(data)

    def eof(self) -> None:
        """See `BodyReader`."""
        self.done = True


# Where a ChunkedBody stands; a positive or zero `_left` is the rest of a chunk's data.
_SIZE, _TRAILERS = -1, -2


class ChunkedBody:
    """A chunked body (RFC 9112 section 7.1): extensions are dropped, allowed trailers kept in `trailers` when done."""

    __slots__ = ("_extensions", "_held", "_left", "_origin", "done", "trailers")

    def __init__(self, *, origin: bool = False) -> None:
        self.done = False
        self.trailers: Fields = []
        self._origin = origin
        self._left = _SIZE  # bytes of data left in the chunk, its CRLF (2 bytes) included; or a state
        self._held = b""  # the beginning of a size line or of the trailer section, not yet whole
        self._extensions = 0

    def feed(self, data: bytes, start: int = 0) -> tuple[bytes, int]:
        """See `BodyReader`."""
        end = len(data)
        position = start
        left = self._left
        payload: list[bytes] = []
        while position < end and not self.done:
            if left > 0:
                position, left = self._data(data, position, left, payload)
            elif left == _SIZE:
                position, left = self._size(data, position)
            else:
                position = self._trailer_section(data, position)
        self._left = left
        return (payload[0] if len(payload) == 1 else b"".join(payload)), position

    def _data(self, data: bytes, position: int, left: int, payload: list[bytes]) -> tuple[int, int]:
        """Take what there is of a chunk's data and of the CRLF after it."""
        if left > 2:
            stop = position + left - 2
            part = data[position:stop]
            payload.append(part)
            position += len(part)
            left -= len(part)
        if left == 2 and position < len(data):
            if data[position] != 0x0D:
                _fail("a chunk does not end with CRLF", origin=self._origin)
            position += 1
            left = 1
        if left == 1 and position < len(data):
            if data[position] != 0x0A:
                _fail("a chunk does not end with CRLF", origin=self._origin)
            return position + 1, _SIZE
        return position, left

    def _size(self, data: bytes, position: int) -> tuple[int, int]:
        """Read a size line, or hold what there is of it."""
        held = self._held
        newline = data.find(b"\n", position, position + MAX_SIZE_LINE - len(held))
        if newline < 0:
            if len(held) + len(data) - position >= MAX_SIZE_LINE:
                _fail("a chunk's size line is too long", origin=self._origin, reason=Reason.BODY_TOO_LARGE)
            self._held = held = held + data[position:]
            if _size_line_start(held) is None:
                _fail("a chunk's size line is invalid", origin=self._origin)
            return len(data), _SIZE
        line = held + data[position : newline + 1]
        self._held = b""
        if line[-2:-1] != b"\r" or (found := _size_line(line, 0, len(line) - 2)) is None:
            _fail("a chunk's size line is invalid", origin=self._origin)
        digits, extension = found.groups()
        if extension is not None:
            self._extensions += len(extension)
            if self._extensions > MAX_EXTENSIONS:
                _fail("too many chunk extensions", origin=self._origin, reason=Reason.BODY_TOO_LARGE)
        size = int(digits, 16)
        return newline + 1, size + 2 if size else _TRAILERS

    def _trailer_section(self, data: bytes, position: int) -> int:
        """Read the trailers and the empty line that ends the body, or hold what there is of them."""
        held = self._held
        if not held and data.startswith(b"\r\n", position):
            self.done = True
            return position + 2
        before = len(held)
        section = held + data[position : position + MAX_TRAILERS - before]
        if section.startswith(b"\r\n"):
            end = 2
        else:
            end = section.find(b"\r\n\r\n", max(0, before - 3)) + 4
        if end < 4 and end != 2:
            if len(section) >= MAX_TRAILERS:
                _fail("the trailers are too large", origin=self._origin, reason=Reason.BODY_TOO_LARGE)
            self._held = section
            return len(data)
        fields = trailer_fields(section[:end])
        if fields is None or len(fields) > MAX_TRAILER_FIELDS:
            _fail("the trailers are invalid or too many", origin=self._origin)
        self.trailers = allowed_trailers(fields)
        self._held = b""
        self.done = True
        return position + end - before

    def eof(self) -> None:
        """See `BodyReader`."""
        if not self.done:
            _fail("the body ended before its last chunk", origin=self._origin)


def encode_chunk(data: bytes) -> bytes:
    """One chunk. `data` must not be empty: an empty chunk would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def encode_trailers(fields: Fields) -> bytes:
    """The last chunk with trailers, ending the body."""
    return b"0\r\n%b\r\n" % b"".join([b"%b: %b\r\n" % field for field in fields])
