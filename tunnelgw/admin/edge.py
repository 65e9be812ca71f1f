"""Runs an edge with its control socket and its metrics: alone in this process, or several workers below a supervisor.

Both shapes answer the same commands from the same two sources: the store, which every worker follows, and the views
(numbers and report) that the workers give. So a command never needs to know how many workers there are.

Invariant: the control socket is there before the first visitor is accepted and goes last.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from typing import TYPE_CHECKING, Any

from tunnelgw.admin import metrics
from tunnelgw.admin.addresses import public_addresses
from tunnelgw.admin.api import EdgeDesk
from tunnelgw.admin.control import ControlServer
from tunnelgw.admin.crew import Single, Supervised, access_log, logged, reload, view
from tunnelgw.admin.listeners import Listeners, open_listeners
from tunnelgw.admin.takeover import Takeover
from tunnelgw.admin.upgrade import Handover
from tunnelgw.config.files import make_private_folder
from tunnelgw.config.hardening import harden
from tunnelgw.config.load import load_edge
from tunnelgw.edge.app import Edge
from tunnelgw.edge.office import call_child
from tunnelgw.edge.workers import Worker
from tunnelgw.errors import LocalError
from tunnelgw.identity.registry import Registry
from tunnelgw.net import systemd
from tunnelgw.net.loop import run
from tunnelgw.net.tasks import spawn
from tunnelgw.net.watch import FileWatch
from tunnelgw.obs.snapshot import empty, merge
from tunnelgw.store.sqlite import FILE_NAME, SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

    from tunnelgw.admin.shapes import PrivateService, PublicAddress, RefusedService
    from tunnelgw.config.model import EdgeConfig
    from tunnelgw.obs.snapshot import ProcessSnapshot

log = logging.getLogger(__name__)


def run_edge(config: EdgeConfig, *, upgrade: bool) -> None:
    """Serve until SIGTERM or SIGINT; prints one line, `ready` and the addresses. LocalError where it cannot begin.

    `upgrade`: take over from the edge that runs on the same state.
    """
    harden()
    make_private_folder(config.state_dir)
    run(lambda: _lead(config, upgrade=upgrade), require_uvloop=True)


def run_worker(path: Path, descriptor: int) -> None:
    """One worker of several; the supervisor is at the other end of `descriptor`."""
    harden()
    config = load_edge(path)
    run(lambda: _work(config, descriptor), require_uvloop=True)


async def _lead(config: EdgeConfig, *, upgrade: bool) -> None:
    """The process that the operator started."""
    loop = asyncio.get_running_loop()
    stopping = _stop_event(loop)
    async with contextlib.AsyncExitStack() as stack:
        # First, to be the last to go: the process before hears what went wrong here, and may need us until it ends.
        before = await stack.enter_async_context(Takeover(config.state_dir, stopping=stopping)) if upgrade else None
        store = _open_store(config.state_dir)
        stack.callback(store.close)
        listeners = open_listeners(config, before.listeners if before is not None else Listeners())
        stack.callback(listeners.close)
        crew = Supervised(config, store) if config.workers > 1 else Single(config, store)
        operator = _Operator(crew, store)
        control = ControlServer(config.state_dir, operator.handle)
        numbers = None
        if listeners.metrics is not None:
            numbers = metrics.MetricsServer(listeners.metrics, snapshot=crew.numbers, ready=crew.missing)
            stack.push_async_callback(numbers.close)
        stack.push_async_callback(control.close)
        if before is None:
            await _open(control, numbers, None)
        stack.push_async_callback(crew.stop)  # first: what began before a failure ends as well
        await crew.start(listeners)
        if before is None:
            crew.accept()
        else:
            stack.callback(before.stop_before)
            await before.take_over(crew)
            await _open(control, numbers, listeners.control)
            crew.reload_logged()  # the file may have changed while we waited
        watch = FileWatch([config.path], crew.reload_logged, loop=loop)
        stack.callback(watch.close)
        loop.add_signal_handler(signal.SIGHUP, crew.reload_logged)
        handover = operator.handover = Handover(
            crew, state_dir=config.state_dir, listeners=listeners, control=control, metrics=numbers, before=before,
            left=lambda: _left(loop, watch), ended=stopping.set,
        )  # fmt: skip
        stack.push_async_callback(handover.stop)
        loop.add_signal_handler(signal.SIGUSR2, handover.upgrade)
        line = f"ready {listeners.text()}"
        systemd.ready(line)
        print(line, flush=True)
        await stopping.wait()
        if not handover.left:
            systemd.stopping()


async def _open(control: ControlServer, numbers: metrics.MetricsServer | None, listener: socket.socket | None) -> None:
    """Answer commands and scrapes."""
    await control.start(listener)
    if numbers is not None:
        numbers.start()


def _left(loop: asyncio.AbstractEventLoop, watch: FileWatch) -> None:
    """The configuration is another process's business."""
    watch.close()
    loop.add_signal_handler(signal.SIGHUP, log.info, "not reloaded: another process has taken over")


def _open_store(state_dir: Path) -> SqliteStore:
    """The store, after a restore that was killed on its way is brought to its end. LocalError."""
    from tunnelgw.admin.restore import finish

    if finish(state_dir):
        log.warning("a restore that was interrupted is finished: the backup is in force")
    return SqliteStore(state_dir / FILE_NAME)


class _Operator:
    """Answers the control socket: `api.Live` made of what the workers told at the start of each command."""

    running = True

    def __init__(self, crew: Single | Supervised, store: SqliteStore) -> None:
        self.handover: Handover | None = None  # once it serves
        self._crew = crew
        self._store = store
        self._restoring = False
        self._reports: list[dict[str, Any]] = []
        self._numbers: ProcessSnapshot = empty()
        self._desk = EdgeDesk(registry=Registry(store), config=lambda: crew.config, live=self)

    async def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """One command."""
        if request["command"] == "restore":
            return await self._restore(str(request.get("staged")))
        if request["command"] == "upgrade":
            return await self._upgrade(str(request.get("notify", "")))
        await self._look()
        return await self._desk.answer(request)

    async def _restore(self, staged: str) -> dict[str, Any]:
        """Everything that follows the store sees that all of it changed, and reads it again."""
        from tunnelgw.admin.restore import apply

        if self.handover is not None and self.handover.under_way:
            raise LocalError("an upgrade is under way: restore when it is done")
        log.warning("the state is replaced by a backup")
        self._restoring = True
        try:
            # On a thread: it writes to the disk for a while, and visitors do not wait.
            await asyncio.to_thread(apply, self._crew.config.state_dir, staged, self._store)
        finally:
            self._restoring = False
        await self._look()
        return {}

    async def _upgrade(self, notify: str) -> dict[str, Any]:
        if self._restoring or self.handover is None:
            raise LocalError("the edge is starting, or its state is being restored: upgrade when that is done")
        return await self.handover.offer(notify)

    async def _look(self) -> None:
        views = [one for one in await self._crew.views() if one]
        self._reports = [one["report"] for one in views]
        self._numbers = merge(one["numbers"] for one in views)

    def addresses(self) -> list[PublicAddress]:
        """As `public_addresses`."""
        return public_addresses(self._reports, self._numbers, lambda name: self.connector(name).get("state", "away"))

    def connector(self, name: str) -> dict[str, Any]:
        """The best state that any worker sees, since when, and over how many tunnels."""
        seen = [report["connectors"][name] for report in self._reports if name in report["connectors"]]
        if not seen:
            return {}
        numbers = self._numbers["connectors"][name]
        best = min(seen, key=lambda one: ("up", "detached", "away").index(one["state"]))
        return {**best, "tunnels": numbers["up"], "rtt": numbers["rtt"]}

    def visitor(self, name: str) -> dict[str, Any]:
        """As `connector`, of all tunnels of a visitor, and the streams that it has open."""
        seen = [visit for report in self._reports for visit in report["visits"] if visit["name"] == name]
        if not seen:
            return {}
        best = min(seen, key=lambda one: (("up", "detached").index(one["state"]), one["since"]))
        up = sum(one["state"] == "up" for one in seen)
        return {**best, "tunnels": up, "streams": sum(one["streams"] for one in seen)}

    def private(self) -> list[PrivateService]:
        """As `Live.private`; every worker knows all of them."""
        found = {
            (connector, service)
            for report in self._reports
            for connector, services in report["private"].items()
            for service in services
        }
        return [
            {"service": service, "connector": connector, "state": self.connector(connector).get("state", "away")}
            for connector, service in sorted(found)
        ]

    def refused(self) -> list[RefusedService]:
        """As `Live.refused`; every worker decides about all of them."""
        found = {(one["connector"], one["service"]): one for report in self._reports for one in report["refused"]}
        return [found[key] for key in sorted(found)]

    async def grant_changed(self, name: str) -> None:  # noqa: ARG002 - workers follow the store by themselves
        """In force before the command says so (in this process; other workers follow within half a second)."""
        await self._look()

    async def revoked(self, name: str) -> None:
        """As `grant_changed`."""
        await self.grant_changed(name)

    async def rotate(self, seconds: int) -> None:
        """As `Live.rotate`; then as `grant_changed`."""
        await call_child(self._crew.config.state_dir, {"call": "rotate", "seconds": seconds})
        await self._look()

    def hosts(self) -> set[str]:
        """Those whose TLS ends here."""
        return set(self._numbers["certificates"])

    async def certificates_changed(self) -> None:
        """In use before the command says so (in this process; other workers look every ten seconds)."""
        self._crew.certificates_changed()

    async def reload(self) -> list[str]:
        """As `EdgeDesk`'s command."""
        return self._crew.reload_now()


async def _work(config: EdgeConfig, descriptor: int) -> None:
    """One worker of several."""
    loop = asyncio.get_running_loop()
    stopping = _stop_event(loop)
    edges: list[Edge] = []
    worker = Worker(
        loop,
        socket.socket(fileno=descriptor),
        snapshot=lambda: view(edges[0]) if edges else {},
        waiting=lambda: edges[0].connectors.waiting() if edges else 0,
        tunnel=lambda number, peer: edges[0].door.adopt(number, peer),
        accept=lambda: edges[0].accept(),
        pause=lambda: edges[0].pause(),
        leave=lambda: _leave(edges[0], stopping),
        orphaned=stopping.set,
    )
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # it is meant for the supervisor, but may be sent to all
    https, http = await worker.start()
    access = access_log(config)
    store = SqliteStore(config.state_dir / FILE_NAME)
    try:
        edge = Edge(config, store=store, peers=worker, log_request=access.add if access is not None else None)
        edges.append(edge)
        if access is not None:
            access.start(loop)
        loop.add_signal_handler(signal.SIGHUP, lambda: logged(lambda: reload(edge)))
        await edge.start(https, http)
        worker.ready()
        await stopping.wait()
        await edge.stop()
        worker.close()
    finally:
        if access is not None:
            access.close()
        store.close()
        for sock in (*https, *http):
            sock.close()


def _leave(edge: Edge, stopping: asyncio.Event) -> None:
    edge.leave()
    spawn(edge.drained(), name="drain").add_done_callback(lambda _: stopping.set())


def _stop_event(loop: asyncio.AbstractEventLoop) -> asyncio.Event:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    return stopping
