"""What the local proxies share: where they may listen, how many connections they serve, and that these end.

Invariant: nobody but this machine is served unless the operator said so: an open proxy is a way into home for the
whole network.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from typing import TYPE_CHECKING, Protocol

from tunnelgw.errors import LocalError
from tunnelgw.net.timers import Wheel

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.config.model import Endpoint

log = logging.getLogger(__name__)

# Connections of one proxy at once: a browser holds 32, and the edge takes 1,024 streams of a tunnel, two proxies' here.
CLIENTS = 448
HEAD_SECONDS = 10.0  # until a client has said what it wants
BACKLOG = 128


class Client(Protocol):
    """A connection of a proxy."""

    def stop(self) -> None:
        """Cut it, and what it leads to."""


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


class LocalServer:
    """A listening socket and its clients. `make` is called with the server for each connection."""

    def __init__(self, make: Callable[[LocalServer], asyncio.Protocol], *, most: int = CLIENTS) -> None:
        self._make = make
        self._server: asyncio.Server | None = None
        self.most = most
        self.clients: set[Client] = set()
        self.served = 0
        self.refused = 0  # connections beyond `most`
        self.wheel = Wheel(asyncio.get_running_loop())

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

    def enter(self, client: Client) -> bool:
        """One more connection; False if there is no room for it."""
        if len(self.clients) >= self.most:
            self.refused += 1
            return False
        self.clients.add(client)
        self.served += 1
        return True

    def leave(self, client: Client) -> None:
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
