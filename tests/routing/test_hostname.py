"""Host names and authorities."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelgw.routing.hostname import (
    is_address,
    matches,
    normalise,
    normalise_address,
    normalise_pattern,
    split_authority,
    to_ascii,
    wildcard_of,
)


@pytest.mark.parametrize(
    ("given_name", "expected"),
    [
        ("Example.COM", "example.com"),
        ("example.com.", "example.com"),
        ("localhost", "localhost"),
        ("xn--caf-dma.example", "xn--caf-dma.example"),
        ("1.example", "1.example"),
        ("a-b.c3", "a-b.c3"),
        ("a" * 63 + ".b", "a" * 63 + ".b"),
    ],
)
def test_one_spelling(given_name: str, expected: str) -> None:
    assert normalise(given_name) == expected
    assert normalise(expected) == expected


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "a..b", ".a", "a.b..", "-a", "a-", "a.-b", "a_b", "a b", "a/b", "a\\b", "a:1", "a@b", "a%61",
        "a\0b", "a\n", "*.a", "*", "café.example", "127.0.0.1", "127.1", "1", "a.0x7f", "0x", "a" * 64,
        "a." * 127 + "ab", "[::1]", "::1", "\u212a.example",  # the Kelvin sign lower-cases to k
    ],
)  # fmt: skip
def test_what_is_no_host_name(name: str) -> None:
    with pytest.raises(ValueError):
        normalise(name)


@given(st.text(max_size=40))
def test_normalise_is_idempotent_and_raises_value_error_only(name: str) -> None:
    try:
        once = normalise(name)
    except ValueError:
        return
    assert normalise(once) == once
    assert once.isascii()
    assert once == once.lower()


def test_unicode_from_a_configuration() -> None:
    assert to_ascii("Café.Example") == "xn--caf-dma.example"
    assert to_ascii("*.bücher.example") == "*.xn--bcher-kva.example"
    assert to_ascii("plain.example.") == "plain.example"
    for bad in ("café..example", "é" * 80 + ".example", "*.*.example", "a.*.example"):
        with pytest.raises(ValueError):
            to_ascii(bad)


def test_wildcards_stand_for_one_label() -> None:
    assert normalise_pattern("*.Example.com.") == "*.example.com"
    assert matches("*.example.com", "a.example.com")
    assert not matches("*.example.com", "a.b.example.com")
    assert not matches("*.example.com", "example.com")
    assert not matches("*.example.com", "*.example.com")
    assert not matches("*.example.com", "aexample.com")
    assert matches("a.example.com", "a.example.com")
    assert not matches("a.example.com", "b.a.example.com")
    assert wildcard_of("a.b.c") == "*.b.c"
    assert wildcard_of("localhost") == ""


def test_addresses() -> None:
    assert normalise_address("2001:DB8::0:1") == "2001:db8::1"
    assert is_address("192.0.2.1")
    assert is_address("::1")
    for bad in ("192.0.2", "fe80::1%eth0", "[::1]", "010.0.0.1", "", "example.com"):
        assert not is_address(bad)


@pytest.mark.parametrize(
    ("authority", "expected"),
    [
        (b"Example.com", ("example.com", 0)),
        (b"example.com.:8443", ("example.com", 8443)),
        (b"127.0.0.1:80", ("127.0.0.1", 80)),
        (b"[::1]", ("::1", 0)),
        (b"[2001:DB8:0::1]:65535", ("2001:db8::1", 65535)),
        (b"localhost", ("localhost", 0)),
    ],
)
def test_authorities(authority: bytes, expected: tuple[str, int]) -> None:
    assert split_authority(authority) == expected


@pytest.mark.parametrize(
    "authority",
    [
        b"", b":80", b"a:", b"a:0", b"a:080", b"a:65536", b"a:x", b"a:80:80", b"u@a", b"u:p@a", b"a/b", b"a?b", b"a#b",
        b"a,b", b"a b", b'"a"', b"a\\b", b"%61.example", b"a\0", b"[::1", b"::1", b"[fe80::1%25eth0]", b"[v1.a]", b"[]",
        b"127.1", b"0x7f.0.0.1", b"a..b", b"-a", b"a;b", b"caf\xc3\xa9", b"a:+80", b"a:8\xb2", b"[127.0.0.1]",
    ],
)  # fmt: skip
def test_doubtful_authorities(authority: bytes) -> None:
    with pytest.raises(ValueError):
        split_authority(authority)
