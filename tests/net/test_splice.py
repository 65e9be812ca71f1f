"""The splice: bytes, pauses, ends and resets in both directions, and the credit rule."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tunnelgw.net.loop import loop_factory
from tunnelgw.net.splice import Splice
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire.stream import HIGH_WATER


class FakeStream:
    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.finished = False
        self.reset_with: Reason | None = None
        self.credited = 0
        self.queued = 0

    @property
    def closed(self) -> bool:
        return self.reset_with is not None

    def write(self, data: bytes) -> None:
        assert not self.finished
        self.written.append(data)

    def hurry(self) -> None:
        pass

    def lend(self, data: memoryview) -> None:
        self.write(bytes(data))

    def finish(self) -> None:
        assert not self.finished
        self.finished = True

    def reset(self, reason: Reason) -> None:
        self.reset_with = self.reset_with or reason

    def consumed(self, count: int) -> None:
        self.credited += count


class FakeTransport(asyncio.Transport):
    def __init__(self, *, half_close: bool = True) -> None:
        super().__init__()
        self.half_close = half_close
        self.written: list[bytes] = []
        self.calls: list[str] = []

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.calls.append("limits")

    def can_write_eof(self) -> bool:
        return self.half_close

    def write(self, data: bytes) -> None:
        assert not {"close", "abort", "eof"} & set(self.calls)
        self.written.append(data)

    def write_eof(self) -> None:
        self.calls.append("eof")

    def close(self) -> None:
        self.calls.append("close")

    def abort(self) -> None:
        self.calls.append("abort")

    def pause_reading(self) -> None:
        self.calls.append("pause")

    def resume_reading(self) -> None:
        self.calls.append("resume")


def arrive(splice: Splice, data: bytes) -> None:
    """Bytes from the transport's peer, as a loop hands them over."""
    splice.get_buffer(-1)[: len(data)] = data
    splice.buffer_updated(len(data))


def joined(**options: bool) -> tuple[Splice, FakeStream, FakeTransport]:
    stream, transport = FakeStream(), FakeTransport(**options)
    splice = Splice(stream)
    splice.connection_made(transport)
    return splice, stream, transport


def test_bytes_and_credit() -> None:
    splice, stream, transport = joined()
    splice.stream_data(b"abc")
    assert transport.written == [b"abc"]
    assert stream.credited == 3
    splice.pause_writing()
    splice.stream_data(b"defg")
    assert stream.credited == 3  # accepted, but not while unpaused
    splice.resume_writing()
    assert stream.credited == 7
    arrive(splice, b"xy")
    assert stream.written == [b"xy"]
    assert (splice.sent, splice.received) == (7, 2)


def test_early_bytes_follow_the_first_ones() -> None:
    stream, transport = FakeStream(), FakeTransport()
    splice = Splice(stream, first=b"PROXY\r\n")
    splice.stream_data(b"early")
    assert stream.credited == 0
    splice.stream_finished()
    splice.connection_made(transport)
    assert transport.written == [b"PROXY\r\n", b"early"]
    assert stream.credited == 5
    assert transport.calls[-1] == "eof"


def test_half_close_both_ways() -> None:
    splice, stream, transport = joined()
    assert splice.eof_received() is True
    assert stream.finished
    splice.stream_data(b"late answer")
    assert transport.written == [b"late answer"]
    splice.stream_finished()
    assert transport.calls[-1] == "close"
    splice.connection_lost(None)
    assert stream.reset_with is None


def test_tls_has_no_half_close() -> None:
    splice, _stream, transport = joined(half_close=False)
    splice.stream_finished()
    assert transport.calls[-1] == "close"


def test_transport_lost_resets_the_stream() -> None:
    splice, stream, _transport = joined()
    splice.connection_lost(ConnectionResetError())
    assert stream.reset_with is Reason.CANCELLED


def test_reset_aborts_the_transport() -> None:
    splice, _stream, transport = joined()
    splice.stream_reset(Reason.TARGET_RESET)
    assert transport.calls[-1] == "abort"


def test_reset_after_the_end_lets_bytes_drain() -> None:
    splice, _stream, transport = joined()
    splice.stream_data(b"all of it")
    splice.stream_finished()
    splice.stream_reset(Reason.CANCELLED)
    assert transport.calls[-1] == "close"


def test_a_peer_that_sent_all_and_left() -> None:
    splice, stream, transport = joined()
    arrive(splice, b"upload")
    splice.eof_received()
    stream.queued = 6
    splice.connection_lost(None)
    splice.stream_data(b"nobody reads this")
    assert stream.reset_with is None  # the upload still waits in the stream
    assert stream.credited == 17
    stream.queued = 0
    splice.stream_data(b"nor this")
    assert stream.reset_with is Reason.CANCELLED
    assert transport.written == []


def test_pauses_are_passed_on_once() -> None:
    splice, _stream, transport = joined()
    splice.pause_sending()
    splice.pause_sending()
    splice.resume_sending()
    splice.resume_sending()
    assert transport.calls.count("pause") == 1
    assert transport.calls.count("resume") == 1


def test_end_is_told_once() -> None:
    ends: list[tuple[int, int]] = []
    splice = Splice(FakeStream(), on_end=lambda sent, received: ends.append((sent, received)))
    splice.connection_made(FakeTransport())
    splice.stream_data(b"abc")
    splice.stream_reset(Reason.CANCELLED)
    splice.connection_lost(None)
    assert ends == [(3, 0)]


@pytest.mark.parametrize("require_uvloop", [True])
def test_paused_before_the_connection_is_up(require_uvloop: bool) -> None:
    """uvloop ignores pause_reading() inside connection_made on plain TCP: a pause that came first must still hold."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        stream = FakeStream()
        ended = asyncio.Event()
        splice = Splice(stream, on_end=lambda _sent, _received: ended.set())
        splice.pause_sending()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        await loop.create_connection(lambda: splice, sock=ours)
        await asyncio.sleep(0)  # one turn of the loop: the pause is in force
        await loop.sock_sendall(nonblocking(theirs), b"x" * 1000)
        for _ in range(5):
            await asyncio.sleep(0)
        assert stream.written == []
        splice.resume_sending()
        async with asyncio.timeout(5):
            while not stream.written:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert b"".join(stream.written) == b"x" * 1000
        splice.stream_reset(Reason.CANCELLED)
        theirs.close()
        async with asyncio.timeout(5):
            await ended.wait()
        await asyncio.sleep(0.01)  # uvloop closes the descriptor in a later turn

    with asyncio.Runner(loop_factory=loop_factory(require_uvloop=require_uvloop)) as runner:
        runner.run(run())


@pytest.mark.parametrize("require_uvloop", [True, False])
def test_a_reset_arrives_as_a_reset(require_uvloop: bool) -> None:
    """An orderly end would tell the peer that it has everything."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        splice = Splice(FakeStream(), on_end=lambda _sent, _received: ended.set())
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = nonblocking(socket.create_connection(listener.getsockname()))
            ours = nonblocking(listener.accept()[0])
        await loop.create_connection(lambda: splice, sock=ours)
        splice.stream_data(b"some of it")
        assert await loop.sock_recv(theirs, 100) == b"some of it"
        splice.stream_reset(Reason.TARGET_RESET)
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(5):
                await loop.sock_recv(theirs, 100)
        theirs.close()
        async with asyncio.timeout(5):
            await ended.wait()
        await asyncio.sleep(0.01)  # uvloop closes the descriptor in a later turn

    with asyncio.Runner(loop_factory=loop_factory(require_uvloop=require_uvloop)) as runner:
        runner.run(run())


def nonblocking(sock: socket.socket) -> socket.socket:
    sock.setblocking(False)
    return sock


def test_a_stream_that_waits_is_read_in_smaller_pieces() -> None:
    """One large read is the most that it holds, whichever way it came to stand still."""
    stream = FakeStream()
    splice = Splice(stream)
    free = len(splice.get_buffer(-1))
    stream.queued = 1
    assert len(splice.get_buffer(-1)) + HIGH_WATER <= free


def test_what_came_for_a_transport_that_never_was_is_given_back() -> None:
    stream = FakeStream()
    splice = Splice(stream)
    splice.stream_data(b"early")
    assert stream.credited == 0
    splice.let_go()
    splice.let_go()
    assert stream.credited == 5
