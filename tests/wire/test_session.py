"""Two sessions over a perfect link: what streams, control messages and datagrams promise."""

from __future__ import annotations

from tests.wire.wirepair import Pair


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
