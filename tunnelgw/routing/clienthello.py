"""A TLS ClientHello read from bytes that were only peeked at: who is asked for, and which protocols are offered.

Pure and incremental in the simplest way: the whole prefix that is there is parsed again each time. Records may cut the
handshake anywhere, down to one byte each; nothing is consumed.
What must never break: a name that comes out is a valid host name in its one spelling, or there is none; anything else
is refused, so that no later step reads another name than this one did (RFC 8446 section 4.1.2, RFC 6066 section 3).
"""

from __future__ import annotations

import enum
import struct
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
_unpack_extension = struct.Struct(">HH").unpack_from  # its type and length


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
    message: bytes | bytearray = b""
    at, end = 0, min(len(data), MAX_PEEKED)
    while at < end:
        header = data[at : at + 5]
        _check_record(header)
        if len(header) < 5:
            break
        at += 5
        length = int.from_bytes(header[3:], "big")
        record = data[at : at + length]
        if not message:
            message = record  # mostly the only one
        elif isinstance(message, bytes):
            message = bytearray(message) + record
        else:
            message += record
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


def _message_length(start: bytes | bytearray) -> int:
    """The length in the message's header, -1 while that is incomplete."""
    if start and start[0] != _CLIENT_HELLO:
        _invalid("the first handshake message is not a ClientHello")
    if len(start) < 4:
        return -1
    length = int.from_bytes(start[1:4], "big")
    if length > MAX_HANDSHAKE:
        _invalid("the ClientHello is too large")
    return length


# From here on with offsets and few calls: every stranger's hello is read, and half of what that cost was calls.


def _parse(message: bytes) -> ClientHello:
    if len(message) < 35 or message[0] != 3 or message[34] > 32:
        _invalid("the ClientHello is malformed")
    first, suites = _vector(message, 35 + message[34], 2)
    compression, end = _vector(message, suites, 1)
    if first == suites or (suites - first) % 2 or compression == end:
        _invalid("the ClientHello is malformed")
    extensions = _extensions(message, end) if end < len(message) else {}
    versions: tuple[int, ...] = (message[0] << 8 | message[1],)
    if (listed := extensions.get(_SUPPORTED_VERSIONS)) is not None:
        count = (len(listed) - 1) // 2
        if not count or len(listed) != 1 + 2 * count or listed[0] != 2 * count:
            _invalid("the supported versions are malformed")
        versions = struct.unpack_from(f">{count}H", listed, 1)
    name, offer = extensions.get(_SERVER_NAME), extensions.get(_ALPN)
    return ClientHello(
        server_name="" if name is None else _server_name(name),
        alpn=() if offer is None else _protocols(offer),
        versions=versions,
    )


def _vector(data: bytes, at: int, size: int) -> tuple[int, int]:
    """Where the vector at `at`, whose length has `size` bytes, begins and ends."""
    begin = at + size
    end = begin + int.from_bytes(data[at:begin], "big")
    if begin > len(data) or end > len(data):
        _invalid("the ClientHello is malformed")
    return begin, end


def _extensions(message: bytes, at: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at, end = _vector(message, at, 2)
    if end < len(message):
        _invalid("bytes after the ClientHello's extensions")
    while at < end:
        if at + 4 > end:
            _invalid("an extension is malformed")
        kind, size = _unpack_extension(message, at)
        if kind in found:
            _invalid("an extension comes twice")
        begin = at + 4
        at = begin + size
        if at > end:
            _invalid("an extension is malformed")
        found[kind] = message[begin:at]
    return found


def _server_name(data: bytes) -> str:
    """The only name in the list, of the only type that there is (RFC 6066 section 3)."""
    length = len(data)
    if length < 5 or data[2] or _number(data, 0) != length - 2 or _number(data, 3) != length - 5:
        _invalid("not exactly one host name")
    try:
        return normalise(data[5:].decode("ascii"))
    except ValueError:
        _invalid("the server name is not a host name")


def _protocols(data: bytes) -> tuple[bytes, ...]:
    at, end = _vector(data, 0, 2)
    if end < len(data) or at == end:
        _invalid("the list of protocols is malformed")
    protocols: list[bytes] = []
    while at < end:
        begin, at = _vector(data, at, 1)
        if begin == at:
            _invalid("the list of protocols is malformed")
        protocols.append(data[begin:at])
    return tuple(protocols)


def _number(data: bytes, at: int) -> int:
    return data[at] << 8 | data[at + 1]


def alert_record(code: int) -> bytes:
    """A fatal TLS alert as a plaintext record, before any handshake began."""
    return b"\x15\x03\x03\x00\x02\x02%c" % code
