"""The memo changes nothing but the cost: a busy connection answers each request as a fresh one would."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.fakes import Browser2, World, make_route
from tunnelgw.gateway import upstream1
from tunnelgw.gateway.exchange2 import websocket_accept
from tunnelgw.gateway.memo import Memo
from tunnelgw.gateway.settings import GatewaySettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunnelgw.http.head import ResponseHead

LINES = [
    b"GET / HTTP/1.1", b"GET /a?b=%20 HTTP/1.1", b"HEAD /a HTTP/1.1", b"GET /../x HTTP/1.1", b"GET /%2e%2e/x HTTP/1.1",
    b"GET /a\"b HTTP/1.1", b"GET /a#b HTTP/1.1", b"GET http://a.example.com/x HTTP/1.1", b"GET /a HTTP/1.0",
    b"OPTIONS * HTTP/1.1", b"GET /a HTTP/1.1 ", b"GET  /a HTTP/1.1", b"DELETE /a HTTP/1.1", b"GET /wiki/../a HTTP/1.1",
    b"GET https://b.example.com/x HTTP/1.1", b"GET /a\\b HTTP/1.1", b"GET //b.example.com/ HTTP/1.1",
]  # fmt: skip
FIELDS = [
    b"Host: a.example.com", b"Host: a.example.com\r\nAccept: text/html", b"Host: A.example.com:443",
    b"Host: a.example.com\r\nConnection: close", b"Host: b.example.com", b"Host: a.example.com\r\nX-Request-Id: mine",
    b"Host: a.example.com\r\nCookie: a=1\r\nX-Request-Id: bad id", b"Host: a.example.com\r\nContent-Length: 0",
    b"Host: a.example.com\r\nConnection: upgrade\r\nUpgrade: websocket", b"Accept: */*",
    b"Host: a.example.com\r\nx-request-id: x\r\nX-A: x-request-id: y", b"Host: a.example.com\r\nTE: trailers",
    b"Accept: a\r\nHost: a.example.com", b"X-A: b\r\nAccept: a\r\nHost: a.example.com",  # each ends with the one before
]  # fmt: skip
ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSet-Cookie: a=1\r\n\r\nho",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
]
_made = re.compile(
    rb"[0-9a-f]{12}-[0-9a-f]+|(?i:(?<=\r\ndate: ))[^\r]+"
)  # request ids, and the clock in pages of our own


def exchange(world: World, connection: tuple, request: bytes, answer: bytes) -> tuple[bytes, bytes, bool]:
    """What the service got, what the visitor got, and whether the connection goes on."""
    protocol, transport = connection
    for stream in world.opener.streams:
        stream.take()
    protocol.data_received(request)
    sent = b""
    for stream in world.opener.streams:
        if stream.sent:
            sent = stream.take()
            stream.deliver(ANSWERS[2] if sent.startswith(b"HEAD") else answer)
    world.loop.turn()
    return _made.sub(b"", sent), _made.sub(b"", transport.take()), not transport.is_closing()


@given(st.lists(st.tuples(st.sampled_from(LINES), st.sampled_from(FIELDS), st.sampled_from(ANSWERS)), max_size=12))
def test_equal_to_a_fresh_connection(steps: list[tuple[bytes, bytes, bytes]]) -> None:
    busy_world = World(make_route())
    busy = busy_world.connect()
    for line, fields, answer in steps:
        request = line + b"\r\n" + fields + b"\r\n\r\n"
        world = World(make_route())
        expected = exchange(world, world.connect(), request, answer)
        assert exchange(busy_world, busy, request, answer) == expected
        if not expected[2] or b"upgrade" in expected[0]:
            busy_world = World(make_route())
            busy = busy_world.connect()


PATHS = ["/", "/a?b", "/../x", "/a%2f..%2fb", "/x y", "*", "/a#b"]
EXTRAS: list[tuple[tuple[bytes, bytes], ...]] = [
    (), ((b"accept", b"*/*"),), ((b"x-request-id", b"mine"),), ((b"cookie", b"a=1"), (b"cookie", b"b=2")),
    ((b"host", b"b.example.com"),),
]  # fmt: skip


@given(
    st.lists(st.tuples(st.sampled_from(PATHS), st.sampled_from(EXTRAS), st.sampled_from([b"GET", b"HEAD"])), max_size=8)
)
def test_equal_to_a_fresh_http2_connection(steps: list[tuple[str, tuple[tuple[bytes, bytes], ...], bytes]]) -> None:
    def ask(world: World, browser: Browser2, step: tuple[str, tuple[tuple[bytes, bytes], ...], bytes]) -> object:
        number = browser.get(step[0], *step[1], method=step[2])
        browser.go()
        sent = b""
        for stream in world.opener.streams:
            if stream.sent:
                sent = stream.take()
                stream.deliver(ANSWERS[2])
        browser.go()
        head = {name: _made.sub(b"", value) for name, value in browser.heads.get(number, {}).items() if name != b"date"}
        return _made.sub(b"", sent), head, browser.closed.get(number)

    busy_world = World(make_route())
    busy = Browser2(busy_world)
    for step in steps:
        world = World(make_route())
        assert ask(busy_world, busy, step) == ask(world, Browser2(world), step)


def test_a_switch_of_protocols_is_read_anew(world: World) -> None:
    browser = Browser2(world)
    browser.go()
    fields = [
        (b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"https"),
        (b":authority", b"a.example.com"), (b":path", b"/ws"),
    ]  # fmt: skip
    first = browser.core.send_request(fields)
    browser.go()
    key = world.opener.last.take().partition(b"sec-websocket-key: ")[2].partition(b"\r\n")[0]
    switch = (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Accept: " + websocket_accept(key) + b"\r\n\r\n"
    )
    world.opener.last.deliver(switch)
    browser.go()
    assert browser.heads[first][b":status"] == b"200"
    second = browser.core.send_request(fields)
    browser.go()
    world.opener.last.deliver(switch)  # the same answer again, to another key
    browser.go()
    assert browser.heads[second][b":status"] == b"502"


def test_a_repeated_head_keeps_to_the_limit() -> None:
    """The path is another one each time."""
    world = World(make_route(), settings=GatewaySettings(request_head_bytes=1024))
    protocol, transport = world.connect()
    fields = b" HTTP/1.1\r\nHost: a.example.com\r\n\r\n"
    for path in (b"/", b"/" + b"a" * (1024 - len(b"GET /" + fields))):
        protocol.data_received(b"GET " + path + fields)
        world.opener.last.deliver(ANSWERS[0])
        assert transport.take().startswith(b"HTTP/1.1 200 ")
    protocol.data_received(b"GET " + path + b"a" + fields)
    assert transport.take().startswith(b"HTTP/1.1 431 ")


def test_what_came_last_is_that_of_its_own_head(world: World) -> None:
    """A head may end with all of another one's fields."""
    protocol, _ = world.connect()
    short, long = b"\r\nHost: a.example.com\r\n\r\n", b"\r\nAccept: a\r\nHost: a.example.com\r\n\r\n"
    for path, fields in ((b"/1", long), (b"/2", long), (b"/3", short), (b"/2", long), (b"/2", long)):
        protocol.data_received(b"GET " + path + b" HTTP/1.1" + fields)
        sent = world.opener.last.take()
        assert sent.startswith(b"GET " + path + b" ")
        assert (b"accept: a" in sent) == (fields is long)
        world.opener.last.deliver(ANSWERS[0])


def test_pipelined_heads_are_recalled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    protocol, transport = world.connect()
    request = b"GET /%d HTTP/1.1\r\nHost: a.example.com\r\n\r\n"
    protocol.data_received(request % 0)
    world.opener.last.take()
    world.opener.last.deliver(ANSWERS[0])
    monkeypatch.setattr("tunnelgw.gateway.http1.parse_request_head", None)
    protocol.data_received(request % 1 + request % 2 + request % 3)
    for number in (1, 2, 3):
        assert world.opener.last.take().startswith(b"GET /%d " % number)
        world.opener.last.deliver(ANSWERS[0])
    assert transport.take().count(b"HTTP/1.1 200 ") == 4


def test_an_answer_is_recalled_after_an_interim_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    protocol, transport = world.connect()
    request = b"GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n"
    protocol.data_received(request)
    world.opener.last.deliver(ANSWERS[0])
    first = transport.take()
    parsed = []
    real = upstream1.parse_response_head

    def parse(block: bytes, *, method: bytes) -> ResponseHead:
        parsed.append(block)
        return real(block, method=method)

    monkeypatch.setattr(upstream1, "parse_response_head", parse)
    protocol.data_received(request)
    world.opener.last.deliver(b"HTTP/1.1 103 Early Hints\r\n\r\n" + ANSWERS[0])
    assert transport.take().endswith(first)
    assert parsed == [b"HTTP/1.1 103 Early Hints\r\n\r\n"]


def held(memo: Memo) -> Iterator[bytes]:
    """All bytes in it."""
    for name in Memo.__slots__:
        value = getattr(memo, name)
        yield value if isinstance(value, bytes) else repr(value).encode()


def test_nothing_is_kept_while_idle(world: World) -> None:
    protocol, _ = world.connect()
    protocol.data_received(b"GET / HTTP/1.1\r\nHost: a.example.com\r\nCookie: secret\r\n\r\n")
    world.opener.last.deliver(ANSWERS[0])
    assert b"secret" in b"".join(held(protocol.pool.memo))
    world.loop.advance(2)
    assert list(held(protocol.pool.memo)) == list(held(Memo(protocol.pool.memo._hsts)))


@pytest.mark.parametrize("first", [b"", b"X-Request-Id: mine\r\n"])
def test_request_ids_are_not_repeated(world: World, first: bytes) -> None:
    protocol, _ = world.connect()
    ids = set()
    for _ in range(4):
        protocol.data_received(b"GET / HTTP/1.1\r\nHost: a.example.com\r\n" + first + b"\r\n")
        sent = world.opener.last.take()
        ids.add(sent.partition(b"x-request-id: ")[2].partition(b"\r\n")[0])
        world.opener.last.deliver(ANSWERS[0])
    assert len(ids) == (1 if first else 4)
