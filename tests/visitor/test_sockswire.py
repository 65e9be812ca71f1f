"""SOCKS messages: whole, byte by byte, with a tail, and anything at all."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelgw.errors import RemoteError
from tunnelgw.obs.reasons import Reason
from tunnelgw.visitor import sockswire as wire
from tunnelgw.visitor.sockswire import Request, SocksError

if TYPE_CHECKING:
    from collections.abc import Callable

GREETING = b"\x05\x02\x00\x02"
LOGIN = b"\x01\x04anna\x06secret"
NAME = b"\x05\x01\x00\x03\x07nas.lan\x00\x50"
FOUR = b"\x05\x01\x00\x01\xc0\xa8\x01\x05\x00\x16"
SIX = b"\x05\x03\x00\x04" + ipaddress.ip_address("fd00::1").packed + b"\x00\x35"
OLD = b"\x04\x01\x00\x50\xc0\xa8\x01\x05anna\x00"
OLD_NAME = b"\x04\x01\x00\x50\x00\x00\x00\x01\x00nas.lan\x00"

MESSAGES: list[tuple[Callable[[bytes], Any], bytes, Any]] = [
    (wire.read_greeting, GREETING, (b"\x00\x02", 4)),
    (wire.read_greeting, b"\x05\x00", (b"", 2)),
    (wire.read_login, LOGIN, (b"anna", b"secret", 13)),
    (wire.read_login, b"\x01\x00\x00", (b"", b"", 3)),
    (wire.read_request, NAME, (Request(5, 1, "nas.lan", 80), len(NAME))),
    (wire.read_request, FOUR, (Request(5, 1, "192.168.1.5", 22), len(FOUR))),
    (wire.read_request, SIX, (Request(5, 3, "fd00::1", 53), len(SIX))),
    (wire.read_request4, OLD, (Request(4, 1, "192.168.1.5", 80), len(OLD))),
    (wire.read_request4, OLD_NAME, (Request(4, 1, "nas.lan", 80), len(OLD_NAME))),
]


@pytest.mark.parametrize(("read", "data", "meaning"), MESSAGES)
def test_whole_byte_by_byte_and_with_a_tail(read: Callable[[bytes], Any], data: bytes, meaning: Any) -> None:
    assert read(data) == meaning
    assert read(data + b"\x05tail\x00") == meaning
    for cut in range(1, len(data)):
        assert read(data[:cut]) is None


@pytest.mark.parametrize(
    ("read", "data"),
    [
        (wire.read_greeting, b"G"), (wire.read_greeting, b"\x16\x03\x01"), (wire.read_login, b"\x05"),
        (wire.read_request, b"\x04"), (wire.read_request, b"\x05\x01\x01"), (wire.read_request4, b"\x05"),
        (wire.read_request4, b"\x04\x01\x00\x50\x01\x02\x03\x04" + b"x" * 300),
        (wire.read_request4, b"\x04\x01\x00\x50\x00\x00\x00\x01\x00" + b"x" * 300),
    ],
)  # fmt: skip
def test_what_is_none_is_refused_at_once(read: Callable[[bytes], Any], data: bytes) -> None:
    with pytest.raises(RemoteError):
        read(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x05\x01\x00\x02\x01\x02\x03\x04\x00\x50", b"\x05\x01\x00\x03\x00\x00\x50",
        b"\x05\x01\x00\x03\x03a\xffb\x00\x50", b"\x05\x01\x00\x03\x03a\nb\x00\x50",
    ],
)  # fmt: skip
def test_a_host_that_is_none_is_answered_with_8(data: bytes) -> None:
    with pytest.raises(SocksError) as caught:
        wire.read_request(data)
    assert caught.value.code == wire.NO_ADDRESS


READERS = (wire.read_greeting, wire.read_login, wire.read_request, wire.read_request4)


@given(st.sampled_from(READERS), st.one_of(st.binary(max_size=600), st.binary(max_size=600).map(lambda b: b"\x05" + b)))
def test_nothing_else_comes_out(read: Callable[[bytes], Any], data: bytes) -> None:
    try:
        found = read(data)
    except RemoteError:
        return
    assert found is not None or len(data) <= wire.HEAD_MAX


@given(st.binary(max_size=80))
def test_datagrams_of_any_kind(data: bytes) -> None:
    try:
        found = wire.read_datagram(data)
    except RemoteError:
        return
    assert data.endswith(found.data)


@given(st.ip_addresses(), st.integers(1, 65535), st.binary(max_size=50))
def test_a_datagram_says_where_it_is_from(address: Any, port: int, data: bytes) -> None:
    found = wire.read_datagram(wire.datagram(str(address), port, data))
    assert found == (0, str(address), port, data)


def test_a_datagram_that_is_cut_is_refused() -> None:
    whole = wire.datagram("10.0.0.1", 53, b"")
    for cut in range(len(whole)):
        with pytest.raises(RemoteError):
            wire.read_datagram(whole[:cut])


def test_replies_in_the_clients_version() -> None:
    five, four = Request(5, 1, "a", 1), Request(4, 1, "a", 1)
    assert wire.reply(five, wire.GRANTED) == b"\x05\x00\x00\x01" + bytes(6)
    assert wire.reply(five, wire.GRANTED, "::1", 80) == b"\x05\x00\x00\x04" + bytes(15) + b"\x01\x00\x50"
    assert wire.reply(four, wire.GRANTED) == b"\x00\x5a" + bytes(6)
    assert wire.reply(four, wire.REFUSED) == b"\x00\x5b" + bytes(6)


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (Reason.ADDRESS_REFUSED, 2), (Reason.VISIT_NOT_GRANTED, 2), (Reason.KEY_CHANGED, 2),
        (Reason.CONNECTOR_AWAY, 3),
        (Reason.TARGET_UNREACHABLE, 4), (Reason.TARGET_UNRESOLVED, 4), (Reason.TARGET_REFUSED, 5),
        (Reason.TARGET_TIMEOUT, 6), (Reason.INTERNAL, 1),
    ],
)  # fmt: skip
def test_reasons_have_their_codes(reason: Reason, code: int) -> None:
    assert wire.code_for(reason) == code


@pytest.mark.parametrize(
    "reason", [Reason.PARK_TIMEOUT, Reason.PARK_LIMIT, Reason.EDGE_REPLACED, Reason.CONNECTOR_AWAY]
)
def test_a_home_that_is_away_is_an_unreachable_network(reason: Reason) -> None:
    assert wire.code_for(reason) == wire.NETWORK


@pytest.mark.parametrize("reason", [Reason.NOT_IMPLEMENTED, Reason.WITHDRAWN, Reason.VISIT_NOT_GRANTED])
def test_what_is_not_offered_is_not_allowed(reason: Reason) -> None:
    assert wire.code_for(reason) == wire.NOT_ALLOWED
