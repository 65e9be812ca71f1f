"""PROXY headers of versions 1 and 2: one answer, its length to the byte, for every tail.

The first byte chooses whether a signature is put before the rest.
"""

from __future__ import annotations

import ipaddress

from tests.fuzz.wire_session import brief
from tunnelgw.errors import RemoteError
from tunnelgw.net.proxyproto import ProxyHeader, parse_proxy_header

BEGINNINGS = (b"", b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ", b"\r\n\r\n\x00\r\nQUIT\n", b"\r\n\r\n\x00\r\nQUIT\n\x21")


def parse(data: bytes) -> ProxyHeader | str | None:
    """The header, None for more, or that it was refused."""
    try:
        return parse_proxy_header(data)
    except RemoteError as error:
        brief(error)
        return "refused"


def one(data: bytes) -> None:
    """One input."""
    if not data:
        return
    text = BEGINNINGS[data[0] % len(BEGINNINGS)] + data[1:]
    found = parse(text)
    if isinstance(found, ProxyHeader):
        assert 0 < found.length <= len(text)
        exact = parse(text[: found.length])
        assert isinstance(exact, ProxyHeader)
        assert (exact.source, exact.destination, exact.length) == (found.source, found.destination, found.length)
        for place in (found.source, found.destination):
            if place is not None:
                ipaddress.ip_address(place[0])
                assert 0 <= place[1] <= 65535
        assert parse(text[: found.length - 1]) is None, "no shorter beginning is a header"
    elif found == "refused":
        assert parse(text + b"tail") == "refused"
    else:
        assert len(text) < 65536 + 16, "waiting for more is bounded"
