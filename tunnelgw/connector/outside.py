"""Beyond this connector's services: what visitors with a grant reach in its networks, or out through it.

What is allowed is what both sides say: the file here (`networks`, `exit`), and the grant that the edge tells with each
stream. A changed file cuts what is open under the old one: programs connect again, and are judged anew.

Invariant: nothing is dialled for a visitor that the file does not offer, whatever the edge says of a grant.
"""

from __future__ import annotations

import asyncio
import logging
from functools import lru_cache
from typing import TYPE_CHECKING

from tunnelgw.access.reach import Policy
from tunnelgw.errors import TunnelgwError
from tunnelgw.obs.reasons import Reason
from tunnelgw.obs.sparing import Sparing
from tunnelgw.private.egress import Egress
from tunnelgw.private.lookups import LookUps
from tunnelgw.private.messages import WantPackets
from tunnelgw.private.opening import refuse_inside
from tunnelgw.private.outwards import leave

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.config.model import ConnectorConfig
    from tunnelgw.errors import Refused
    from tunnelgw.private.machines import Machines
    from tunnelgw.private.messages import Want
    from tunnelgw.private.outwards import Leaving
    from tunnelgw.private.sealed import Sealed
    from tunnelgw.wire.control import Open

log = logging.getLogger(__name__)


class Beyond:
    """Implements `serve.Outside`. Inputs: `replace`, `take`."""

    __slots__ = ("_exit", "_look_ups", "_machines", "_networks", "_open", "_sparing", "refused")

    def __init__(self) -> None:
        self._networks: tuple[str, ...] = ()
        self._exit = False
        self._open: set[Leaving] = set()
        self._look_ups = LookUps()
        self._machines: Machines | None = None  # visitors that come with all their packets
        self._sparing = Sparing(log)
        self.refused = 0  # addresses that somebody wanted and may not have

    def replace(self, config: ConnectorConfig) -> None:
        """What the file offers from now on."""
        if (config.networks, config.exit) == (self._networks, self._exit):
            return
        self._networks, self._exit = config.networks, config.exit
        for leaving in tuple(self._open):
            leaving.cut(Reason.WITHDRAWN)
        if self._machines is not None:
            self._machines.change(self._networks, exit=self._exit)

    def take(self, stream: Sealed, request: Open, want: Want, ended: Callable[[], None]) -> None:
        """As `Outside.take`."""
        try:
            policy = self._policy(request)
        except (TunnelgwError, ValueError) as error:
            self._say(request, str(error))
            refuse_inside(stream, Reason.ADDRESS_REFUSED, ended=ended)
            return
        if isinstance(want, WantPackets):
            self._interface().take(stream, request, want, policy, ended)
            return
        egress = Egress(
            policy,
            refused=lambda error: self._note(request, error),
            executor=self._look_ups.of(request.by),
        )
        left: list[Leaving] = []

        def over() -> None:
            self._open.difference_update(left)
            ended()

        leaving = leave(stream, egress, want, over)
        if leaving is not None:
            left.append(leaving)
            self._open.add(leaving)

    def drain(self) -> None:
        """We are stopping: what would never end by itself ends now."""
        if self._machines is not None:
            self._machines.cut(Reason.CONNECTOR_STOPPING)

    async def close(self) -> None:
        """Remove what was made for visitors' packets."""
        if self._machines is not None:
            await self._machines.close()

    def _interface(self) -> Machines:
        if self._machines is None:
            from tunnelgw.private.machines import Machines  # for who needs it

            self._machines = Machines(self._networks, exit=self._exit)
        return self._machines

    def _policy(self, request: Open) -> Policy:
        if request.kind == "exit":
            return _policy((), (), self._exit)
        return _policy(self._networks, tuple(request.networks), False)

    def _note(self, request: Open, error: Refused) -> None:
        self.refused += 1
        self._say(request, error.text)

    def _say(self, request: Open, why: str) -> None:
        now = asyncio.get_running_loop().time()
        self._sparing.warning(f"visitor {request.by}", now, "visitor %s was refused: %s", request.by[:63], why[:200])


@lru_cache(maxsize=64)
def _policy(networks: tuple[str, ...], granted: tuple[str, ...], out: bool) -> Policy:
    return Policy(networks, granted, exit=out)
