"""One worker's view of the others: who they are, handing them sockets, asking for ports and numbers.

With `workers = 1` there is nobody else (`Alone`). With more, `Worker` talks to the supervisor over one channel; every
call has the same meaning in both. Messages are in `supervisor.py`, which is the other end.

Invariant: a socket that was handed over is no longer ours, whether or not the other worker is there to take it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
from typing import TYPE_CHECKING, Any, Protocol

from tunnelgw.edge.places import port_name
from tunnelgw.edge.ports import LocalPorts, PortRefused
from tunnelgw.errors import Refused
from tunnelgw.net.handover import Channel
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.net.ledger import CountedSocket
    from tunnelgw.routing.units import PortUnit

log = logging.getLogger(__name__)

GATHER_SECONDS = 5.0  # for numbers of all workers; one that is restarting is left out sooner by the supervisor


class Peers(Protocol):
    """The workers of this edge, as one of them sees them. Also a `ports.PortOpener`."""

    index: int
    count: int

    def hand_over(self, worker: int, sock: CountedSocket) -> bool:
        """Give a tunnel's socket to another worker. False: there is no such worker, and the socket is still ours."""

    async def open_port(self, port: PortUnit) -> socket.socket:
        """As `PortOpener.open_port`."""

    def close_port(self, port: PortUnit) -> None:
        """As `PortOpener.close_port`."""

    async def gather(self) -> list[dict[str, Any]]:
        """The snapshots of all workers, ours included."""


class Alone:
    """`Peers` of an edge with one process."""

    __slots__ = ("_snapshot", "count", "index", "ports")

    def __init__(self, port_bind: str, snapshot: Callable[[], dict[str, Any]]) -> None:
        self.ports = LocalPorts(port_bind)
        self._snapshot = snapshot
        self.index = 0
        self.count = 1

    def hand_over(self, worker: int, sock: CountedSocket) -> bool:  # noqa: ARG002 - nobody else
        return False

    async def open_port(self, port: PortUnit) -> socket.socket:
        return await self.ports.open_port(port)

    def close_port(self, port: PortUnit) -> None:
        self.ports.close_port(port)

    async def gather(self) -> list[dict[str, Any]]:
        return [self._snapshot()]


class Worker:
    """`Peers` of one worker process; `sock` is its end of the supervisor's pair.

    `await start()` returns the listeners. Then `tunnel(descriptor, peer)` is called for tunnels of ours that others
    accepted, `accept()`, `pause()` and `leave()` when the supervisor says so (as the methods of `app.Edge`), and
    `orphaned()` once if the supervisor is gone (the worker should stop as on SIGTERM).
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        *,
        snapshot: Callable[[], dict[str, Any]],
        waiting: Callable[[], int],
        tunnel: Callable[[int, tuple[str, int]], None],
        accept: Callable[[], None],
        pause: Callable[[], None],
        leave: Callable[[], None],
        orphaned: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._snapshot = snapshot
        self._waits = waiting
        self._tunnel = tunnel
        self._pause = pause
        self._orphaned = orphaned
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._setup: asyncio.Future[tuple[list[socket.socket], list[socket.socket]]] = loop.create_future()
        self.index = 0
        self.count = 1
        self._handlers: dict[str, Callable[[dict[str, Any], list[int]], None]] = {
            "setup": self._on_setup,
            "tunnel": self._on_tunnel,
            "port": self._on_port,
            "snapshot": self._on_snapshot,
            "waiting": self._on_waiting,
            "gathered": self._on_gathered,
            "accept": lambda _message, _descriptors: accept(),
            "pause": self._on_pause,
            "leave": lambda _message, _descriptors: leave(),
        }
        self._channel = Channel(loop, sock, received=self._received, closed=self._closed)

    async def start(self) -> tuple[list[socket.socket], list[socket.socket]]:
        """The listeners for TLS and for plain HTTP, made by the supervisor."""
        return await self._setup

    def ready(self) -> None:
        """This worker could serve; `accept` is called when it may."""
        self._channel.send({"op": "ready"})

    def close(self) -> None:
        """Leave; `orphaned` is not called for that."""
        self._orphaned = _nothing
        self._channel.close()

    def hand_over(self, worker: int, sock: CountedSocket) -> bool:
        if not 0 <= worker < self.count or not self._channel.open:
            return False
        peer = sock.peer
        self._channel.send({"op": "relay", "worker": worker, "peer": list(peer)}, [sock.detach()])
        return True  # gone either way: a channel that is stuck has closed it

    async def open_port(self, port: PortUnit) -> socket.socket:
        answer = await self._ask({"op": "open_port", "port": port_name(port)})
        if isinstance(answer, socket.socket):
            return answer
        raise PortRefused(port, str(answer))

    def close_port(self, port: PortUnit) -> None:
        self._channel.send({"op": "close_port", "port": port_name(port)})

    async def gather(self) -> list[dict[str, Any]]:
        snapshots: list[dict[str, Any]] = await self._ask({"op": "gather"})
        return snapshots

    async def _ask(self, message: dict[str, Any]) -> Any:
        number = next(self._ids)
        future = self._waiting[number] = self._loop.create_future()
        self._channel.send({**message, "id": number})
        if not self._channel.open and not future.done():
            future.set_exception(_gone())
        try:
            return await asyncio.wait_for(future, GATHER_SECONDS)
        except TimeoutError:
            raise Refused("the supervisor does not answer", reason=Reason.INTERNAL) from None
        finally:
            del self._waiting[number]

    def _received(self, message: dict[str, Any], descriptors: list[int]) -> None:
        self._handlers[message["op"]](message, descriptors)

    def _closed(self) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(_gone())
        if not self._setup.done():
            self._setup.cancel()
        self._orphaned()

    def _on_setup(self, message: dict[str, Any], descriptors: list[int]) -> None:
        self.index, self.count = message["index"], message["count"]
        sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        split = message["https"]
        self._setup.set_result((sockets[:split], sockets[split:]))

    def _on_tunnel(self, message: dict[str, Any], descriptors: list[int]) -> None:
        host, port = message["peer"]
        self._tunnel(descriptors[0], (host, port))

    def _on_port(self, message: dict[str, Any], descriptors: list[int]) -> None:
        future = self._waiting.get(message["id"])
        if future is None or future.done():
            for descriptor in descriptors:
                os.close(descriptor)
        elif descriptors:
            future.set_result(socket.socket(fileno=descriptors[0]))
        else:
            future.set_result(message["error"])

    def _on_pause(self, message: dict[str, Any], descriptors: list[int]) -> None:  # noqa: ARG002 - the table's shape
        self._pause()
        self._channel.send({"op": "paused"})

    def _on_snapshot(self, message: dict[str, Any], descriptors: list[int]) -> None:  # noqa: ARG002 - the table's shape
        self._channel.send({"op": "snapshot", "id": message["id"], "snapshot": self._snapshot()})

    def _on_waiting(self, message: dict[str, Any], descriptors: list[int]) -> None:  # noqa: ARG002 - the table's shape
        self._channel.send({"op": "snapshot", "id": message["id"], "snapshot": {"waiting": self._waits()}})

    def _on_gathered(self, message: dict[str, Any], descriptors: list[int]) -> None:  # noqa: ARG002 - the table's shape
        future = self._waiting.get(message["id"])
        if future is not None and not future.done():
            future.set_result(message["snapshots"])


def _gone() -> Refused:
    return Refused("the supervisor is gone", reason=Reason.EDGE_STOPPING)


def _nothing() -> None:
    """For a callback that has no more meaning."""
