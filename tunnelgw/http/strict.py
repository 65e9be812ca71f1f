"""The raw bytes of an HTTP/1 head, before any codec sees them: clean or refused, and how far a head reaches.

One pattern must match the whole block; no pattern here can backtrack (possessive loops), so the time is linear.
What must never break: a block that passes has exactly one reading. No bare CR or LF, NUL, control character, fold,
space before a colon, empty or invalid name, second space in the first line, or other version than 1.0 and 1.1.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NoReturn

from tunnelgw.errors import OriginError, RemoteError
from tunnelgw.http import checks
from tunnelgw.http.checks import MAX_FIELDS
from tunnelgw.http.fields import TOKEN, VALUE
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from tunnelgw.http.head import Fields

REQUEST_HEAD_BYTES = 32 * 1024  # browsers stay below 16 KiB; a 7.5 kB cookie with an 8,000-octet URI must fit
RESPONSE_HEAD_BYTES = 64 * 1024  # Content-Security-Policy and Set-Cookie lists grow large

_FIRST = rb"(" + TOKEN + rb"++) ([!-~]++) HTTP/1\.([01])\r\n"
_STATUS = rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: (" + VALUE + rb"*+))?\r\n"
_FIELD_LINES = rb"(?:" + TOKEN + rb"++:" + VALUE + rb"*+\r\n)*+\r\n"
# No value with space or tab at its end: nearly every head. The others take a second look and lose that space.
_TIGHT_LINES = rb"(?:" + TOKEN + rb"++:" + VALUE + rb"*+(?<![\t ])\r\n)*+\r\n"
_request = re.compile(_FIRST + _TIGHT_LINES).fullmatch
_padded_request = re.compile(_FIRST + _FIELD_LINES).fullmatch
_response = re.compile(_STATUS + _TIGHT_LINES).fullmatch
_padded_response = re.compile(_STATUS + _FIELD_LINES).fullmatch
_padding = re.compile(rb"[ \t]+\r\n").sub
_field_lines = re.compile(_FIELD_LINES).fullmatch
_first_line = re.compile(TOKEN + rb"++ [!-~]++ HTTP/([0-9]\.[0-9])\r\n").match
_bare = re.compile(rb"(?<!\r)\n|\r(?=[^\n])").search
# The beginning of a first line, however little of it has arrived.
_request_start = re.compile(rb"\Z|" + TOKEN + rb"++(?:\Z| (?:\Z|[!-~]++(?:\Z| (?:\Z|[!-~]++(?:\Z|\r)))))").match
# Junk shows in its first bytes; looking at a long target again for each byte that drips in would be quadratic.
_JUNK_BYTES = 512
_response_start = re.compile(rb"HTTP/1\.[01] |H?\Z|HTT?P?\Z|HTTP/1?\.?[01]?\Z").match


def clean_request(block: bytes) -> tuple[bytes, bytes, bytes, int, int]:
    """(block, method, target, version 10 or 11, number of fields) of a clean block; `RemoteError` for any other.

    The block that comes out has no space after its values: httptools would leave it there.
    """
    count = block.count(b"\n") - 2
    if count > MAX_FIELDS:
        raise RemoteError("more than 200 fields", reason=Reason.HEAD_TOO_LARGE)
    found = _request(block)
    if found is None:
        found = _padded_request(block)
        if found is None:
            line = _first_line(block)
            if line is not None and line[1] not in (b"1.0", b"1.1"):
                raise RemoteError("not HTTP/1.0 or HTTP/1.1", reason=Reason.VERSION_UNSUPPORTED)
            raise RemoteError("the head is not clean HTTP/1", reason=Reason.BAD_REQUEST)
        block = _padding(b"\r\n", block)
    method, target, minor = found.groups()
    return block, method, target, 11 if minor == b"1" else 10, count


def clean_response(block: bytes) -> tuple[bytes, int, bytes, int, int]:
    """(block, status, reason phrase, version 10 or 11, number of fields); `OriginError` if the block is not clean."""
    count = block.count(b"\n") - 2
    if count > MAX_FIELDS:
        raise OriginError("more than 200 fields", reason=Reason.UPSTREAM_HEAD_TOO_LARGE)
    found = _response(block)
    if found is None:
        found = _padded_response(block)
        if found is None:
            raise OriginError("the response head is not clean HTTP/1")
        line, _, rest = block.partition(b"\r\n")
        block = line + b"\r\n" + _padding(b"\r\n", rest)
    minor, status, phrase = found.groups()
    return block, int(status), phrase or b"", 11 if minor == b"1" else 10, count


def split_fields(lines: bytes) -> Fields:
    """The fields of clean lines (each with its CRLF), names as sent, values without space around them."""
    parts = (line.partition(b":") for line in lines.split(b"\r\n")[:-1])
    return [(name, value.strip(b" \t")) for name, _, value in parts]


def trailer_fields(section: bytes) -> Fields | None:
    """The fields of a trailer section with its final empty line; None if it is not clean."""
    if _field_lines(section) is None:
        return None
    return split_fields(section[:-2])


def explain_request(block: bytes, *, secure: bool) -> NoReturn:
    """A codec refused a clean block: raise what the checks say about it, so that every codec refuses alike."""
    block, method, target, version, _ = clean_request(block)
    checks.request_head(method, target, version, split_fields(block.partition(b"\r\n")[2][:-2]), secure=secure)
    raise RemoteError("the head is not valid HTTP/1", reason=Reason.BAD_REQUEST)


def explain_response(block: bytes, *, method: bytes) -> NoReturn:
    """As `explain_request`, for a response."""
    block, status, phrase, version, _ = clean_response(block)
    checks.response_head(status, phrase, version, split_fields(block.partition(b"\r\n")[2][:-2]), method=method)
    raise OriginError("the response head is not valid HTTP/1")


def find_request_end(
    buffer: bytes | bytearray, start: int = 0, *, searched: int = 0, limit: int = REQUEST_HEAD_BYTES
) -> int:
    """The offset after the head that begins at `start`, or -1 while it is incomplete.

    `searched`: how much of the buffer an earlier call has seen. `RemoteError` as soon as the head cannot become valid
    or passes `limit` bytes or 200 lines; so junk (TLS, SOCKS, bare line feeds) is refused without waiting.
    """
    end = buffer.find(b"\r\n\r\n", max(start, searched - 3), start + limit)
    if end >= 0:
        return end + 4
    junk = searched - start < _JUNK_BYTES and _request_start(buffer, start) is None
    if junk or _bare(buffer, max(start, searched - 1)):
        raise RemoteError("the head is not clean HTTP/1", reason=Reason.BAD_REQUEST)
    if len(buffer) - start >= limit or buffer.count(b"\n", start) > MAX_FIELDS + 1:
        raise RemoteError("the head is too large", reason=Reason.HEAD_TOO_LARGE)
    return -1


def find_response_end(
    buffer: bytes | bytearray, start: int = 0, *, searched: int = 0, limit: int = RESPONSE_HEAD_BYTES
) -> int:
    """As `find_request_end`, for a response; `OriginError`."""
    end = buffer.find(b"\r\n\r\n", max(start, searched - 3), start + limit)
    if end >= 0:
        return end + 4
    if _bare(buffer, max(start, searched - 1)) or _response_start(buffer, start) is None:
        raise OriginError("the response head is not clean HTTP/1")
    if len(buffer) - start >= limit or buffer.count(b"\n", start) > MAX_FIELDS + 1:
        raise OriginError("the response head is too large", reason=Reason.UPSTREAM_HEAD_TOO_LARGE)
    return -1
