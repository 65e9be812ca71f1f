"""Two sessions over a perfect link: what streams, control messages and datagrams promise."""

from __future__ import annotations

import pytest

from tests.wire.wirepair import Pair
from tunnelgw.errors import Refused, RemoteError
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire.stream import PRIVATE_FLOW
from tunnelgw.wire.table import LAST_ID, WORN_ID


def test_bytes_flow_both_ways_and_end_each_way() -> None:
    pair = Pair()
    stream, sink = pair.edge.open()
    stream.write(b"hello ")
    stream.write(memoryview(b"world"))
    pair.run()
    far = pair.home.handler.sinks[1]
    assert far.data == b"hello world"
    assert pair.home.handler.requests[0].service == "web"
    far.stream.write(b"x" * 100_000)
    far.stream.finish()
    pair.run()
    assert sink.data == b"x" * 100_000
    assert sink.finished
    stream.write(b"still open this way")
    stream.finish()
    pair.run()
    assert far.finished
    assert far.data.endswith(b"this way")
    assert stream.closed
    assert pair.edge.session.streams == pair.home.session.streams == {}
    assert pair.edge.budget.used == pair.home.budget.used == 0


def test_what_crosses_a_goaway_is_served_and_nothing_is_opened_after_it() -> None:
    """Who leaves knows by an answer when no OPEN can follow any more; until then every OPEN is as good as ever."""
    pair = Pair()
    pair.run()
    stream, sink = pair.edge.open()
    stream.write(b"GET / HTTP/1.1")
    crossing = pair.edge.pull_all()
    pair.home.session.go_away(Reason.CONNECTOR_STOPPING)
    goodbye = pair.home.pull_all()
    pair.home.session.feed(crossing, 0.0)
    assert pair.home.handler.sinks[1].data == b"GET / HTTP/1.1"
    assert not pair.home.session.out.heard
    pair.edge.session.feed(goodbye, 0.0)
    assert pair.edge.handler.leaving == [Reason.CONNECTOR_STOPPING]
    with pytest.raises(Refused):
        pair.edge.open()
    pair.run()
    assert pair.home.session.out.heard
    pair.home.handler.sinks[1].stream.write(b"served")
    pair.run()
    assert sink.data == b"served"


def test_a_goaway_that_was_lost_with_its_link_is_heard_on_the_next() -> None:
    pair = Pair()
    pair.run()
    pair.home.session.go_away(Reason.CONNECTOR_STOPPING)
    pair.home.pull_all()
    pair.detach()
    assert not pair.home.session.out.heard
    pair.attach()
    pair.run()
    assert pair.home.session.out.heard
    assert pair.edge.handler.leaving == [Reason.CONNECTOR_STOPPING]


def test_datagrams_that_belong_to_a_stream_go_where_it_goes() -> None:
    pair = Pair()
    stream, _ = pair.edge.open()
    pair.run()
    far = pair.home.session.streams[stream.id]
    stream.send_datagram(b"nobody yet", 0.0)
    pair.run()
    assert pair.home.handler.datagrams == [(PRIVATE_FLOW | stream.id, b"nobody yet")]
    got: list[bytes] = []
    back: list[bytes] = []
    far.on_datagram, stream.on_datagram = got.append, back.append
    stream.send_datagram(b"there", 0.0)
    far.send_datagram(b"x" * 60_000, 0.0)  # in fragments
    pair.edge.session.send_datagram(stream.id, b"a flow of that number", 0.0)
    pair.run()
    assert (got, back) == ([b"there"], [b"x" * 60_000])
    assert pair.home.handler.datagrams[1:] == [(stream.id, b"a flow of that number")]
    stream.reset(Reason.CANCELLED)
    stream.send_datagram(b"too late", 0.0)
    far.send_datagram(b"too late, too", 0.0)
    pair.run()
    assert (got, back) == ([b"there"], [b"x" * 60_000])


def test_ids_end_where_the_numbers_of_their_datagrams_would_collide() -> None:
    """`PRIVATE_FLOW` is the bit above; the session's owner hears long before that it needs another one."""
    pair = Pair()
    pair.edge.open()
    pair.run()
    table = pair.edge.session.table
    assert not table.worn
    assert LAST_ID < PRIVATE_FLOW
    table._last_opened = WORN_ID - 1
    pair.edge.open()
    assert table.worn
    table._last_opened = LAST_ID - 3
    last, _ = pair.edge.open()
    assert last.id == LAST_ID - 1
    with pytest.raises(Refused) as caught:
        pair.edge.open()
    assert caught.value.reason is Reason.STREAM_LIMIT
    pair.run()
    got: list[bytes] = []
    pair.home.session.streams[last.id].on_datagram = got.append
    last.send_datagram(b"the last one's", 0.0)
    pair.run()
    assert got == [b"the last one's"]


def test_an_id_beyond_the_last_is_refused() -> None:
    pair = Pair()
    pair.run()
    with pytest.raises(RemoteError, match="OPEN of stream 2147483649"):
        pair.home.session.table.accept(PRIVATE_FLOW + 1)
    pair.home.session.table.accept(LAST_ID - 1)


def test_what_ended_both_ways_outlives_its_session_until_it_is_read() -> None:
    pair = Pair()
    whole, whole_sink = pair.edge.open(held=True)
    half, half_sink = pair.edge.open(held=True)
    whole.finish()
    pair.run()
    for number in (1, 3):
        pair.home.handler.sinks[number].stream.write(b"answer")
        pair.home.handler.sinks[number].stream.finish()
    pair.run()
    session, budget = pair.edge.session, pair.edge.budget
    session.close(Reason.CONNECTOR_AWAY)
    assert half_sink.reason is Reason.CONNECTOR_AWAY, "our half of it was not said to the end"
    assert half.gone
    assert (bytes(whole_sink.data), whole_sink.finished, whole_sink.reason) == (b"answer", True, None)
    assert (budget.used, budget.sessions) == (6, {session})
    assert whole.linked, "or nobody would end a reader that stands still"
    whole.consumed(2)
    assert budget.used == 4
    whole.consumed(4)
    assert (budget.used, budget.sessions, session.streams) == (0, set(), {})


def test_what_outlives_its_session_can_be_given_up() -> None:
    pair = Pair()
    stream, sink = pair.edge.open(held=True)
    stream.finish()
    pair.run()
    far = pair.home.handler.sinks[1].stream
    far.write(b"answer")
    far.finish()
    pair.run()
    pair.edge.session.close(Reason.CONNECTOR_AWAY)
    stream.shed()
    assert sink.reason is Reason.BUFFER_LIMIT
    assert (pair.edge.budget.used, pair.edge.budget.sessions) == (0, set())


def test_settled_is_when_the_peer_has_all() -> None:
    pair = Pair()
    pair.run()
    assert pair.edge.session.settled
    stream, _ = pair.edge.open()
    stream.write(b"x" * 300_000)
    pair.run()
    pair.pass_time(1.0)
    assert pair.edge.session.settled, "an open stream waits for nobody"
    far = pair.home.handler.sinks[1]
    far.held = True
    stream.write(b"x" * 300_000)
    stream.finish()
    pair.run()
    pair.pass_time(1.0)
    assert stream.queued
    assert not pair.edge.session.settled, "its end waits for a reader"
    far.stream.consumed(far.stream.unread)
    far.held = False
    pair.run()
    assert far.finished
    pair.pass_time(1.0)
    assert pair.edge.session.settled
    stream, _ = pair.edge.open()
    stream.finish()
    pair.run()
    assert not pair.edge.session.settled, "its end was not acknowledged"
    pair.pass_time(1.0)
    assert pair.edge.session.settled
