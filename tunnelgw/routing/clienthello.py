"""A TLS ClientHello read from bytes that were only peeked at: who is asked for, and which protocols are offered.

Pure and incremental in the simplest way: the whole prefix that is there is parsed again each time. Records may cut the
handshake anywhere, down to one byte each; nothing is consumed.
What must never break: a name that comes out is a valid host name in its one spelling, or there is none; anything else
is refused, so that no later step reads another name than this one did (RFC 8446 section 4.1.2, RFC 6066 section 3).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NoReturn

from tunnelgw.errors import RemoteError
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.hostname import normalise

MAX_PEEKED = 64 * 1024  # of records; a ClientHello in absurdly small ones grows sixfold
MAX_HANDSHAKE = 16 * 1024  # post-quantum key shares and ECH need 2 KiB

_HANDSHAKE, _CLIENT_HELLO = 22, 1
_SERVER_NAME, _ALPN, _SUPPORTED_VERSIONS = 0, 16, 43
_MAX_RECORD = 16 * 1024  # RFC 8446 section 5.1, for plaintext


class Alert(enum.IntEnum):
    """What a peer is told instead of a handshake: RFC 8446 section 6, RFC 6066, RFC 7301."""

    ILLEGAL_PARAMETER = 47
    INTERNAL_ERROR = 80
    UNRECOGNIZED_NAME = 112
    NO_APPLICATION_PROTOCOL = 120


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What a ClientHello asks for."""

    server_name: str  # in its one spelling; "" if none was sent
    alpn: tuple[bytes, ...]  # in the order of preference; () if none were sent
    versions: tuple[int, ...]  # offered TLS versions, 0x0303 for 1.2


def _invalid(text: str) -> NoReturn:
    raise RemoteError(text, reason=Reason.HELLO_INVALID)


class _Cursor:
    """Reads length-prefixed vectors of a complete message; past its end it is malformed."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def ended(self) -> bool:
        return self._at == len(self._data)

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            _invalid("the ClientHello is malformed")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        return self.take(self.number(size))

    def inner(self, size: int) -> _Cursor:
        return _Cursor(self.vector(size))


def parse_client_hello(data: bytes | bytearray | memoryview) -> ClientHello | None:
    """The ClientHello at the beginning of `data`; None while it is incomplete; `RemoteError(HELLO_INVALID)`.

    Refuses as early as possible: the first byte of another protocol is enough.
    """
    message = _handshake(bytes(data))
    return None if message is None else _parse(message)


def hello_needs(data: bytes) -> int:
    """At least this many bytes are needed to go on with TLS records that were cut after `data`."""
    end = 0
    while end + 5 <= len(data):
        end += 5 + int.from_bytes(data[end + 3 : end + 5], "big")
        if end > len(data):
            return end
    return end + 5


def _handshake(data: bytes) -> bytes | None:
    """The body of the first handshake message, put together from its records."""
    message = bytearray()
    at, end = 0, min(len(data), MAX_PEEKED)
    while at < end:
        header = data[at : at + 5]
        _check_record(header)
        if len(header) < 5:
            break
        at += 5
        length = int.from_bytes(header[3:], "big")
        message += data[at : at + length]
        at += length
        wanted = _message_length(message)
        if 0 <= wanted <= len(message) - 4:
            return bytes(message[4 : 4 + wanted])
    if len(data) >= MAX_PEEKED:
        _invalid("the ClientHello is too large")
    return None


def _check_record(header: bytes) -> None:
    """As much as there is of a record's header: handshake, major version 3, 1 to 16,384 bytes."""
    if header[0] != _HANDSHAKE or (len(header) > 1 and header[1] != 3) or (len(header) > 2 and header[2] > 4):
        _invalid("not a TLS handshake record")
    if len(header) == 5 and not 0 < int.from_bytes(header[3:], "big") <= _MAX_RECORD:
        _invalid("a TLS record is empty or too large")


def _message_length(start: bytearray) -> int:
    """The length in the message's header, -1 while that is incomplete."""
    if start and start[0] != _CLIENT_HELLO:
        _invalid("the first handshake message is not a ClientHello")
    if len(start) < 4:
        return -1
    length = int.from_bytes(start[1:4], "big")
    if length > MAX_HANDSHAKE:
        _invalid("the ClientHello is too large")
    return length


def _parse(message: bytes) -> ClientHello:
    cursor = _Cursor(message)
    legacy = cursor.number(2)
    cursor.take(32)
    if legacy >> 8 != 3 or len(cursor.vector(1)) > 32:
        _invalid("the ClientHello is malformed")
    suites, compression = cursor.vector(2), cursor.vector(1)
    if not suites or len(suites) % 2 or not compression:
        _invalid("the ClientHello is malformed")
    extensions = _extensions(cursor)
    versions: tuple[int, ...] = (legacy,)
    if _SUPPORTED_VERSIONS in extensions:
        listed = _whole(extensions[_SUPPORTED_VERSIONS], 1)
        if not listed or len(listed) % 2:
            _invalid("the supported versions are malformed")
        versions = tuple(int.from_bytes(listed[i : i + 2], "big") for i in range(0, len(listed), 2))
    return ClientHello(
        server_name=_server_name(extensions[_SERVER_NAME]) if _SERVER_NAME in extensions else "",
        alpn=_protocols(extensions[_ALPN]) if _ALPN in extensions else (),
        versions=versions,
    )


def _extensions(cursor: _Cursor) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    if cursor.ended():
        return found
    inner = cursor.inner(2)
    if not cursor.ended():
        _invalid("bytes after the ClientHello's extensions")
    while not inner.ended():
        kind = inner.number(2)
        if kind in found:
            _invalid("an extension comes twice")
        found[kind] = inner.vector(2)
    return found


def _whole(data: bytes, size: int) -> bytes:
    """The one vector that fills `data`."""
    cursor = _Cursor(data)
    vector = cursor.vector(size)
    if not cursor.ended():
        _invalid("an extension is malformed")
    return vector


def _server_name(data: bytes) -> str:
    cursor = _Cursor(_whole(data, 2))
    kind, name = cursor.number(1), cursor.vector(2)
    if kind != 0 or not cursor.ended():
        _invalid("not exactly one host name")
    try:
        return normalise(name.decode("ascii"))
    except ValueError:
        _invalid("the server name is not a host name")


def _protocols(data: bytes) -> tuple[bytes, ...]:
    cursor = _Cursor(_whole(data, 2))
    protocols: list[bytes] = []
    while not cursor.ended():
        protocols.append(cursor.vector(1))
    if not protocols or b"" in protocols:
        _invalid("the list of protocols is malformed")
    return tuple(protocols)


def alert_record(code: int) -> bytes:
    """A fatal TLS alert as a plaintext record, before any handshake began."""
    return b"\x15\x03\x03\x00\x02\x02%c" % code
