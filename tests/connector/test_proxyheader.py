"""PROXY headers, byte for byte."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelgw.connector.proxyheader import SIGNATURE, proxy_header
from tunnelgw.net.proxyproto import parse_proxy_header

# How Python writes a mapped address differs between its versions; both ways are valid.
MIXED = f"PROXY TCP6 {ipaddress.ip_address('::ffff:192.0.2.7')} 2001:db8::1 1 2\r\n".encode()


@pytest.mark.parametrize(
    ("source", "destination", "line"),
    [
        (("192.0.2.7", 50000), ("198.51.100.1", 443), b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 443\r\n"),
        (("2001:db8::7", 50000), ("2001:db8::1", 2222), b"PROXY TCP6 2001:db8::7 2001:db8::1 50000 2222\r\n"),
        (("::ffff:192.0.2.7", 1), ("::ffff:198.51.100.1", 2), b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n"),
        (("192.0.2.7", 1), ("2001:db8::1", 2), MIXED),
        (("fe80::1%eth0", 1), ("2001:db8::1", 2), b"PROXY TCP6 fe80::1 2001:db8::1 1 2\r\n"),
        (("", 0), ("198.51.100.1", 443), b"PROXY UNKNOWN\r\n"),
        (("1.2.3.4\r\nX", 1), ("198.51.100.1", 443), b"PROXY UNKNOWN\r\n"),
    ],
)
def test_version_1(source: tuple[str, int], destination: tuple[str, int], line: bytes) -> None:
    assert proxy_header("v1", source, destination, host="ignored.example.com") == line


def test_version_2_ipv4_with_authority() -> None:
    header = proxy_header("v2", ("192.0.2.7", 50000), ("198.51.100.1", 443), host="ssh.example.com")
    assert header == (
        b"\r\n\r\n\x00\r\nQUIT\n"
        b"\x21\x11\x00\x1e"  # version 2 PROXY, TCP4, 12 + 18 bytes
        b"\xc0\x00\x02\x07\xc6\x33\x64\x01\xc3\x50\x01\xbb"
        b"\x02\x00\x0fssh.example.com"
    )


def test_version_2_ipv6_without_host() -> None:
    header = proxy_header("v2", ("2001:db8::7", 1), ("2001:db8::1", 2))
    head = SIGNATURE + b"\x21\x21\x00\x24"
    assert header == head + bytes.fromhex("20010db8000000000000000000000007 20010db8000000000000000000000001 0001 0002")


def test_version_2_without_addresses() -> None:
    assert proxy_header("v2", ("", 0), ("", 0)) == SIGNATURE + b"\x21\x00\x00\x00"


ADDRESSES = st.one_of(st.ip_addresses().map(str), st.text(max_size=20))


@given(st.sampled_from(["v1", "v2"]), ADDRESSES, ADDRESSES, st.integers(0, 65535), st.text(max_size=300))
def test_whatever_the_edge_sends_one_valid_header_comes_out(
    version: str, source: str, destination: str, port: int, host: str
) -> None:
    header = proxy_header(version, (source, port), (destination, port), host=host)
    parsed = parse_proxy_header(header)
    assert parsed is not None
    assert parsed.length == len(header)
