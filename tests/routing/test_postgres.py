"""How a PostgreSQL client begins: what is answered, what waits for more, what is told to whoever says no name."""

from __future__ import annotations

import pytest

from tests.edge.front import hello, in_records
from tunnelgw.errors import RemoteError
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.matching import Asked, Found, Matcher, Named, Nameless, Turned
from tunnelgw.routing.postgres import MATCHER

SSL = bytes.fromhex("00000008 04d2162f")
GSS = bytes.fromhex("00000008 04d21630")
CANCEL = bytes.fromhex("00000010 04d2162e 00001234 deadbeef")
STARTUP = bytes.fromhex("00000011 00030000") + b"user\0me\0\0"


def walk(*pieces: bytes) -> tuple[Found | None, bytes]:
    """What is found after these pieces, each said after the answer to the one before; and the answers."""
    matcher, answers, found = MATCHER, b"", None
    for piece in pieces:
        found = matcher.read(piece)
        if isinstance(found, Asked):
            assert found.size == len(piece)
            answers += found.answer
            matcher = found.then
    return found, answers


def cut_anywhere(matcher: Matcher, data: bytes) -> None:
    for end in range(len(data)):
        assert matcher.read(data[:end]) is None, end
        assert matcher.needs(data[:end]) > end


def test_the_usual_way() -> None:
    whole = hello("db.example.com")
    found, answers = walk(SSL, whole)
    assert isinstance(found, Named)
    assert (found.host, found.tls, answers) == ("db.example.com", True, b"S")
    cut_anywhere(MATCHER, SSL)
    asked = MATCHER.read(SSL)
    assert isinstance(asked, Asked)
    cut_anywhere(asked.then, whole)


def test_gss_encryption_is_declined_once() -> None:
    found, answers = walk(GSS, SSL, hello("db.example.com", "postgresql"))
    assert isinstance(found, Named)
    assert (found.host, answers) == ("db.example.com", b"NS")
    found, answers = walk(GSS, STARTUP)
    assert isinstance(found, Turned)
    for second in (GSS, hello("db.example.com")):
        with pytest.raises(RemoteError):
            walk(GSS, second)


def test_tls_from_the_first_byte_on() -> None:
    for whole in (hello("db.example.com", "postgresql"), in_records(hello("db.example.com", "postgresql"), 20)):
        found, answers = walk(whole)
        assert isinstance(found, Named)
        assert (found.host, found.tls, answers) == ("db.example.com", True, b"")
        cut_anywhere(MATCHER, whole)


def test_another_protocol_is_no_postgres() -> None:
    for pieces in ((hello("db.example.com", "h2", "http/1.1"),), (SSL, hello("db.example.com", "h2"))):
        found, _ = walk(*pieces)
        assert isinstance(found, Turned)
        assert found.reason is Reason.ALPN_UNKNOWN
        assert found.answer == b"\x15\x03\x03\x00\x02\x02\x78"


def test_without_a_name() -> None:
    found, _ = walk(SSL, hello(""))
    assert isinstance(found, Named)
    assert found.host == ""
    assert found.tell(Reason.NO_ROUTE)[-1] == 112
    assert found.tell(Reason.CONNECTOR_AWAY)[-1] == 80
    assert isinstance(walk(CANCEL)[0], Nameless)


def fields(message: bytes) -> dict[str, str]:
    assert message[:1] == b"E"
    assert int.from_bytes(message[1:5], "big") == len(message) - 1
    assert message.endswith(b"\0\0")
    return {field[:1].decode(): field[1:].decode() for field in message[5:-2].split(b"\0")}


def test_without_tls_the_client_is_told_what_to_do() -> None:
    found, _ = walk(STARTUP[:8])
    assert isinstance(found, Turned)
    told = fields(found.answer)
    assert (told["S"], told["C"]) == ("FATAL", "28000")
    assert "sslmode=require" in told["H"]
    named, _ = walk(SSL, hello("db.example.com"))
    assert isinstance(named, Named)
    assert named.inside is not None
    assert fields(named.inside(Reason.CONNECTOR_AWAY))["M"] == Reason.CONNECTOR_AWAY.text


@pytest.mark.parametrize("request_", [SSL, GSS])
def test_who_does_not_wait_for_the_answer_is_refused(request_: bytes) -> None:
    found, answers = walk(request_ + hello("db.example.com"))
    assert isinstance(found, Turned)
    assert fields(found.answer)["C"] == "08P01"
    assert not answers


@pytest.mark.parametrize("data", [
    b"GET / HTTP/1.1\r\n",
    b"SSH-2.0-x\r\n",
    b"\x00\x01",
    b"\x00\x00\xff\xff",
    b"\x00\x00\x00\x07",
    b"\x00\x00\x00\x08\x00\x02\x00\x00",  # protocol 2, which no server speaks any more
    b"\x00\x00\x00\x09\x04\xd2\x16\x2f",
    b"\x16\x03\x01\x00\x00",
    b"\x80\x2e\x01\x03\x01",
])  # fmt: skip
def test_what_is_none(data: bytes) -> None:
    with pytest.raises(RemoteError) as caught:
        MATCHER.read(data)
    assert caught.value.reason is Reason.HELLO_INVALID
