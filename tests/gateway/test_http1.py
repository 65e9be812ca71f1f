"""A visitor who speaks HTTP/1.1 towards a service that speaks HTTP/1.1."""

from __future__ import annotations

import json
import time
from email.utils import parsedate_to_datetime

import pytest

from tests.gateway.fakes import HOST, FakeStream, World, make_route
from tunnelgw.gateway.opener import NoStream
from tunnelgw.gateway.settings import GatewaySettings
from tunnelgw.obs.reasons import Reason

HEAD = b"Host: a.example.com\r\n"


def get(path: str = "/", more: str = "", *, method: str = "GET", version: str = "1.1") -> bytes:
    return f"{method} {path} HTTP/{version}\r\nHost: {HOST}\r\n{more}\r\n".encode()


def ok(body: bytes = b"hi", more: str = "") -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def balanced(stream: FakeStream) -> bool:
    return stream.credited == stream.delivered


class TestExchange:
    def test_a_request_and_its_response(self, world: World) -> None:
        protocol, transport = world.connect()
        fields = "Accept: */*\r\nX-Forwarded-For: 6.6.6.6\r\nConnection: close, x-a\r\nX-A: 1\r\n"
        protocol.data_received(get("/x?y=1", fields))
        stream = world.opener.last
        sent = stream.take()
        assert sent.startswith(b"GET /x?y=1 HTTP/1.1\r\nhost: a.example.com\r\naccept: */*\r\n")
        assert b"x-forwarded-for: 192.0.2.7\r\n" in sent
        assert b"x-forwarded-proto: https\r\n" in sent
        assert b"6.6.6.6" not in sent
        assert b"x-a:" not in sent
        assert b"x-request-id: " in sent
        stream.deliver(ok(b"hello", "Connection: keep-alive\r\n"))
        assert transport.take() == (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello")
        assert transport.writes == 1
        assert transport.closed
        assert balanced(stream)

    def test_keep_alive_uses_the_stream_again(self, world: World) -> None:
        protocol, transport = world.connect()
        for number in range(5):
            protocol.data_received(get(f"/{number}"))
            world.opener.last.deliver(ok())
            assert transport.take().endswith(b"hi")
        assert len(world.opener.streams) == 1
        assert not transport.closed
        assert balanced(world.opener.last)
        assert world.routes[0].counters.requests == {200: 5}
        assert [entry[5] for entry in world.log] == [b"/0", b"/1", b"/2", b"/3", b"/4"]

    def test_byte_by_byte_both_ways(self, world: World) -> None:
        protocol, transport = world.connect()
        body = b"5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n"
        for byte in get("/", "Transfer-Encoding: chunked\r\n", method="POST") + body:
            protocol.data_received(bytes([byte]))
        stream = world.opener.last
        sent = stream.take()
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in b"hello")
        assert sent.endswith(b"\r\n\r\n" + chunks + b"0\r\nx-t: 1\r\n\r\n")
        answer = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        stream.deliver(answer + body, step=1)
        world.loop.turn()
        received = transport.take()
        assert received.startswith(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n")
        assert received.endswith(b"1\r\no\r\n0\r\nx-t: 1\r\n\r\n")
        assert balanced(stream)
        assert world.opener.open_streams == [stream]

    def test_pipelined_requests_are_answered_in_order(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get("/1") + get("/2") + get("/3"))
        stream = world.opener.last
        for number in (b"1", b"2", b"3"):
            assert stream.take().startswith(b"GET /" + number)
            stream.deliver(ok(number))
            assert transport.take().endswith(b"\r\n\r\n" + number)
        assert len(world.opener.streams) == 1

    def test_a_bad_request_after_a_good_one(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get("/1") + b"GET / HTTP/1.1\r\nHost : x\r\n\r\n")
        world.opener.last.deliver(ok())
        answers = transport.take()
        assert status_of(answers) == 200
        assert b"HTTP/1.1 400 Bad Request" in answers
        assert transport.closed

    def test_pipelining_is_bounded(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get("/1"))
        protocol.data_received(get("/2") * 1000)
        protocol.data_received(get("/2") * 1000)
        assert transport.reading_paused
        for _ in range(2001):
            world.opener.last.deliver(ok())
        assert not transport.reading_paused
        assert transport.take().count(b"HTTP/1.1 200") == 2001

    def test_pipelined_refusals_do_not_recurse(self, world: World) -> None:
        protocol, transport = world.connect(server_name="")
        protocol.data_received(get("/") * 2000)
        assert transport.take().count(b"HTTP/1.1 421") == 2000

    def test_a_visitor_who_does_not_read_gets_nothing_more_parsed(self, world: World) -> None:
        protocol, transport = world.connect()
        transport.fill_after = 1
        protocol.data_received(get("/1") + get("/2"))
        stream = world.opener.last
        stream.take()
        stream.deliver(ok())
        assert stream.take() == b""
        assert not balanced(stream)
        protocol.resume_writing()
        assert stream.take().startswith(b"GET /2")
        assert balanced(stream)

    def test_empty_line_before_a_request(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(b"\r")
        protocol.data_received(b"\n" + get("/1"))
        world.opener.last.deliver(ok())
        protocol.data_received(b"\r\n" + get("/2"))
        world.opener.last.deliver(ok())
        assert transport.take().count(b"200 OK") == 2

    def test_empty_lines_are_no_sign_of_life(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get())
        world.opener.last.deliver(ok())
        for _ in range(8):
            world.loop.advance(10)
            if not transport.closed:
                protocol.data_received(b"\r\n")
        assert transport.closed

    def test_head_and_no_content(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get("/", method="HEAD"))
        world.opener.last.deliver(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
        assert transport.take() == b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n"
        for status in (204, 304):
            protocol.data_received(get("/"))
            world.opener.last.deliver(b"HTTP/1.1 %d X\r\nETag: 1\r\n\r\n" % status)
            assert transport.take() == b"HTTP/1.1 %d X\r\netag: 1\r\n\r\n" % status
        assert len(world.opener.streams) == 1

    def test_http10(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get("/", version="1.0"))
        world.opener.last.deliver(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
        assert transport.take() == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhi"
        assert transport.closed

    def test_http10_keep_alive(self, world: World) -> None:
        protocol, transport = world.connect()
        for _ in range(2):
            protocol.data_received(get("/", "Connection: keep-alive\r\n", version="1.0"))
            world.opener.last.deliver(ok())
            assert b"connection: keep-alive\r\n" in transport.take()
        assert not transport.closed

    def test_until_close_becomes_chunked(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get("/"))
        stream = world.opener.last
        stream.deliver(b"HTTP/1.0 200 OK\r\n\r\nhel")
        stream.deliver(b"lo")
        world.loop.turn()
        stream.end()
        assert transport.take() == (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
        )
        assert not transport.closed
        assert stream.closed
        assert balanced(stream)

    def test_strip_path(self, codec: str) -> None:
        world = World(make_route(path="/wiki", strip_path=True), make_route(path="/", service="other"))
        protocol, _transport = world.connect()
        protocol.data_received(get("/wiki/a?b"))
        assert world.opener.last.take().startswith(b"GET /a?b HTTP/1.1")
        world.opener.last.deliver(ok())
        protocol.data_received(get("/else"))
        assert len(world.opener.streams) == 2
        assert world.opener.last.take().startswith(b"GET /else HTTP/1.1")


class TestUpload:
    def test_a_length_body_is_passed_on(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get("/", "Content-Length: 6\r\n", method="POST") + b"abc")
        stream = world.opener.last
        protocol.data_received(b"def" + get("/next"))
        head, _, body = stream.take().partition(b"\r\n\r\n")
        assert b"content-length: 6\r\n" in head
        assert body == b"abcdef"
        stream.deliver(ok())
        assert status_of(transport.take()) == 200
        assert stream.take().startswith(b"GET /next")

    def test_an_empty_body(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get("/", "Content-Length: 0\r\n", method="POST"))
        assert b"content-length: 0\r\n" in world.opener.last.take()
        world.opener.last.deliver(ok())
        assert b"close" not in transport.take()

    def test_pauses_reach_the_visitor(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get("/", "Content-Length: 100\r\n", method="PUT"))
        stream = world.opener.last
        stream.sink.pause_sending()
        stream.sink.pause_sending()
        assert transport.reading_paused
        stream.sink.resume_sending()
        stream.sink.resume_sending()
        assert not transport.reading_paused

    def test_expect_continue_is_relayed(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get("/", "Content-Length: 2\r\nExpect: 100-continue\r\n", method="PUT"))
        stream = world.opener.last
        assert b"expect: 100-continue\r\n" in stream.take()
        stream.deliver(b"HTTP/1.1 100 Continue\r\n\r\n")
        world.loop.turn()
        assert transport.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
        protocol.data_received(b"ok")
        assert stream.take() == b"ok"
        stream.deliver(ok())
        assert b"close" not in transport.take()

    def test_expect_continue_refused_early(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get("/", "Content-Length: 2\r\nExpect: 100-continue\r\n", method="PUT"))
        stream = world.opener.last
        stream.deliver(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
        assert b"connection: close" in transport.take()
        assert stream.reset_with is Reason.CANCELLED
        protocol.data_received(get("/smuggled"))
        assert len(world.opener.streams) == 1
        world.loop.advance(3)
        assert transport.closed

    def test_a_service_that_neither_continues_nor_answers(self, codec: str) -> None:
        world = World(make_route(response_seconds=5))
        protocol, transport = world.connect()
        protocol.data_received(get(method="POST", more="Expect: 100-continue\r\nContent-Length: 3\r\n"))
        world.loop.advance(6.5)
        assert status_of(transport.take()) == 504  # the visitor does what it was asked to: it waits

    def test_a_visitor_who_does_not_continue(self, codec: str) -> None:
        world = World(make_route(response_seconds=5), settings=GatewaySettings(stall_seconds=20))
        protocol, transport = world.connect()
        protocol.data_received(get(method="POST", more="Expect: 100-continue\r\nContent-Length: 3\r\n"))
        world.opener.last.deliver(b"HTTP/1.1 100 Continue\r\n\r\n")
        world.loop.turn()
        assert transport.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
        world.loop.advance(15)
        assert not transport.written
        world.loop.advance(7)
        assert status_of(transport.take()) == 408

    def test_other_expectations(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get("/", "Content-Length: 2\r\nExpect: 200-ok\r\n", method="PUT"))
        assert status_of(transport.take()) == 417

    def test_early_response_while_the_upload_goes_on(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get("/", "Content-Length: 1000000\r\n", method="PUT") + bytes(1000))
        stream = world.opener.last
        stream.deliver(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig")
        assert transport.take().endswith(b"connection: close\r\n\r\nbig")
        assert stream.closed
        assert not transport.closed
        protocol.data_received(bytes(1000))
        world.loop.advance(2.5)
        assert transport.closed

    def test_malformed_chunks_abort_the_service(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get("/", "Transfer-Encoding: chunked\r\n", method="POST") + b"5\r\nhello\r\n")
        stream = world.opener.last
        protocol.data_received(b"0x5\r\n")
        assert stream.reset_with is not None
        assert not stream.sent.endswith(b"0\r\n\r\n")
        assert status_of(transport.take()) == 400

    @pytest.mark.parametrize("body", [b"5;" + b"a" * 300, b"1;" + b"a" * 200 + b"\r\nx\r\n", b"0\r\na: " + b"a" * 9000])
    def test_what_surrounds_a_body_is_bounded(self, world: World, body: bytes) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get(method="POST", more="Transfer-Encoding: chunked\r\n"))
        protocol.data_received(body * 30)
        assert status_of(transport.take()) == 413
        assert world.opener.last.reset_with is not None

    def test_a_visitor_who_leaves_in_the_middle(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get("/", "Content-Length: 100\r\n", method="POST") + b"abc")
        transport.lose()
        assert world.opener.last.reset_with is Reason.CANCELLED
        assert not world.opener.open_streams
        assert world.log[0][7] == 499


class TestRefusals:
    @pytest.mark.parametrize(
        ("request_bytes", "status"),
        [
            (b"GET / HTTP/1.1\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a.example.com\r\nHost: a.example.com\r\n\r\n", 400),
            (get("/", "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", method="POST"), 400),
            (get("/", "Content-Length: +1\r\n", method="POST"), 400),
            (get("/", method="TRACE"), 405),
            (b"CONNECT a.example.com:443 HTTP/1.1\r\nHost: a.example.com\r\n\r\n", 405),
            (get("/", method="FROBNICATE"), 501),
            (b"GET / HTTP/2.1\r\nHost: a.example.com\r\n\r\n", 505),
            (b"GET /../x HTTP/1.1\r\nHost: a.example.com\r\n\r\n", 400),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
            (get("/", "X: " + "y" * 40000 + "\r\n"), 431),
            (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 300, 431),
            (b"GET /" + b"x" * 100000, 431),
            (b"GET / HTTP/1.1\nHost: a.example.com\n\n", 400),
        ],
    )
    def test_malformed(self, world: World, request_bytes: bytes, status: int) -> None:
        protocol, transport = world.connect()
        protocol.data_received(request_bytes)
        answer = transport.take()
        assert status_of(answer) == status
        assert not world.opener.streams
        if status in (400, 431):
            assert transport.closed
            assert b"connection: close\r\n" in answer

    def test_a_refusal_survives_what_follows_the_head(self, codec: str) -> None:
        """Closing with bytes unread makes a reset of it, which takes the answer away from the visitor."""
        world = World(make_route(plain_http=True))
        protocol, transport = world.connect(tls=False)
        protocol.data_received(get(more="X: " + "a" * 40000 + "\r\n"))
        assert status_of(transport.take()) == 431
        assert transport.eof_written
        assert not transport.closed
        protocol.data_received(b"a" * 100000)
        world.loop.advance(2.5)
        assert transport.closed
        assert transport.take() == b""

    def test_large_but_fine(self, world: World) -> None:
        protocol, transport = world.connect()
        fields = "".join(f"X-{number}: {'v' * 80}\r\n" for number in range(80))
        protocol.data_received(get("/" + "u" * 8000, "Cookie: " + "c" * 7500 + "\r\n" + fields))
        world.opener.last.deliver(ok())
        assert status_of(transport.take()) == 200

    def test_another_host_than_the_connection_is_for(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(b"GET / HTTP/1.1\r\nHost: b.example.com\r\n\r\n")
        assert status_of(transport.take()) == 421
        protocol.data_received(get())
        world.opener.last.deliver(ok())
        assert status_of(transport.take()) == 200

    def test_no_route(self, codec: str) -> None:
        world = World(make_route(path="/wiki"))
        protocol, transport = world.connect()
        protocol.data_received(get("/other"))
        assert status_of(transport.take()) == 404
        assert not transport.closed
        assert world.counters.refused(Reason.NO_ROUTE) == 1

    def test_address_not_allowed(self, codec: str) -> None:
        world = World(make_route(allow_from=("10.0.0.0/8", "2001:db8::/32")))
        protocol, transport = world.connect()
        protocol.data_received(get())
        assert status_of(transport.take()) == 403

    def test_pages(self, world: World) -> None:
        protocol, transport = world.connect()
        world.opener.refusal = NoStream(Reason.CONNECTOR_AWAY, 1_700_000_000.0)
        protocol.data_received(get("/", "Accept: text/html,*/*;q=0.8\r\nX-Request-Id: <b>&\r\n"))
        answer = transport.take()
        assert status_of(answer) == 503
        assert b"content-type: text/html; charset=utf-8\r\n" in answer
        assert b"retry-after: " in answer
        assert b"content-security-policy: default-src 'none'" in answer
        assert b"2023-11-14 22:13:20 UTC" in answer
        page = answer.partition(b"\r\n\r\n")[2]
        assert b"<b>" not in page
        assert b"&lt;b&gt;&amp;" in page
        assert b"server:" not in answer.lower()
        protocol.data_received(get("/", "Accept: application/json\r\n"))
        answer = transport.take()
        content = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert content["error"] == "connector_away"
        assert content["away_since"] == 1_700_000_000
        protocol.data_received(get("/"))
        assert transport.take().endswith(b"the connector at home is not connected (since 2023-11-14 22:13:20 UTC)\n")
        protocol.data_received(get("/", method="HEAD"))
        assert transport.take().endswith(b"\r\n\r\n")
        assert not transport.closed

    @pytest.mark.parametrize("path", ["/", "/x?y"])
    def test_plain_http_is_redirected(self, world: World, path: str) -> None:
        protocol, transport = world.connect(tls=False, server_name="")
        protocol.data_received(get(path))
        answer = transport.take()
        assert status_of(answer) == 301
        assert b"location: https://a.example.com" + path.encode() + b"\r\n" in answer
        protocol.data_received(get(path, "Content-Length: 0\r\n", method="POST"))
        assert status_of(transport.take()) == 308
        protocol.data_received(b"GET / HTTP/1.1\r\nHost: nowhere.example.com\r\n\r\n")
        assert status_of(transport.take()) == 404

    def test_answers_of_our_own_have_a_date(self, world: World) -> None:
        protocol, transport = world.connect()
        del world.gateway.date  # the fake's
        protocol.data_received(get(method="CONNECT"))
        date = transport.take().partition(b"\r\ndate: ")[2].partition(b"\r\n")[0].decode()
        assert abs(parsedate_to_datetime(date).timestamp() - time.time()) < 60

    def test_plain_http_where_the_route_asks_for_it(self, codec: str) -> None:
        world = World(make_route(plain_http=True))
        protocol, _transport = world.connect(tls=False, server_name="", edge_port=80)
        protocol.data_received(get())
        assert b"x-forwarded-proto: http\r\n" in world.opener.last.take()

    def test_a_trusted_proxy_ended_tls(self, codec: str) -> None:
        world = World(make_route(allow_from=("203.0.113.0/24",)), trusted=lambda address: address == "192.0.2.7")
        protocol, transport = world.connect(tls=False, server_name="", edge_port=80)
        protocol.data_received(get("/", "X-Forwarded-Proto: https\r\nX-Forwarded-For: 203.0.113.9\r\n"))
        sent = world.opener.last.take()
        assert b"x-forwarded-proto: https\r\n" in sent
        assert b"x-forwarded-for: 203.0.113.9, 192.0.2.7\r\n" in sent
        world.opener.last.deliver(ok())
        protocol.data_received(get("/", "X-Forwarded-Proto: https\r\nX-Forwarded-For: 198.51.100.9\r\n"))
        assert b"403 Forbidden" in transport.take()


class TestBrokenServices:
    @pytest.mark.parametrize(
        "answer",
        [
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
            b"HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: a\r\n fold\r\n\r\n",
            b"<html>hello</html>\r\n\r\n",
            b"HTTP/1.1 20 OK\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 1_200_000,
            b"HTTP/1.1 103 Early Hints\r\n\r\n" * 2000,
        ],
    )
    def test_answers_that_cannot_be_passed_on(self, world: World, answer: bytes) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get())
        stream = world.opener.last
        stream.deliver(answer, step=16376)
        world.loop.turn()
        received = transport.take()
        final = received[received.rindex(b"HTTP/1.1 502") :]
        assert status_of(final) == 502
        assert stream.reset_with is not None
        assert received.count(b"103 Early") <= 16

    @pytest.mark.parametrize("status", [b"102 Processing", b"103 Early Hints"])
    def test_interim_responses(self, world: World, status: bytes) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get())
        world.opener.last.deliver(b"HTTP/1.1 " + status + b"\r\nLink: </a>\r\n\r\n" + ok())
        received = transport.take()
        assert received.startswith(b"HTTP/1.1 " + status)
        assert received.endswith(b"hi")

    def test_unsolicited_continue(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get())
        world.opener.last.deliver(b"HTTP/1.1 100 Continue\r\n\r\n" + ok())
        assert status_of(transport.take()) == 200

    def test_interim_is_not_for_http10(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get(version="1.0"))
        world.opener.last.deliver(b"HTTP/1.1 103 Early Hints\r\n\r\n" + ok())
        assert status_of(transport.take()) == 200

    def test_surplus_after_the_response(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get("/1"))
        first = world.opener.last
        first.deliver(ok() + ok(b"evil"))
        assert transport.take().endswith(b"\r\n\r\nhi")
        assert first.closed or first.finished
        protocol.data_received(get("/2"))
        assert world.opener.last is not first
        world.opener.last.deliver(ok(b"good"))
        assert transport.take().endswith(b"\r\n\r\ngood")

    def test_late_bytes_on_a_kept_stream(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get("/1"))
        first = world.opener.last
        first.deliver(ok())
        first.deliver(ok(b"evil"))
        assert first.reset_with is Reason.PROTOCOL_ERROR
        transport.take()
        protocol.data_received(get("/2"))
        assert world.opener.last is not first

    @pytest.mark.parametrize(
        ("head", "closes"),
        [(b"Content-Length: 10\r\n", True), (b"Transfer-Encoding: chunked\r\n", True), (b"", True)],
    )
    @pytest.mark.parametrize("how", ["end", "reset"])
    def test_truncation_is_seen(self, world: World, head: bytes, closes: bool, how: str) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get())
        stream = world.opener.last
        body = b"3\r\nabc\r\n" if b"chunked" in head else b"abc"
        stream.deliver(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + body)
        world.loop.turn()
        if how == "reset":
            stream.fail(Reason.TARGET_RESET)
        else:
            stream.end()
        received = transport.take()
        if how == "end" and not head:
            assert received.endswith(b"0\r\n\r\n")
            return
        assert not received.endswith(b"0\r\n\r\n")
        assert transport.closed or transport.aborted

    def test_truncated_until_close_for_http10_is_an_abort(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get(version="1.0"))
        stream = world.opener.last
        stream.deliver(b"HTTP/1.1 200 OK\r\n\r\nabc")
        world.loop.turn()
        stream.fail(Reason.TARGET_RESET)
        assert transport.aborted

    @pytest.mark.parametrize(
        ("reason", "status"),
        [
            (Reason.TARGET_REFUSED, 502),
            (Reason.TARGET_TIMEOUT, 504),
            (Reason.SERVICE_UNKNOWN, 502),
            (Reason.CONNECTOR_AWAY, 503),
            (Reason.STREAM_LIMIT, 503),
        ],
    )
    def test_resets_before_a_response(self, world: World, reason: Reason, status: int) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get("/", "Content-Length: 1\r\n", method="POST") + b"x")
        world.opener.last.fail(reason)
        answer = transport.take()
        assert status_of(answer) == status
        assert b"\r\nretry-after: " in answer
        assert len(world.opener.streams) == 1
        assert world.routes[0].counters.requests == {status: 1}

    @pytest.mark.parametrize(
        ("reason", "away"),
        [(Reason.CONNECTOR_AWAY, True), (Reason.CONNECTOR_STOPPING, True), (Reason.TARGET_RESET, False)],
    )
    def test_a_page_for_what_was_under_way_says_since_when(self, world: World, reason: Reason, away: bool) -> None:
        """As for what came later; but not where home is there."""
        world.opener.away_since = 1_700_000_000.0
        protocol, transport = world.connect()
        protocol.data_received(get("/", "Accept: text/html\r\nContent-Length: 1\r\n", method="POST") + b"x")
        world.opener.last.fail(reason)
        assert (b"It was last here at 2023-11-14 22:13:20 UTC" in transport.take()) == away


class TestKeptStreams:
    def test_safe_requests_are_retried_once(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get())
        world.opener.last.fail(Reason.TARGET_RESET)
        assert len(world.opener.streams) == 2
        world.opener.last.fail(Reason.TARGET_RESET)
        assert len(world.opener.streams) == 2
        assert status_of(transport.take()) == 502

    def test_a_closed_kept_stream_is_replaced(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get())
        world.opener.last.deliver(ok())
        transport.take()
        world.loop.advance(2)
        protocol.data_received(get("/again"))
        assert len(world.opener.streams) == 1
        world.opener.last.end()
        assert len(world.opener.streams) == 2
        assert world.opener.last.take().startswith(b"GET /again")

    @pytest.mark.parametrize("method", ["DELETE", "PUT", "POST"])
    @pytest.mark.parametrize("reason", [Reason.TARGET_RESET, Reason.CONNECTOR_AWAY, Reason.PROTOCOL_ERROR])
    def test_what_changes_something_is_never_asked_twice(self, world: World, method: str, reason: Reason) -> None:
        """However idempotent: the service may have done it, and what came after it may have changed it again."""
        protocol, transport = world.connect()
        protocol.data_received(get())
        world.opener.last.deliver(ok())
        transport.take()
        protocol.data_received(get("/again", method=method))
        assert len(world.opener.streams) == 1, "within a second: the kept one"
        world.opener.last.fail(reason)
        assert len(world.opener.streams) == 1
        assert status_of(transport.take()) in (502, 503)

    def test_post_is_never_retried(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get())
        world.opener.last.deliver(ok())
        transport.take()
        protocol.data_received(get("/", "Content-Length: 1\r\n", method="POST") + b"x")
        assert len(world.opener.streams) == 1  # within a second: the kept one
        world.opener.last.end()
        assert len(world.opener.streams) == 1
        assert status_of(transport.take()) == 502

    def test_not_retried_after_a_byte(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get())
        world.opener.last.deliver(b"H")
        world.opener.last.fail(Reason.TARGET_RESET)
        assert len(world.opener.streams) == 1
        assert status_of(transport.take()) == 502

    @pytest.mark.parametrize("method", ["POST", "DELETE", "PUT"])
    def test_what_cannot_be_repeated_takes_a_fresh_stream_after_a_second(self, world: World, method: str) -> None:
        protocol, _ = world.connect()
        protocol.data_received(get())
        world.opener.last.deliver(ok())
        world.loop.advance(1.5)
        protocol.data_received(get(method=method))
        assert len(world.opener.streams) == 2

    def test_kept_for_four_seconds(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get())
        stream = world.opener.last
        stream.deliver(ok())
        world.loop.advance(2.0)
        assert not stream.finished
        world.loop.advance(2.25)
        assert stream.finished
        world.loop.advance(5)
        assert stream.reset_with is Reason.CANCELLED  # its service kept its half open
        assert not transport.closed

    def test_a_service_that_closes(self, world: World) -> None:
        protocol, _ = world.connect()
        protocol.data_received(get())
        stream = world.opener.last
        stream.deliver(ok(more="Connection: close\r\n"))
        assert stream.finished
        stream.end()
        assert stream.closed
        protocol.data_received(get())
        assert len(world.opener.streams) == 2

    def test_nothing_is_left_when_the_visitor_leaves(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get())
        world.opener.last.deliver(ok())
        transport.lose()
        assert world.opener.last.finished
        world.loop.advance(5)
        assert not world.opener.open_streams
        assert not world.gateway.connections


class TestParking:
    def test_waits_and_goes_on(self, world: World) -> None:
        protocol, transport = world.connect()
        world.opener.park = True
        protocol.data_received(get("/", "Content-Length: 5\r\n", method="POST") + b"he")
        assert transport.reading_paused
        protocol.data_received(b"l")  # was on its way
        world.loop.advance(15)
        assert not transport.take()
        stream = world.opener.unpark()
        assert not transport.reading_paused
        protocol.data_received(b"lo")
        assert stream.take().endswith(b"\r\n\r\nhello")
        stream.deliver(ok())
        assert status_of(transport.take()) == 200

    def test_refused_in_the_end(self, world: World) -> None:
        protocol, transport = world.connect()
        world.opener.park = True
        protocol.data_received(get())
        _route, waiter = world.opener.parked.pop()
        waiter.stream_refused(Reason.PARK_TIMEOUT, 1_700_000_000.0)
        answer = transport.take()
        assert status_of(answer) == 503
        assert b"since 2023-11-14" in answer

    def test_the_visitor_leaves(self, world: World) -> None:
        protocol, transport = world.connect()
        world.opener.park = True
        protocol.data_received(get())
        transport.lose()
        assert world.opener.cancelled == 1
        assert not world.opener.parked


class TestDeadlines:
    def test_slow_heads(self, world: World) -> None:
        protocol, transport = world.connect()
        for byte in get()[:-1]:
            protocol.data_received(bytes([byte]))
            world.loop.advance(0.5)
            if transport.closed:
                break
        assert status_of(transport.take()) == 408
        assert world.loop.now <= 1010.75

    def test_silence(self, world: World) -> None:
        _, transport = world.connect()
        world.loop.advance(10.5)
        assert transport.closed
        assert not transport.written

    def test_idle_between_requests(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get())
        world.opener.last.deliver(ok())
        world.loop.advance(74)
        assert not transport.closed
        world.loop.advance(1.5)
        assert transport.closed

    def test_slow_second_head(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get())
        world.opener.last.deliver(ok())
        transport.take()
        world.loop.advance(30)
        protocol.data_received(b"GET ")
        world.loop.advance(10.5)
        assert status_of(transport.take()) == 408

    def test_no_response(self, codec: str) -> None:
        world = World(make_route(response_seconds=5.0))
        protocol, transport = world.connect()
        protocol.data_received(get())
        world.loop.advance(4)
        assert not transport.written
        world.loop.advance(2.5)
        assert status_of(transport.take()) == 504
        assert world.opener.last.reset_with is Reason.RESPONSE_TIMEOUT

    def test_no_response_while_the_tunnel_has_no_link(self, codec: str) -> None:
        """The service cannot be blamed for it: its time stands still, and goes on with the next link."""
        world = World(make_route(response_seconds=5.0))
        protocol, transport = world.connect()
        protocol.data_received(get())
        stream = world.opener.last
        world.loop.advance(3)
        stream.linked = False
        world.loop.advance(60)
        assert not transport.written
        stream.linked = True
        world.loop.advance(1)
        assert not transport.written
        world.loop.advance(3.5)
        assert status_of(transport.take()) == 504

    def test_bytes_are_counted_while_an_exchange_lasts(self, codec: str) -> None:
        world = World(make_route())
        protocol, _ = world.connect()
        protocol.data_received(get())
        world.opener.last.deliver(b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n" + bytes(1000))
        world.loop.advance(2)
        counters = world.opener.last.route.counters
        before = counters.bytes_out
        assert before >= 1000
        world.opener.last.deliver(bytes(1000))
        world.loop.advance(2)
        assert counters.bytes_out == before + 1000
        world.opener.last.deliver(bytes(1000))
        world.loop.turn()
        assert counters.bytes_out == before + 2000

    def test_streams_to_a_connector_that_leaves_are_let_go(self, codec: str) -> None:
        """Kept ones at once, others with their exchange."""
        world = World(make_route(connector="home"))
        protocol, transport = world.connect()
        protocol.data_received(get())
        world.opener.last.deliver(ok())
        assert not world.opener.last.finished
        world.gateway.let_go("other")
        assert not world.opener.last.finished
        world.gateway.let_go("home")
        assert world.opener.last.finished
        transport.take()
        protocol.data_received(get())
        world.opener.last.leaving = True
        world.opener.last.deliver(ok())
        world.loop.turn()
        assert status_of(transport.take()) == 200
        assert world.opener.last.finished

    def test_silent_events_are_not_cut(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get())
        world.opener.last.deliver(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        world.loop.advance(3600)
        assert not transport.closed
        world.opener.last.deliver(b"5\r\nevent\r\n")
        world.loop.turn()
        assert transport.take().endswith(b"5\r\nevent\r\n")

    def test_stalled_upload(self, codec: str) -> None:
        world = World(settings=GatewaySettings(stall_seconds=20))
        protocol, transport = world.connect()
        protocol.data_received(get("/", "Content-Length: 100000\r\n", method="POST"))
        for _ in range(30):
            world.loop.advance(1)
            protocol.data_received(b"x")
            if transport.written:
                break
        assert status_of(transport.take()) == 408
        assert world.opener.last.closed

    def test_service_that_takes_nothing(self, codec: str) -> None:
        world = World(settings=GatewaySettings(stall_seconds=20))
        protocol, transport = world.connect()
        protocol.data_received(get("/", "Content-Length: 100000\r\n", method="POST"))
        world.opener.last.sink.pause_sending()
        world.loop.advance(23)
        assert status_of(transport.take()) == 504

    def test_reader_that_takes_nothing(self, codec: str) -> None:
        world = World(settings=GatewaySettings(stall_seconds=20))
        protocol, transport = world.connect()
        protocol.data_received(get())
        transport.fill_after = 1
        world.opener.last.deliver(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(1000))
        world.loop.advance(25)
        assert transport.aborted
        assert world.opener.last.closed

    def test_reader_that_takes_not_even_an_error(self, codec: str) -> None:
        world = World(settings=GatewaySettings(stall_seconds=20))
        protocol, transport = world.connect(server_name="other.example.com")
        transport.fill_after = 1
        protocol.data_received(get())
        world.loop.advance(25)
        assert transport.aborted


class TestBackpressure:
    def test_credit_follows_the_transport(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get())
        stream = world.opener.last
        stream.deliver(b"HTTP/1.1 200 OK\r\nContent-Length: 400000\r\n\r\n")
        stream.deliver(bytes(100_000), step=16376)
        assert stream.credited < stream.delivered
        world.loop.turn()
        assert balanced(stream)
        assert transport.writes == 1
        transport.fill_after = 0
        stream.deliver(bytes(100_000), step=16376)
        world.loop.turn()
        assert stream.delivered - stream.credited == 100_000
        stream.deliver(bytes(100_000), step=16376)
        world.loop.turn()
        assert stream.delivered - stream.credited == 200_000
        protocol.resume_writing()
        assert balanced(stream)
        stream.deliver(bytes(100_000), step=16376)
        assert balanced(stream)
        assert len(transport.take()) == 400_000 + len(b"HTTP/1.1 200 OK\r\ncontent-length: 400000\r\n\r\n")

    def test_events_are_not_held_back(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(get())
        stream = world.opener.last
        stream.deliver(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        world.loop.turn()
        assert transport.take()
        for number in range(3):
            stream.deliver(b"data: %d\n\n" % number)
            world.loop.turn()
            assert transport.take() == b"9\r\ndata: %d\n\n\r\n" % number


class TestWebSocket:
    REQUEST = get("/ws", "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n")
    ANSWER = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

    def test_bytes_both_ways(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(self.REQUEST)
        stream = world.opener.last
        assert b"connection: upgrade\r\nupgrade: websocket\r\n" in stream.take()
        stream.deliver(self.ANSWER + b"\x81\x02hi")
        world.loop.turn()
        received = transport.take()
        assert received.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        assert received.endswith(b"\r\n\r\n\x81\x02hi")
        protocol.data_received(b"\x00\xff" * 1000)
        assert stream.take() == b"\x00\xff" * 1000
        world.loop.advance(3600)
        assert not transport.closed
        stream.sink.pause_sending()
        assert transport.reading_paused
        stream.sink.resume_sending()
        assert balanced(stream)
        transport.lose()
        assert stream.finished
        stream.end()
        assert stream.closed
        assert world.log[0][7] == 101

    def test_service_ends_it(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(self.REQUEST)
        world.opener.last.deliver(self.ANSWER)
        world.opener.last.end()
        assert transport.closed
        transport.lose()
        assert not world.opener.open_streams

    def test_refused(self, world: World) -> None:
        protocol, transport = world.connect()
        protocol.data_received(self.REQUEST + get("/next"))
        stream = world.opener.last
        stream.take()
        stream.deliver(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n")
        assert status_of(transport.take()) == 426
        assert stream.take().startswith(b"GET /next")

    def test_h2c_upgrade_is_not_relayed(self, world: World) -> None:
        protocol, _ = world.connect()
        fields = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n"
        protocol.data_received(get("/", fields))
        assert b"upgrade" not in world.opener.last.take().lower()


class TestDraining:
    def test_idle_connections_close_and_busy_ones_finish(self, world: World) -> None:
        _idle, idle_transport = world.connect()
        busy, busy_transport = world.connect()
        busy.data_received(get())
        world.gateway.drain()
        assert idle_transport.closed
        assert not busy_transport.closed
        world.opener.last.deliver(ok())
        assert b"connection: close\r\n" in busy_transport.take()
        assert busy_transport.closed

    def test_a_kept_connection_is_never_closed_on_a_request_that_may_be_under_way(self, world: World) -> None:
        """Winding down: who is idle is served once more and told; who stays idle has the usual time."""
        idle, idle_transport = world.connect()
        silent, silent_transport = world.connect()
        for one, transport in ((idle, idle_transport), (silent, silent_transport)):
            one.data_received(get())
            world.opener.last.deliver(ok())
            assert b"connection:" not in transport.take()
        world.gateway.wind_down()
        world.loop.advance(20)
        assert not idle_transport.closed
        idle.data_received(get())
        world.opener.last.deliver(ok())
        assert b"connection: close\r\n" in idle_transport.take()
        assert idle_transport.closed
        assert not silent_transport.closed
        world.loop.advance(60)
        assert silent_transport.closed

    def test_plain_half_close_still_gets_its_answer(self, codec: str) -> None:
        world = World(make_route(plain_http=True))
        protocol, transport = world.connect(tls=False, server_name="")
        protocol.data_received(get())
        assert protocol.eof_received()
        world.opener.last.deliver(ok())
        assert transport.take().endswith(b"hi")
        assert transport.closed
