"""Heads written anew, and the forwarding fields."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunnelgw.http import h1
from tunnelgw.http.forwarding import Forwarding, claimed_address, claimed_secure
from tunnelgw.http.head import Fields, Framing, RequestHead, ResponseHead
from tunnelgw.http.serialise import (
    outgoing_framing,
    request_fields_h2,
    response_fields_h2,
    serialise_request,
    serialise_response,
)


def request(**changed: object) -> RequestHead:
    values: dict[str, object] = {
        "method": b"GET", "path": b"/x", "host": "a.example.com", "authority": b"A.example.com", "version": 11,
        "fields": [(b"accept", b"*/*")], "claimed": [], "length": 0,
    }  # fmt: skip
    return RequestHead(**{**values, **changed})  # type: ignore[arg-type]


def written(head: RequestHead, *, keep_alive: bool = True) -> bytes:
    return serialise_request(
        head, path=head.path, forwarding=b"x-real-ip: 1\r\n", request_id=b"id", keep_alive=keep_alive
    )


TAIL = b"x-request-id: id\r\nx-real-ip: 1\r\n\r\n"
START = b"GET /x HTTP/1.1\r\nhost: A.example.com\r\naccept: */*\r\n"


def test_requests() -> None:
    assert written(request()) == START + TAIL
    assert written(request(), keep_alive=False) == START + b"connection: close\r\n" + TAIL
    assert written(request(framing=Framing.LENGTH, length=5)) == START + b"content-length: 5\r\n" + TAIL
    chunked = request(framing=Framing.CHUNKED, length=-1, expect_continue=True, trailers_ok=True)
    assert written(chunked) == START + b"transfer-encoding: chunked\r\nexpect: 100-continue\r\n" + TAIL
    upgrade = written(request(upgrade=b"websocket"))
    assert upgrade == START + b"connection: upgrade\r\nupgrade: websocket\r\n" + TAIL


def test_requests_for_http2() -> None:
    head = request(framing=Framing.LENGTH, length=5, trailers_ok=True)
    fields = request_fields_h2(head, path=b"/y", scheme=b"http", forwarding=[(b"x-real-ip", b"1")], request_id=b"id")
    assert fields == [
        (b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"A.example.com"), (b":path", b"/y"),
        (b"accept", b"*/*"), (b"content-length", b"5"), (b"te", b"trailers"), (b"x-request-id", b"id"),
        (b"x-real-ip", b"1"),
    ]  # fmt: skip


def answer(status: int = 200, **changed: object) -> ResponseHead:
    values: dict[str, object] = {"reason": b"OK", "fields": [(b"a", b"b")]}
    return ResponseHead(status, **{**values, **changed})  # type: ignore[arg-type]


def test_responses() -> None:
    start = b"HTTP/1.1 200 OK\r\na: b\r\n"
    length = answer(framing=Framing.LENGTH, length=3)
    assert serialise_response(length, version=11, keep_alive=True) == start + b"content-length: 3\r\n\r\n"
    assert serialise_response(length, version=10, keep_alive=True) == (
        start + b"content-length: 3\r\nconnection: keep-alive\r\n\r\n"
    )
    assert serialise_response(length, version=10, keep_alive=False) == (
        start + b"content-length: 3\r\nconnection: close\r\n\r\n"
    )
    for framing in (Framing.CHUNKED, Framing.CLOSE):
        unknown = answer(framing=framing)
        assert outgoing_framing(unknown, 11) is Framing.CHUNKED
        assert outgoing_framing(unknown, 10) is Framing.CLOSE
        assert serialise_response(unknown, version=11, keep_alive=True) == start + b"transfer-encoding: chunked\r\n\r\n"
        assert serialise_response(unknown, version=10, keep_alive=True) == start + b"connection: close\r\n\r\n"
    to_head = answer(length=9)
    assert outgoing_framing(to_head, 11) is Framing.NONE
    assert serialise_response(to_head, version=11, keep_alive=True) == start + b"content-length: 9\r\n\r\n"
    assert serialise_response(answer(103), version=11, keep_alive=False) == b"HTTP/1.1 103 OK\r\na: b\r\n\r\n"
    assert serialise_response(answer(101, upgrade=b"websocket"), version=11, keep_alive=True) == (
        b"HTTP/1.1 101 OK\r\na: b\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    )
    assert serialise_response(answer(404, reason=b"Not Found"), version=11, keep_alive=True).startswith(
        b"HTTP/1.1 404 Not Found\r\n"
    )


def test_responses_for_http2() -> None:
    assert response_fields_h2(answer(framing=Framing.LENGTH, length=3)) == [
        (b":status", b"200"),
        (b"a", b"b"),
        (b"content-length", b"3"),
    ]
    assert response_fields_h2(answer(204, length=0)) == [(b":status", b"204"), (b"a", b"b")]
    assert response_fields_h2(answer(framing=Framing.CHUNKED)) == [(b":status", b"200"), (b"a", b"b")]


PROXIES = {"10.0.0.1", "10.0.0.2"}
SPOOFED = [
    (b"x-forwarded-for", b"198.51.100.1, 198.51.100.2"), (b"x-forwarded-proto", b"https"),
    (b"x-forwarded-host", b"evil"), (b"forwarded", b"for=1"), (b"cf-connecting-ip", b"1"),
    (b"x-forwarded-port", b"8443"),
]  # fmt: skip


def lines_of(forwarding: Forwarding, head: RequestHead) -> Fields:
    parts = [line.partition(b": ") for line in forwarding.lines(head).split(b"\r\n")[:-1]]
    return sorted((name, value) for name, _, value in parts)


def test_a_strangers_claims_are_dropped() -> None:
    forwarding = Forwarding(address="192.0.2.7", port=443, secure=True)
    head = request(claimed=SPOOFED)
    expected = [
        (b"x-forwarded-for", b"192.0.2.7"), (b"x-forwarded-host", b"A.example.com"), (b"x-forwarded-port", b"443"),
        (b"x-forwarded-proto", b"https"), (b"x-real-ip", b"192.0.2.7"),
    ]  # fmt: skip
    assert lines_of(forwarding, head) == expected
    assert sorted(forwarding.fields(head)) == expected


def test_a_trusted_proxys_claims_are_kept_and_added_to() -> None:
    forwarding = Forwarding(address="10.0.0.1", port=8080, secure=False, trusted=PROXIES.__contains__)
    head = request(claimed=SPOOFED)
    expected = [
        (b"x-forwarded-for", b"198.51.100.1, 198.51.100.2, 10.0.0.1"), (b"x-forwarded-host", b"evil"),
        (b"x-forwarded-port", b"8443"), (b"x-forwarded-proto", b"https"), (b"x-real-ip", b"198.51.100.2"),
    ]  # fmt: skip
    assert lines_of(forwarding, head) == expected
    assert sorted(forwarding.fields(head)) == expected
    plain = Forwarding(address="10.0.0.1", port=8080, secure=False, trusted=PROXIES.__contains__)
    assert (b"x-forwarded-for", b"10.0.0.1") in plain.fields(request())


def test_the_real_address_is_not_the_visitors_own_word() -> None:
    """A proxy that sets X-Forwarded-For passes on an X-Real-IP that the visitor wrote, and what he put before."""
    forwarding = Forwarding(address="10.0.0.1", port=8080, secure=False, trusted=PROXIES.__contains__)
    for claimed, expected in [
        ([(b"x-real-ip", b"6.6.6.6"), (b"x-forwarded-for", b"203.0.113.6")], b"203.0.113.6"),
        ([(b"x-real-ip", b"6.6.6.6"), (b"x-forwarded-for", b"6.6.6.6, 203.0.113.6, 10.0.0.2")], b"203.0.113.6"),
        ([(b"x-real-ip", b"6.6.6.6"), (b"x-forwarded-for", b"junk")], b"10.0.0.1"),
        ([(b"x-real-ip", b"203.0.113.5")], b"203.0.113.5"),
        ([(b"x-forwarded-proto", b"https")], b"10.0.0.1"),
    ]:
        assert dict(forwarding.fields(request(claimed=claimed)))[b"x-real-ip"] == expected


def test_the_port_behind_a_proxy_is_the_proxys() -> None:
    forwarding = Forwarding(address="10.0.0.1", port=8080, secure=False, trusted=PROXIES.__contains__)
    for claimed, expected in [
        ([(b"x-forwarded-proto", b"https")], b"443"),
        ([(b"x-forwarded-proto", b"http")], b"80"),
        ([(b"x-forwarded-proto", b"https"), (b"x-forwarded-port", b"8443")], b"8443"),
        ([(b"x-forwarded-for", b"203.0.113.6")], b"8080"),
    ]:
        assert dict(forwarding.fields(request(claimed=claimed)))[b"x-forwarded-port"] == expected


def test_who_the_visitor_is_by_the_word_of_trusted_proxies() -> None:
    proxies = {"10.0.0.1", "10.0.0.2"}
    for chain, expected in [
        (b"192.0.2.1", "192.0.2.1"),
        (b"spoofed, 192.0.2.1, 10.0.0.2", "192.0.2.1"),
        (b"192.0.2.9, 192.0.2.1, 10.0.0.2", "192.0.2.1"),
        (b"10.0.0.2, 10.0.0.1", "10.0.0.2"),
        (b"junk", ""),
        (b"192.0.2.1, junk, 10.0.0.1", "10.0.0.1"),
        (b"2001:DB8::1", "2001:db8::1"),
    ]:
        head = request(claimed=[(b"x-forwarded-for", chain)])
        assert claimed_address(head, proxies.__contains__) == expected
    assert claimed_address(request(), proxies.__contains__) == ""
    assert claimed_secure(request(claimed=SPOOFED))
    assert not claimed_secure(request(claimed=[(b"x-forwarded-proto", b"http")]))


@given(st.sampled_from(list(Framing)), st.integers(0, 10**12), st.booleans(), st.sampled_from([200, 404, 500, 299]))
def test_a_written_response_reads_as_it_was_meant(framing: Framing, length: int, keep: bool, status: int) -> None:
    head = answer(status, framing=framing, length=length if framing is Framing.LENGTH else -1)
    method = b"HEAD" if framing is Framing.NONE else b"GET"
    again = h1.parse_response_head(serialise_response(head, version=11, keep_alive=keep), method=method)
    assert (again.framing, again.length) == (outgoing_framing(head, 11), head.length)
    assert again.keep_alive is keep
    assert again.fields == head.fields


def test_hsts_is_added_where_the_service_is_silent() -> None:
    line = b"strict-transport-security: max-age=60\r\n"
    silent = answer()
    assert line in serialise_response(silent, version=11, keep_alive=True, hsts=b"max-age=60")
    assert (b"strict-transport-security", b"max-age=60") in response_fields_h2(silent, hsts=b"max-age=60")
    own = [(b"strict-transport-security", b"max-age=0")]
    speaking = answer(fields=own)
    assert line not in serialise_response(speaking, version=11, keep_alive=True, hsts=b"max-age=60")
    assert [field for field in response_fields_h2(speaking, hsts=b"max-age=60") if field[0] == own[0][0]] == own
    assert not speaking.fields[1:], "the head itself stays as it is"
    assert b"strict" not in serialise_response(silent, version=11, keep_alive=True)
