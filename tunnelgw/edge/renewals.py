"""Connectors ask for new certificates over their tunnels, and are answered by the office.

Invariant: each request is answered, by the certificate or by a notice that says why there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.errors import LocalError, Refused, RemoteError
from tunnelgw.net.tasks import spawn
from tunnelgw.wire.control import Notice

if TYPE_CHECKING:
    from tunnelgw.edge.connectors import Connectors
    from tunnelgw.edge.office import Office
    from tunnelgw.edge.tunnel import Tunnel
    from tunnelgw.wire.control import RenewRequest


class Renewals:
    """Input: `ask`."""

    __slots__ = ("_connectors", "_office")

    def __init__(self, office: Office, connectors: Connectors) -> None:
        self._office = office
        self._connectors = connectors

    def ask(self, connector: Tunnel, request: RenewRequest) -> None:
        """A connector wants a new certificate; the signing happens outside of the loop."""
        spawn(self._answer(connector, request), name=f"renewal of {connector.name}")

    async def _answer(self, connector: Tunnel, request: RenewRequest) -> None:
        try:
            connector.tell(await self._office.renew(connector.name, request, shown=connector.serial))
        except (Refused, RemoteError, LocalError) as error:
            text = "certificate of connector %s not renewed: %s"
            self._connectors.say(f"{connector.name} {error.text}", text, connector.name, error.text)
            connector.tell(Notice(reason=error.reason.label, message=f"not renewed: {error.text}"[:1000]))
