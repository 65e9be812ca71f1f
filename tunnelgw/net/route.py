"""Where the kernel would send a packet: whether an address is this machine's own, asked at the moment it matters.

A route is asked for over netlink (RTM_GETROUTE, rtnetlink(7)), which sees every address, secondary ones and whole
local networks included; nothing is sent. Without netlink an address counts as ours if a socket may be bound to it.
Invariant: in doubt an address is ours.
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
_LOCAL = 2  # RTN_LOCAL
_ANSWER_BYTES = 4096


def is_own(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether packets to this address stay on this machine."""
    try:
        return _kind(address) == _LOCAL
    except (OSError, AttributeError):  # no netlink here
        return _may_bind(address)


def _kind(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> int:
    """The type of the route, RTN_UNICAST and so on; 0: there is none."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    packed = address.packed
    route = _ROUTE.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0)
    attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(packed), _DESTINATION) + packed
    length = _HEADER.size + len(route) + len(attribute)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.setblocking(False)  # the kernel answers within the call that asks
        sock.send(_HEADER.pack(length, _GETROUTE, _REQUEST, 1, 0) + route + attribute)
        answer = sock.recv(_ANSWER_BYTES)
    kind = _HEADER.unpack_from(answer)[1]
    if kind == _ERROR:
        return 0
    if kind != _NEWROUTE:
        raise OSError(f"netlink answered {kind}")
    return int(_ROUTE.unpack_from(answer, _HEADER.size)[7])


def _may_bind(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True
