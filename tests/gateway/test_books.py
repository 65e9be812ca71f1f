"""What is written down about an exchange, and Date: the same whatever the visitor speaks."""

from __future__ import annotations

import pytest

from tests.gateway.fakes import Browser2, World
from tunnelgw.gateway.settings import GatewaySettings
from tunnelgw.http.h2 import ErrorCode

GET = b"GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n"
# Response and the octets of its payload.
ANSWERS = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 5),
    (
        b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        5,
    ),
    (b"HTTP/1.1 204 No Content\r\nX: %b\r\n\r\n" % (b"y" * 1000), 0),
    (b"junk\r\n\r\n", 62),
]


@pytest.mark.parametrize(("answer", "size"), ANSWERS)
def test_bytes_are_payload_on_both_versions(world: World, answer: bytes, size: int) -> None:
    protocol, transport = world.connect()
    protocol.data_received(GET)
    world.opener.last.deliver(answer)
    world.loop.turn()
    first = transport.take()
    browser = Browser2(world)
    number = browser.get()
    browser.go()
    world.opener.last.deliver(answer)
    browser.go()
    entries = [entry[7:9] for entry in world.log]
    assert entries[0] == entries[1]
    assert entries[0][1] == size == len(browser.bodies.get(number, b""))
    assert first.endswith(browser.bodies.get(number, b"")) or b"chunked" in first
    assert world.routes[0].counters.bytes_out == 2 * size


def test_bytes_of_a_cut_response_count(world: World) -> None:
    protocol, _transport = world.connect()
    protocol.data_received(GET)
    world.opener.last.deliver(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello")
    world.opener.last.end()
    assert world.log[0][7:9] == (200, 5)


JUNK = [
    (b"\x16\x03\x01\x02\x00", b"\x16\x03\x01\x02\x00", 400),
    (b"GET /\x1b[2J HTTP/1.1\r\nHost: a.example.com\r\n\r\n", b"GET /\x1b[2J HTTP/1.1", 400),
    (b"GET /a HTTP/1.1\r\nHost: a.example.com\r\nHost: b\r\n\r\n", b"GET /a HTTP/1.1", 400),
    (b"GET /" + b"a" * 40_000, b"GET /" + b"a" * 251, 431),
    (b"BREW /tea HTTP/1.1\r\nHost: a.example.com\r\n\r\n", b"BREW /tea HTTP/1.1", 501),
    (b"\r\nBREW /tea HTTP/1.1\r\nHost: a.example.com\r\n\r\n", b"BREW /tea HTTP/1.1", 501),
    (b"\r\nGET /\x1b[2J HTTP/1.1\r\nHost: a.example.com\r\n\r\n", b"GET /\x1b[2J HTTP/1.1", 400),
]


@pytest.mark.parametrize(("data", "line", "status"), JUNK)
def test_what_was_refused_before_there_was_a_head_is_logged(
    world: World, data: bytes, line: bytes, status: int
) -> None:
    protocol, transport = world.connect()
    protocol.data_received(GET)
    world.opener.last.deliver(ANSWERS[0][0])
    world.loop.turn()
    transport.take()
    protocol.data_received(data)
    answer = transport.take()
    assert len(world.log) == 2
    _, address, route, method, host, path, version, logged, sent, seconds, request_id = world.log[1]
    assert (address, route, method, host, path, version, logged) == ("192.0.2.7", "", b"-", "", line, 11, status)
    assert sent == len(answer.partition(b"\r\n\r\n")[2])
    assert (seconds, request_id) == (0, b"")


def test_a_head_that_was_too_slow_is_logged(codec: str) -> None:
    world = World(settings=GatewaySettings(request_head_seconds=2))
    protocol, transport = world.connect()
    protocol.data_received(b"GET /slow HTTP/1.1\r\nHo")
    world.loop.advance(3)
    assert transport.take().startswith(b"HTTP/1.1 408 ")
    assert [(entry[5], entry[7]) for entry in world.log] == [(b"GET /slow HTTP/1.1", 408)]
    assert world.log[0][9] >= 2


def test_http2_requests_that_are_refused_are_logged(world: World) -> None:
    browser = Browser2(world)
    refused = browser.get("/a/../b")
    large = browser.get("/c", (b"x", b"y" * 40_000))
    unknown = browser.get("/d", method=b"BREW")
    browser.go()
    assert browser.resets == {refused: ErrorCode.PROTOCOL_ERROR}
    assert [entry[3:9] for entry in world.log] == [
        (b"GET", "", b"/a/../b", 20, 400, 0),
        (b"GET", "", b"/c", 20, 431, len(browser.bodies[large])),
        (b"BREW", "", b"/d", 20, 501, len(browser.bodies[unknown])),
    ]


@pytest.mark.parametrize("date", [b"", b"Date: Mon, 05 Jan 2026 00:00:00 GMT\r\n"])
def test_a_response_without_date_gets_one(world: World, date: bytes) -> None:
    """RFC 9110 section 6.6.1; each time anew, though equal responses are written from memory."""
    answer = b"HTTP/1.1 200 OK\r\n" + date + b"Content-Length: 2\r\n\r\nhi"
    interim = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    wanted = date[6:-2] or b"NOW"
    protocol, transport = world.connect()
    browser = Browser2(world)
    for turn in (b"1", b"2"):
        world.gateway.date = lambda turn=turn: b"NOW" + turn  # type: ignore[method-assign,misc]
        protocol.data_received(GET)
        world.opener.streams[0].deliver(interim + answer)
        world.loop.turn()
        head = transport.take()
        now = wanted + turn if wanted == b"NOW" else wanted
        assert head.count(b"date: ") == 1
        assert b"date: %b\r\n" % now in head
        assert head.endswith(b"\r\n\r\nhi")
        number = browser.get()
        browser.go()
        world.opener.last.deliver(answer)
        browser.go()
        assert browser.heads[number][b"date"] == now
