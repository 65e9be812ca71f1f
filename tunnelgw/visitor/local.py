"""What the local proxies share: where they may listen, how many connections they serve, and that these end.

Invariant: nobody but this machine is served unless the operator said so: an open proxy is a way into home for the
whole network.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import math
from typing import TYPE_CHECKING, cast

from tunnelgw.errors import LocalError, TunnelgwError
from tunnelgw.net.flow import WRITE_HIGH, WRITE_LOW
from tunnelgw.net.relay import Half, link
from tunnelgw.net.sockets import cut
from tunnelgw.net.tasks import spawn
from tunnelgw.net.timers import Wheel
from tunnelgw.obs.reasons import Reason
from tunnelgw.obs.sparing import Sparing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tunnelgw.config.model import Endpoint
    from tunnelgw.visitor.reach import Reach

log = logging.getLogger(__name__)

# Connections of one proxy at once: a browser holds 32, and the edge takes 1,024 streams of a tunnel, two proxies' here.
CLIENTS = 448
HEAD_SECONDS = 10.0  # until a client has said what it wants
BACKLOG = 128
SAID_SECONDS = 600.0  # until it is said again that something was not reached: browsers try again and again
SAID_MOST = 60  # lines meanwhile: a page may name thousands of hosts


def check_listen(place: Endpoint, option: str, *, allow_lan: bool) -> None:
    """`LocalError` (exit 2) for an address that others can reach, unless the operator said so; then a warning."""
    try:
        loopback = ipaddress.ip_address(place.host).is_loopback
    except ValueError:
        loopback = place.host == "localhost"
    if loopback:
        return
    if not allow_lan:
        raise LocalError(
            f"{option} {place}: whoever reaches this address would reach what you may; listen on 127.0.0.1, "
            "or say --allow-lan if that is meant",
            exit_code=2,
        )
    log.warning("%s %s: everybody who reaches this address uses your way home without a password", option, place)


def knows(users: Mapping[bytes, bytes], name: bytes, password: bytes) -> bool:
    """Whether this is the password of one of these; for who guesses, an unknown name takes as long as a known one."""
    right = users.get(name)
    return hmac.compare_digest(password, password if right is None else right) and right is not None


class LocalServer:
    """A listening socket and its clients. `make` is called with the server for each connection."""

    def __init__(self, make: Callable[[LocalServer], asyncio.Protocol], *, most: int = CLIENTS) -> None:
        self._make = make
        self._server: asyncio.Server | None = None
        self.most = most
        self.clients: set[LocalClient] = set()
        self.served = 0
        self.refused = 0  # connections beyond `most`
        self.wheel = Wheel(asyncio.get_running_loop())
        self._sparing = Sparing(log, interval=SAID_SECONDS, lines=SAID_MOST)

    async def listen(self, place: Endpoint, option: str) -> int:
        """Serve there; the port. `LocalError` where that is impossible."""
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: self._make(self), place.host, place.port, backlog=BACKLOG
            )
        except OSError as error:
            raise LocalError(f"{option} {place}: {error.strerror or error}") from None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def enter(self, client: LocalClient) -> bool:
        """One more connection; False if there is no room for it."""
        if len(self.clients) >= self.most:
            self.refused += 1
            self._say("", "more than %d connections at once: the rest is refused", self.most)
            return False
        self.clients.add(client)
        self.served += 1
        return True

    def note(self, what: str, error: TunnelgwError | OSError) -> None:
        """Something was not reached: say why, once for each thing and cause."""
        text, cause = (error.text, error.reason.label) if isinstance(error, TunnelgwError) else (str(error), "")
        self._say(f"{cause} {what}", "%s was not reached: %s", what, text)

    def _say(self, key: str, text: str, *values: object) -> None:
        self._sparing.warning(key, asyncio.get_running_loop().time(), text, *values)

    def leave(self, client: LocalClient) -> None:
        """It is over. Idempotent."""
        self.clients.discard(client)

    def close(self) -> None:
        """Listen no more, and cut every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for client in list(self.clients):
            client.stop()
        self.wheel.close()


class LocalClient(asyncio.Protocol):
    """One connection of a proxy: until it is handed over to a relay, or to its end."""

    __slots__ = ("_far", "_near", "_reach", "_server", "_task", "_transport", "armed_until", "deadline")

    def __init__(self, server: LocalServer, reach: Reach) -> None:
        self._server = server
        self._reach = reach
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None  # waits for the far side
        self._near: Half | None = None
        self._far: Half | None = None
        self.deadline = self.armed_until = math.inf

    # What a proxy says in its own way.

    def _failed(self, reason: Reason) -> None:
        """The far side did not connect: answer why."""
        raise NotImplementedError

    def on_deadline(self, now: float) -> None:
        """It did not say in time what it wants."""
        raise NotImplementedError

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = made = cast("asyncio.Transport", transport)
        if not self._server.enter(self):
            cut(made)
            return
        made.set_write_buffer_limits(WRITE_HIGH, WRITE_LOW)
        self._await_head()

    def eof_received(self) -> bool:
        return False  # whoever leaves before it is connected wants nothing any more

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the loop's interface
        self._transport = None
        self._end()

    def stop(self) -> None:
        """Cut it, and what it leads to."""
        for half in (self._near, self._far):
            if half is not None and half.transport is not None:
                cut(half.transport)
        if self._transport is not None:
            cut(self._transport)
        self._end()

    # What a proxy does.

    def _await_head(self) -> None:
        self._arm(HEAD_SECONDS)

    def _arm(self, seconds: float) -> None:
        self._server.wheel.arm(self, asyncio.get_running_loop().time() + seconds)

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def _reached(self, far: asyncio.Protocol, host: str, port: int) -> None:
        """Ask for a connection; `far` goes on with it."""
        try:
            await self._reach.connect(lambda: far, host, port)
        except TunnelgwError as error:
            self._server.note(f"{host} port {port}", error)
            self._failed(error.reason)
        except OSError as error:
            self._server.note(f"{host} port {port}", error)
            self._failed(Reason.CONNECTOR_AWAY)
        finally:
            self._task = None

    def _dial(self, far: asyncio.Protocol, host: str, port: int) -> None:
        self._task = spawn(self._reached(far, host, port), name="proxy dial")

    def _hand_over(self, far: Half, first: bytes, ahead: bytes) -> bool:
        """Join the client to the far side, of which nothing was received yet; False if the client has left."""
        transport, self._transport = self._transport, None
        assert far.transport is not None
        if transport is None or transport.is_closing():
            cut(far.transport)
            return False
        near = self._near = Half(ended=self._end)
        near.adopt(transport)
        link(near, far)
        transport.write(first)
        if ahead:
            far.transport.write(ahead)
        transport.resume_reading()
        return True

    def _end(self) -> None:
        """Nothing is left of it. Idempotent."""
        self.deadline = math.inf
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        self._server.leave(self)
