"""The frame: 8 bytes of header, then at most 16,376 bytes of payload, so that a full frame is one TLS record.

Header, big endian: type (8 bits), length of the payload (24 bits), stream (32 bits). DATA is type 0: the first word
of its header is then the length alone, and one comparison in the hot loop says both "this is DATA" and "its length
is legal".

Invariant: whether a header is legal is decided by `RULES` alone, from the header alone, before any payload is
waited for.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from tunnelgw.errors import RemoteError

HEADER = struct.Struct(">II")
HEADER_SIZE = 8
MAX_FRAME = 16384  # one TLS record
MAX_PAYLOAD = MAX_FRAME - HEADER_SIZE

# Counted and retained for resume: every type below 8.
DATA = 0
OPEN = 1
FIN = 2
RESET = 3
WINDOW = 4
CONTROL = 5
# Never counted, never retained: they die with their link.
ACK = 8
PING = 9
PONG = 10
DATAGRAM = 11
GOAWAY = 12
# Before the session (hello.py).
HELLO = 15

COUNTED_BELOW = 8
MORE = 0x80  # bit of the type: another fragment of the same message follows

U32 = struct.Struct(">I")
U64 = struct.Struct(">Q")
OPEN_WINDOWS = struct.Struct(">II")  # granted to the acceptor, assumed by the opener


class Rule(NamedTuple):
    """What a header of one type may say: payload length, whether `stream` names something, whether MORE is legal."""

    name: str
    shortest: int
    longest: int
    stream: bool
    fragments: bool


RULES: dict[int, Rule] = {
    DATA: Rule("DATA", 1, MAX_PAYLOAD, True, False),
    OPEN: Rule("OPEN", OPEN_WINDOWS.size + 2, MAX_PAYLOAD, True, False),
    FIN: Rule("FIN", 0, 0, True, False),
    RESET: Rule("RESET", 1, 1, True, False),
    WINDOW: Rule("WINDOW", 4, 4, True, False),
    CONTROL: Rule("CONTROL", 1, MAX_PAYLOAD, False, True),
    ACK: Rule("ACK", 8, 8, False, False),
    PING: Rule("PING", 8, 8, False, False),
    PONG: Rule("PONG", 8, 8, False, False),
    DATAGRAM: Rule("DATAGRAM", 0, MAX_PAYLOAD, True, True),
    GOAWAY: Rule("GOAWAY", 1, 1, False, False),
}


def encode(kind: int, stream: int, payload: bytes = b"") -> bytes:
    """One whole frame."""
    return HEADER.pack(kind << 24 | len(payload), stream) + payload


def check_header(word: int, stream: int) -> tuple[int, bool]:
    """Type and MORE of a header whose first word is `word`; `RemoteError` for what no session frame may say."""
    kind = word >> 24
    more = kind & MORE != 0
    rule = RULES.get(kind & ~MORE)
    if rule is None:
        raise RemoteError(f"frame of unknown type {kind}")
    length = word & 0xFFFFFF
    if not rule.shortest <= length <= rule.longest:
        raise RemoteError(f"{rule.name} frame of {length} bytes")
    if more and not rule.fragments:
        raise RemoteError(f"{rule.name} frame with MORE")
    if stream and not rule.stream:
        raise RemoteError(f"{rule.name} frame for stream {stream}")
    return kind & ~MORE, more
