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
import sys
from typing import TYPE_CHECKING, Any

from tunnelgw.admin import metrics
from tunnelgw.admin.api import EdgeDesk
from tunnelgw.admin.control import ControlServer
from tunnelgw.config.diff import diff_edge, restart_warning
from tunnelgw.config.files import make_private_folder
from tunnelgw.config.hardening import harden
from tunnelgw.config.load import load_edge
from tunnelgw.config.problems import ConfigError
from tunnelgw.edge.app import Edge
from tunnelgw.edge.office import call_child
from tunnelgw.edge.supervisor import Supervisor
from tunnelgw.edge.workers import Alone, Worker
from tunnelgw.errors import LocalError
from tunnelgw.identity.registry import Registry
from tunnelgw.net import activation, systemd
from tunnelgw.net.accept import listen_all
from tunnelgw.net.loop import run
from tunnelgw.net.watch import FileWatch
from tunnelgw.obs.accesslog import AccessLog
from tunnelgw.obs.snapshot import empty, merge
from tunnelgw.store.sqlite import FILE_NAME, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tunnelgw.admin.status import PublicAddress
    from tunnelgw.config.model import EdgeConfig, Endpoint
    from tunnelgw.obs.snapshot import ProcessSnapshot

log = logging.getLogger(__name__)


def run_edge(config: EdgeConfig) -> None:
    """Serve until SIGTERM or SIGINT; prints one line, `ready` and the addresses. LocalError where it cannot begin."""
    harden()
    make_private_folder(config.state_dir)
    run(lambda: _lead(config), require_uvloop=True)


def run_worker(path: Path, descriptor: int) -> None:
    """One worker of several; the supervisor is at the other end of `descriptor`."""
    harden()
    config = load_edge(path)
    run(lambda: _work(config, descriptor), require_uvloop=True)


async def _lead(config: EdgeConfig) -> None:
    """The process that the operator started."""
    loop = asyncio.get_running_loop()
    stopping = _stop_event(loop)
    async with contextlib.AsyncExitStack() as stack:
        store = _open_store(config.state_dir)
        stack.callback(store.close)
        https, http = _listeners(config)
        stack.callback(_close, [*https, *http])
        many = _Supervised if config.workers > 1 else _Single
        crew = many(config, store)
        control = ControlServer(config.state_dir, _Operator(crew, store).handle)
        await control.start()
        stack.push_async_callback(control.close)
        if config.metrics.listen is not None:
            numbers = metrics.MetricsServer(
                metrics.listen(config.metrics.listen), snapshot=crew.numbers, ready=crew.missing
            )
            numbers.start()
            stack.push_async_callback(numbers.close)
        stack.push_async_callback(crew.stop)  # first: what began before a failure ends as well
        await crew.start(https, http)
        watch = FileWatch([config.path], crew.reload_logged, loop=loop)
        stack.callback(watch.close)
        loop.add_signal_handler(signal.SIGHUP, crew.reload_logged)
        line = " ".join(["ready", *(f"{_text(sock)}" for sock in https), *(f"http://{_text(sock)}" for sock in http)])
        systemd.ready(line)
        print(line, flush=True)
        await stopping.wait()
        systemd.stopping()


def _open_store(state_dir: Path) -> SqliteStore:
    """The store, after a restore that was killed on its way is brought to its end. LocalError."""
    from tunnelgw.admin.restore import finish

    if finish(state_dir):
        log.warning("a restore that was interrupted is finished: the backup is in force")
    return SqliteStore(state_dir / FILE_NAME)


class _Operator:
    """Answers the control socket: `api.Live` made of what the workers told at the start of each command."""

    running = True

    def __init__(self, crew: _Single | _Supervised, store: SqliteStore) -> None:
        self._crew = crew
        self._store = store
        self._reports: list[dict[str, Any]] = []
        self._numbers: ProcessSnapshot = empty()
        self._desk = EdgeDesk(registry=Registry(store), config=lambda: crew.config, live=self)

    async def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """One command."""
        if request["command"] == "restore":
            return await self._restore(str(request.get("staged")))
        await self._look()
        return await self._desk.answer(request)

    async def _restore(self, staged: str) -> dict[str, Any]:
        """Everything that follows the store sees that all of it changed, and reads it again."""
        from tunnelgw.admin.restore import apply

        log.warning("the state is replaced by a backup")
        # On a thread: it writes to the disk for a while, and visitors do not wait.
        await asyncio.to_thread(apply, self._crew.config.state_dir, staged, self._store)
        await self._look()
        return {}

    async def _look(self) -> None:
        views = [one for one in await self._crew.views() if one]
        self._reports = [one["report"] for one in views]
        self._numbers = merge(one["numbers"] for one in views)

    def addresses(self) -> list[PublicAddress]:
        """Every route once; it is up where any worker's tunnel is."""
        routes = {route["address"]: route for report in self._reports for route in report["routes"]}
        troubles = {host: why for report in self._reports for host, (_, why) in report["troubles"].items()}
        return [
            {
                "address": address,
                "service": route["service"],
                "connector": route["connector"],
                "state": self.connector(route["connector"]).get("state", "away"),
                "since": route["since"],
                "certificate_expiry": self._numbers["certificates"].get(route["host"], 0.0),
                "certificate_problem": troubles.get(route["host"], ""),
                "tls": route["tls"],
            }
            for address, route in sorted(routes.items())
        ]

    def connector(self, name: str) -> dict[str, Any]:
        """The best state that any worker sees, since when, and over how many tunnels."""
        seen = [report["connectors"][name] for report in self._reports if name in report["connectors"]]
        if not seen:
            return {}
        numbers = self._numbers["connectors"][name]
        best = min(seen, key=lambda one: ("up", "detached", "away").index(one["state"]))
        return {**best, "tunnels": numbers["up"], "rtt": numbers["rtt"]}

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


class _Single:
    """An edge that is one process."""

    def __init__(self, config: EdgeConfig, store: SqliteStore) -> None:
        self._serving = False
        self._access = _access_log(config)
        self._edge = Edge(
            config,
            store=store,
            peers=Alone(config.port_bind, dict),
            log_request=self._access.add if self._access is not None else None,
        )

    @property
    def config(self) -> EdgeConfig:
        return self._edge.config

    async def start(self, https: list[socket.socket], http: list[socket.socket]) -> None:
        if self._access is not None:
            self._access.start(self._edge.loop)
        await self._edge.start(https, http)
        self._serving = True

    async def stop(self) -> None:
        self._serving = False
        await self._edge.stop()
        if self._access is not None:
            self._access.close()

    async def views(self) -> list[dict[str, Any]]:
        await self._edge.look()  # a command just wrote: it is in force before it says so
        return [view(self._edge)]

    async def numbers(self) -> ProcessSnapshot:
        return self._edge.snapshot()

    def missing(self) -> str | None:
        return None if self._serving else "not serving"

    def certificates_changed(self) -> None:
        self._edge.certificates.on_change()

    def reload_now(self) -> list[str]:
        return _reload(self._edge)

    def reload_logged(self) -> None:
        _logged(self.reload_now)


class _Supervised:
    """An edge of several workers."""

    def __init__(self, config: EdgeConfig, store: SqliteStore) -> None:  # noqa: ARG002 - as _Single
        self.config = config
        self._supervisor: Supervisor | None = None
        self._serving = False

    async def start(self, https: list[socket.socket], http: list[socket.socket]) -> None:
        self._supervisor = Supervisor(
            self.config.workers,
            https=https,
            http=http,
            port_bind=self.config.port_bind,
            command=lambda _index, descriptor: [
                sys.executable, "-m", "tunnelgw.admin.worker", str(self.config.path), str(descriptor),
            ],
        )  # fmt: skip
        await self._supervisor.start()
        self._serving = True

    async def stop(self) -> None:
        self._serving = False
        if self._supervisor is not None:
            await self._supervisor.stop()

    async def views(self) -> list[dict[str, Any]]:
        return await self._supervisor.gather() if self._supervisor is not None else []

    async def numbers(self) -> ProcessSnapshot:
        return merge(one["numbers"] for one in await self.views())

    def missing(self) -> str | None:
        return None if self._serving else "not serving"

    def certificates_changed(self) -> None:
        """Workers see it by themselves."""

    def reload_now(self) -> list[str]:
        self.config = load_edge(self.config.path)  # what is wrong is said here, to whoever asked
        if self._supervisor is not None:
            self._supervisor.reload()
        return ["every worker reads the configuration again"]

    def reload_logged(self) -> None:
        _logged(self.reload_now)


async def _work(config: EdgeConfig, descriptor: int) -> None:
    """One worker of several."""
    loop = asyncio.get_running_loop()
    stopping = _stop_event(loop)
    edges: list[Edge] = []
    worker = Worker(
        loop,
        socket.socket(fileno=descriptor),
        snapshot=lambda: view(edges[0]) if edges else {},
        tunnel=lambda number, peer: edges[0].door.adopt(number, peer),
        orphaned=stopping.set,
    )
    https, http = await worker.start()
    access = _access_log(config)
    store = SqliteStore(config.state_dir / FILE_NAME)
    try:
        edge = Edge(config, store=store, peers=worker, log_request=access.add if access is not None else None)
        edges.append(edge)
        if access is not None:
            access.start(loop)
        loop.add_signal_handler(signal.SIGHUP, lambda: _logged(lambda: _reload(edge)))
        await edge.start(https, http)
        worker.ready()
        await stopping.wait()
        await edge.stop()
        worker.close()
    finally:
        if access is not None:
            access.close()
        store.close()
        _close([*https, *http])


def view(edge: Edge) -> dict[str, Any]:
    """What one worker tells about itself."""
    return {"numbers": edge.snapshot(), "report": edge.report()}


def _reload(edge: Edge) -> list[str]:
    """Read the file again and use it; ConfigError, and then nothing changed."""
    config = load_edge(edge.config.path)
    diff = diff_edge(edge.config, config)
    edge.reload(config)
    messages = [f"{name} changed" for name in diff.changed]
    if diff.restart:
        messages.append(restart_warning(diff.restart))
    for message in messages:
        log.info("reload: %s", message)
    return messages


def _logged(reload: Callable[[], list[str]]) -> None:
    try:
        reload()
    except ConfigError as error:
        for problem in error.problems:
            log.error("not reloaded: %s", problem)
    except LocalError as error:
        log.error("not reloaded: %s", error.text)


def _stop_event(loop: asyncio.AbstractEventLoop) -> asyncio.Event:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    return stopping


def _access_log(config: EdgeConfig) -> AccessLog | None:
    return None if config.access_log == "off" else AccessLog(config.access_log)


def _listeners(config: EdgeConfig) -> tuple[list[socket.socket], list[socket.socket]]:
    """The listening sockets for TLS and for plain HTTP: systemd's where it passed them, else made here. LocalError."""
    inherited = activation.inherited()
    https = activation.take(inherited, _ports(config.listen))
    http = activation.take(inherited, _ports(config.listen_http))
    activation.close_unused(inherited)
    if not https:
        https = listen_all(_pairs(config.listen), defer=True, optional=config.listen_is_default)
    if not http:
        try:
            http = listen_all(
                _pairs(config.listen_http), defer=False, optional=config.listen_http_is_default, key="listen_http"
            )
        except LocalError:
            _close(https)
            raise
    return https, http


def _pairs(endpoints: tuple[Endpoint, ...]) -> list[tuple[str, int]]:
    return [(endpoint.host, endpoint.port) for endpoint in endpoints]


def _ports(endpoints: tuple[Endpoint, ...]) -> set[int]:
    return {endpoint.port for endpoint in endpoints}


def _close(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def _text(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
