"""/metrics, /livez and /readyz for Prometheus and for whatever restarts a container.

The socket listens from the start, but aiohttp and prometheus_client (15 MB together) are imported when the first
connection arrives: a process that nobody scrapes does not carry them.

Invariant: only GET and HEAD of these three paths are answered; nothing here changes anything.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import socket
from typing import TYPE_CHECKING, Any

from tunnelgw.errors import LocalError
from tunnelgw.net.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp import web

    from tunnelgw.config.model import Endpoint
    from tunnelgw.obs.snapshot import ProcessSnapshot

log = logging.getLogger(__name__)

_BACKLOG = 64
# A scraper that does not send its request within this time is dropped (aiohttp's default is longer than a scrape).
_KEEPALIVE_SECONDS = 75.0


def listen(endpoint: Endpoint) -> socket.socket:
    """The listening socket for `[metrics] listen`. LocalError if it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise LocalError(f"metrics: {endpoint}: {error.strerror or error}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise LocalError(f"metrics: cannot listen on {endpoint}: {error.strerror}; change [metrics] listen") from error
    return sock


class MetricsServer:
    """Serves on a socket that already listens; owns it from here on.

    `snapshot` gives the merged numbers of all workers; `ready` is None while the process serves, else a short text
    that says what is missing.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        snapshot: Callable[[], Awaitable[ProcessSnapshot]],
        ready: Callable[[], str | None],
    ) -> None:
        self._sock = sock
        self._snapshot = snapshot
        self._ready = ready
        self._runner: web.AppRunner | None = None
        self._starting: asyncio.Task[None] | None = None
        self._render: Callable[[ProcessSnapshot], bytes] | None = None

    @property
    def loaded(self) -> bool:
        """True once a first connection made us import the HTTP server."""
        return self._runner is not None

    def start(self) -> None:
        """Wait for the first connection."""
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._first_connection)

    async def close(self, *, grace: float = 0.0) -> None:
        """Stop serving and close the socket. Whoever has just connected has `grace` seconds to ask. Idempotent."""
        if self._sock.fileno() < 0:
            return
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        if self._starting is not None:
            await asyncio.wait([self._starting])
        runner, self._runner = self._runner, None
        if runner is not None:
            for site in tuple(runner.sites):
                await site.stop()
            await asyncio.sleep(grace)
            await runner.cleanup()
        self._sock.close()

    def _first_connection(self) -> None:
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._starting = spawn(self._serve(), name="metrics server")

    async def _serve(self) -> None:
        # The import takes 0.3 s; in a thread, visitors are served meanwhile.
        loop = asyncio.get_running_loop()
        web = await loop.run_in_executor(None, importlib.import_module, "aiohttp.web")
        collector = await loop.run_in_executor(None, importlib.import_module, "tunnelgw.obs.collector")
        self._render = collector.render
        app = web.Application(client_max_size=1024)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, keepalive_timeout=_KEEPALIVE_SECONDS)
        await runner.setup()
        await web.SockSite(runner, self._sock, backlog=_BACKLOG).start()
        self._runner = runner

    async def _metrics(self, _request: web.Request) -> web.Response:
        from aiohttp import web

        from tunnelgw.obs.collector import CONTENT_TYPE

        assert self._render is not None
        body = self._render(await self._snapshot())
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"})

    async def _livez(self, _request: web.Request) -> Any:
        return _text(200, "alive")

    async def _readyz(self, _request: web.Request) -> Any:
        missing = self._ready()
        return _text(200, "ready") if missing is None else _text(503, missing)


def _text(status: int, text: str) -> web.Response:
    from aiohttp import web

    return web.Response(status=status, text=f"{text}\n", headers={"Cache-Control": "no-store"})
