"""A stream as a transport: what a protocol hears, in order, and what it may hold."""

from __future__ import annotations

import asyncio

from tests.net.test_pair import Sink
from tunnelgw.net.pair import stream_pair
from tunnelgw.obs.reasons import Reason
from tunnelgw.private.transport import StreamTransport


class Protocol(asyncio.Protocol):
    def __init__(self, *, keep: bool = False) -> None:
        self.heard: list[object] = []
        self.keep = keep

    def connection_made(self, transport: object) -> None:
        self.heard.append("made")

    def data_received(self, data: bytes) -> None:
        self.heard.append(data)

    def eof_received(self) -> bool:
        self.heard.append("eof")
        return self.keep

    def connection_lost(self, exc: Exception | None) -> None:
        self.heard.append(type(exc).__name__ if exc else "lost")

    def pause_writing(self) -> None:
        self.heard.append("pause")

    def resume_writing(self) -> None:
        self.heard.append("resume")


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def make(*, keep: bool = False) -> tuple[StreamTransport, Protocol, Sink]:
    near, far = stream_pair()
    protocol = Protocol(keep=keep)
    sink = Sink(far)
    return StreamTransport(near, protocol, peer=("host", 1)), protocol, sink


def test_bytes_ends_and_pauses() -> None:
    async def main() -> None:
        transport, protocol, far = make(keep=True)
        assert transport.get_extra_info("peername") == ("host", 1)
        far.end.write(b"a")
        transport.pause_reading()
        assert not transport.is_reading()
        far.end.write(b"b")
        far.end.finish()
        assert protocol.heard == ["made", b"a"]
        assert far.end.queued == 1
        transport.resume_reading()
        await turn()
        assert protocol.heard == ["made", b"a", b"b", "eof"]
        assert far.end.queued == 0
        transport.writelines([b"x", b"y"])
        transport.write(bytearray(100_000))
        assert protocol.heard[-1] == "pause"
        assert transport.get_write_buffer_size() == 100_002
        far.end.consumed(100_002)
        assert protocol.heard[-1] == "resume"
        transport.write_eof()
        await turn()
        assert protocol.heard[-1] == "lost"
        assert far.heard[-1] == "finished"
        assert transport.is_closing()

    asyncio.run(main())


def test_an_end_closes_unless_it_is_kept() -> None:
    async def main() -> None:
        transport, protocol, far = make()
        far.end.finish()
        await turn()
        assert protocol.heard == ["made", "eof", "lost"]
        assert far.heard == ["finished"]
        transport.write(b"ignored")
        transport.close()
        transport.abort()

    asyncio.run(main())


def test_resets_both_ways() -> None:
    async def main() -> None:
        _, protocol, far = make()
        far.end.reset(Reason.STALLED)
        await turn()
        assert protocol.heard == ["made", "ConnectionResetError"]
        transport, protocol, far = make()
        transport.pause_reading()
        far.end.write(b"unread")
        transport.abort()
        await turn()
        assert far.heard == [Reason.CANCELLED]
        assert protocol.heard == ["made", "lost"]
        transport, protocol, far = make()
        transport.pause_reading()
        far.end.write(b"unread")
        transport.close()
        far.end.write(b"more")
        assert far.end.queued == 0
        await turn()
        assert protocol.heard == ["made", "lost"]

    asyncio.run(main())
