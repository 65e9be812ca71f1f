"""Sealed datagrams: what was not sealed by the other side, or came before, is nothing."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelgw.private.addressed import LARGEST, split_address, with_address
from tunnelgw.private.datagrams import COST, WINDOW, Opener, Sealer, new_key


def pair() -> tuple[Sealer, Opener]:
    key = new_key()
    return Sealer(key), Opener(key)


def test_once_and_in_any_order() -> None:
    sealer, opener = pair()
    sealed = [sealer.seal(b"%d" % number) for number in range(500)]
    shuffled = list(range(500))
    random.Random(7).shuffle(shuffled)
    assert all(opener.open(sealed[number]) == b"%d" % number for number in shuffled)
    assert all(opener.open(sealed[number]) is None for number in shuffled)
    assert len(sealed[0]) == 1 + COST


def test_what_is_older_than_the_window_is_dropped() -> None:
    sealer, opener = pair()
    sealed = [sealer.seal(b"") for _ in range(3 * WINDOW)]
    assert opener.open(sealed[WINDOW]) == b""
    assert opener.open(sealed[0]) is None  # exactly WINDOW older
    assert opener.open(sealed[1]) == b""
    assert opener.open(sealed[1]) is None
    assert opener.open(sealed[-1]) == b""  # a jump over more than the window
    assert opener.open(sealed[WINDOW]) is None
    assert opener.open(sealed[-2]) == b""


def test_nothing_forged_is_taken_or_moves_the_window() -> None:
    sealer, opener = pair()
    other, _ = pair()
    first = sealer.seal(b"first")
    far_ahead = b"\x00\x00\xff\xff\xff\xff\xff\xff" + first[8:]
    for forged in (b"", first[:-1], first + b"x", bytes(len(first)), other.seal(b"first"), far_ahead, first[:COST]):
        assert opener.open(forged) is None
    for at in range(len(first)):
        assert opener.open(first[:at] + bytes([first[at] ^ 1]) + first[at + 1 :]) is None
    assert opener.open(first) == b"first"


def test_directions_have_keys_of_their_own() -> None:
    assert new_key() != new_key()
    sealer, _ = pair()
    _, opener = pair()
    assert opener.open(sealer.seal(b"mine")) is None


@given(st.binary(max_size=100))
def test_anything_at_all_is_nothing(data: bytes) -> None:
    assert Opener(new_key()).open(data) is None


@given(st.text(alphabet="abc.:-019", min_size=1, max_size=255), st.integers(1, 65535), st.binary(max_size=100))
def test_addresses_come_back(host: str, port: int, data: bytes) -> None:
    addressed = with_address(host, port, data)
    assert addressed is not None
    assert split_address(addressed) == (host, port, data)


@given(st.binary(max_size=60))
def test_addresses_of_any_kind(data: bytes) -> None:
    found = split_address(data)
    if found is not None:
        assert data.endswith(found[2])
        assert found[0]


@pytest.mark.parametrize(
    ("host", "port", "size"),
    [("", 1, 0), ("x" * 256, 1, 0), ("é", 1, 0), ("a", 0, 0), ("a", 65536, 0), ("a", 1, LARGEST + 1)],
)
def test_what_cannot_be_sent(host: str, port: int, size: int) -> None:
    assert with_address(host, port, bytes(size)) is None


def test_the_largest_fits_into_a_datagram_of_the_tunnel() -> None:
    sealer, opener = pair()
    addressed = with_address("x" * 255, 65535, bytes(LARGEST))
    assert addressed is not None
    sealed = sealer.seal(addressed)
    assert len(sealed) == 65535
    assert opener.open(sealed) == addressed
