"""PROXY headers that come in: to the letter, bounded, and never more taken than the header."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnelgw.connector.proxyheader import proxy_header
from tunnelgw.errors import RemoteError
from tunnelgw.net.proxyproto import LIMIT, SIGNATURE, parse_proxy_header
from tunnelgw.obs.reasons import Reason

SOURCE, DESTINATION = ("192.0.2.7", 51000), ("198.51.100.1", 443)
SOURCE6, DESTINATION6 = ("2001:db8::7", 51000), ("2001:db8::1", 443)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(("source", "destination"), [(SOURCE, DESTINATION), (SOURCE6, DESTINATION6)])
def test_reads_what_our_own_connector_writes(
    version: str, source: tuple[str, int], destination: tuple[str, int]
) -> None:
    header = proxy_header(version, source, destination, host="a.example.com")
    for tail in (b"", b"\x16\x03\x01 more", header):
        found = parse_proxy_header(header + tail)
        assert found is not None
        assert (found.length, found.source, found.destination) == (len(header), source, destination)
    for cut in range(len(header)):
        assert parse_proxy_header(header[:cut]) is None, cut


@pytest.mark.parametrize(
    "data",
    [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n",
        SIGNATURE + b"\x20\x00\x00\x00",  # LOCAL: a health check
        SIGNATURE + b"\x20\x11\x00\x0c" + b"\xff" * 12,
        SIGNATURE + b"\x21\x31\x00\xd8" + b"\x00" * 216,  # AF_UNIX
    ],
)
def test_headers_without_an_address(data: bytes) -> None:
    found = parse_proxy_header(data + b"rest")
    assert found is not None
    assert found.source is None
    assert found.length == len(data)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00",
        b"PROXY \r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 51000\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 51000 443 9\r\n",
        b"PROXY TCP4 192.0.2.007 198.51.100.1 51000 443\r\n",
        b"PROXY TCP4 2001:db8::7 2001:db8::1 51000 443\r\n",
        b"PROXY TCP6 192.0.2.7 198.51.100.1 51000 443\r\n",
        b"PROXY TCP6 fe80::1%eth0 2001:db8::1 51000 443\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 443\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 +1 443\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 01 443\r\n",
        b"PROXY TCP4 192.0.2.\xb2 198.51.100.1 1 443\r\n",
        b"PROXY TCP4  192.0.2.7 198.51.100.1 1 443\r\n",
        b"PROXY TCP4 " + b"1" * 200,
        b"proxy TCP4 192.0.2.7 198.51.100.1 1 443\r\n",
        SIGNATURE + b"\x11\x11\x00\x0c" + b"\x00" * 12,  # version 1 in a version 2 header
        SIGNATURE + b"\x22\x11\x00\x0c" + b"\x00" * 12,
        SIGNATURE + b"\x21\x11\x00\x0b" + b"\x00" * 11,
        SIGNATURE + b"\x21\x21\x00\x0c" + b"\x00" * 12,
        SIGNATURE + b"\x21\x11\xff\xff",  # refused before anything is waited for
    ],
)
def test_refuses(data: bytes) -> None:
    with pytest.raises(RemoteError) as caught:
        parse_proxy_header(data)
    assert caught.value.reason is Reason.PROXY_HEADER


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=300).map(SIGNATURE.__add__),
        st.binary(max_size=200).map(b"PROXY ".__add__),
    )
)
def test_junk_is_refused_or_waited_for_within_the_bound(data: bytes) -> None:
    try:
        found = parse_proxy_header(data)
    except RemoteError:
        return
    if found is None:
        assert len(data) < LIMIT
    else:
        assert found.length <= min(len(data), LIMIT)
