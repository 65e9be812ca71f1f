"""Headers that tell a target the visitor's address: PROXY protocol, version 1 and 2, and the Simple Proxy Protocol.

Sources: haproxy's doc/proxy-protocol.txt, sections 2.1 and 2.2; for UDP the Simple Proxy Protocol too, whose 38 bytes
are in Cloudflare's documentation of Spectrum. Invariant: what comes out is exactly one valid header,
whatever strings the edge sent: an address that does not parse, or a mixed pair that cannot be mapped, becomes
UNKNOWN (v1) or LOCAL-like UNSPEC (v2), never a line with foreign bytes in it.
"""

from __future__ import annotations

import ipaddress
import struct

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
PROXY_COMMAND = 0x21  # version 2, command PROXY
UNSPEC, TCP4, TCP6, UDP4, UDP6 = 0x00, 0x11, 0x21, 0x12, 0x22
SIMPLE_MAGIC = 0x56EC
TLV_AUTHORITY = 0x02
AUTHORITY_LIMIT = 255

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def proxy_header(version: str, source: tuple[str, int], destination: tuple[str, int], *, host: str = "") -> bytes:
    """The header to write first. `version` is "v1" or "v2"; `host` becomes v2's AUTHORITY TLV if it is not empty."""
    pair = _pair(source[0], destination[0])
    if version == "v1":
        return _version1(pair, source[1], destination[1])
    return _version2(pair, source[1], destination[1], host, families=(TCP4, TCP6))


def datagram_header(version: str, source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    """The header in front of a datagram. `version` is "v2", "v2-first" (the same bytes) or "spp"."""
    pair = _pair(source[0], destination[0])
    if version != "spp":
        return _version2(pair, source[1], destination[1], "", families=(UDP4, UDP6))
    addresses = _mapped(pair[0]).packed + _mapped(pair[1]).packed if pair is not None else bytes(32)
    return struct.pack("!H32sHH", SIMPLE_MAGIC, addresses, source[1], destination[1])


def _pair(source: str, destination: str) -> tuple[Address, Address] | None:
    """Both addresses in one family (IPv4 mapped into IPv6 where they differ); None if either is no address."""
    try:
        first, second = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    except ValueError:
        return None
    first, second = _unmapped(first), _unmapped(second)
    if first.version != second.version:
        return _mapped(first), _mapped(second)
    return first, second


def _unmapped(address: Address) -> Address:
    """::ffff:192.0.2.1 (what a dual-stack listener sees) as 192.0.2.1; a zone index is dropped."""
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or ipaddress.IPv6Address(address.packed)
    return address


def _mapped(address: Address) -> ipaddress.IPv6Address:
    if isinstance(address, ipaddress.IPv4Address):
        return ipaddress.IPv6Address(b"\x00" * 10 + b"\xff\xff" + address.packed)
    return address


def _version1(pair: tuple[Address, Address] | None, source_port: int, destination_port: int) -> bytes:
    if pair is None:
        return b"PROXY UNKNOWN\r\n"
    family = "TCP4" if pair[0].version == 4 else "TCP6"
    return f"PROXY {family} {pair[0]} {pair[1]} {source_port} {destination_port}\r\n".encode("ascii")


def _version2(
    pair: tuple[Address, Address] | None,
    source_port: int,
    destination_port: int,
    host: str,
    *,
    families: tuple[int, int],
) -> bytes:
    if pair is None:
        family, addresses = UNSPEC, b""
    else:
        family = families[pair[0].version == 6]
        addresses = pair[0].packed + pair[1].packed + struct.pack("!HH", source_port, destination_port)
    name = host.encode("utf-8", "replace")[:AUTHORITY_LIMIT]
    extra = struct.pack("!BH", TLV_AUTHORITY, len(name)) + name if name else b""
    return SIGNATURE + struct.pack("!BBH", PROXY_COMMAND, family, len(addresses) + len(extra)) + addresses + extra
