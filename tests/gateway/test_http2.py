"""A visitor who speaks HTTP/2 towards a service that speaks HTTP/1.1."""

from __future__ import annotations

from typing import ClassVar

import pytest

from tests.gateway.fakes import Browser2, World, make_route
from tunnelgw.gateway.exchange2 import websocket_accept
from tunnelgw.gateway.opener import NoStream
from tunnelgw.gateway.settings import GatewaySettings
from tunnelgw.obs.reasons import Reason

PLAIN = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a.example.com"), (b":path", b"/")]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class TestExchange:
    def test_a_request_and_its_response(self, world: World) -> None:
        browser = Browser2(world)
        number = browser.get("/x?y", (b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"x-forwarded-for", b"6.6.6.6"))
        browser.go()
        stream = world.opener.last
        sent = stream.take()
        assert sent.startswith(b"GET /x?y HTTP/1.1\r\nhost: a.example.com\r\n")
        assert b"cookie: a=1; b=2\r\n" in sent
        assert b"6.6.6.6" not in sent
        assert b"content-length" not in sent
        assert b"transfer-encoding" not in sent
        stream.deliver(OK)
        browser.go()
        assert browser.heads[number][b":status"] == b"200"
        assert browser.heads[number][b"content-length"] == b"2"
        assert browser.bodies[number] == b"hi"
        assert browser.closed == {number: 0}
        assert stream.credited == stream.delivered
        assert not browser.protocol.exchanges
        assert not browser.protocol.unsettled
        assert world.log[0][6:9] == (20, 200, 2)

    def test_many_at_once_share_kept_streams(self, world: World) -> None:
        browser = Browser2(world)
        for _ in range(3):
            numbers = [browser.get(f"/{index}") for index in range(20)]
            browser.go()
            for stream in world.opener.streams:
                path = stream.take().split(b" ")[1]
                stream.deliver(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path))
            browser.go()
            assert sorted(browser.bodies[number] for number in numbers) == sorted(b"/%d" % i for i in range(20))
        assert len(world.opener.streams) == 20

    def test_byte_by_byte(self, world: World) -> None:
        browser = Browser2(world)
        number = browser.get("/", method=b"POST", end=False)
        browser.core.send_data(number, b"hello")
        browser.core.send_trailers(number, [(b"x-t", b"1")])
        for byte in browser.pull():
            browser.protocol.data_received(bytes([byte]))
            world.loop.turn()
        stream = world.opener.last
        assert stream.take().endswith(b"5\r\nhello\r\n0\r\nx-t: 1\r\n\r\n")
        stream.deliver(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-r: 2\r\n\r\n", step=1)
        browser.go()
        assert browser.bodies[number] == b"hi"
        assert browser.trailers[number] == [(b"x-r", b"2")]
        assert stream.credited == stream.delivered

    def test_head_and_no_content(self, world: World) -> None:
        browser = Browser2(world)
        head = browser.get("/", method=b"HEAD")
        browser.go()
        world.opener.last.deliver(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
        browser.go()
        assert browser.heads[head][b"content-length"] == b"500"
        assert browser.closed == {head: 0}
        for status in (b"204", b"304"):
            number = browser.get()
            browser.go()
            world.opener.last.deliver(b"HTTP/1.1 " + status + b" X\r\n\r\n")
            browser.go()
            assert browser.heads[number][b":status"] == status
            assert browser.closed[number] == 0
        assert len(world.opener.streams) == 1

    def test_interim_responses(self, world: World) -> None:
        browser = Browser2(world)
        number = browser.get("/", (b"expect", b"100-continue"), (b"content-length", b"2"), method=b"PUT", end=False)
        browser.go()
        stream = world.opener.last
        assert b"expect: 100-continue\r\n" in stream.take()
        stream.deliver(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        browser.go()
        assert [dict(fields)[b":status"] for fields in browser.interim] == [b"100", b"103"]
        browser.core.send_data(number, b"ok", end_stream=True)
        browser.go()
        assert stream.take() == b"ok"
        stream.deliver(OK)
        browser.go()
        assert browser.closed == {number: 0}

    def test_one_write_per_turn(self, world: World) -> None:
        browser = Browser2(world)
        for _ in range(10):
            browser.get()
        browser.go()
        writes = browser.transport.writes
        for stream in world.opener.streams:
            stream.deliver(OK)
        world.loop.turn()
        assert browser.transport.writes == writes + 1


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "status"),
        [
            ([(b":method", b"CONNECT"), (b":authority", b"a.example.com:443")], 405),
            ([(b":method", b"TRACE"), *PLAIN[1:]], 405),
            ([(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"b.example.com"), (b":path", b"/")], 421),
        ],
    )
    def test_statuses(self, world: World, fields: list[tuple[bytes, bytes]], status: int) -> None:
        browser = Browser2(world)
        number = browser.core.send_request(fields, end_stream=True)
        browser.go()
        assert browser.heads[number][b":status"] == b"%d" % status
        assert not world.opener.streams
        assert not browser.transport.closed

    @pytest.mark.parametrize(
        "fields",
        [
            [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a.example.com"), (b":path", b"x")],
            [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a.example.com")],
            [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/")],
            [*PLAIN, (b":x", b"")],
            [*PLAIN, (b"host", b"b.example.com")],
            [*PLAIN, (b"connection", b"close")],
            [*PLAIN, (b"transfer-encoding", b"chunked")],
            [*PLAIN, (b"te", b"gzip")],
            [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a.example.com"), (b":path", b"/a b")],
            [*PLAIN, (b"x", b"a\r\nb: c")],
            [*PLAIN, (b"content-length", b"5")],
        ],
    )  # fmt: skip
    def test_malformed_heads_are_stream_errors(self, world: World, fields: list[tuple[bytes, bytes]]) -> None:
        browser = Browser2(world)
        number = browser.core.send_request(fields, end_stream=True)
        browser.go()
        assert browser.closed.get(number, 0) != 0
        assert number not in browser.heads
        assert not world.opener.streams
        again = browser.get()
        browser.go()
        world.opener.last.deliver(OK)
        browser.go()
        assert browser.bodies[again] == b"hi"

    def test_forbidden_trailers(self, world: World) -> None:
        browser = Browser2(world)
        number = browser.get("/", method=b"POST", end=False)
        browser.core.send_data(number, b"x")
        browser.core.send_trailers(number, [(b"host", b"evil")])
        browser.go()
        assert browser.closed[number] != 0
        assert world.opener.last.closed
        assert not world.opener.last.sent.endswith(b"0\r\n\r\n")

    def test_content_length_that_disagrees(self, world: World) -> None:
        browser = Browser2(world)
        number = browser.get("/", (b"content-length", b"5"), method=b"POST", end=False)
        browser.core.send_data(number, b"abc", end_stream=True)
        browser.go()
        assert browser.closed[number] != 0
        assert world.opener.last.closed

    def test_error_page(self, world: World) -> None:
        browser = Browser2(world)
        world.opener.refusal = NoStream(Reason.CONNECTOR_AWAY)
        number = browser.get("/", (b"accept", b"text/html"))
        browser.go()
        assert browser.heads[number][b":status"] == b"503"
        assert b"Home is away" in browser.bodies[number]
        assert browser.closed == {number: 0}

    def test_junk(self, world: World) -> None:
        protocol, transport = world.connect(h2=True)
        protocol.data_received(b"GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n")
        world.loop.turn()
        assert transport.closed

    def test_rapid_reset(self, world: World) -> None:
        browser = Browser2(world)
        browser.go()
        for _ in range(2000):
            number = browser.get()
            data = browser.pull()
            browser.core.reset_stream(number)
            data += browser.pull()
            if browser.transport.closed:
                break
            browser.protocol.data_received(data)
            world.loop.turn()
        assert browser.transport.closed
        assert not world.opener.open_streams

    @pytest.mark.parametrize(
        ("flood", "code"),
        [
            (b"\x00\x00\x01\x01\x01\x00\x00\x00\x01\x82" + b"\x00\x00\x00\x09\x00\x00\x00\x00\x01" * 20, 11),
            (b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + bytes(8), 11),
            (b"\x00\x00\x00\x04\x00\x00\x00\x00\x00", 11),
            (b"\x00\x00\x04\x01\x05\x00\x00\x00\x01" + b"\xff" * 4, 9),
        ],
    )  # fmt: skip
    def test_floods_are_told_to_calm_down(self, world: World, flood: bytes, code: int) -> None:
        browser = Browser2(world)
        browser.go()
        browser.protocol.data_received(flood * 2000)
        world.loop.turn()
        assert browser.transport.closed
        browser.feed(browser.transport.take())
        assert browser.goaway is not None
        assert browser.goaway.error_code == code

    def test_too_large_a_head(self, world: World) -> None:
        browser = Browser2(world)
        for index in range(60):
            browser.get("/", (b"x-%d" % index, b"y" * 60000))
        browser.pull()
        assert not world.opener.streams

    def test_more_streams_than_allowed(self, world: World) -> None:
        browser = Browser2(world)
        for _ in range(200):
            browser.get()
        browser.go()
        assert len(world.opener.streams) <= 128


class TestCuts:
    @pytest.mark.parametrize("how", ["end", "reset"])
    @pytest.mark.parametrize("head", [b"Content-Length: 10\r\n", b"Transfer-Encoding: chunked\r\n"])
    def test_truncation_is_a_reset(self, world: World, head: bytes, how: str) -> None:
        browser = Browser2(world)
        number = browser.get()
        browser.go()
        stream = world.opener.last
        stream.deliver(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + (b"3\r\nabc\r\n" if b"chunked" in head else b"abc"))
        browser.go()
        if how == "end":
            stream.end()
        else:
            stream.fail(Reason.TARGET_RESET)
        browser.go()
        assert browser.bodies[number] == b"abc"
        assert number not in browser.ended
        assert browser.closed[number] != 0
        assert not browser.protocol.exchanges
        assert [entry[7] for entry in world.log] == [200]  # 499 would blame the visitor

    @pytest.mark.parametrize("upload", [True, False])
    def test_a_visitor_who_resets(self, world: World, upload: bool) -> None:
        browser = Browser2(world)
        number = browser.get("/", method=b"POST" if upload else b"GET", end=not upload)
        if upload:
            browser.core.send_data(number, bytes(100_000))
        browser.go()
        stream = world.opener.last
        stream.deliver(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(1000))
        browser.go()
        browser.core.reset_stream(number)
        browser.go()
        assert stream.reset_with is Reason.CANCELLED
        assert not browser.protocol.exchanges
        assert not browser.protocol.engine._debts
        again = browser.get()
        browser.go()
        world.opener.last.deliver(OK)
        browser.go()
        assert browser.bodies[again] == b"hi"

    def test_a_visitor_who_leaves(self, world: World) -> None:
        browser = Browser2(world)
        for _ in range(5):
            browser.get()
        browser.go()
        browser.transport.lose()
        assert not world.opener.open_streams
        assert not world.gateway.connections
        assert [entry[7] for entry in world.log] == [499] * 5

    def test_parked_and_gone(self, world: World) -> None:
        browser = Browser2(world)
        world.opener.park = True
        number = browser.get()
        browser.go()
        browser.core.reset_stream(number)
        browser.go()
        assert world.opener.cancelled == 1

    def test_early_response(self, world: World) -> None:
        browser = Browser2(world)
        number = browser.get("/", method=b"POST", end=False)
        browser.core.send_data(number, bytes(1000))
        browser.go()
        stream = world.opener.last
        stream.deliver(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig")
        browser.go()
        assert browser.bodies[number] == b"big"
        assert number in browser.ended
        assert browser.resets[number] == 0
        assert stream.reset_with is Reason.CANCELLED
        assert not browser.protocol.exchanges


class TestBackpressure:
    def test_a_visitor_with_a_small_window(self, world: World) -> None:
        browser = Browser2(world, window=1000)
        number = browser.get()
        data = browser.pull()
        browser.protocol.data_received(data)
        world.loop.turn()
        stream = world.opener.last
        browser.feed(browser.transport.take())
        stream.deliver(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        stream.deliver(bytes(100_000), step=16376)
        world.loop.turn()
        assert stream.delivered - stream.credited == 99_000
        assert browser.protocol.engine.queued(number) == 99_000
        data = browser.transport.take()
        for _ in range(1000):
            browser.feed(data)
            more = browser.pull()
            if not more:
                break
            browser.protocol.data_received(more)
            world.loop.turn()
            data = browser.transport.take()
        assert len(browser.bodies[number]) == 100_000
        assert stream.delivered == stream.credited

    def test_a_full_transport(self, world: World) -> None:
        browser = Browser2(world)
        number = browser.get()
        browser.go()
        stream = world.opener.last
        browser.transport.fill_after = 0
        stream.deliver(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(50_000))
        world.loop.turn()
        assert browser.protocol.write_paused
        stream.deliver(bytes(50_000))
        world.loop.turn()
        assert stream.credited < stream.delivered
        browser.protocol.resume_writing()
        browser.go()
        assert stream.credited == stream.delivered
        assert len(browser.bodies[number]) == 100_000

    def test_an_upload_that_the_tunnel_does_not_take(self, world: World) -> None:
        browser = Browser2(world)
        number = browser.get("/", method=b"PUT", end=False)
        browser.go()
        stream = world.opener.last
        stream.sink.pause_sending()
        for _ in range(64):
            browser.core.send_data(number, bytes(16_384))
        browser.go()
        assert len(stream.sent) < 300_000
        other = browser.get()
        browser.go()
        world.opener.last.deliver(OK)
        browser.go()
        assert browser.bodies[other] == b"hi"
        stream.sink.resume_sending()
        browser.core.end_stream(number)
        browser.go()
        assert stream.take().count(b"\0") == 64 * 16_384
        stream.deliver(OK)
        browser.go()
        assert browser.closed[number] == 0
        assert not browser.protocol.engine._debts

    def test_a_large_upload_gets_a_larger_window(self, world: World) -> None:
        browser = Browser2(world)
        number = browser.get("/", method=b"PUT", end=False)
        browser.core.send_data(number, bytes(1_500_000))
        browser.go()
        stream = world.opener.last
        assert stream.take().count(b"\0") == 1_500_000
        stream.sink.pause_sending()
        browser.core.send_data(number, bytes(10_000_000))
        browser.go()
        assert 1_000_000 < len(stream.take()) < 2_500_000
        stream.sink.resume_sending()
        browser.core.end_stream(number)
        browser.go()
        stream.deliver(OK)
        browser.go()
        assert browser.closed == {number: 0}

    def test_a_parked_upload(self, world: World) -> None:
        browser = Browser2(world)
        world.opener.park = True
        number = browser.get("/", method=b"PUT", end=False)
        browser.core.send_data(number, bytes(500_000), end_stream=True)
        browser.go()
        world.loop.advance(10)
        stream = world.opener.unpark()
        browser.go()
        assert stream.take().count(b"\0") == 500_000
        stream.deliver(OK)
        browser.go()
        assert browser.bodies[number] == b"hi"

    def test_a_parked_upload_that_ended(self, world: World) -> None:
        browser = Browser2(world)
        world.opener.park = True
        number = browser.get("/", method=b"PUT", end=False)
        browser.core.send_data(number, b"hello", end_stream=True)
        browser.go()
        stream = world.opener.unpark()
        assert stream.take().endswith(b"5\r\nhello\r\n0\r\n\r\n")
        stream.deliver(OK)
        browser.go()
        assert browser.bodies[number] == b"hi"


class TestDeadlines:
    def test_idle(self, world: World) -> None:
        browser = Browser2(world)
        browser.get()
        browser.go()
        world.opener.last.deliver(OK)
        browser.go()
        world.loop.advance(70)
        assert not browser.transport.closed
        assert world.opener.last.finished
        world.loop.advance(6)
        assert browser.transport.closed

    def test_silence(self, world: World) -> None:
        _, transport = world.connect(h2=True)
        world.loop.advance(10.5)
        assert transport.closed

    @pytest.mark.parametrize("drips", [True, False])
    def test_a_head_that_does_not_end(self, world: World, drips: bool) -> None:
        browser = Browser2(world)
        browser.go()
        world.loop.advance(30)
        block = b"\x82\x87\x84\x41\x0da.example.com"
        data = len(block).to_bytes(3, "big") + b"\x01\x01\x00\x00\x00\x01" + block  # END_HEADERS is missing
        before = world.loop.now
        while not browser.transport.closed:
            part, data = (data[:1], data[1:]) if drips else (data, b"")
            browser.protocol.data_received(part)
            world.loop.advance(1)
        assert world.loop.now - before <= 11
        browser.feed(browser.transport.take())
        assert browser.goaway is not None

    @pytest.mark.parametrize("part", [b"b", b"\x00\x00\x00\x09\x00\x00\x00\x00\x03", b""])
    def test_a_head_that_does_not_end_beside_another_stream(self, world: World, part: bytes) -> None:
        """One byte after the other, CONTINUATION after CONTINUATION, or silence: a download beside it is no excuse."""
        browser = Browser2(world)
        browser.get()
        browser.go()
        world.opener.last.deliver(b"HTTP/1.1 200 OK\r\n\r\n")
        world.loop.advance(30)
        block = b"\x82\x87\x84\x41\x0da.example.com\x00\x01a\x40"  # a value of 64 octets begins
        length = (len(block) if part != b"b" else 100).to_bytes(3, "big")
        browser.protocol.data_received(length + b"\x01\x01\x00\x00\x00\x03" + block)
        before = world.loop.now
        while not browser.transport.closed:
            world.opener.last.deliver(b"more of the download")
            if part and world.loop.now - before < 7:
                browser.protocol.data_received(part)
            world.loop.advance(1)
            assert world.loop.now - before <= 12
        browser.feed(browser.transport.take())
        assert browser.goaway is not None
        assert browser.goaway.error_code == 11
        assert not world.opener.open_streams

    def test_odd_frames_and_then_silence_beside_a_download(self, world: World) -> None:
        browser = Browser2(world)
        browser.get()
        browser.go()
        world.opener.last.deliver(b"HTTP/1.1 200 OK\r\n\r\n")
        browser.protocol.data_received(b"\x00\x00\x05\x02\x00\x00\x00\x00\x03\x00\x00\x00\x00\xff")  # PRIORITY
        world.loop.advance(300)
        assert not browser.transport.closed

    def test_a_head_in_two_parts(self, world: World) -> None:
        browser = Browser2(world)
        browser.go()
        browser.get("/")
        data = browser.pull()
        browser.protocol.data_received(data[:12])
        world.loop.advance(9)
        browser.protocol.data_received(data[12:])
        world.loop.advance(9)
        world.opener.last.deliver(b"HTTP/1.1 204 No Content\r\n\r\n")
        world.loop.advance(70)
        assert not browser.transport.closed
        world.loop.advance(6)
        assert browser.transport.closed

    def test_no_response(self, codec: str) -> None:
        world = World(make_route(response_seconds=5.0))
        browser = Browser2(world)
        number = browser.get()
        browser.go()
        world.loop.advance(7)
        browser.go()
        assert browser.heads[number][b":status"] == b"504"
        assert world.opener.last.closed

    def test_zero_window_for_ever(self, codec: str) -> None:
        world = World(settings=GatewaySettings(stall_seconds=20))
        browser = Browser2(world, window=0)
        number = browser.get()
        browser.protocol.data_received(browser.pull())
        world.loop.turn()
        world.opener.last.deliver(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(1000))
        world.loop.advance(25)
        assert world.opener.last.closed
        assert not browser.protocol.exchanges
        assert number == 1

    def test_goaway_of_the_visitor(self, world: World) -> None:
        browser = Browser2(world)
        number = browser.get()
        browser.go()
        browser.core.send_goaway()
        browser.go()
        assert not browser.transport.closed
        world.opener.last.deliver(OK)
        browser.go()
        assert browser.bodies[number] == b"hi"
        assert browser.transport.closed

    def test_idle_and_not_reading(self, world: World) -> None:
        browser = Browser2(world)
        browser.go()
        browser.protocol.pause_writing()
        world.loop.advance(80)
        assert browser.transport.aborted

    def test_a_broken_frame_ends_the_connection_and_its_streams(self, world: World) -> None:
        browser = Browser2(world)
        browser.get()
        browser.go()
        browser.protocol.data_received(b"\0\0\4\x08\0\0\0\0\0\0\0\0\0")  # WINDOW_UPDATE of nothing
        world.loop.turn()
        assert browser.transport.closed
        assert not world.opener.open_streams

    def test_drain(self, world: World) -> None:
        browser = Browser2(world)
        number = browser.get()
        browser.go()
        world.gateway.drain()
        browser.go()
        assert browser.goaway is not None
        assert not browser.transport.closed
        world.opener.last.deliver(OK)
        browser.go()
        assert browser.bodies[number] == b"hi"
        assert browser.transport.closed


class TestWindingDown:
    """Another process takes over new connections: no request that a visitor sends meanwhile may fail."""

    def test_a_request_that_crosses_the_last_call_is_served(self, world: World) -> None:
        browser = Browser2(world)
        browser.go()
        world.gateway.wind_down()
        world.loop.turn()
        last_call = browser.transport.take()
        number = browser.get()
        browser.protocol.data_received(browser.pull())  # before it has read anything of that
        world.loop.turn()
        browser.feed(last_call)
        assert browser.goaway is not None
        browser.go()
        assert not browser.transport.closed
        world.opener.last.deliver(OK)
        browser.go()
        assert browser.bodies[number] == b"hi"
        assert browser.closed == {number: 0}
        assert browser.transport.closed

    def test_an_idle_visitor_that_knows_is_let_go(self, world: World) -> None:
        browser = Browser2(world)
        browser.go()
        world.gateway.wind_down()
        world.loop.turn()
        assert b"lastcall" in browser.transport.take()
        assert not browser.transport.closed
        browser.protocol.data_received(b"\0\0\x08\6\1\0\0\0\0lastcall")
        world.loop.turn()
        assert browser.transport.closed

    def test_one_that_does_not_answer_gets_the_second_step_in_time(self, world: World) -> None:
        browser = Browser2(world)
        number = browser.get()
        browser.go()
        world.gateway.wind_down()
        world.loop.advance(4)
        assert not browser.protocol.closing
        world.loop.advance(2)
        assert browser.protocol.closing
        assert not browser.transport.closed
        world.opener.last.deliver(OK)
        browser.go()
        assert browser.bodies[number] == b"hi"
        assert browser.transport.closed

    def test_an_idle_one_that_does_not_answer(self, world: World) -> None:
        browser = Browser2(world)
        browser.go()
        world.gateway.wind_down()
        world.loop.advance(4)
        assert not browser.transport.closed
        world.loop.advance(2)
        assert browser.transport.closed

    def test_a_connection_that_was_being_made_is_told_at_once(self, world: World) -> None:
        world.gateway.wind_down()
        browser = Browser2(world)
        number = browser.get()
        browser.go()
        world.opener.last.deliver(OK)
        browser.go()
        assert browser.bodies[number] == b"hi"
        assert browser.transport.closed
        world.gateway.wind_down()


class TestWebSocket:
    FIELDS: ClassVar = [
        (b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"https"),
        (b":authority", b"a.example.com"), (b":path", b"/ws"), (b"sec-websocket-version", b"13"),
    ]  # fmt: skip

    def _open(self, world: World) -> tuple[Browser2, int]:
        browser = Browser2(world)
        browser.go()
        assert browser.core.remote_settings[8] == 1
        number = browser.core.send_request(self.FIELDS)
        browser.go()
        return browser, number

    def _accept(self, request: bytes) -> bytes:
        key = request.partition(b"sec-websocket-key: ")[2].partition(b"\r\n")[0]
        return (
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: " + websocket_accept(key) + b"\r\n\r\n"
        )

    def test_bytes_both_ways(self, world: World) -> None:
        browser, number = self._open(world)
        stream = world.opener.last
        request = stream.take()
        assert request.startswith(b"GET /ws HTTP/1.1\r\n")
        assert b"connection: upgrade\r\nupgrade: websocket\r\n" in request
        browser.core.send_data(number, b"early")
        browser.go()
        assert stream.take() == b""
        stream.deliver(self._accept(request) + b"\x81\x02hi")
        browser.go()
        assert browser.heads[number][b":status"] == b"200"
        assert b"sec-websocket-accept" not in browser.heads[number]
        assert browser.bodies[number] == b"\x81\x02hi"
        assert stream.take() == b"early"
        world.loop.advance(3600)
        browser.core.send_data(number, b"\xff" * 1000)
        browser.go()
        assert stream.take() == b"\xff" * 1000
        browser.core.end_stream(number)
        browser.go()
        assert stream.finished
        stream.deliver(b"bye")
        stream.end()
        browser.go()
        assert browser.bodies[number].endswith(b"bye")
        assert browser.closed == {number: 0}
        assert stream.credited == stream.delivered

    def test_wrong_accept(self, world: World) -> None:
        browser, number = self._open(world)
        world.opener.last.deliver(self._accept(b"sec-websocket-key: other\r\n"))
        browser.go()
        assert browser.heads[number][b":status"] == b"502"

    def test_refused(self, world: World) -> None:
        browser, number = self._open(world)
        world.opener.last.deliver(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
        browser.go()
        assert browser.heads[number][b":status"] == b"403"
        assert browser.bodies[number] == b"no"
        assert not browser.protocol.exchanges

    def test_service_ends_it(self, world: World) -> None:
        browser, number = self._open(world)
        stream = world.opener.last
        stream.deliver(self._accept(stream.take()))
        stream.end()
        browser.go()
        assert number in browser.ended
        assert not browser.protocol.exchanges
        assert stream.closed

    def test_service_breaks_it(self, world: World) -> None:
        browser, number = self._open(world)
        stream = world.opener.last
        stream.deliver(self._accept(stream.take()))
        stream.fail(Reason.TARGET_RESET)
        browser.go()
        assert number not in browser.ended
        assert browser.closed[number] != 0

    def test_other_protocols(self, world: World) -> None:
        browser = Browser2(world)
        browser.go()
        fields = [(name, b"connect-udp" if name == b":protocol" else value) for name, value in self.FIELDS]
        number = browser.core.send_request(fields)
        browser.go()
        assert browser.heads[number][b":status"] == b"501"
