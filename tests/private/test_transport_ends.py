"""A stream as a transport: over a pair of streams in this process, and joined to a socket by a relay."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.connector.athome import LocalService, run, until
from tunnelgw.net.pair import End, stream_pair
from tunnelgw.net.relay import Half, link
from tunnelgw.net.sockets import cut
from tunnelgw.obs.reasons import Reason
from tunnelgw.private import transport as module
from tunnelgw.private.transport import StreamTransport


class Heard(asyncio.Protocol):
    def __init__(self, *, keep: bool = True) -> None:
        self.data = bytearray()
        self.events: list[str] = []
        self.keep = keep
        self.error: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, StreamTransport)
        self.transport = transport
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        self.data += data

    def eof_received(self) -> bool:
        self.events.append("eof")
        return self.keep

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")
        self.error = exc


class Sink:
    """The other end of the pair."""

    def __init__(self, end: End, *, credit: bool = True) -> None:
        self.end = end
        self.data = bytearray()
        self.credit = credit
        self.finished = False
        self.reason: Reason | None = None
        end.sink = self

    def stream_data(self, data: bytes) -> None:
        self.data += data
        if self.credit:
            self.end.consumed(len(data))

    def stream_finished(self) -> None:
        self.finished = True

    def stream_reset(self, reason: Reason) -> None:
        self.reason = reason

    def pause_sending(self) -> None:
        pass

    def resume_sending(self) -> None:
        pass


def made(*, keep: bool = True, credit: bool = True) -> tuple[Heard, StreamTransport, Sink, End]:
    near, far = stream_pair()
    protocol = Heard(keep=keep)
    sink = Sink(far, credit=credit)
    transport = StreamTransport(near, protocol, peer=("nas.lan", 80))
    return protocol, transport, sink, far


async def turns() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_bytes_and_ends_both_ways() -> None:
    async def main() -> None:
        protocol, transport, sink, far = made()
        transport.write(b"a")
        transport.writelines([b"b", bytearray(b"c"), memoryview(b"d")])
        far.write(b"hello")
        assert (bytes(sink.data), bytes(protocol.data)) == (b"abcd", b"hello")
        assert far.queued == 0  # credited
        far.finish()
        assert protocol.events == ["made", "eof"]
        transport.write(b"e")
        transport.write_eof()
        assert sink.data.endswith(b"e")
        assert sink.finished
        transport.write(b"too late")
        transport.close()
        await turns()
        assert protocol.events == ["made", "eof", "lost"]
        assert protocol.error is None

    run(main)


def test_what_was_not_read_is_not_credited() -> None:
    async def main() -> None:
        protocol, transport, _, far = made()
        transport.pause_reading()
        far.write(b"x" * 1000)
        far.finish()
        assert (far.queued, bytes(protocol.data), protocol.events) == (1000, b"", ["made"])
        transport.resume_reading()
        assert (far.queued, len(protocol.data), protocol.events) == (0, 1000, ["made", "eof"])
        transport.abort()
        await turns()

    run(main)


def test_a_protocol_that_keeps_nothing_open_is_closed() -> None:
    async def main() -> None:
        protocol, _, sink, far = made(keep=False)
        far.finish()
        await turns()
        assert protocol.events == ["made", "eof", "lost"]
        assert sink.finished
        assert sink.reason is None

    run(main)


def test_pauses_are_passed_on() -> None:
    async def main() -> None:
        protocol, transport, sink, far = made(credit=False)
        transport.write(bytes(100_000))
        assert protocol.events == ["made", "pause"]
        assert transport.get_write_buffer_size() == 100_000
        far.consumed(len(sink.data))
        assert protocol.events == ["made", "pause", "resume"]
        transport.abort()
        await turns()

    run(main)


def test_resets_both_ways() -> None:
    async def main() -> None:
        protocol, _, _, far = made()
        far.reset(Reason.TARGET_RESET)
        await turns()
        assert isinstance(protocol.error, ConnectionResetError)
        for end in (StreamTransport.abort, cut):
            protocol, transport, sink, _ = made()
            end(transport)
            assert sink.reason is Reason.CANCELLED
            await turns()
            assert protocol.events == ["made", "lost"]

    run(main)


def test_who_closes_waits_for_the_other_half_but_reads_nothing(monkeypatch: Any) -> None:
    async def main() -> None:
        _, transport, sink, far = made()
        transport.close()
        await turns()
        assert sink.finished
        assert sink.reason is None
        far.finish()
        protocol, transport, sink, far = made()
        transport.close()
        far.write(b"nobody reads this")
        assert sink.reason is Reason.CANCELLED
        assert not protocol.data
        monkeypatch.setattr(module, "LINGER_SECONDS", 0.01)
        _, transport, sink, far = made()
        transport.close()
        await until(lambda: sink.reason is Reason.CANCELLED)
        _, transport, sink, far = made()
        transport.pause_reading()
        far.write(b"unread")
        transport.close()
        assert sink.reason is Reason.CANCELLED
        await turns()

    run(main)


def test_joined_to_a_socket_by_a_relay() -> None:
    async def main() -> None:
        service = await LocalService(echo=True).listen()
        near_end, far_end = stream_pair()
        sink = Sink(far_end)
        other = Half()
        StreamTransport(near_end, other, peer=("nas.lan", 80))
        await asyncio.get_running_loop().create_connection(
            lambda: Half(made=lambda half: link(half, other)), "127.0.0.1", service.port
        )
        far_end.write(b"x" * 300_000)
        await until(lambda: len(sink.data) == 300_000)
        assert far_end.queued == 0
        far_end.finish()
        await until(lambda: sink.finished)
        assert sink.reason is None
        service.close()

    run(main)
