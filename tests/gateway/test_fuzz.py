"""Whatever a visitor or a service sends, in whatever pieces: no exception, no stream left, every byte credited."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.fakes import Browser2, World, make_route
from tunnelgw.obs.reasons import Reason

REQUESTS = [
    b"GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a.example.com\r\nContent-Length: 5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: a.example.com\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nx-t: 1\r\n\r\n",
    b"PUT / HTTP/1.1\r\nHost: a.example.com\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nok",
    b"GET /ws HTTP/1.1\r\nHost: a.example.com\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: a.example.com\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: b.example.com\r\n\r\n",
    b"\r\n",
]
ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-r: 1\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\nuntil close",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nbytes",
    b"HTTP/1.1 413 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
]
EVENTS = ["end", "fail", "pause", "resume", "full", "drained", "turn", "wait", "park", "unpark", "eof"]
junk = st.binary(max_size=30)
piece = st.integers(1, 60)
STEP = st.one_of(
    st.tuples(st.just("visitor"), st.one_of(st.sampled_from(REQUESTS), junk), piece),
    st.tuples(st.just("service"), st.one_of(st.sampled_from(ANSWERS), junk), piece),
    st.tuples(st.sampled_from(EVENTS), st.just(b""), piece),
)  # fmt: skip


def apply(world: World, protocol, transport, what: str, data: bytes, size: int) -> None:
    streams = [stream for stream in world.opener.open_streams if not stream.peer_finished]
    if what == "visitor" and not transport.lost and not transport.ended:
        for start in range(0, len(data), size):
            if not transport.is_closing():
                protocol.data_received(data[start : start + size])
    elif what == "service" and streams:
        streams[-1].deliver(data, step=size)
    elif what == "end" and streams:
        streams[-1].end()
    elif what == "fail" and streams:
        streams[-1].fail(Reason.TARGET_RESET)
    elif what in ("pause", "resume") and streams:
        getattr(streams[-1].sink, f"{what}_sending")()
    elif what == "full" and not transport.is_closing():
        protocol.pause_writing()
    elif what == "drained" and not transport.is_closing():
        protocol.resume_writing()
    elif what == "park":
        world.opener.park = True
    elif what == "unpark":
        world.opener.park = False
        while world.opener.parked:
            world.opener.unpark()
    elif what == "eof" and not transport.is_closing() and not transport.ended:
        transport.ended = True
        if not protocol.eof_received():
            transport.close()
    elif what == "wait":
        world.loop.advance(size)
    world.loop.turn()
    if transport.is_closing():
        transport.lose()


def settle(world: World, protocol, transport) -> None:
    transport.lose()
    world.loop.turn()
    world.loop.advance(10)
    assert not world.opener.open_streams
    assert not world.opener.parked
    assert not world.gateway.connections
    assert not protocol.pool._kept


@given(st.lists(STEP, max_size=14), st.booleans())
def test_http1(steps: list[tuple[str, bytes, int]], tls: bool) -> None:
    world = World(make_route(plain_http=True))
    protocol, transport = world.connect(tls=tls)
    for step in steps:
        apply(world, protocol, transport, *step)
    settle(world, protocol, transport)


@given(st.lists(STEP, max_size=10), st.lists(st.sampled_from(["get", "post", "data", "end", "reset"]), max_size=12))
def test_http2(steps: list[tuple[str, bytes, int]], actions: list[str]) -> None:
    world = World(make_route())
    browser = Browser2(world)
    numbers: list[int] = []
    for action in actions:
        if action in ("get", "post"):
            numbers.append(browser.get("/", method=action.upper().encode(), end=action == "get"))
        elif numbers:
            try:
                if action == "data":
                    browser.core.send_data(numbers[-1], b"data")
                elif action == "end":
                    browser.core.end_stream(numbers[-1])
                else:
                    browser.core.reset_stream(numbers[-1])
            except Exception:
                continue
        if not browser.transport.is_closing():
            browser.go()
        if steps:
            what, data, size = steps.pop()
            if what != "visitor":
                apply(world, browser.protocol, browser.transport, what, data, size)
    for what, data, size in steps:
        if not browser.transport.is_closing():
            apply(world, browser.protocol, browser.transport, what, data, size)
    settle(world, browser.protocol, browser.transport)
    assert not browser.protocol.exchanges
    assert not browser.protocol.unsettled


@given(st.lists(piece, min_size=1, max_size=20))
def test_pieces_make_no_difference(sizes: list[int]) -> None:
    def run(cuts: list[int]) -> tuple[bytes, bytes]:
        world = World()
        world.gateway._prefix = b"id-"
        protocol, transport = world.connect()
        for request in (REQUESTS[0], REQUESTS[1], REQUESTS[3], REQUESTS[0]):
            start = index = 0
            while start < len(request):
                size = cuts[index % len(cuts)]
                protocol.data_received(request[start : start + size])
                start += size
                index += 1
            world.opener.last.deliver(ANSWERS[0], step=cuts[0])
            world.loop.turn()
        assert len(world.opener.streams) == 1
        return world.opener.last.take(), transport.take()

    assert run(sizes) == run([10_000])
