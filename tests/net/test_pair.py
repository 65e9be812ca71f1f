"""Two ends of a stream in one process: the contract of a tunnel's stream, without a tunnel."""

from __future__ import annotations

import pytest

from tunnelgw.net.pair import HIGH_WATER, LOW_WATER, End, stream_pair
from tunnelgw.obs.reasons import Reason


class Sink:
    """Writes down what it hears."""

    def __init__(self, end: End) -> None:
        end.sink = self
        self.end = end
        self.heard: list[object] = []

    def stream_data(self, data: bytes) -> None:
        self.heard.append(data)

    def stream_finished(self) -> None:
        self.heard.append("finished")

    def stream_reset(self, reason: Reason) -> None:
        self.heard.append(reason)

    def pause_sending(self) -> None:
        self.heard.append("pause")

    def resume_sending(self) -> None:
        self.heard.append("resume")


def pair() -> tuple[Sink, Sink]:
    near, far = stream_pair()
    return Sink(near), Sink(far)


def test_bytes_and_ends_each_way() -> None:
    near, far = pair()
    near.end.write(b"ab")
    near.end.write(memoryview(b"cd"))
    near.end.write(b"")
    near.end.finish()
    near.end.finish()
    assert far.heard == [b"ab", b"cd", "finished"]
    assert isinstance(far.heard[1], bytes)
    assert not near.end.closed
    far.end.write(b"answer")
    far.end.finish()
    assert near.heard == [b"answer", "finished"]
    assert near.end.closed
    assert far.end.closed
    with pytest.raises(RuntimeError):
        near.end.write(b"late")


def test_a_slow_far_side_pauses_the_writer_until_it_took_its_bytes() -> None:
    near, far = pair()
    near.end.write(bytes(HIGH_WATER))
    assert near.heard == []
    near.end.write(b"x")
    near.end.write(b"y")
    assert near.heard == ["pause"]
    assert near.end.queued == HIGH_WATER + 2
    far.end.consumed(HIGH_WATER + 1 - LOW_WATER)
    assert near.heard == ["pause"]
    far.end.consumed(1)
    assert near.heard == ["pause", "resume"]
    far.end.consumed(LOW_WATER)
    assert near.end.queued == 0
    with pytest.raises(RuntimeError):
        far.end.consumed(1)


@pytest.mark.parametrize("by", ["near", "far"])
def test_after_a_reset_nobody_is_called(by: str) -> None:
    near, far = pair()
    near.end.write(b"ab")
    first, second = (near, far) if by == "near" else (far, near)
    first.end.reset(Reason.CANCELLED)
    second.end.reset(Reason.STALLED)
    heard = [sink.heard.copy() for sink in (near, far)]
    assert second.heard[-1] is Reason.CANCELLED
    assert Reason.CANCELLED not in first.heard
    for end in (near.end, far.end):
        end.write(b"late")
        end.finish()
        end.consumed(2)
        assert end.closed
    assert [near.heard, far.heard] == heard


def test_a_sink_that_resets_while_it_is_called() -> None:
    near, far = pair()
    far.stream_data = lambda data: far.end.reset(Reason.PROTOCOL_ERROR)  # type: ignore[method-assign]
    near.end.write(bytes(HIGH_WATER + 1))
    assert near.heard == [Reason.PROTOCOL_ERROR], "and no pause of what is gone"
