"""Messages and descriptors between processes: whole, in order, and nobody leaks one."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from typing import Any

from tunnelgw.net.handover import MAX_DESCRIPTORS, PACKET, Channel, channel_pair


class End:
    """A channel that keeps what came."""

    def __init__(self, sock: socket.socket) -> None:
        self.came: asyncio.Queue[tuple[dict[str, Any], list[int]]] = asyncio.Queue()
        self.closed = asyncio.Event()
        self.channel = Channel(
            asyncio.get_running_loop(),
            sock,
            received=lambda message, descriptors: self.came.put_nowait((message, descriptors)),
            closed=self.closed.set,
        )


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_listener_travels_and_works() -> None:
    async def main() -> None:
        one, two = (End(sock) for sock in channel_pair())
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = listener.getsockname()
            assert one.channel.send({"op": "x"}, [os.dup(listener.fileno())])
        message, descriptors = await asyncio.wait_for(two.came.get(), 5)
        assert message == {"op": "x"}
        with socket.socket(fileno=descriptors[0]) as moved, socket.create_connection(address, timeout=5):
            moved.accept()[0].close()
        two.channel.close()
        await asyncio.wait_for(one.closed.wait(), 5)
        one.channel.close()
        assert not one.channel.send({"op": "late"}, [os.dup(0)])

    gc.collect()  # of other tests
    before = open_descriptors()
    asyncio.run(main())
    assert open_descriptors() == before


def test_long_messages_and_full_queues_keep_order() -> None:
    async def main() -> None:
        one, two = (End(sock) for sock in channel_pair())
        texts = ["x" * size for size in (0, 1, PACKET, 5 * PACKET + 3, 400_000, 7)]
        for text in texts:
            one.channel.send({"text": text}, [os.dup(0)])
        for text in texts:
            message, descriptors = await asyncio.wait_for(two.came.get(), 5)
            assert message == {"text": text}
            assert len(descriptors) == 1
            os.close(descriptors[0])
        one.channel.close()
        two.channel.close()

    gc.collect()  # of other tests
    before = open_descriptors()
    asyncio.run(main())
    assert open_descriptors() == before


def test_descriptors_of_a_dead_channel_and_of_a_broken_message_are_closed() -> None:
    async def main() -> None:
        ours, theirs = channel_pair()
        one = End(ours)
        socket.send_fds(theirs, [b".not json"], [0])
        await asyncio.wait_for(one.closed.wait(), 5)
        theirs.close()
        one, two = (End(sock) for sock in channel_pair())
        asyncio.get_running_loop().remove_reader(two.channel._sock.fileno())  # type: ignore[union-attr]
        for _ in range(500):
            one.channel.send({"text": "x" * PACKET}, [os.dup(0)])
        one.channel.close()
        two.channel.close()

    gc.collect()  # of other tests
    before = open_descriptors()
    asyncio.run(main())
    assert open_descriptors() == before


def test_as_many_descriptors_as_allowed() -> None:
    async def main() -> None:
        one, two = (End(sock) for sock in channel_pair())
        one.channel.send({}, [os.dup(0) for _ in range(MAX_DESCRIPTORS)])
        _, descriptors = await asyncio.wait_for(two.came.get(), 5)
        assert len(descriptors) == MAX_DESCRIPTORS
        for descriptor in descriptors:
            os.close(descriptor)
        one.channel.close()
        two.channel.close()

    asyncio.run(main())
