"""SOCKS on the wire: versions 5 (RFC 1928, logins of RFC 1929), 4 and 4a.

Readers look at what has arrived so far and give the message with its length, or None while it is not whole. Pure.
Invariant: nothing but `RemoteError` comes out of a reader; a message is never longer than `HEAD_MAX`, and a reader says
so before more than that has to be kept.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from tunnelgw.errors import RemoteError
from tunnelgw.obs.reasons import Reason

HEAD_MAX = 520  # version 4a with a user and a host of 255 bytes each is the longest
_TEXT_MAX = 255

CONNECT, BIND, ASSOCIATE = 1, 2, 3
NO_LOGIN, LOGIN, NO_METHOD = 0, 2, 0xFF
_IPV4, _NAME, _IPV6 = 1, 3, 4

# Replies of version 5 (RFC 1928 section 6).
GRANTED, FAILED, NOT_ALLOWED, NETWORK, HOST, REFUSED, EXPIRED, NO_COMMAND, NO_ADDRESS = range(9)

_CODES = {
    Reason.ADDRESS_REFUSED: NOT_ALLOWED, Reason.CLAIM_NOT_GRANTED: NOT_ALLOWED, Reason.ROLE_REFUSED: NOT_ALLOWED,
    Reason.REVOKED: NOT_ALLOWED, Reason.VISIT_NOT_GRANTED: NOT_ALLOWED, Reason.KEY_CHANGED: NOT_ALLOWED,
    Reason.SERVICE_UNKNOWN: NETWORK,
    Reason.PARK_TIMEOUT: NETWORK, Reason.PARK_LIMIT: NETWORK, Reason.EDGE_REPLACED: NETWORK,
    Reason.NOT_IMPLEMENTED: NOT_ALLOWED, Reason.WITHDRAWN: NOT_ALLOWED,
    Reason.CONNECTOR_AWAY: NETWORK, Reason.CONNECTOR_STOPPING: NETWORK, Reason.EDGE_STOPPING: NETWORK,
    Reason.TARGET_UNREACHABLE: HOST, Reason.TARGET_UNRESOLVED: HOST,
    Reason.TARGET_REFUSED: REFUSED,
    Reason.TARGET_TIMEOUT: EXPIRED, Reason.STALLED: EXPIRED,
}  # fmt: skip


class SocksError(RemoteError):
    """A request that is whole and cannot be served; `code` answers it."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Request(NamedTuple):
    """What the client wants. host: a name or an address, not checked."""

    version: int
    command: int
    host: str
    port: int


class Datagram(NamedTuple):
    """A datagram of an association: where to or from, and what."""

    fragment: int
    host: str
    port: int
    data: bytes


def code_for(reason: Reason) -> int:
    """What version 5 answers for a reason."""
    return _CODES.get(reason, FAILED)


def read_greeting(data: bytes) -> tuple[bytes, int] | None:
    """The methods that a client of version 5 offers."""
    if data[:1] != b"\x05":
        raise RemoteError("not SOCKS 5")
    if len(data) < 2 or len(data) < 2 + data[1]:
        return None
    return data[2 : 2 + data[1]], 2 + data[1]


def read_login(data: bytes) -> tuple[bytes, bytes, int] | None:
    """Name and password (RFC 1929)."""
    if data[:1] != b"\x01":
        raise RemoteError("not a login of RFC 1929")
    if len(data) < 2 or len(data) < 3 + data[1]:
        return None
    middle = 2 + data[1]
    end = middle + 1 + data[middle]
    if len(data) < end:
        return None
    return data[2:middle], data[middle + 1 : end], end


def read_request(data: bytes) -> tuple[Request, int] | None:
    """A request of version 5; `SocksError` for an address of an unknown kind."""
    if data[:1] != b"\x05" or data[2:3] not in (b"", b"\x00"):
        raise RemoteError("not a request of SOCKS 5")
    if len(data) < 4:
        return None
    found = _address(data, 3)
    if found is None:
        return None
    host, port, end = found
    return Request(5, data[1], host, port), end


def read_request4(data: bytes) -> tuple[Request, int] | None:
    """A request of version 4 or 4a."""
    if data[:1] != b"\x04":
        raise RemoteError("not SOCKS 4")
    if len(data) < 9:
        return None
    user_end = _text_end(data, 8)
    if user_end < 0:
        return None
    port, address = int.from_bytes(data[2:4], "big"), data[4:8]
    if address[:3] != b"\0\0\0" or address[3] == 0:
        return Request(4, data[1], str(ipaddress.IPv4Address(address)), port), user_end + 1
    end = _text_end(data, user_end + 1)
    if end < 0:
        return None
    return Request(4, data[1], _name(data[user_end + 1 : end]), port), end + 1


def _text_end(data: bytes, start: int) -> int:
    """Where the NUL is that ends a text; -1 while it has not come."""
    end = data.find(b"\0", start, start + _TEXT_MAX + 1)
    if end < 0 and len(data) > start + _TEXT_MAX:
        raise RemoteError("a text of SOCKS 4 is too long")
    return end


def _address(data: bytes, at: int) -> tuple[str, int, int] | None:
    """(host, port, end) of an address of version 5 that begins at `at`."""
    kind = data[at]
    start = at + 1
    if kind == _IPV4:
        end = start + 4
    elif kind == _IPV6:
        end = start + 16
    elif kind == _NAME:
        if len(data) <= start:
            return None
        end = start + 1 + data[start]
    else:
        raise SocksError(f"an address of kind {kind}", NO_ADDRESS)
    if len(data) < end + 2:
        return None
    raw = data[start:end]
    host = _name(raw[1:]) if kind == _NAME else str(ipaddress.ip_address(raw))
    return host, int.from_bytes(data[end : end + 2], "big"), end + 2


def _name(raw: bytes) -> str:
    try:
        name = raw.decode("ascii")
    except UnicodeDecodeError:
        name = ""
    if not name or not name.isprintable():
        raise SocksError("a host name that is none", NO_ADDRESS)
    return name


def reply(request: Request | None, code: int, host: str = "0.0.0.0", port: int = 0) -> bytes:
    """The answer to a request, in its version; version 4 knows yes and no."""
    if request is not None and request.version == 4:
        return b"\x00" + (b"\x5a" if code == GRANTED else b"\x5b") + bytes(6)
    return b"\x05%c\x00" % code + _packed(host, port)


def _packed(host: str, port: int) -> bytes:
    address = ipaddress.ip_address(host)
    return b"%c" % (_IPV4 if address.version == 4 else _IPV6) + address.packed + port.to_bytes(2, "big")


def read_datagram(data: bytes) -> Datagram:
    """A datagram of a client; `RemoteError` for what is none."""
    if len(data) < 4 or data[:2] != b"\0\0":
        raise RemoteError("not a datagram of SOCKS 5")
    found = _address(data, 3)
    if found is None:
        raise RemoteError("a datagram of SOCKS 5 is cut")
    host, port, end = found
    return Datagram(data[2], host, port, data[end:])


def datagram(host: str, port: int, data: bytes) -> bytes:
    """A datagram for a client, from an address."""
    return b"\0\0\0" + _packed(host, port) + data
