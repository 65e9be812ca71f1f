"""The processes that serve: this one alone (`Single`), or several workers below it (`Supervised`), with one interface.

`start` makes everything ready, `accept` lets visitors in. For an upgrade `pause` holds newcomers back for a moment, and
`leave` gives the listeners up for good: then `drained` returns when nothing is in progress.

Invariant: `ready` is said while visitors are accepted here, and at no other time.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING, Any

from tunnelgw.config.diff import diff_edge, restart_warning
from tunnelgw.config.load import load_edge
from tunnelgw.config.problems import ConfigError
from tunnelgw.edge.app import Edge
from tunnelgw.edge.report import numbers, report
from tunnelgw.edge.supervisor import Supervisor
from tunnelgw.edge.workers import Alone
from tunnelgw.errors import LocalError
from tunnelgw.obs.accesslog import AccessLog
from tunnelgw.obs.snapshot import merge

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from tunnelgw.admin.listeners import Listeners
    from tunnelgw.config.model import EdgeConfig
    from tunnelgw.edge.ports import LocalPorts
    from tunnelgw.obs.snapshot import ProcessSnapshot
    from tunnelgw.routing.units import PortUnit
    from tunnelgw.store.sqlite import SqliteStore

log = logging.getLogger(__name__)


class Single:
    """An edge that is one process."""

    def __init__(self, config: EdgeConfig, store: SqliteStore) -> None:
        self._serving = False
        self._access = access_log(config)
        self._peers = Alone(config.port_bind, dict)
        self._edge = Edge(
            config,
            store=store,
            peers=self._peers,
            log_request=self._access.add if self._access is not None else None,
        )

    @property
    def config(self) -> EdgeConfig:
        return self._edge.config

    async def start(self, listeners: Listeners) -> None:
        """Make everything ready. LocalError where a part cannot begin."""
        self.inherit(listeners.ports)
        if self._access is not None:
            self._access.start(self._edge.loop)
        await self._edge.start(listeners.https, listeners.http)

    def inherit(self, ports: Mapping[PortUnit, socket.socket]) -> None:
        """These raw ports are open already."""
        inherit(self._peers.ports, ports, self.config)

    def accept(self) -> None:
        """Let visitors in."""
        self._edge.accept()
        self._serving = True

    async def pause(self) -> None:
        """Hold newcomers back, for a moment."""
        self._serving = False
        self._edge.pause()

    def leave(self) -> None:
        """Another process accepts from now on."""
        self._serving = False
        self._edge.leave()

    async def drained(self) -> None:
        """Nothing is in progress here any more, or it took too long."""
        await self._edge.drained()

    def ports(self) -> dict[PortUnit, socket.socket]:
        """The raw ports that are open."""
        return self._edge.ports.listeners()

    async def stop(self) -> None:
        self._serving = False
        await self._edge.stop()
        self._peers.ports.forget()
        if self._access is not None:
            self._access.close()

    async def views(self) -> list[dict[str, Any]]:
        await self._edge.look()  # a command just wrote: it is in force before it says so
        return [view(self._edge)]

    async def numbers(self) -> ProcessSnapshot:
        return numbers(self._edge)

    async def waiting(self) -> int:
        """What waits here for a connector's link."""
        return self._edge.connectors.waiting()

    def missing(self) -> str | None:
        return None if self._serving else "not serving"

    def certificates_changed(self) -> None:
        self._edge.certificates.on_change()

    def reload_now(self) -> list[str]:
        return reload(self._edge)

    def reload_logged(self) -> None:
        logged(self.reload_now)


class Supervised:
    """An edge of several workers."""

    def __init__(self, config: EdgeConfig, store: SqliteStore) -> None:  # noqa: ARG002 - as Single
        self.config = config
        self._supervisor: Supervisor | None = None
        self._serving = False

    async def start(self, listeners: Listeners) -> None:
        """As `Single.start`."""
        self._supervisor = Supervisor(
            self.config.workers,
            https=listeners.https,
            http=listeners.http,
            port_bind=self.config.port_bind,
            command=lambda _index, descriptor: [
                sys.executable, "-Pm", "tunnelgw.admin.worker", str(self.config.path), str(descriptor),
            ],
        )  # fmt: skip
        self.inherit(listeners.ports)
        await self._supervisor.start()

    def inherit(self, ports: Mapping[PortUnit, socket.socket]) -> None:
        """As `Single.inherit`."""
        assert self._supervisor is not None
        inherit(self._supervisor.ports, ports, self.config)

    def accept(self) -> None:
        """As `Single.accept`."""
        assert self._supervisor is not None
        self._supervisor.accept()
        self._serving = True

    async def pause(self) -> None:
        """As `Single.pause`."""
        assert self._supervisor is not None
        self._serving = False
        await self._supervisor.pause()

    def leave(self) -> None:
        """As `Single.leave`."""
        assert self._supervisor is not None
        self._serving = False
        self._supervisor.leave()

    async def drained(self) -> None:
        """As `Single.drained`."""
        assert self._supervisor is not None
        await self._supervisor.drained()

    def ports(self) -> dict[PortUnit, socket.socket]:
        """As `Single.ports`."""
        return self._supervisor.listeners() if self._supervisor is not None else {}

    async def stop(self) -> None:
        self._serving = False
        if self._supervisor is not None:
            await self._supervisor.stop()

    async def views(self) -> list[dict[str, Any]]:
        return await self._supervisor.gather() if self._supervisor is not None else []

    async def numbers(self) -> ProcessSnapshot:
        return merge(one["numbers"] for one in await self.views() if one)

    async def waiting(self) -> int:
        """As `Single.waiting`."""
        return await self._supervisor.waiting() if self._supervisor is not None else 0

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
        logged(self.reload_now)


def inherit(maker: LocalPorts, ports: Mapping[PortUnit, socket.socket], config: EdgeConfig) -> None:
    """Ports wait with their visitors for the connector that claims them, as long as for one that is away."""
    if ports:
        maker.inherit(ports)
        asyncio.get_running_loop().call_later(config.resume_seconds, maker.forget)


def view(edge: Edge) -> dict[str, Any]:
    """What one worker tells about itself."""
    return {"numbers": numbers(edge), "report": report(edge)}


def reload(edge: Edge) -> list[str]:
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


def logged(reload: Callable[[], list[str]]) -> None:
    """Reload, for nobody who would read the answer."""
    try:
        reload()
    except ConfigError as error:
        for problem in error.problems:
            log.error("not reloaded: %s", problem)
    except LocalError as error:
        log.error("not reloaded: %s", error.text)


def access_log(config: EdgeConfig) -> AccessLog | None:
    """Where finished exchanges are written, if they are."""
    return None if config.access_log == "off" else AccessLog(config.access_log)
