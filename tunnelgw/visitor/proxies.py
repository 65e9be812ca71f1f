"""The local proxies of one `tunnelgw visit`: SOCKS and HTTP on this machine, out at a connector or the edge.

They listen before the tunnel is there, and while it is away answer that the network is unreachable: a laptop starts
them before it has one, and nothing ever goes another way.

Invariant: what was not granted is said once, with the command that would grant it, as soon as the edge has spoken.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tunnelgw.config.model import Endpoint
from tunnelgw.errors import LocalError, Refused
from tunnelgw.obs.reasons import Reason
from tunnelgw.visitor.local import check_listen
from tunnelgw.visitor.pac import HOME_NAMES, pac_file
from tunnelgw.visitor.tunnelreach import TunnelReach

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tunnelgw.visitor.local import LocalServer
    from tunnelgw.visitor.machine import Machine

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProxyWish:
    """What was asked for.

    kind: "via" (a connector's networks) or "exit"; place: the connector's name, or "edge".
    socks, http: where to listen; None: not. allow_lan: others than this machine may use them.
    names: domains that the PAC file sends through, beside those of home. users: who may use them; None: everybody.
    """

    kind: Literal["via", "exit"]
    place: str
    socks: Endpoint | None = None
    http: Endpoint | None = None
    allow_lan: bool = False
    names: tuple[str, ...] = ()
    users: Mapping[bytes, bytes] | None = None


class Proxies:
    """See the module's text."""

    def __init__(self, machine: Machine, wish: ProxyWish) -> None:
        self._machine = machine
        self._wish = wish
        self._reach = TunnelReach(machine, wish.kind, wish.place)
        self._servers: list[LocalServer] = []

    async def start(self, say: Callable[[str], None]) -> None:
        """Listen; `say` is given a line for each proxy. LocalError."""
        from tunnelgw.visitor.httpproxy import http_server  # each for who asked for it
        from tunnelgw.visitor.socks import socks_server

        wish = self._wish
        for listen, option in ((wish.socks, "--socks"), (wish.http, "--http")):
            if listen is not None and wish.users is None:
                check_listen(listen, option, allow_lan=wish.allow_lan)
        if wish.socks is not None:
            server = socks_server(self._reach, users=wish.users)
            self._servers.append(server)
            place = Endpoint(wish.socks.host, await server.listen(wish.socks, "--socks"))
            say(f"ready socks5h://{place} -> {wish.kind} {wish.place}")
        if wish.http is not None:
            server = http_server(self._reach, self._pac, users=wish.users)
            self._servers.append(server)
            place = Endpoint(wish.http.host, await server.listen(wish.http, "--http"))
            say(f"ready http://{place} (for browsers: http://{place}/proxy.pac) -> {wish.kind} {wish.place}")

    async def check(self) -> None:
        """LocalError where the edge says that this was not granted; a warning where it was not reached."""
        if not await self._machine.told():
            log.warning("the edge was not reached yet (%s): until then the proxies refuse", self._machine.trouble)
            return
        reachable, wish = self._machine.reachable, self._wish
        assert reachable is not None
        if wish.kind == "exit":
            granted, option = wish.place in reachable.exits, f"--allow-exit {wish.place}"
        else:
            granted, option = bool(reachable.networks), "--allow-network CIDR"
        if not granted:
            raise LocalError(
                f"{wish.kind} {wish.place} is not granted to {self._machine.identity.name}; on the edge, run: "
                f"tunnelgw edge grant {self._machine.identity.name} {option}"
            )

    def close(self) -> None:
        """Listen no more, and cut what is open."""
        for server in self._servers:
            server.close()

    def _pac(self, proxy: str) -> bytes:
        """Refused while nobody knows what may be reached: a file that names nothing would send home's names out."""
        if self._wish.kind == "via" and self._machine.reachable is None:
            raise Refused("the edge was not reached yet", reason=Reason.CONNECTOR_AWAY)
        names = (*HOME_NAMES, *self._wish.names)
        return pac_file(proxy, self._reach.networks, names=names, everything=self._wish.kind == "exit")
