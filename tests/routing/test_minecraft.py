"""The address in a Minecraft client's first packet: of clients of all times, cut anywhere, and as nobody says it."""

from __future__ import annotations

import json

import pytest

from tests.routing.minecraft_packets import FORGE, handshake, legacy_ping, string, varint
from tunnelgw.errors import RemoteError
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.matching import Named
from tunnelgw.routing.minecraft import MATCHER


def name_in(data: bytes) -> str:
    found = MATCHER.read(data)
    assert isinstance(found, Named)
    assert not found.tls
    return found.host


@pytest.mark.parametrize("marker", ["", *FORGE])
@pytest.mark.parametrize(("said", "meant"), [
    ("mc.example.com", "mc.example.com"),
    ("MC.Example.COM", "mc.example.com"),
    ("mc.example.com.", "mc.example.com"),
    ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ("203.0.113.5", ""),  # an address is no name
    ("", ""),
    ("mc_example", ""),
    ("b\u00fccher.example", ""),
    ("a" * 250, ""),
])  # fmt: skip
def test_names(said: str, meant: str, marker: str) -> None:
    for state in (1, 2, 3):
        assert name_in(handshake(said + marker, state=state)) == meant


def test_what_follows_and_where_it_is_cut_does_not_matter() -> None:
    for whole in (handshake("mc.example.com"), handshake("m" * 60 + "." + "c" * 60 + "." + "x" * 63 + "." + "y" * 61),
                  legacy_ping("mc.example.com")):  # fmt: skip
        assert name_in(whole + b"\x01\x00 and more") == name_in(whole) != ""
        for end in range(len(whole)):
            assert MATCHER.read(whole[:end]) is None, end
            assert end < MATCHER.needs(whole[:end]) <= len(whole)


def test_a_packet_of_254_bytes_is_no_legacy_ping() -> None:
    """Its length begins with the same two bytes."""
    whole = next(packet for count in range(1, 255) if (packet := handshake("a" * count)).startswith(b"\xfe\x01"))
    assert name_in(whole) == ""
    assert MATCHER.read(whole[:2]) is None


def test_the_ping_of_1_6() -> None:
    assert name_in(legacy_ping("Mc.example.com")) == "mc.example.com"
    assert MATCHER.read(b"\xfe\x01") is None  # older ones say no more: they wait until their time is over


@pytest.mark.parametrize("data", [
    b"GET / HTTP/1.1\r\n",
    b"\x16\x03\x01\x00\xa5\x01\x00\x00",
    b"SSH-2.0-x\r\n",
    b"\x00",  # an empty packet
    b"\xff\xff\xff\xff\x0f",
    b"\x10\x01",  # another packet first
    handshake("mc.example.com", state=0),
    handshake("mc.example.com", state=4),
    handshake("mc.example.com", extra=b"\0"),
    handshake("x" * 800),
    varint(12) + b"\0" + varint(47) + varint(200) + b"short" + b"\x63\xdd\x01\0\0",
    varint(12) + b"\0" + b"\xff" * 11,
    varint(10) + b"\0" + varint(47) + varint(3) + b"\xff\xfe\xfd" + b"\x63\xdd\x01\x01",
    b"\xfe\x01\xfa\x00\x0b" + "MC|Elsewher".encode("utf-16-be"),
    legacy_ping("mc.example.com", rest=9),
    legacy_ping("\ud800x", errors="surrogatepass"),
])  # fmt: skip
def test_what_is_none(data: bytes) -> None:
    with pytest.raises(RemoteError) as caught:
        MATCHER.read(data)
    assert caught.value.reason is Reason.HELLO_INVALID


def test_what_is_told() -> None:
    status, login, legacy = (MATCHER.read(data) for data in (
        handshake("x.y", state=1), handshake("x.y", state=2), legacy_ping("x.y"),
    ))  # fmt: skip
    assert isinstance(status, Named)
    assert isinstance(login, Named)
    assert isinstance(legacy, Named)
    body, rest = string(status.tell(Reason.NO_ROUTE))
    assert json.loads(body)["description"]["text"] == Reason.NO_ROUTE.text
    assert not rest
    body, rest = string(login.tell(Reason.CONNECTOR_AWAY))
    assert json.loads(body) == {"text": Reason.CONNECTOR_AWAY.text}
    kick = legacy.tell(Reason.NO_ROUTE)
    assert kick[0] == 0xFF
    fields = kick[3:].decode("utf-16-be").split("\0")
    assert (fields[0], fields[3], len(fields)) == ("\xa71", Reason.NO_ROUTE.text, 6)
    assert int.from_bytes(kick[1:3], "big") == len(kick[3:]) // 2
