"""ClientHellos made by a real TLS library, cut in every way, and malformed ones made by hand."""

from __future__ import annotations

import ssl
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnelgw.errors import RemoteError
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.clienthello import MAX_PEEKED, ClientHello, alert_record, parse_client_hello


def hello_of(name: str | None, alpn: list[str] | None = None, *, tls12: bool = False) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if tls12:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    if alpn:
        context.set_alpn_protocols(alpn)
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


HELLO = hello_of("Jellyfin.Example.com", ["h2", "http/1.1"])
MESSAGE = HELLO[5:]


def records(message: bytes, sizes: list[int]) -> bytes:
    """The handshake message in records of these sizes; the last size is repeated."""
    out, at, index = bytearray(), 0, 0
    while at < len(message):
        size = sizes[min(index, len(sizes) - 1)]
        part = message[at : at + size]
        out += b"\x16\x03\x01" + struct.pack(">H", len(part)) + part
        at += size
        index += 1
    return bytes(out)


def vector(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size, "big") + data


def crafted(*extensions: tuple[int, bytes], tail: bytes = b"") -> bytes:
    block = b"".join(struct.pack(">H", kind) + vector(2, data) for kind, data in extensions)
    body = b"\x03\x03" + bytes(32) + vector(1, b"") + vector(2, b"\x13\x01") + vector(1, b"\0")
    body += (vector(2, block) if extensions else b"") + tail
    return records(b"\x01" + vector(3, body), [16384])


def sni(*names: bytes, kind: int = 0) -> tuple[int, bytes]:
    return 0, vector(2, b"".join(bytes([kind]) + vector(2, name) for name in names))


def test_reads_what_a_library_sends() -> None:
    hello = parse_client_hello(HELLO)
    assert hello is not None
    assert hello.server_name == "jellyfin.example.com"
    assert hello.alpn == (b"h2", b"http/1.1")
    assert 0x0304 in hello.versions
    assert 0x0303 in hello.versions


def test_without_name_and_protocols_and_with_tls12_only() -> None:
    hello = parse_client_hello(hello_of(None, tls12=True))
    assert hello == ClientHello(server_name="", alpn=(), versions=(0x0303,))


def test_every_prefix_is_incomplete_and_a_tail_is_ignored() -> None:
    for end in range(len(HELLO)):
        assert parse_client_hello(HELLO[:end]) is None
    assert parse_client_hello(HELLO + b"\x14\x03\x03 junk") == parse_client_hello(HELLO)


def test_one_byte_records_and_every_boundary() -> None:
    whole = parse_client_hello(HELLO)
    assert parse_client_hello(records(MESSAGE, [1])) == whole
    assert parse_client_hello(records(MESSAGE, [100])) == whole
    for cut in range(1, len(MESSAGE)):
        assert parse_client_hello(records(MESSAGE, [cut, 16384])) == whole


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=8), end=st.integers(0, 4000))
def test_any_records_any_prefix(sizes: list[int], end: int) -> None:
    data = records(MESSAGE, sizes)
    assert parse_client_hello(memoryview(data)) == parse_client_hello(HELLO)
    if end < len(data):
        assert parse_client_hello(bytearray(data[:end])) is None


def test_large_but_allowed() -> None:
    padding = (21, bytes(15_000))
    hello = parse_client_hello(crafted(sni(b"a.example.com"), padding))
    assert hello is not None
    assert hello.server_name == "a.example.com"


@pytest.mark.parametrize(
    "name",
    [
        b"", b"\0", b"a\0.example.com", b"a.example.com\r\nx", b"../..", b"a" * 300, b"a..b", b".a", b"-a.b", b"a b.c",
        b"127.0.0.1", b"::1", b"caf\xc3\xa9.example", b"*.example.com", b"a_b.example.com", b"a.example.com:443",
        b"%61.example.com", b"a.example.com..",
    ],
)  # fmt: skip
def test_malformed_names_are_refused(name: bytes) -> None:
    with pytest.raises(RemoteError) as caught:
        parse_client_hello(crafted(sni(name)))
    assert caught.value.reason is Reason.HELLO_INVALID


def test_one_trailing_dot_is_the_same_name() -> None:
    hello = parse_client_hello(crafted(sni(b"A.Example.com.")))
    assert hello is not None
    assert hello.server_name == "a.example.com"


@pytest.mark.parametrize(
    "data",
    [
        crafted(sni(b"a.example.com", b"b.example.com")),
        crafted(sni()),
        crafted(sni(b"a.example.com", kind=1)),
        crafted(sni(b"a.example.com"), sni(b"b.example.com")),
        crafted((0, b"")),
        crafted((0, vector(2, b"\0" + vector(2, b"a.example.com")) + b"x")),
        crafted((16, vector(2, b""))),
        crafted((16, vector(2, vector(1, b"")))),
        crafted((16, b"\x00\x09\x02h2")),
        crafted((43, b"\x03\x03\x04\x03")),
        crafted((43, b"\x00")),
        crafted(sni(b"a.example.com"), tail=b"x"),
        b"GET / HTTP/1.1\r\n",
        b"\x80\x2e\x01\x03\x01",  # SSLv2
        b"\x16\x02",
        b"\x16\x03\x05",
        b"\x16\x03\x01\x00\x00",  # an empty record
        b"\x16\x03\x01\x40\x01",  # above 2^14
        b"\x18\x03\x01\x00\x03\x01\x40\x00",  # heartbeat
        b"\x16\x03\x01\x00\x04\x02",  # a ServerHello
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",  # claims 16 MB
        b"\x16\x03\x01\x00\x02\x01\x00\x17\x03\x03",  # application data inside
        records(b"\x01" + vector(3, b"\x03\x03" + bytes(20)), [100]),
        records(b"\x01" + (16000).to_bytes(3, "big") + bytes(16000), [1])[:MAX_PEEKED],
    ],
)
def test_malformed_hellos_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteError) as caught:
        parse_client_hello(data)
    assert caught.value.reason is Reason.HELLO_INVALID


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, len(HELLO) - 1), value=st.integers(0, 255), junk=st.binary(max_size=64))
def test_nothing_but_remote_error_comes_out(at: int, value: int, junk: bytes) -> None:
    flipped = HELLO[:at] + bytes([value]) + HELLO[at + 1 :]
    for data in (flipped, junk, b"\x16\x03\x01" + junk, flipped[:at] + junk):
        try:
            parse_client_hello(data)
        except RemoteError as error:
            refused = error.reason
        else:
            continue
        assert refused is Reason.HELLO_INVALID


def test_alert_is_what_a_client_shows() -> None:
    incoming = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, ssl.MemoryBIO(), server_hostname="a.example.com")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    incoming.write(alert_record(112))
    with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
        client.do_handshake()
