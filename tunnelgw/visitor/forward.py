"""A local connection onto a private service: one private stream for each, spliced.

The local side may speak first and at once; the service's bytes come behind its answer. While there is no tunnel a
connection waits for `WAIT_SECONDS`, then it is closed.

Invariants: each half ends as it does on the other side; whatever goes wrong closes the local side and is logged once.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING

from tunnelgw.errors import LocalError, Refused, TunnelgwError
from tunnelgw.net.loop import adopt
from tunnelgw.net.splice import Splice
from tunnelgw.net.tasks import spawn
from tunnelgw.obs.reasons import Reason
from tunnelgw.obs.sparing import Sparing
from tunnelgw.private.messages import WantService
from tunnelgw.visitor.call import Call
from tunnelgw.wire.control import Open

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.config.model import Endpoint
    from tunnelgw.private.messages import Ready
    from tunnelgw.visitor.machine import Machine
    from tunnelgw.wire.session import Session

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 512  # at once on one local port; the edge allows a tunnel twice as many


class Forward:
    """One private service on this machine. `listen`, or `take` for a socket of the caller's."""

    def __init__(self, machine: Machine, connector: str, service: str) -> None:
        self._machine = machine
        self.connector, self.service = connector, service
        self._server: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._open = 0
        self._sparing = Sparing(log)

    @property
    def name(self) -> str:
        """CONNECTOR/SERVICE."""
        return f"{self.connector}/{self.service}"

    def listen(self, sock: socket.socket) -> None:
        """Accept on this listening socket, which is ours from here on."""
        self._server = sock
        self._accepting = spawn(self._accept(sock), name=f"local port of {self.name}")

    def close(self) -> None:
        """Accept nobody any more."""
        if self._accepting is not None:
            self._accepting.cancel()
        if self._server is not None:
            self._server.close()

    async def _accept(self, server: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(server)
            except OSError as error:  # no descriptors
                self._warn(f"cannot accept: {error.strerror}")
                await asyncio.sleep(0.1)
                continue
            sock.setblocking(False)
            if self._open >= CONNECTIONS_MAX:
                self._warn(f"more than {CONNECTIONS_MAX} local connections")
                sock.close()
                continue
            spawn(self.take(sock), name=f"visit {self.name}")

    async def take(
        self, sock: socket.socket, *, failed: Callable[[TunnelgwError], None] | None = None
    ) -> Session | None:
        """Serve this connected socket; returns what carried it when it is over. `failed` hears why it broke."""
        self._open += 1
        over = asyncio.Event()
        visit = _Connection(over, self._report if failed is None else failed)
        try:
            splice = await self._call(visit)
            await adopt(sock, splice)
        except (TunnelgwError, OSError) as error:
            sock.close()
            visit.fail(error if isinstance(error, TunnelgwError) else LocalError(f"{self.name}: {error}"))
            if visit.call is not None:
                visit.call.stream.reset(Reason.CANCELLED)
            over.set()
        await over.wait()
        self._open -= 1
        return visit.session

    async def _call(self, visit: _Connection) -> Splice:
        session = visit.session = await self._machine.session()
        call = visit.call = Call(
            self._machine,
            session,
            Open(service=self.service, kind="private", connector=self.connector),
            WantService(self.service),
            connector=self.connector,
            now=asyncio.get_running_loop().time(),
            ready=visit.ready,
            refused=visit.refused,
        )
        visit.splice = Splice(call.stream, on_end=visit.ended, on_reset=visit.reset)
        call.opening.next = visit.splice
        return visit.splice

    def _report(self, error: TunnelgwError) -> None:
        self._warn(f"{error.text} ({error.reason.label})")

    def _warn(self, text: str) -> None:
        self._sparing.warning(text, asyncio.get_running_loop().time(), "%s: %s", self.name, text)


class _Connection:
    """What one local connection is told; `failed` is called once if it comes to nothing, or is cut."""

    __slots__ = ("_failed", "_over", "call", "session", "splice")

    def __init__(self, over: asyncio.Event, failed: Callable[[TunnelgwError], None]) -> None:
        self._over = over
        self._failed: Callable[[TunnelgwError], None] | None = failed
        self.call: Call | None = None
        self.session: Session | None = None
        self.splice: Splice | None = None

    def ready(self, answer: Ready) -> None:  # noqa: ARG002 - a service has nothing more to say
        assert self.call is not None
        assert self.splice is not None
        self.call.stream.sink = self.splice

    def refused(self, error: TunnelgwError) -> None:
        self.fail(error)
        if self.splice is not None:
            self.splice.stream_reset(error.reason)

    def reset(self, reason: Reason) -> None:
        """The stream was cut under way."""
        self.fail(Refused(reason.text, reason=reason))

    def fail(self, error: TunnelgwError) -> None:
        failed, self._failed = self._failed, None
        if failed is not None:
            failed(error)

    def ended(self, sent: int, received: int) -> None:  # noqa: ARG002 - Splice's signature
        self._over.set()


def bind(where: Endpoint) -> socket.socket:
    """A listening socket there. LocalError."""
    try:
        found = socket.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise LocalError(f"--listen {where}: {error.strerror or error}") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(128)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise LocalError(f"--listen {where}: {error.strerror or error}; name another port") from None
    return sock
