"""Two streams joined: bytes, credit, ends and resets pass through, whichever comes first."""

from __future__ import annotations

import random

import pytest

from tests.net.test_pair import Sink
from tunnelgw.net.pair import stream_pair
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire.relay import Relay


class Joined:
    """visitor ↔ near ─ relay ─ far ↔ home; each arrow is a pair of ends."""

    def __init__(self, *, far: bool = True) -> None:
        self.over = 0
        visitor, self.near = stream_pair()
        home, self.far = stream_pair()
        self.visitor, self.home = Sink(visitor), Sink(home)
        self.relay = Relay(self._over)
        self.relay.join(self.relay.near, self.near)
        if far:
            self.arrive()

    def arrive(self) -> None:
        self.relay.join(self.relay.far, self.far)

    def _over(self) -> None:
        self.over += 1


def data(sink: Sink) -> bytes:
    return b"".join(item for item in sink.heard if isinstance(item, bytes))


def test_bytes_and_ends_each_way() -> None:
    joined = Joined()
    joined.visitor.end.write(b"hello")
    joined.home.end.write(b"welcome")
    joined.visitor.end.finish()
    assert joined.home.heard == [b"hello", "finished"]
    joined.home.end.write(b"still here")
    joined.home.end.finish()
    assert joined.visitor.heard == [b"welcome", b"still here", "finished"]
    assert joined.over == 1


def test_credit_follows_the_bytes() -> None:
    joined = Joined()
    for _ in range(8):
        joined.visitor.end.write(bytes(20_000))
    assert "pause" in joined.visitor.heard, "home reads nothing"
    waiting = joined.visitor.end.queued
    assert waiting > 0
    joined.home.end.consumed(160_000)
    assert joined.visitor.end.queued == 0
    assert joined.visitor.heard[-1] == "resume"


def test_what_comes_before_the_second_stream_waits_uncredited() -> None:
    joined = Joined(far=False)
    joined.visitor.end.write(b"a")
    joined.visitor.end.write(b"b")
    joined.visitor.end.finish()
    assert joined.visitor.end.queued == 2
    joined.arrive()
    assert joined.home.heard == [b"a", b"b", "finished"]
    assert joined.visitor.end.queued == 0


@pytest.mark.parametrize("side", ["visitor", "home"])
def test_a_reset_passes_through(side: str) -> None:
    joined = Joined()
    one, other = (joined.visitor, joined.home) if side == "visitor" else (joined.home, joined.visitor)
    one.end.reset(Reason.STALLED)
    assert other.heard == [Reason.STALLED]
    assert joined.over == 1
    joined.relay.cut(Reason.INTERNAL)
    assert joined.over == 1


def test_a_reset_before_the_second_stream() -> None:
    joined = Joined(far=False)
    joined.visitor.end.write(b"x")
    joined.visitor.end.reset(Reason.CANCELLED)
    assert joined.over == 1


def test_a_cut_ends_both() -> None:
    joined = Joined()
    joined.relay.cut(Reason.REVOKED)
    assert joined.visitor.heard == joined.home.heard == [Reason.REVOKED]
    assert joined.over == 1


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_writes_and_reads(seed: int) -> None:
    rng = random.Random(seed)
    joined = Joined(far=False)
    sent = {"visitor": b"", "home": b""}
    read = {"visitor": 0, "home": 0}
    for step in range(300):
        if step == 20:
            joined.arrive()
        name = rng.choice(("visitor", "home")) if step >= 20 else "visitor"
        sink = getattr(joined, name)
        if rng.random() < 0.5:
            piece = rng.randbytes(rng.randrange(1, 9000))
            sink.end.write(piece)
            sent[name] += piece
        else:
            count = rng.randint(0, len(data(sink)) - read[name])
            read[name] += count
            if count:
                sink.end.consumed(count)
    for name, other in (("visitor", "home"), ("home", "visitor")):
        sink = getattr(joined, name)
        while len(data(sink)) > read[name]:
            count = len(data(sink)) - read[name]
            read[name] += count
            sink.end.consumed(count)
        assert data(sink) == sent[other]
    assert joined.near.queued == joined.far.queued == joined.visitor.end.queued == joined.home.end.queued == 0
