"""Parcels: what a kernel gives is taken as it is, what a hostile peer makes up is refused, and nothing raises."""

from __future__ import annotations

import random
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelgw.access import packets
from tunnelgw.access.packets import (
    ECN,
    FRAGMENT,
    HEADER,
    HEADER_SIZE,
    NEEDS_CHECKSUM,
    NO_PORT,
    PACKET_MAX,
    PLAIN,
    TCP,
    TCP4,
    TCP6,
    UDP,
    UDP_SEGMENTS,
    Gate,
    read,
)
from tunnelgw.obs.reasons import Reason

OURS, THEIRS = socket.inet_aton("10.9.8.7"), socket.inet_aton("192.168.1.5")
OURS6, THEIRS6 = (socket.inet_pton(socket.AF_INET6, text) for text in ("fd00::7", "2001:db8::5"))


def tcp(size: int = 0, *, port: int = 443, words: int = 5) -> bytes:
    return struct.pack("!HHIIBBHHH", 40000, port, 1, 2, words << 4, 0x10, 500, 0, 0) + bytes(words * 4 - 20 + size)


def udp(size: int = 0, *, port: int = 53) -> bytes:
    return struct.pack("!HHHH", 40000, port, 8 + size, 0) + bytes(size)


def ip4(inside: bytes, protocol: int = TCP, *, first: int = 0x45, place: int = 0, length: int | None = None) -> bytes:
    size = 20 + len(inside) if length is None else length
    return struct.pack("!BBHHHBBH", first, 0, size, 1, place, 64, protocol, 0) + OURS + THEIRS + inside


def ip6(inside: bytes, protocol: int = TCP, *, length: int | None = None) -> bytes:
    size = len(inside) if length is None else length
    return struct.pack("!IHBB", 6 << 28, size, protocol, 64) + OURS6 + THEIRS6 + inside


def header(
    kind: int, at: int, *, segment: int = 1448, flags: int = NEEDS_CHECKSUM, offset: int = 16, room: int = 0
) -> bytes:
    return HEADER.pack(flags, kind, room, segment, at, offset)


def test_plain_packets() -> None:
    assert read(PLAIN + ip4(tcp())) == (PLAIN, OURS, THEIRS, TCP, 443, 40000)
    assert read(PLAIN + ip6(udp(), UDP)) == (PLAIN, OURS6, THEIRS6, UDP, 53, 40000)
    ping = read(PLAIN + ip4(b"\x08" + bytes(7), 1))
    assert ping is not None
    assert (ping.protocol, ping.port) == (1, NO_PORT)
    assert read(PLAIN + ip6(b"\x80" + bytes(7), 58)) is not None


def test_many_segments_keep_their_header() -> None:
    """Only how long the headers are is written anew: kernels say how much is linear there."""
    parcel = read(header(TCP4, 20, room=66) + ip4(tcp(20000, words=8)))
    assert parcel is not None
    assert HEADER.unpack(parcel.header) == (NEEDS_CHECKSUM, TCP4, 52, 1448, 20, 16)
    parcel = read(header(TCP6 | ECN, 40) + ip6(tcp(20000)))
    assert parcel is not None
    assert HEADER.unpack(parcel.header) == (NEEDS_CHECKSUM, TCP6 | ECN, 60, 1448, 40, 16)
    parcel = read(header(UDP_SEGMENTS, 20, offset=6) + ip4(udp(20000), UDP))
    assert parcel is not None
    assert HEADER.unpack(parcel.header) == (NEEDS_CHECKSUM, UDP_SEGMENTS, 28, 1448, 20, 6)


def test_a_checksum_to_be_filled_in() -> None:
    parcel = read(header(0, 20, segment=0) + ip4(tcp(100)))
    assert parcel is not None
    assert HEADER.unpack(parcel.header) == (NEEDS_CHECKSUM, 0, 0, 0, 20, 16)
    assert read(header(0, 0, flags=2, offset=0) + ip4(tcp(100))) is not None


def test_options_of_ipv6() -> None:
    option = bytes((TCP, 1)) + bytes(14)
    parcel = read(PLAIN + ip6(option + tcp(), 60))
    assert parcel is not None
    assert (parcel.protocol, parcel.port) == (TCP, 443)
    assert read(PLAIN + ip6(bytes((TCP, 255)) + bytes(20) + tcp(), 60)) is None, "longer than the packet"


@pytest.mark.parametrize("place", [0x2000, 1, 0x2001], ids=["first", "last", "middle"])
def test_fragments_have_no_port(place: int) -> None:
    parcel = read(PLAIN + ip4(tcp(), place=place))
    assert parcel is not None
    assert parcel.port == FRAGMENT
    parcel = read(PLAIN + ip6(bytes((TCP, 0, 0, 1)) + bytes(4) + tcp(), 44))
    assert parcel is not None
    assert parcel.port == FRAGMENT


HOSTILE = {
    "nothing": b"",
    "a header alone": PLAIN,
    "half a header": bytes(5),
    "no version": PLAIN + bytes(60),
    "version 5": PLAIN + ip4(tcp(), first=0x55),
    "options of IPv4: source routes": PLAIN + ip4(bytes(4) + tcp(), first=0x46),
    "a length beyond the packet": PLAIN + ip4(tcp(), length=400),
    "a length within the packet": PLAIN + ip4(tcp(), length=30),
    "IPv6, cut": PLAIN + ip6(tcp())[:39],
    "a jumbogram": PLAIN + ip6(tcp(), length=0),
    "a routing header": PLAIN + ip6(bytes((TCP, 0)) + bytes(6) + tcp(), 43),
    "options without end": PLAIN + ip6(bytes((60, 0)) + bytes(6), 60),
    "nine options": PLAIN + ip6((bytes((60, 0)) + bytes(6)) * 9 + tcp(), 60),
    "half a TCP header": PLAIN + ip4(tcp()[:19]),
    "half a UDP header": PLAIN + ip4(udp()[:7], UDP),
    "a redirect": PLAIN + ip4(b"\x05" + bytes(7), 1),
    "a router's advertisement": PLAIN + ip6(b"\x86" + bytes(15), 58),
    "a neighbour's advertisement": PLAIN + ip6(b"\x88" + bytes(23), 58),
    "ICMP of IPv6 in IPv4": PLAIN + ip4(b"\x80" + bytes(7), 58),
    "IP in IP": PLAIN + ip4(ip4(tcp()), 4),
    "IPv6 in IPv4": PLAIN + ip4(ip6(tcp()), 41),
    "too long": PLAIN + ip4(tcp(PACKET_MAX - 39)),
    "unknown flags": header(0, 20, flags=4) + ip4(tcp(100)),
    "flags that exclude each other": header(0, 20, flags=3) + ip4(tcp(100)),
    "an unknown kind": header(2, 20) + ip4(tcp(5000)),
    "UFO": header(3, 20, offset=6) + ip4(udp(5000), UDP),
    "ECN of nothing": header(ECN, 20) + ip4(tcp(5000)),
    "segments without a checksum": header(TCP4, 20, flags=0) + ip4(tcp(5000)),
    "segments of nothing": header(TCP4, 20, segment=0) + ip4(tcp(5000)),
    "segments of one byte": header(TCP4, 20, segment=1) + ip4(tcp(5000)),
    "a kind of the other family": header(TCP6, 20) + ip4(tcp(5000)),
    "a kind of the other family, IPv6": header(TCP4, 40) + ip6(tcp(5000)),
    "TCP segments of UDP": header(TCP4, 20) + ip4(udp(5000), UDP),
    "UDP segments of TCP": header(UDP_SEGMENTS, 20) + ip4(tcp(5000)),
    "a TCP header shorter than it may be": header(TCP4, 20) + ip4(tcp(5000, words=5)[:12] + b"\x40" + bytes(5007)),
    "a TCP header longer than the packet": header(TCP4, 20) + ip4(tcp()[:12] + b"\xf0" + bytes(10)),
    "segments without content": header(TCP4, 20) + ip4(tcp()),
    "a checksum in the IP header": header(0, 0) + ip4(tcp(100)),
    "a checksum behind the packet": header(0, 20, offset=65535) + ip4(tcp(100)),
    "a checksum that begins behind the packet": header(0, 65535) + ip4(tcp(100)),
    "a checksum elsewhere in TCP": header(0, 20, offset=4) + ip4(tcp(100)),
    "a checksum of ICMP": header(0, 20, offset=2) + ip4(b"\x08" + bytes(7), 1),
    "a checksum in a fragment": header(0, 20) + ip4(tcp(100), place=0x2000),
    "segments of a fragment": header(TCP4, 20) + ip4(tcp(5000), place=0x2000),
}  # fmt: skip


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_refused(data: bytes) -> None:
    assert read(data) is None
    assert read(memoryview(data)) is None


def sound(parcel: packets.Parcel, size: int) -> None:
    """What a kernel may rely on."""
    flags, kind, length, segment, start, offset = HEADER.unpack(parcel.header)
    assert flags in (0, 1, 2)
    assert kind in (0, TCP4, TCP6, UDP_SEGMENTS, TCP4 | ECN, TCP6 | ECN)
    if flags == NEEDS_CHECKSUM:
        assert start >= 20
        assert start + offset + 2 <= size
    else:
        assert kind == start == offset == 0
    if kind:
        assert start < length < size
        assert size / segment < 1400
    else:
        assert length == segment == 0


@given(st.binary(max_size=200))
def test_junk(data: bytes) -> None:
    parcel = read(data)
    if parcel is not None:
        sound(parcel, len(data) - HEADER_SIZE)


ECHO = ip4(b"\x08" + bytes(7), 1)


@given(
    st.sampled_from([ip4(tcp(3000)), ip4(udp(3000), UDP), ip6(tcp(3000)), ip6(udp(3000), UDP), ECHO]),
    st.lists(st.tuples(st.integers(0, 79), st.integers(0, 255)), max_size=4),
    st.tuples(
        st.integers(0, 5), st.sampled_from([0, 1, 3, 4, 5, 0x81, 0x84, 255]), st.integers(0, 65535),
        st.integers(0, 3000), st.sampled_from([0, 20, 40, 48, 3000, 65535]), st.sampled_from([0, 6, 16, 3000, 65535]),
    ),
)  # fmt: skip
def test_any_header_on_packets_with_wrong_bytes(
    packet: bytes, changes: list[tuple[int, int]], fields: tuple[int, ...]
) -> None:
    wrong = bytearray(packet)
    for at, value in changes:
        wrong[at % len(wrong)] = value
    parcel = read(HEADER.pack(*fields) + wrong)
    if parcel is not None:
        sound(parcel, len(wrong))


def gate(*granted: tuple[bytes, int, int], source: bool = True) -> tuple[Gate, list[tuple[bytes, int, int]]]:
    asked: list[tuple[bytes, int, int]] = []

    def allowed(address: bytes, protocol: int, port: int) -> bool:
        asked.append((address, protocol, port))
        return (address, protocol, port) in granted

    return Gate([OURS, OURS6] if source else [THEIRS, THEIRS6], allowed, own_is_source=source), asked


def test_a_gate_asks_once_and_counts() -> None:
    door, asked = gate((THEIRS, TCP, 443))
    for _ in range(3):
        assert door.admit(PLAIN + ip4(tcp())) is not None
        assert door.admit(PLAIN + ip4(tcp(port=22))) is None
        assert door.admit(PLAIN + ip4(tcp(), place=1)) is None, "ports are asked for: a fragment has none"
    assert asked == [(THEIRS, TCP, 443), (THEIRS, TCP, 22), (THEIRS, TCP, FRAGMENT)]
    assert door.admit(b"junk") is None
    assert door.refused == {Reason.CLAIM_NOT_GRANTED: 6, Reason.PROTOCOL_ERROR: 1}


def test_a_wrong_source_is_refused_before_anything_is_asked() -> None:
    door, asked = gate((THEIRS, TCP, 443))
    packet = bytearray(PLAIN + ip4(tcp()))
    packet[22:26] = socket.inet_aton("10.9.8.8")
    assert door.admit(packet) is None
    assert door.refused == {Reason.ADDRESS_REFUSED: 1}
    assert asked == []


def test_what_comes_back_is_for_us_and_from_where_we_may_reach() -> None:
    door, asked = gate((OURS, TCP, 40000), source=False)
    assert door.admit(PLAIN + ip4(tcp())) is not None
    assert door.admit(PLAIN + ip6(tcp())) is None
    assert asked == [(OURS, TCP, 40000), (OURS6, TCP, 40000)]


def test_what_a_gate_remembers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packets, "KNOWN_MAX", 8)
    door, asked = gate()
    for port in range(1, 30):
        door.admit(PLAIN + ip4(tcp(port=port)))
    assert len(asked) == 29
    assert len(door._known) <= 8


def test_random_bytes_by_the_thousand() -> None:
    chance = random.Random(7)
    for _ in range(3000):
        data = bytearray(PLAIN + chance.choice((ip4(tcp(60)), ip6(tcp(60)))))
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        parcel = read(data)
        if parcel is not None:
            sound(parcel, len(data) - HEADER_SIZE)
