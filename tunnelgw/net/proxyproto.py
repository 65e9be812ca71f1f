"""Reading PROXY protocol headers, version 1 and 2, from a load balancer in front of the edge. PURE.

Source: haproxy's doc/proxy-protocol.txt, sections 2.1 and 2.2. The parser looks at bytes that are still in the socket:
it says how long the header is, and the caller takes exactly that many.

Invariant: never more than `LIMIT` bytes are waited for, and what is not a header to the letter is a `RemoteError`;
nothing is guessed.
"""

from __future__ import annotations

import ipaddress
import struct

from tunnelgw.errors import RemoteError
from tunnelgw.obs.reasons import Reason

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V1_LIMIT = 107  # section 2.1: the longest line, CRLF included
LIMIT = 16 + 4096  # a version 2 header with its TLVs; the format would allow 65,551 and senders use under 600
_V1 = b"PROXY "
_V2_HEAD = 16
_FAMILIES = {0x11: 4, 0x21: 16}  # TCP over IPv4, TCP over IPv6: length of an address


class ProxyHeader:
    """A header: its length in bytes, and the two ends it names; `source` is None for UNKNOWN and LOCAL."""

    __slots__ = ("destination", "length", "source")

    def __init__(
        self, length: int, source: tuple[str, int] | None = None, destination: tuple[str, int] | None = None
    ) -> None:
        self.length = length
        self.source = source
        self.destination = destination


def parse_proxy_header(data: bytes) -> ProxyHeader | None:
    """The header at the start of `data`; None while more bytes are needed. Raises `RemoteError` (PROXY_HEADER)."""
    if data[: len(SIGNATURE)] == SIGNATURE[: len(data)]:
        return _version2(data) if len(data) >= _V2_HEAD else None
    if data[: len(_V1)] == _V1[: len(data)]:
        end = data.find(b"\r\n", 0, V1_LIMIT)
        if end >= 0:
            return _version1(data[:end])
        if len(data) < V1_LIMIT:
            return None
        raise _invalid("the version 1 line is too long")
    raise _invalid("the connection does not begin with a PROXY header")


def _version1(line: bytes) -> ProxyHeader:
    words = line.split(b" ")
    length = len(line) + 2
    if len(words) >= 2 and words[1] == b"UNKNOWN":  # the receiver must ignore what follows, section 2.1
        return ProxyHeader(length)
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        raise _invalid("the version 1 line is malformed")
    version = 4 if words[1] == b"TCP4" else 6
    return ProxyHeader(
        length, (_address(words[2], version), _port(words[4])), (_address(words[3], version), _port(words[5]))
    )


def _version2(data: bytes) -> ProxyHeader | None:
    command, family, size = struct.unpack_from("!BBH", data, 12)
    length = _V2_HEAD + size
    if command not in (0x20, 0x21):
        raise _invalid("unknown version or command")
    if length > LIMIT:
        raise _invalid("the version 2 header is too long")
    if len(data) < length:
        return None
    width = _FAMILIES.get(family, 0)
    if command == 0x20 or not width:  # LOCAL (a health check), or a family that is not TCP over IP
        return ProxyHeader(length)
    if size < 2 * width + 4:
        raise _invalid("the version 2 addresses are cut short")
    source, destination = data[16 : 16 + width], data[16 + width : 16 + 2 * width]
    source_port, destination_port = struct.unpack_from("!HH", data, 16 + 2 * width)
    return ProxyHeader(
        length,
        (str(ipaddress.ip_address(source)), source_port),
        (str(ipaddress.ip_address(destination)), destination_port),
    )


def _address(word: bytes, version: int) -> str:
    try:
        address = ipaddress.ip_address(word.decode("ascii"))
    except ValueError:  # UnicodeDecodeError is one
        raise _invalid("an address is malformed") from None
    if address.version != version or "%" in str(address):
        raise _invalid("an address is malformed")
    return str(address)


def _port(word: bytes) -> int:
    if not word.isdigit() or len(word) > 5 or (word[:1] == b"0" and word != b"0") or int(word) > 65535:
        raise _invalid("a port is malformed")
    return int(word)


def _invalid(text: str) -> RemoteError:
    return RemoteError(f"PROXY header: {text}", reason=Reason.PROXY_HEADER)
