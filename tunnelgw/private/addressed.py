"""A datagram of UDP inside a private stream: a byte of length, the host in ASCII, two bytes of port, the datagram.

Pure. Invariant: what `with_address` makes `split_address` gives back, and nothing raises.
"""

from __future__ import annotations

HOST_MOST = 255
# Sealed and with the longest address it is still a datagram of the tunnel (65,535 bytes); UDP itself has 65,507.
LARGEST = 65535 - (1 + HOST_MOST + 2) - 24


def with_address(host: str, port: int, data: bytes) -> bytes | None:
    """A datagram to or from there; None if it is too large, or the host no text of 1 to 255 ASCII characters."""
    if not host.isascii() or not 1 <= len(host) <= HOST_MOST or not 0 < port <= 65535 or len(data) > LARGEST:
        return None
    return b"%c%b%b" % (len(host), host.encode(), port.to_bytes(2, "big")) + data


def split_address(data: bytes) -> tuple[str, int, bytes] | None:
    """Host, port and datagram; None for what is cut or no text."""
    if not data or len(data) < 3 + data[0] or not data[0]:
        return None
    end = 1 + data[0]
    host = data[1:end]
    if not host.isascii():
        return None
    return host.decode(), int.from_bytes(data[end : end + 2], "big"), data[end + 2 :]
