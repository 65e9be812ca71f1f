"""The last sink of a stream: whatever the other side does, nothing of it stays."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.gateway.fakes import FakeLoop
from tests.wire.wirepair import Pair
from tunnelgw.gateway.farewell import say_farewell
from tunnelgw.net.timers import Wheel
from tunnelgw.obs.reasons import Reason


@pytest.mark.parametrize("ends", [True, False])
def test_what_its_last_reader_held_is_given_back(ends: bool) -> None:
    pair, loop = Pair(held=True), FakeLoop()
    stream, _ = pair.home.open(held=True)
    stream.write(b"hello")
    pair.run()
    (far,) = pair.edge.handler.sinks.values()
    assert far.stream is not None
    far.stream.write(b"held by a reader who is gone")
    pair.run()
    assert stream.unread
    gateway = SimpleNamespace(wheel=Wheel(loop), time=loop.time)  # type: ignore[arg-type]
    say_farewell(stream, gateway)  # type: ignore[arg-type]
    pair.run()
    assert far.finished
    if ends:
        far.stream.consumed(far.stream.unread)
        far.stream.finish()
    else:
        loop.now += 10.0
        for handle in list(loop.later):
            handle.call(*handle.args)
    pair.run()
    for end in (pair.home, pair.edge):
        assert not end.session.streams
        assert end.session.buffered == end.budget.used == 0
    assert far.reason is (None if ends else Reason.CANCELLED)
