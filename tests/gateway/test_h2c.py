"""Services that speak HTTP/2 without TLS: gRPC, for visitors of either version."""

from __future__ import annotations

import pytest

from tests.gateway.fakes import Browser2, FakeStream, Peer2, World, make_route
from tunnelgw.gateway.opener import NoStream
from tunnelgw.obs.reasons import Reason

GRPC = ((b"content-type", b"application/grpc"), (b"te", b"trailers"))


class Service2(Peer2):
    """A service behind the opener's last stream."""

    def __init__(self, stream: FakeStream, *, window: int = 1 << 20, step: int = 0) -> None:
        super().__init__(serving=True, window=window)
        self.stream = stream
        self.step = step

    def go(self) -> bool:
        data = self.stream.take()
        self.feed(data)
        answer = self.pull()
        self.stream.deliver(answer, step=self.step) if answer else None
        return bool(data or answer)

    def respond(self, number: int, *fields: tuple[bytes, bytes], status: bytes = b"200", end: bool = False) -> None:
        self.core.send_response(number, [(b":status", status), *fields], end_stream=end)


def settle(browser: Browser2, service: Service2) -> None:
    for _ in range(1000):
        browser.go()
        if not service.go():
            return
    raise AssertionError("never silent")


@pytest.fixture
def grpc_world() -> World:
    return World(make_route(kind="h2c"))


def start(world: World, *, window: int = 1 << 20, step: int = 0, **more: bool) -> tuple[Browser2, Service2, int]:
    browser = Browser2(world)
    number = browser.get("/pkg.Service/Method", *GRPC, method=b"POST", **more)
    browser.go()
    service = Service2(world.opener.last, window=window, step=step)
    settle(browser, service)
    return browser, service, number


class TestGrpc:
    @pytest.mark.parametrize("step", [0, 1])
    def test_unary(self, grpc_world: World, step: int) -> None:
        browser, service, number = start(grpc_world, step=step, end=False)
        browser.core.send_data(number, b"request", end_stream=True)
        settle(browser, service)
        (inner,) = service.requests
        assert service.heads[inner][b"te"] == b"trailers"
        assert service.heads[inner][b":authority"] == b"a.example.com"
        assert service.heads[inner][b"x-forwarded-for"] == b"192.0.2.7"
        assert service.bodies[inner] == b"request"
        assert inner in service.ended
        service.respond(inner, (b"content-type", b"application/grpc"))
        service.core.send_data(inner, b"answer")
        service.core.send_trailers(inner, [(b"grpc-status", b"0"), (b"grpc-message", b"")])
        settle(browser, service)
        assert browser.bodies[number] == b"answer"
        assert browser.trailers[number] == [(b"grpc-status", b"0"), (b"grpc-message", b"")]
        assert browser.closed == {number: 0}
        assert service.closed == {inner: 0}
        stream = grpc_world.opener.last
        assert stream.delivered == stream.credited

    def test_trailers_only(self, grpc_world: World) -> None:
        browser, service, number = start(grpc_world, end=False)
        browser.core.send_data(number, b"request", end_stream=True)
        settle(browser, service)
        service.respond(1, (b"grpc-status", b"5"), end=True)
        settle(browser, service)
        assert browser.heads[number][b"grpc-status"] == b"5"
        assert browser.closed == {number: 0}

    def test_bidirectional(self, grpc_world: World) -> None:
        browser, service, number = start(grpc_world, end=False)
        service.respond(1, (b"content-type", b"application/grpc"))
        for index in range(20):
            browser.core.send_data(number, b"ping%d" % index)
            settle(browser, service)
            assert service.bodies[1].endswith(b"ping%d" % index)
            service.core.send_data(1, b"pong%d" % index)
            settle(browser, service)
            assert browser.bodies[number].endswith(b"pong%d" % index)
            grpc_world.loop.advance(400)
        browser.core.end_stream(number)
        settle(browser, service)
        service.core.send_trailers(1, [(b"grpc-status", b"0")])
        settle(browser, service)
        assert browser.closed == {number: 0}

    def test_many_calls_one_stream(self, grpc_world: World) -> None:
        browser, service, _ = start(grpc_world, end=True)
        for _ in range(30):
            browser.get("/pkg.Service/Method", *GRPC, method=b"POST")
        settle(browser, service)
        assert len(grpc_world.opener.streams) == 1
        assert len(service.requests) == 31
        for inner in list(service.requests):
            service.respond(inner, (b"grpc-status", b"0"), end=True)
        settle(browser, service)
        assert len(browser.closed) == 31
        assert not browser.protocol.exchanges
        grpc_world.loop.advance(5)
        assert grpc_world.opener.last.finished
        grpc_world.loop.advance(5)
        assert not grpc_world.opener.open_streams

    def test_large_both_ways(self, grpc_world: World) -> None:
        browser, service, number = start(grpc_world, window=65535, end=False)
        body = bytes(range(256)) * 8000
        browser.core.send_data(number, body, end_stream=True)
        settle(browser, service)
        assert service.bodies[1] == body
        service.respond(1)
        service.core.send_data(1, body, end_stream=True)
        settle(browser, service)
        assert browser.bodies[number] == body
        assert not browser.protocol.engine._debts

    def test_a_service_that_does_not_read(self, grpc_world: World) -> None:
        browser, _service, number = start(grpc_world, window=1000, end=False)
        stream = grpc_world.opener.last
        stream.take()
        for _ in range(100):
            browser.core.send_data(number, bytes(16_384))
        for _ in range(50):
            browser.go()
        assert len(stream.sent) < 3000
        assert browser.protocol.exchanges[number].upload_paused

    def test_a_full_tunnel(self, grpc_world: World) -> None:
        browser, service, number = start(grpc_world, end=False)
        stream = grpc_world.opener.last
        stream.sink.pause_sending()
        for _ in range(64):
            browser.core.send_data(number, bytes(16_384))
        browser.go()
        assert not stream.sent
        stream.sink.resume_sending()
        browser.core.end_stream(number)
        settle(browser, service)
        assert len(service.bodies[1]) == 64 * 16_384

    def test_a_visitor_who_does_not_read(self, grpc_world: World) -> None:
        browser, service, number = start(grpc_world, end=True)
        service.respond(1)
        browser.transport.fill_after = 0
        for _ in range(64):
            service.core.send_data(1, bytes(16_384))
        for _ in range(20):
            service.go()
            grpc_world.loop.turn()
        assert browser.protocol.engine.queued(number) <= 256 * 1024
        browser.protocol.resume_writing()
        service.core.end_stream(1)
        settle(browser, service)
        assert len(browser.bodies[number]) == 64 * 16_384


class TestFailures:
    def test_a_silent_call_lives_as_long_as_the_route_allows(self) -> None:
        world = World(make_route(kind="h2c", response_seconds=1000.0))
        browser, service, number = start(world, end=False)
        world.loop.advance(900)
        settle(browser, service)
        assert number not in browser.closed
        world.loop.advance(110)
        settle(browser, service)
        assert browser.heads[number][b":status"] == b"408"

    def test_cancelled_by_the_visitor(self, grpc_world: World) -> None:
        browser, service, number = start(grpc_world, end=False)
        browser.core.reset_stream(number)
        settle(browser, service)
        assert service.closed[1] == 8
        assert not grpc_world.opener.last.closed
        other = browser.get("/again")
        settle(browser, service)
        service.respond(3, end=True)
        settle(browser, service)
        assert browser.heads[other][b":status"] == b"200"

    def test_cancelled_by_the_service(self, grpc_world: World) -> None:
        browser, service, number = start(grpc_world, end=False)
        service.respond(1)
        service.core.send_data(1, b"some")
        settle(browser, service)
        service.core.reset_stream(1, 2)
        settle(browser, service)
        assert browser.bodies[number] == b"some"
        assert browser.closed[number] != 0
        assert number not in browser.ended

    @pytest.mark.parametrize("answered", [True, False])
    def test_a_reset_without_an_error_is_no_end(self, grpc_world: World, answered: bool) -> None:
        browser, service, number = start(grpc_world, end=False)
        if answered:
            service.respond(1)
            service.core.send_data(1, b"some")
            settle(browser, service)
        service.core.reset_stream(1, 0)
        settle(browser, service)
        if answered:
            assert browser.closed[number] != 0
            assert number not in browser.ended
        else:
            assert browser.heads[number][b":status"] == b"502"
        assert not browser.protocol.exchanges

    def test_refused_by_the_service(self, grpc_world: World) -> None:
        browser, service, number = start(grpc_world, end=False)
        service.core.reset_stream(1, 7)
        settle(browser, service)
        assert browser.heads[number][b":status"] == b"502"

    @pytest.mark.parametrize("reason", [Reason.TARGET_RESET, Reason.CONNECTOR_AWAY])
    def test_what_changes_something_is_never_asked_twice(self, grpc_world: World, reason: Reason) -> None:
        """Though the service answered on this connection before."""
        browser, service, _ = start(grpc_world, end=True)
        service.respond(1, end=True)
        settle(browser, service)
        methods = (b"GET", b"POST", b"PUT", b"DELETE")
        numbers = {method: browser.get("/again", method=method) for method in methods}
        settle(browser, service)
        grpc_world.opener.last.fail(reason)
        browser.go()
        assert len(grpc_world.opener.streams) == 2
        second = Service2(grpc_world.opener.last)
        settle(browser, second)
        assert [head[b":method"] for head in second.heads.values()] == [b"GET"]
        assert all(browser.heads[numbers[method]][b":status"] in (b"502", b"503") for method in methods[1:])

    def test_early_response(self, grpc_world: World) -> None:
        browser, service, number = start(grpc_world, end=False)
        service.respond(1, (b"grpc-status", b"8"), end=True)
        settle(browser, service)
        assert browser.heads[number][b"grpc-status"] == b"8"
        assert browser.resets[number] == 0
        assert not browser.protocol.exchanges
        assert 1 in service.closed

    def test_the_stream_breaks(self, grpc_world: World) -> None:
        browser, service, number = start(grpc_world, end=False)
        service.respond(1)
        settle(browser, service)
        grpc_world.opener.last.fail(Reason.CONNECTOR_AWAY)
        browser.go()
        assert browser.closed[number] != 0
        again = browser.get("/again")
        browser.go()
        assert len(grpc_world.opener.streams) == 2
        assert again not in browser.closed

    def test_not_http2_at_all(self, grpc_world: World) -> None:
        browser = Browser2(grpc_world)
        number = browser.get("/", method=b"POST")
        browser.go()
        grpc_world.opener.last.deliver(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        browser.go()
        assert browser.heads[number][b":status"] == b"502"
        assert grpc_world.opener.last.closed

    def test_goaway(self, grpc_world: World) -> None:
        browser, service, number = start(grpc_world, end=True)
        service.core.send_goaway()
        settle(browser, service)
        service.respond(1, end=True)
        settle(browser, service)
        assert browser.heads[number][b":status"] == b"200"
        browser.get("/next")
        browser.go()
        assert len(grpc_world.opener.streams) == 2

    def test_malformed_response(self, grpc_world: World) -> None:
        browser, service, number = start(grpc_world, end=True)
        service.core.send_response(1, [(b":status", b"200"), (b"connection", b"close")], end_stream=True)
        settle(browser, service)
        assert browser.heads[number][b":status"] == b"502"

    def test_too_many_interim_responses(self, grpc_world: World) -> None:
        browser, service, number = start(grpc_world, end=True)
        for _ in range(2000):
            service.core.send_informational_response(1, [(b":status", b"103")])
        settle(browser, service)
        assert browser.heads[number][b":status"] == b"502"
        assert len(browser.interim) <= 16

    def test_parked(self, grpc_world: World) -> None:
        grpc_world.opener.park = True
        browser = Browser2(grpc_world)
        numbers = [browser.get("/x", method=b"POST", end=False) for _ in range(3)]
        for number in numbers:
            browser.core.send_data(number, b"hello", end_stream=True)
        browser.go()
        assert len(grpc_world.opener.parked) == 1
        service = Service2(grpc_world.opener.unpark())
        settle(browser, service)
        assert list(service.bodies.values()) == [b"hello"] * 3

    def test_parked_and_gone(self, grpc_world: World) -> None:
        grpc_world.opener.park = True
        browser = Browser2(grpc_world)
        number = browser.get("/x")
        browser.go()
        browser.core.reset_stream(number)
        browser.go()
        assert grpc_world.opener.cancelled == 1

    def test_parked_and_refused(self, grpc_world: World) -> None:
        grpc_world.opener.park = True
        browser = Browser2(grpc_world)
        number = browser.get("/x")
        browser.go()
        grpc_world.opener.parked[0][1].stream_refused(Reason.PARK_TIMEOUT, 0.0)
        browser.go()
        assert browser.heads[number][b":status"] == b"503"

    def test_refused_at_once(self, grpc_world: World) -> None:
        grpc_world.opener.refusal = NoStream(Reason.CONNECTOR_AWAY)
        browser = Browser2(grpc_world)
        number = browser.get("/x")
        browser.go()
        assert browser.heads[number][b":status"] == b"503"
        grpc_world.opener.refusal = None
        browser.get("/y")
        browser.go()
        assert len(grpc_world.opener.streams) == 1

    def test_the_visitor_leaves(self, grpc_world: World) -> None:
        browser, _, _ = start(grpc_world, end=False)
        browser.transport.lose()
        grpc_world.loop.advance(5)
        assert not grpc_world.opener.open_streams


class TestHttp1Visitor:
    def test_request_and_response_with_trailers(self, grpc_world: World) -> None:
        protocol, transport = grpc_world.connect()
        protocol.data_received(
            b"POST /x HTTP/1.1\r\nHost: a.example.com\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"5\r\nhello\r\n0\r\nx-t: 1\r\n\r\n"
        )
        grpc_world.loop.turn()
        service = Service2(grpc_world.opener.last)
        service.go()
        assert service.bodies[1] == b"hello"
        assert service.trailers[1] == [(b"x-t", b"1")]
        service.respond(1)
        service.core.send_data(1, b"hi")
        service.core.send_trailers(1, [(b"x-r", b"2")])
        service.go()
        grpc_world.loop.turn()
        assert transport.take() == (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-r: 2\r\n\r\n"
        )
        protocol.data_received(b"GET /y HTTP/1.1\r\nHost: a.example.com\r\n\r\n")
        grpc_world.loop.turn()
        service.go()
        service.respond(3, (b"content-length", b"2"))
        service.core.send_data(3, b"ok", end_stream=True)
        service.go()
        grpc_world.loop.turn()
        assert transport.take() == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
        assert len(grpc_world.opener.streams) == 1

    def test_websocket_is_not_served(self, grpc_world: World) -> None:
        protocol, transport = grpc_world.connect()
        protocol.data_received(
            b"GET /x HTTP/1.1\r\nHost: a.example.com\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        assert transport.take().startswith(b"HTTP/1.1 501 ")
