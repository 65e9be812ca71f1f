"""Where the kernel would send a packet: to this machine itself, or to a neighbour, asked at the moment it matters.

A route is asked for over netlink (RTM_GETROUTE, rtnetlink(7)), which sees every address, secondary ones and whole
local networks included; nothing is sent. Without netlink an address counts as ours if a socket may be bound to it.
Invariant: in doubt an address is ours, and nobody's neighbour.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ipaddress

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
_ATTRIBUTE = struct.Struct("=HH")  # rtattr: length, type
_ERROR, _NEWROUTE, _GETROUTE = 2, 24, 26
_REQUEST = 1
_DESTINATION = 1  # RTA_DST
_ONWARDS = frozenset((5, 9, 18))  # RTA_GATEWAY, RTA_MULTIPATH, RTA_VIA
_LOCAL = 2  # RTN_LOCAL
_FIB_MATCH = 0x2000  # RTM_F_FIB_MATCH: the route as it is in the table, and not what it means for one address
_HALF = 1  # bits: a default route is also written as two halves
_ANSWER_BYTES = 4096


def is_own(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether packets to this address stay on this machine."""
    try:
        return int(_ROUTE.unpack_from(_route(address))[7]) == _LOCAL
    except (OSError, AttributeError):  # no netlink here
        return _may_bind(address)


def is_near(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether it is in a network that this machine is in itself: no router lies between."""
    try:
        route = _route(address, _FIB_MATCH)
    except (OSError, AttributeError):  # no netlink here
        return False
    if _ROUTE.unpack_from(route)[1] <= _HALF:
        return False
    at = _ROUTE.size
    while at + _ATTRIBUTE.size <= len(route):
        length, kind = _ATTRIBUTE.unpack_from(route, at)
        if kind in _ONWARDS:
            return False
        at += max(length + 3 & ~3, _ATTRIBUTE.size)
    return True


def _route(address: ipaddress.IPv4Address | ipaddress.IPv6Address, flags: int = 0) -> bytes:
    """The kernel's rtmsg with its attributes; all zeros where there is no route."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    packed = address.packed
    route = _ROUTE.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, flags)
    attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(packed), _DESTINATION) + packed
    length = _HEADER.size + len(route) + len(attribute)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.setblocking(False)  # the kernel answers within the call that asks
        sock.send(_HEADER.pack(length, _GETROUTE, _REQUEST, 1, 0) + route + attribute)
        answer = sock.recv(_ANSWER_BYTES)
    length, kind, *_ = _HEADER.unpack_from(answer)
    if kind == _ERROR:
        return bytes(_ROUTE.size)
    if kind != _NEWROUTE:
        raise OSError(f"netlink answered {kind}")
    return answer[_HEADER.size : length]


def _may_bind(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True
