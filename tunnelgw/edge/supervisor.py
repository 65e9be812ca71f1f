"""The process above several workers: makes what must be made once, keeps the workers alive, carries between them.

Messages over one channel per worker (JSON, descriptors beside them):

    to a worker                                   from a worker
    setup {index, count, https} + listeners       ready
    accept; pause; leave                          paused
    tunnel {peer} + socket                        relay {worker, peer} + socket
    port {id, error} or {id} + listener           open_port {id, port}, close_port {port}
    snapshot {id}                                 snapshot {id, snapshot}
    waiting {id}                                  snapshot {id, {waiting}}
    gathered {id, snapshots}                      gather {id}

Invariants: a listening socket is bound once and outlives every worker, so a restart loses no connection; a public port
is open here exactly as long as some worker holds it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import TYPE_CHECKING, Any

from tunnelgw.edge.places import port_named
from tunnelgw.edge.ports import LocalPorts, PortRefused
from tunnelgw.errors import LocalError
from tunnelgw.net.handover import Channel, channel_pair
from tunnelgw.net.tasks import spawn

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Sequence

    from tunnelgw.routing.units import PortUnit

log = logging.getLogger(__name__)

BACKOFF_SECONDS = (0.2, 30.0)  # first and longest wait before a crashed worker is started again
STEADY_SECONDS = 60.0  # a worker that lived this long starts with the first wait again
SNAPSHOT_SECONDS = 2.0  # a worker that does not answer by then is left out of the numbers
STOP_SECONDS = 60.0  # a worker's own grace for streams in flight is shorter
PAUSE_SECONDS = 2.0  # a worker that is too busy to answer by then accepts what it has seen already


class _Process:
    """One worker's process and its channel."""

    __slots__ = ("channel", "index", "paused", "process", "ready", "reload", "restarts")

    def __init__(self, index: int) -> None:
        self.index = index
        self.process: asyncio.subprocess.Process | None = None
        self.channel: Channel | None = None
        self.ready = False
        self.reload = False  # asked for while it was starting
        self.paused = asyncio.Event()
        self.restarts = 0


class _Gathering:
    """Snapshots being collected: answered once all are in."""

    __slots__ = ("done", "missing", "snapshots")

    def __init__(self, missing: set[int], done: asyncio.Future[None]) -> None:
        self.missing = missing
        self.snapshots: list[dict[str, Any]] = []
        self.done = done


class Supervisor:
    """`command(index, descriptor)` is the worker's command line; the descriptor is its end of the channel.

    `await start()` returns when every worker could serve; `accept()` lets visitors in, `await pause()` nobody until
    `accept`, `leave()` nobody ever: then `await drained()` returns when the workers have ended by themselves.
    `reload()` and `await stop()` pass signals on.
    """

    def __init__(
        self,
        count: int,
        *,
        https: Sequence[socket.socket],
        http: Sequence[socket.socket],
        port_bind: str,
        command: Callable[[int, int], Sequence[str]],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._workers = [_Process(index) for index in range(count)]
        self._https = tuple(https)
        self._http = tuple(http)
        self.ports = LocalPorts(port_bind)
        self._command = command
        self._accepting = self._leaving = False
        self._ports: dict[PortUnit, tuple[socket.socket, set[int]]] = {}
        self._gatherings: dict[int, _Gathering] = {}
        self._next = 0
        self._keepers: list[asyncio.Task[None]] = []
        self._stop_asked: asyncio.Future[None] = self._loop.create_future()
        self._all_ready: asyncio.Future[None] = self._loop.create_future()

    @property
    def restarts(self) -> int:
        """How often a worker had to be started again."""
        return sum(worker.restarts for worker in self._workers)

    def pids(self) -> list[int]:
        """The workers' processes that run now."""
        return [worker.process.pid for worker in self._workers if worker.process is not None]

    async def start(self) -> None:
        """Start every worker; return when all could serve. LocalError if one ends before that; then none is left."""
        self._keepers = [spawn(self._keep(worker), name=f"worker {worker.index}") for worker in self._workers]
        try:
            await asyncio.shield(self._all_ready)
        except LocalError:
            await self.stop()
            raise

    def accept(self) -> None:
        """Let visitors in, for the first time or again."""
        self._accepting = True
        for worker in self._workers:
            if worker.ready:
                self._send(worker, {"op": "accept"})

    async def pause(self) -> None:
        """Accept nobody for a moment; return when no worker does."""
        self._accepting = False
        asked = []
        for worker in self._workers:
            worker.paused.clear()
            if worker.ready and self._send(worker, {"op": "pause"}):
                asked.append(spawn(worker.paused.wait(), name="pause"))
        if asked:
            _, late = await asyncio.wait(asked, timeout=PAUSE_SECONDS)
            for task in late:
                task.cancel()

    def leave(self) -> None:
        """Another process accepts on these listeners from now on: the workers end when nothing is in progress."""
        self._leaving = True
        self._close_listeners()
        for worker in self._workers:
            if worker.ready:
                self._send(worker, {"op": "leave"})
            elif worker.process is not None:
                worker.process.terminate()  # it has nobody yet

    async def drained(self) -> None:
        """Return when every worker has ended."""
        await asyncio.wait(self._keepers)

    def listeners(self) -> dict[PortUnit, socket.socket]:
        """The raw ports that are open."""
        return {port: listener for port, (listener, _) in self._ports.items()}

    def _close_listeners(self) -> None:
        for sock in (*self._https, *self._http):
            sock.close()  # as each worker does: a visitor is refused, not left in a queue that nobody empties
        self.ports.forget()

    def reload(self) -> None:
        """Every worker reads its configuration again; one that is starting, and would die of SIGHUP, once it serves."""
        for worker in self._workers:
            worker.reload = not worker.ready
            if worker.ready and worker.process is not None and worker.process.returncode is None:
                worker.process.send_signal(signal.SIGHUP)

    async def stop(self) -> None:
        """Close the listeners; every worker ends in its own order, after `STOP_SECONDS` it is killed."""
        if not self._stop_asked.done():
            self._stop_asked.set_result(None)
        self._close_listeners()
        self._signal(signal.SIGTERM)
        if self._keepers:
            _, late = await asyncio.wait(self._keepers, timeout=STOP_SECONDS)
            if late:
                self._signal(signal.SIGKILL)
                await asyncio.wait(late)
        for listener, _ in self._ports.values():
            listener.close()
        self._ports.clear()

    async def waiting(self) -> int:
        """As `Connectors.waiting`, of all workers."""
        return sum(one["waiting"] for one in await self.gather("waiting"))

    async def gather(self, op: str = "snapshot") -> list[dict[str, Any]]:
        """The snapshots of all workers that answer in time, or their answers to `op`."""
        number = self._next = self._next + 1
        asked = {worker.index for worker in self._workers if self._send(worker, {"op": op, "id": number})}
        gathering = self._gatherings[number] = _Gathering(asked, self._loop.create_future())
        if asked:
            await asyncio.wait([gathering.done], timeout=SNAPSHOT_SECONDS)
        del self._gatherings[number]
        return gathering.snapshots

    # Processes.

    def _signal(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.process is not None and worker.process.returncode is None:
                worker.process.send_signal(number)

    async def _keep(self, worker: _Process) -> None:
        """Run one worker until we stop, again and again."""
        wait = BACKOFF_SECONDS[0]
        while True:
            started = self._loop.time()
            code = await self._run(worker)
            if self._stop_asked.done() or self._leaving:
                return
            if not self._all_ready.done():
                self._all_ready.set_exception(LocalError(f"worker {worker.index} ended with {code} before it served"))
                return
            worker.restarts += 1
            if self._loop.time() - started > STEADY_SECONDS:
                wait = BACKOFF_SECONDS[0]
            log.error("worker %d ended with %d; started again in %.1f s", worker.index, code, wait)
            await asyncio.wait([self._stop_asked], timeout=wait)
            if self._stop_asked.done() or self._leaving:
                return
            wait = min(wait * 2, BACKOFF_SECONDS[1])

    async def _run(self, worker: _Process) -> int:
        try:
            ours, theirs = channel_pair()
        except OSError as error:
            log.error("worker %d cannot be started: %s", worker.index, error)
            return 1
        try:
            worker.process = await asyncio.create_subprocess_exec(
                *self._command(worker.index, theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C on a terminal reaches us alone, and each worker once, through us
            )
        except OSError as error:
            log.error("worker %d cannot be started: %s", worker.index, error)
            ours.close()
            return 1
        finally:
            theirs.close()
        channel = worker.channel = Channel(
            self._loop,
            ours,
            received=lambda message, descriptors: self._received(worker, message, descriptors),
            closed=lambda: None,
        )
        stopping = (
            self._stop_asked.done() or self._leaving
        )  # the listeners are closed then, and SIGTERM may have come too early for it
        listeners: list[int] = []
        if stopping:
            worker.process.terminate()
        else:
            try:
                listeners = copies((*self._https, *self._http))
            except OSError as error:
                log.error("worker %d cannot be given its listeners: %s", worker.index, error)
                worker.process.kill()
        setup = {"op": "setup", "index": worker.index, "count": len(self._workers), "https": len(self._https)}
        channel.send(setup, listeners)
        code = await worker.process.wait()
        worker.process = None
        worker.channel = None
        worker.ready = False
        channel.close()
        self._forget(worker)
        return code

    def _forget(self, worker: _Process) -> None:
        """A worker is gone: its ports and its numbers."""
        for port in tuple(self._ports):
            self._release(worker, port)
        for gathering in self._gatherings.values():
            self._answered(gathering, worker)

    # Messages.

    def _send(self, worker: _Process, message: dict[str, Any], descriptors: list[int] | None = None) -> bool:
        if worker.channel is None:
            _close(descriptors or [])
            return False
        return worker.channel.send(message, descriptors)

    def _received(self, worker: _Process, message: dict[str, Any], descriptors: list[int]) -> None:
        match message["op"]:
            case "ready":
                worker.ready = True
                if self._accepting:
                    self._send(worker, {"op": "accept"})
                if worker.reload:
                    self._reload_late(worker)
                if all(each.ready for each in self._workers) and not self._all_ready.done():
                    self._all_ready.set_result(None)
            case "paused":
                worker.paused.set()
            case "relay":
                self._relay(self._workers[message["worker"]], message["peer"], descriptors)
            case "open_port":
                self._open(worker, message["id"], port_named(message["port"]))
            case "close_port":
                self._release(worker, port_named(message["port"]))
            case "snapshot":
                gathering = self._gatherings.get(message["id"])
                if gathering is not None:
                    gathering.snapshots.append(message["snapshot"])
                    self._answered(gathering, worker)
            case "gather":
                spawn(self._gather_for(worker, message["id"]), name="gather")

    def _reload_late(self, worker: _Process) -> None:
        worker.reload = False
        if worker.process is not None:
            worker.process.send_signal(signal.SIGHUP)

    def _relay(self, worker: _Process, peer: list[Any], descriptors: list[int]) -> None:
        """A tunnel for a worker that is starting is closed: its connector dials again."""
        if worker.ready:
            self._send(worker, {"op": "tunnel", "peer": peer}, descriptors)
        else:
            _close(descriptors)

    def _open(self, worker: _Process, number: int, port: PortUnit) -> None:
        held = self._ports.get(port)
        if held is None:
            try:
                held = self._ports[port] = (self.ports.take(port), set())
            except PortRefused as refusal:
                self._send(worker, {"op": "port", "id": number, "error": refusal.cause})
                return
        listener, holders = held
        try:
            descriptors = copies((listener,))
        except OSError as error:
            if not holders:
                listener.close()
                del self._ports[port]
            self._send(worker, {"op": "port", "id": number, "error": str(error.strerror)})
            return
        holders.add(worker.index)
        self._send(worker, {"op": "port", "id": number}, descriptors)

    def _release(self, worker: _Process, port: PortUnit) -> None:
        held = self._ports.get(port)
        if held is None:
            return
        listener, holders = held
        holders.discard(worker.index)
        if not holders:
            listener.close()
            del self._ports[port]

    def _answered(self, gathering: _Gathering, worker: _Process) -> None:
        gathering.missing.discard(worker.index)
        if not gathering.missing and not gathering.done.done():
            gathering.done.set_result(None)

    async def _gather_for(self, worker: _Process, number: int) -> None:
        self._send(worker, {"op": "gathered", "id": number, "snapshots": await self.gather()})


def copies(socks: Iterable[socket.socket]) -> list[int]:
    """A descriptor more for each of these, all or none. Raises OSError."""
    made: list[int] = []
    try:
        made.extend(os.dup(sock.fileno()) for sock in socks)
    except OSError:
        _close(made)
        raise
    return made


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
