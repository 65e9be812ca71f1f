"""HTTP/2 field lists: the same heads as HTTP/1, and every malformed list refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnelgw.errors import OriginError, RemoteError
from tunnelgw.http import h1, pseudo
from tunnelgw.http.head import Fields, Framing, RequestHead
from tunnelgw.http.serialise import serialise_request


def request(*fields: tuple[bytes, bytes], **changed: bytes | None) -> Fields:
    base: dict[str, bytes | None] = {"method": b"GET", "scheme": b"https", "authority": b"a.example.com", "path": b"/"}
    base.update(changed)
    return [(b":" + name.encode(), value) for name, value in base.items() if value is not None] + list(fields)


def parse(raw: Fields, *, end_stream: bool = True) -> RequestHead:
    return pseudo.request_head(raw, end_stream=end_stream, secure=True)


def test_a_browsers_request() -> None:
    head = parse(
        request(
            (b"cookie", b"a=1"), (b"x-a", b"b"), (b"cookie", b"c=2"), (b"te", b"trailers"), (b"x-request-id", b"r"),
            (b"x-forwarded-for", b"192.0.2.1"), (b"x_real_ip", b"192.0.2.1"), (b"host", b"A.example.com:443"),
            method=b"POST", path=b"/x?y", authority=b"a.example.com",
        ),
        end_stream=False,
    )  # fmt: skip
    assert head == RequestHead(
        method=b"POST",
        path=b"/x?y",
        host="a.example.com",
        authority=b"a.example.com",
        version=20,
        fields=[(b"x-a", b"b"), (b"cookie", b"a=1; c=2")],
        claimed=[(b"x-forwarded-for", b"192.0.2.1")],
        framing=Framing.CHUNKED,
        length=-1,
        request_id=b"r",
        trailers_ok=True,
    )


def test_framing() -> None:
    assert parse(request()).framing is Framing.NONE
    head = parse(request(method=b"POST"))
    assert (head.framing, head.length) == (Framing.LENGTH, 0)
    head = parse(request((b"content-length", b"5"), (b"expect", b"100-continue"), method=b"PUT"), end_stream=False)
    assert (head.framing, head.length, head.expect_continue) == (Framing.LENGTH, 5, True)
    assert parse(request(method=b"OPTIONS", path=b"*")).path == b"*"


def test_host_stands_in_for_a_missing_authority() -> None:
    assert parse(request((b"host", b"A.example.com"), authority=None)).host == "a.example.com"


def test_websocket_by_extended_connect() -> None:
    head = parse(request(method=b"CONNECT", protocol=b"websocket", path=b"/ws"), end_stream=False)
    assert (head.method, head.protocol, head.path) == (b"CONNECT", b"websocket", b"/ws")


BAD = [
    (98, request((b"x", b"a\rb")), 400),
    (98, request((b"x", b"a\nb")), 400),
    (98, request((b"x", b"a\0b")), 400),
    (98, request((b"x", b"a\x7f")), 400),
    (98, request((b"x", b" a")), 400),
    (98, request((b"x", b"a\t")), 400),
    (98, request((b"X", b"a")), 400),
    (98, request((b"x:y", b"a")), 400),
    (98, request((b"x y", b"a")), 400),
    (98, request((b"x\r\ny", b"a")), 400),
    (98, request((b"", b"a")), 400),
    (98, request(path=b"/a\x01"), 400),
    (98, request(path=b"/a b"), 400),
    (98, request(path=b"/a\r\nb"), 400),
    (98, request(path=b"/\xff"), 400),
    (99, request((b"content-length", b"5")), 400),
    (99, request((b"content-length", b"5"), (b"content-length", b"5")), 400),
    (99, request((b"content-length", b"+5")), 400),
    (99, request((b"transfer-encoding", b"chunked")), 400),
    (99, request((b"connection", b"close")), 400),
    (99, request((b"keep-alive", b"x")), 400),
    (99, request((b"proxy-connection", b"x")), 400),
    (99, request((b"upgrade", b"websocket")), 400),
    (99, request((b"te", b"gzip")), 400),
    (99, request((b"te", b"trailers, gzip")), 400),
    *((100, request(**{name: None}), 400) for name in ("scheme", "path", "authority")),
    (100, request(method=None), 501),
    (100, request(method=b""), 501),
    *((100, request(**{name: b""}), 400) for name in ("scheme", "path", "authority")),
    (100, [*request(), (b":path", b"/x")], 400),
    (100, [*request((b"x", b"y")), (b":path", b"/x")], 400),
    (100, [*request(path=None), (b"x", b"y"), (b":path", b"/x")], 400),
    (100, [(b":unknown", b"x"), *request()], 400),
    (100, [(b":status", b"200"), *request()], 400),
    (100, request(path=b"x"), 400),
    (100, request(path=b"http://a.example.com/"), 400),
    (100, request(path=b"*"), 400),
    (100, request(path=b"/../x"), 400),
    (100, request(path=b"/a#b"), 400),
    (100, request(scheme=b"ftp"), 400),
    (100, request((b"host", b"b.example.com")), 400),
    (100, request((b"host", b"")), 400),
    (100, request((b"host", b"a.example.com"), (b"host", b"a.example.com")), 400),
    (100, request((b"host", b"a.example.com:444")), 400),
    (100, request(authority=b"u@a.example.com"), 400),
    (100, request(authority=b"a.example.com, b"), 400),
    (103, request(method=b"CONNECT", path=None, scheme=None), 405),
    (103, request(method=b"CONNECT"), 405),
    (103, request(method=b"TRACE"), 405),
    (103, request(method=b"CONNECT", protocol=b"connect-udp"), 501),
    (103, request(method=b"CONNECT", protocol=b""), 501),
    (103, request(method=b"GET", protocol=b"websocket"), 400),
    (103, request(method=b"CONNECT", protocol=b"websocket"), 400),
    (20, request(*((b"x", b"y") for _ in range(201))), 431),
    (20, request(*((b"x", b"y") for _ in range(2000))), 400),
    (45, request((b"expect", b"x")), 417),
]  # fmt: skip


@pytest.mark.parametrize(("number", "raw", "status"), BAD)
def test_refused(number: int, raw: Fields, status: int) -> None:
    with pytest.raises(RemoteError) as caught:
        parse(raw)
    assert caught.value.reason.status == status


def test_https_is_not_taken_from_a_connection_without_tls() -> None:
    with pytest.raises(RemoteError):
        pseudo.request_head(request(), end_stream=True, secure=False)
    assert pseudo.request_head(request(scheme=b"http"), end_stream=True, secure=False).host == "a.example.com"


def test_responses() -> None:
    raw = [(b":status", b"200"), (b"content-type", b"x"), (b"x-forwarded-for", b"kept")]
    head = pseudo.response_head(raw, method=b"GET", end_stream=False)
    assert (head.status, head.framing, head.length, head.keep_alive) == (200, Framing.CHUNKED, -1, True)
    assert head.fields == raw[1:]
    head = pseudo.response_head(raw, method=b"GET", end_stream=True)
    assert (head.framing, head.length) == (Framing.LENGTH, 0)
    head = pseudo.response_head([*raw, (b"content-length", b"7")], method=b"HEAD", end_stream=True)
    assert (head.framing, head.length) == (Framing.NONE, 7)
    assert pseudo.response_head([(b":status", b"103")], method=b"GET", end_stream=False).framing is Framing.NONE


@pytest.mark.parametrize(
    "raw",
    [
        [],
        [(b":status", b"99")],
        [(b":status", b"600")],
        [(b":status", b"2x0")],
        [(b":status", b"\xb2\xb2\xb2")],
        [(b":status", b"101")],
        [(b":status", b"200"), (b":status", b"200")],
        [(b":status", b"200"), (b":path", b"/")],
        [(b":status", b"200"), (b"X", b"y")],
        [(b":status", b"200"), (b"x", b"a\r\nb")],
        [(b":status", b"200"), (b"connection", b"close")],
        [(b":status", b"200"), (b"transfer-encoding", b"chunked")],
        [(b":status", b"200"), (b"content-length", b"1"), (b"content-length", b"1")],
        [(b":status", b"200"), (b"content-length", b"5")],
        [(b":status", b"200"), *((b"x", b"y") for _ in range(201))],
    ],
)
def test_doubtful_responses(raw: Fields) -> None:
    with pytest.raises(OriginError):
        pseudo.response_head(raw, method=b"GET", end_stream=True)


def test_trailers() -> None:
    assert pseudo.trailers([(b"grpc-status", b"0"), (b"grpc-message", b"")]) == [
        (b"grpc-status", b"0"),
        (b"grpc-message", b""),
    ]
    for raw in (
        [(b":status", b"200")],
        [(b"content-length", b"5")],
        [(b"host", b"x")],
        [(b"connection", b"x")],
        [(b"x-forwarded-for", b"x")],
        [(b"content_length", b"5")],
        [(b"Upper", b"x")],
        [(b"x", b"a\nb")],
        [(b"x", b"y")] * 33,
        [(b"x", b"y" * 9000)],
    ):
        with pytest.raises(ValueError):
            pseudo.trailers(raw)


def test_an_empty_crumb_leaves_no_space_behind() -> None:
    assert parse(request((b"cookie", b"a=1"), (b"cookie", b""))).fields == [(b"cookie", b"a=1")]


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"x", b"cookie", b"te", b"host", b"X", b"a_b", b":path", b"content-length"])
            | st.binary(max_size=6),
            st.sampled_from([b"a.example.com", b"5", b"trailers", b"a\r\nb", b" a"]) | st.binary(max_size=6),
        ),
        max_size=5,
    ),
    st.binary(max_size=8),
    st.booleans(),
)
def test_what_came_by_http2_is_one_head_in_http1(fields: Fields, path: bytes, end_stream: bool) -> None:
    """Whatever is accepted is read back by the strict HTTP/1 codec as the very same request."""
    try:
        head = parse(request(*fields, path=b"/" + path), end_stream=end_stream)
    except RemoteError:
        return
    written = serialise_request(head, path=head.path, forwarding=b"", request_id=head.request_id or b"-")
    again = h1.parse_request_head(written, secure=True)
    assert (again.method, again.path, again.host, again.fields) == (head.method, head.path, head.host, head.fields)
    assert (again.framing, again.length) == (head.framing, head.length)
