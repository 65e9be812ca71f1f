"""A visiting machine's tunnel: which edge, as whom, and private streams through it to where they end.

The tunnel is a connector's (dialled again and again, resumed after a cut), with nothing served on this side. What the
edge says may be reached is kept for whoever asks by a service's name.

Invariant: a private stream carries nothing before its far end has shown the key that is remembered for it; a name that
comes for the first time must show a certificate of the authority that was pinned at the join.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING

from tunnelgw.config.names import endpoint
from tunnelgw.connector.joined import JoinedEdge
from tunnelgw.connector.tunnel import Instance
from tunnelgw.errors import LocalError, Refused, RemoteError
from tunnelgw.identity.home import load_all
from tunnelgw.identity.records import CONNECTOR, VISITOR
from tunnelgw.net.tls import private_client_context
from tunnelgw.obs.reasons import Reason
from tunnelgw.private.pins import Pins
from tunnelgw.private.spki import key_fingerprint
from tunnelgw.visitor.nothing import Nothing
from tunnelgw.wire.control import EDGE_ITSELF, Reachable
from tunnelgw.wire.flow import Budget

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from tunnelgw.config.model import ConnectorConfig
    from tunnelgw.identity.home import HomeIdentity
    from tunnelgw.wire.session import Session

log = logging.getLogger(__name__)

BUFFERED_BYTES = 128 << 20
SETTLE_TURN = 0.02  # between two looks at whether the edge has everything
WAIT_SECONDS = 20.0  # for the tunnel, as long as the edge parks what waits for a connector
NAMED = 8  # services that an error lists


def identity_of(config: ConnectorConfig) -> HomeIdentity:
    """Who this machine is as a visitor. LocalError where it is nobody, or several."""
    found = load_all(config.state_dir, VISITOR)
    wanted = {str(edge) for edge in config.edge}
    if len(found) > 1:
        found = [identity for identity in found if identity.edge in wanted]
    if len(found) == 1:
        return found[0]
    if found:
        edges = ", ".join(identity.edge for identity in found)
        raise LocalError(f"this machine visits several edges ({edges}): name one as edge in {config.path}")
    if load_all(config.state_dir):
        raise LocalError(
            "this machine has joined as a connector; to visit it needs an invitation of its own: on the edge, run "
            "tunnelgw edge invite NAME --role visitor --allow-service SERVICE"
        )
    raise LocalError(
        f"this machine has joined no edge as a visitor (looked in {config.state_dir}): on the edge, run tunnelgw edge "
        "invite NAME --role visitor --allow-service SERVICE, then here: tunnelgw join INVITATION"
    )


async def settled(session: Session) -> bool:
    """Wait until the edge has all that was sent; False if the session ended before, which may be after its last link.

    What the edge has it passes on, though this machine leaves.
    """
    while not (session.settled or session.closed):  # noqa: ASYNC110
        await asyncio.sleep(SETTLE_TURN)
    return session.settled


class Machine:
    """See the module's text. `start`, then `session`, `find` and `context`; `stop` at the end."""

    def __init__(self, config: ConnectorConfig, identity: HomeIdentity) -> None:
        self.identity = identity
        self.pins = Pins(identity.folder)
        self.reachable: Reachable | None = None  # as the edge said last
        self._changed = asyncio.Event()
        loop = asyncio.get_running_loop()
        instance = Instance(secrets.token_hex(16), Budget(BUFFERED_BYTES, later=loop.call_soon), Nothing())
        # One edge in the file of a machine that only visits: it may have moved to another address since the join.
        moved = len(config.edge) == 1 and not load_all(config.state_dir)
        place = config.edge[0] if moved else endpoint(identity.edge)
        self.edge = JoinedEdge(identity, place, instance, changed=self._notice, visiting=self._told)
        self._contexts: dict[bool, tuple[str, str, ssl.SSLContext]] = {}

    def start(self) -> None:
        """Begin to dial."""
        self.edge.start()

    async def stop(self) -> None:
        """Hang up; the edge is told, so that it keeps nothing."""
        await self.edge.stop_dialling()
        for tunnel in self.edge.tunnels():
            tunnel.say_goodbye(Reason.CANCELLED)
        await self.edge.stop(Reason.CANCELLED)

    @property
    def trouble(self) -> str:
        """Why there is no tunnel, for a person; empty while there is one."""
        return self.edge.main.trouble

    async def session(self, seconds: float = WAIT_SECONDS) -> Session:
        """The tunnel's session once a link carries it. Refused (CONNECTOR_AWAY) after so long."""
        await self._until(lambda: self._session() is not None, seconds)
        session = self._session()
        if session is None:
            raise Refused(self.trouble or "the edge was not reached in time", reason=Reason.CONNECTOR_AWAY)
        return session

    def _session(self) -> Session | None:
        tunnel = self.edge.main.tunnel
        return tunnel.session if tunnel.link is not None and tunnel.leaving is None else None

    async def find(self, name: str, *, seconds: float = WAIT_SECONDS) -> tuple[str, str]:
        """Connector and service of a NAME that is SERVICE or CONNECTOR/SERVICE. Refused, with what there is."""
        await self._until(lambda: self.reachable is not None, seconds)
        if self.reachable is None:
            raise Refused(self.trouble or "the edge was not reached in time", reason=Reason.CONNECTOR_AWAY)
        connector, _, service = name.rpartition("/")
        known = self.reachable.services
        found = [one for one in known if one.service == service and connector in ("", one.connector)]
        if len(found) == 1:
            return found[0].connector, service
        if found:
            names = " or ".join(f"{one.connector}/{one.service}" for one in found)
            raise Refused(f"{name} is offered by several connectors: say {names}", reason=Reason.SERVICE_UNKNOWN)
        names = ", ".join(f"{one.connector}/{one.service}" for one in known[:NAMED]) or "nothing"
        raise Refused(
            f"{name} is not granted to {self.identity.name}, or nobody offers it; it may reach {names}; on the edge, "
            f"run: tunnelgw edge grant {self.identity.name} --allow-service {service} (with all that it keeps)",
            reason=Reason.VISIT_NOT_GRANTED,
        )

    async def told(self, seconds: float = WAIT_SECONDS) -> bool:
        """Whether the edge has said, within so long, what may be reached."""
        await self._until(lambda: self.reachable is not None, seconds)
        return self.reachable is not None

    def context(self, connector: str) -> ssl.SSLContext:
        """TLS for a private stream that ends there, with the present certificate. LocalError."""
        identity, edge = self.identity, connector == EDGE_ITSELF
        kept = self._contexts.get(edge)
        if kept is not None and kept[:2] == (identity.certificate, identity.authority):
            return kept[2]
        try:
            made = private_client_context(
                identity.certificate_path, identity.key_path, authority=identity.authority, edge=edge
            )
        except OSError as error:
            raise LocalError(f"{identity.certificate_path} cannot be used: {error}") from None
        self._contexts[edge] = (identity.certificate, identity.authority, made)
        return made

    def meet(self, connector: str, certificate: bytes) -> None:
        """Whether this certificate is that connector's. Refused (KEY_CHANGED), RemoteError (UNAUTHENTICATED)."""
        if connector == EDGE_ITSELF:
            return  # TLS has checked it against the pinned authority
        fingerprint = key_fingerprint(certificate)
        if self.pins.check(connector, fingerprint):
            return
        from tunnelgw.identity import certs  # 10 MB, for the first time only

        name, role = certs.check_member(certificate, authority_pem=self.identity.authority)
        if (name, role) != (connector, CONNECTOR):
            text = f"{connector} shows the certificate of {role} {name}: somebody is in between"
            raise RemoteError(text, reason=Reason.UNAUTHENTICATED)
        self.pins.remember(connector, fingerprint)
        text = "connector %s is met for the first time; its key is remembered: %s (compare: tunnelgw status there)"
        log.warning(text, connector, fingerprint)

    def renew_if_due(self) -> None:
        """Called every second: the certificate, and the session once it has opened all streams that it can."""
        self.edge.renew_if_due()
        tunnel = self.edge.main.tunnel
        if tunnel.session is not None and tunnel.session.table.worn and tunnel.leaving is None:
            log.info("the session is used up: another one is begun")
            tunnel.going_away(Reason.STREAM_LIMIT)  # as if the edge had asked for it

    def _told(self, message: Reachable) -> None:
        self.reachable = message
        self._notice()

    def _notice(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not (condition() or self.edge.main.hopeless):
                    await self._changed.wait()
        except TimeoutError:
            return
