"""IP packets of a TUN interface, each with the header of its offloads in front: what a peer sent is read strictly.

A parcel is 10 bytes of virtio_net_hdr (little endian) and one IP packet, perhaps of many TCP segments which a kernel
cuts apart later. Both sides of a tunnel are hostile to each other: nothing of the peer's header reaches the kernel. It
is checked against the packet, and a new one is made from what was checked.

Invariant: `read` never raises, whatever the bytes; a parcel that is taken names one source, one destination and, where
ports matter, one port, and its header points into the packet.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

HEADER = struct.Struct("<BBHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset (linux/virtio_net.h)
HEADER_SIZE = HEADER.size
# A parcel, a sealed datagram's counter (8) and its tag (16) fit in 65,535 bytes.
PARCEL_MAX = 65535 - 24
PACKET_MAX = PARCEL_MAX - HEADER_SIZE
PLAIN = bytes(HEADER_SIZE)

NEEDS_CHECKSUM, CHECKSUM_IS_RIGHT = 1, 2
TCP4, TCP6, UDP_SEGMENTS, ECN = 1, 4, 5, 0x80
ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58
CHECKSUM_AT = {TCP: 16, UDP: 6}
FRAGMENT = -1  # the port of what has none that could be read: a part of a packet
NO_PORT = 0  # ICMP
# Errors and echo. No redirects, and nothing that neighbours and routers say: it would change routes behind the tunnel.
ICMP_TYPES = frozenset((0, 3, 8, 11, 12))
ICMP6_TYPES = frozenset((1, 2, 3, 4, 128, 129))
OPTIONS = frozenset((0, 60))  # hop-by-hop and destination options of IPv6; routing headers are refused, as in IPv4
FRAGMENT_HEADER = 44
# The least that Linux takes for a segment (tcp_min_snd_mss): a parcel becomes at most 1,365 of them.
SEGMENT_LEAST = 48
KNOWN_MAX = 4096  # decisions that a gate remembers


class Parcel(NamedTuple):
    """What a parcel is about. `header`: 10 bytes for our kernel, made here."""

    header: bytes
    source: bytes
    destination: bytes
    protocol: int
    port: int  # of the destination; FRAGMENT or NO_PORT
    source_port: int


class _Malformed(Exception):  # noqa: N818 - never leaves this module
    pass


def read(parcel: bytes | memoryview) -> Parcel | None:
    """What is in it, or None for what no honest kernel sends."""
    size = len(parcel) - HEADER_SIZE
    if not 20 <= size <= PACKET_MAX:
        return None
    try:
        version = parcel[HEADER_SIZE] >> 4
        if version == 4:
            return _read4(parcel, size)
        return _read6(parcel, size) if version == 6 and size >= 40 else None
    except _Malformed:
        return None


def _read4(parcel: bytes | memoryview, size: int) -> Parcel:
    """IPv4 without options: source routes would lead past every check."""
    if parcel[10] != 0x45 or int.from_bytes(parcel[12:14], "big") != size:
        raise _Malformed
    place = int.from_bytes(parcel[16:18], "big")
    fragment = bool(place & 0x3FFF)  # more fragments, or an offset
    return _read_ends(parcel, size, parcel[19], 20, bytes(parcel[22:26]), bytes(parcel[26:30]), fragment=fragment)


def _read6(parcel: bytes | memoryview, size: int) -> Parcel:
    if int.from_bytes(parcel[14:16], "big") != size - 40:  # 0, of jumbograms, is refused as well
        raise _Malformed
    protocol, at, fragment = parcel[16], 40, False
    for _ in range(8):
        if protocol == FRAGMENT_HEADER:
            fragment = True
            step = 8
        elif protocol in OPTIONS:
            step = 8
        else:
            break
        if size < at + 8:
            raise _Malformed
        if protocol in OPTIONS:
            step = 8 * (parcel[HEADER_SIZE + at + 1] + 1)
        protocol = parcel[HEADER_SIZE + at]
        at += step
        if fragment:
            break  # what follows is whole in the first fragment only
    return _read_ends(parcel, size, protocol, at, bytes(parcel[18:34]), bytes(parcel[34:50]), fragment=fragment)


def _read_ends(
    parcel: bytes | memoryview, size: int, protocol: int, at: int, source: bytes, destination: bytes, *, fragment: bool
) -> Parcel:
    """Ports, and the header; `at`: where the transport's own header begins in the packet."""
    ends = HEADER_SIZE + at
    if protocol in CHECKSUM_AT:
        if fragment:
            port = source_port = FRAGMENT
        elif size >= at + (20 if protocol == TCP else 8):
            source_port, port = (
                int.from_bytes(parcel[ends : ends + 2], "big"),
                int.from_bytes(parcel[ends + 2 : ends + 4], "big"),
            )
        else:
            raise _Malformed
    elif protocol == (ICMP if len(source) == 4 else ICMP6):
        port = source_port = FRAGMENT if fragment else NO_PORT
        if not fragment and (size < at + 8 or parcel[ends] not in (ICMP_TYPES if protocol == ICMP else ICMP6_TYPES)):
            raise _Malformed
    else:
        raise _Malformed
    header = PLAIN if parcel[:HEADER_SIZE] == PLAIN else _header(parcel, size, protocol, at, fragment=fragment)
    return Parcel(header, source, destination, protocol, port, source_port)


def _header(parcel: bytes | memoryview, size: int, protocol: int, at: int, *, fragment: bool) -> bytes:
    """The peer's header, checked against the packet and written anew."""
    flags, kind, _, segment, start, offset = HEADER.unpack_from(parcel)
    if flags not in (0, NEEDS_CHECKSUM, CHECKSUM_IS_RIGHT):
        raise _Malformed
    if flags == NEEDS_CHECKSUM and (
        fragment or start != at or CHECKSUM_AT.get(protocol) != offset or start + offset + 2 > size
    ):
        raise _Malformed
    if kind == 0:
        return HEADER.pack(flags, 0, 0, 0, start, offset) if flags == NEEDS_CHECKSUM else HEADER.pack(flags, *[0] * 5)
    version = 4 if parcel[HEADER_SIZE] >> 4 == 4 else 6
    if flags != NEEDS_CHECKSUM or segment < SEGMENT_LEAST:
        raise _Malformed
    if kind & ~ECN == (TCP4 if version == 4 else TCP6) and protocol == TCP:
        length = at + (parcel[HEADER_SIZE + at + 12] >> 4) * 4
        if length < at + 20:
            raise _Malformed
    elif kind == UDP_SEGMENTS and protocol == UDP:
        length = at + 8
    else:
        raise _Malformed
    if length >= size:
        raise _Malformed
    return HEADER.pack(flags, kind, length, segment, start, offset)


class Gate:
    """Which parcels of one peer are let through: from its own addresses (`own_is_source`) or to ours, and only where
    `allowed(address, protocol, port)` says so. Its answers are remembered."""

    __slots__ = ("refused", "_allowed", "_known", "_own", "_own_is_source")

    def __init__(
        self, own: Collection[bytes], allowed: Callable[[bytes, int, int], bool], *, own_is_source: bool
    ) -> None:
        self.refused: dict[Reason, int] = {}
        self._own = frozenset(own)
        self._allowed = allowed
        self._own_is_source = own_is_source
        self._known: dict[tuple[bytes, int, int], bool] = {}

    def admit(self, data: bytes | memoryview) -> Parcel | None:
        """The parcel if it may pass; else None, and it is counted."""
        parcel = read(data)
        if parcel is None:
            self._refuse(Reason.PROTOCOL_ERROR)
            return None
        _, source, destination, protocol, port, source_port = parcel
        if self._own_is_source:
            own, asked = source, (destination, protocol, port)
        else:
            own, asked = destination, (source, protocol, source_port)
        if own not in self._own:
            self._refuse(Reason.ADDRESS_REFUSED)
            return None
        may = self._known.get(asked)
        if may is None:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            may = self._known[asked] = self._allowed(*asked)
        if not may:
            self._refuse(Reason.CLAIM_NOT_GRANTED)
            return None
        return parcel

    def _refuse(self, reason: Reason) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1
