"""One edge that this connector serves: its identity, its tunnels (one per worker of the edge), its answers.

Strategy: the first supervisor dials without naming a worker; the Welcome says which of how many it reached, and the
others get a supervisor each. What the edge claims for our services is kept for `status` and `expose`; a change of it
is logged, a refusal loudly, with the command that would allow it. The certificate is renewed over a tunnel at two
thirds of its life, and when another authority of the edge signs.

Invariant: the slots equal the workers of the last Welcome; one edge's trouble never touches another one's tunnels.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from tunnelgw.connector.dial import Conversation
from tunnelgw.connector.indoors import Indoors
from tunnelgw.connector.supervise import Supervisor
from tunnelgw.errors import TunnelgwError
from tunnelgw.identity.material import digest
from tunnelgw.net.tasks import spawn
from tunnelgw.net.tls import tunnel_client_context
from tunnelgw.obs.reasons import Reason
from tunnelgw.obs.sparing import Interval, Sparing
from tunnelgw.private.pins import keys_of
from tunnelgw.wire.control import Renewed, RenewRequest
from tunnelgw.wire.flow import TokenBucket

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from tunnelgw.config.model import Endpoint
    from tunnelgw.connector.tunnel import Instance, Tunnel
    from tunnelgw.identity.home import HomeIdentity
    from tunnelgw.wire.control import ClaimResult, Claims, Open, Reachable, Trust, Welcome
    from tunnelgw.wire.stream import Stream

log = logging.getLogger(__name__)

RENEW_RETRY = 3600.0  # seconds until an unanswered or failed renewal is tried again
EXPIRY_WARNING = 7 * 86400.0
WORKERS_MAX = 64  # tunnels to one edge, whatever it says: more cores than that serve no home
CLAIM_LINES = 500  # of claims in a minute: all of a large connector, but an edge that changes its mind is cut short
# Certificates taken from the edge: each costs a write and 10 MB for a moment.
INSTALLS_BURST, INSTALLS_PER_SECOND = 16, 1 / 60


class JoinedEdge:
    """See the module's text. Implements `EdgeSide` and `TunnelOwner`."""

    __slots__ = (
        "_changed", "_claims_revision", "_granted", "_indoors", "_installing", "_installs", "_instance", "_logged",
        "_renewal", "_renewal_at", "_visiting", "claims", "domain", "endpoint", "granted_ports", "identity", "main",
        "slots",
    )  # fmt: skip

    def __init__(
        self,
        identity: HomeIdentity,
        endpoint: Endpoint,
        instance: Instance,
        *,
        changed: Callable[[], None],
        visiting: Callable[[Reachable], None] | None = None,
    ) -> None:
        """`changed` is called when the edge's answers or the state of a tunnel changed.

        `visiting`: this is a visiting machine, which is told what it may reach and serves nothing.
        """
        self._visiting = visiting
        self.identity = identity
        self.endpoint = endpoint
        self.domain = identity.domain
        self.claims: dict[str, ClaimResult] = {}
        self._claims_revision = 0
        self.granted_ports: list[tuple[int, int]] = []  # ranges, as far as the edge said
        self._changed = changed
        self._logged = Sparing(log, lines=CLAIM_LINES)
        self._granted = Interval(most=CLAIM_LINES)
        self._installs: TokenBucket | None = None
        self._instance = instance
        self._installing = asyncio.Lock()  # the identity is replaced by one message at a time
        self._renewal: asyncio.Task[None] | None = None
        self._renewal_at = 0.0  # wall clock: no renewal is begun before
        self._indoors: Indoors | None = None  # made when a visitor first comes
        self.main = Supervisor(self, owner=self, instance=instance)
        self.slots: dict[int, Supervisor] = {}

    def start(self) -> None:
        """Begin to dial."""
        self.main.start()

    def supervisors(self) -> list[Supervisor]:
        """All of them, the first one first."""
        return [self.main, *(slot for slot in self.slots.values() if slot is not self.main)]

    def tunnels(self) -> list[Tunnel]:
        """Every tunnel to this edge."""
        return [tunnel for supervisor in self.supervisors() for tunnel in supervisor.tunnels()]

    @property
    def up(self) -> bool:
        """True while at least one link carries a tunnel."""
        return any(supervisor.up for supervisor in self.supervisors())

    def answered(self, revision: int) -> bool:
        """Whether every worker of the edge, but those known to be away, has answered this revision of our services."""
        return self.up and all(one.trouble or one.tunnel.answered >= revision for one in self.supervisors())

    def declare(self) -> None:
        """The services changed: tell the edge."""
        for supervisor in self.supervisors():
            supervisor.tunnel.declare()

    async def stop_dialling(self) -> None:
        """Leave what is up alone, dial no more."""
        for supervisor in self.supervisors():
            await supervisor.stop_dialling()

    async def stop(self, reason: Reason) -> None:
        """End every tunnel."""
        for supervisor in self.supervisors():
            await supervisor.stop(reason)

    # EdgeSide

    def context(self) -> ssl.SSLContext:
        """TLS with the present certificate and key."""
        identity = self.identity
        return tunnel_client_context(identity.certificate_path, identity.key_path, authority=identity.authority)

    def welcomed(self, supervisor: Supervisor, welcome: Welcome) -> None:
        """A tunnel is up: note what the edge says about itself, and see that each of its workers has one."""
        if welcome.domain:
            self.domain = welcome.domain
        if self._visiting is not None:
            # One tunnel is enough; dialled again it must reach the worker that has its session.
            supervisor.worker = welcome.worker
        elif supervisor is self.main:
            self._match_workers(welcome)
        elif welcome.worker != supervisor.worker:
            self._end_slot(supervisor)  # the edge has no such worker any more: another slot serves that one
        self._changed()

    def went_down(self, supervisor: Supervisor) -> None:  # noqa: ARG002 - whoever listens looks at all of them
        """`status` shows the trouble."""
        self._changed()

    def _match_workers(self, welcome: Welcome) -> None:
        main = self.main
        if main.worker is not None and self.slots.get(main.worker) is main:
            del self.slots[main.worker]
        main.worker = welcome.worker
        workers = min(welcome.workers, WORKERS_MAX)
        for number, slot in list(self.slots.items()):
            if number >= workers or number == welcome.worker:
                self._end_slot(slot)
        self.slots[welcome.worker] = main
        for number in range(workers):
            if number not in self.slots:
                slot = Supervisor(self, owner=self, instance=self._instance, worker=number)
                slot.workers = welcome.workers
                self.slots[number] = slot
                slot.start()

    def _end_slot(self, slot: Supervisor) -> None:
        if slot.worker is not None and self.slots.get(slot.worker) is slot:
            del self.slots[slot.worker]
        spawn(slot.stop(Reason.CONNECTOR_STOPPING), name="superfluous tunnel")

    # TunnelOwner

    def claims_received(self, claims: Claims) -> None:
        """The edge's answer to a revision of our services; each worker sends it."""
        if claims.revision < self._claims_revision:
            return
        before = self.claims
        self._claims_revision = claims.revision
        self.granted_ports = [(low, high) for low, high in claims.ports if low <= high]
        self.claims = {result.name: result for result in claims.results}
        for name, result in self.claims.items():
            if before.get(name) != result:
                self._log_claim(result)
        self._changed()

    def _log_claim(self, result: ClaimResult) -> None:
        now = asyncio.get_running_loop().time()
        if not result.refused:
            # Said again whenever it comes back, so no interval for each; the bound of all holds.
            if self._granted.take(f"{result.name} {now}", now):
                log.info("service %s: %s", result.name, " ".join(result.addresses) or "declared, no public address")
            return
        self._logged.warning(
            f"{result.name} {result.refused} {result.message} {result.hint}", now,
            "service %s: the edge %s refused %s (%s): %s%s",
            result.name, self.endpoint, "a part of it" if result.addresses else "it", result.refused, result.message,
            f"; to allow it, run on the edge: {result.hint}" if result.hint else "",
        )  # fmt: skip

    def renewed(self, message: Renewed) -> None:
        """The edge signed a new certificate: the next dial uses it."""
        if self._may_install():
            self._renewal = spawn(self._install_logged(message), name="install certificate")

    @property
    def trust(self) -> str:
        """Digest of the authorities that this connector trusts."""
        return digest(self.identity.authority)

    def trusted(self, message: Trust) -> None:
        """The edge named the authorities to trust from now on."""
        if self._may_install():
            spawn(self._learn(message), name="learn authorities")

    def opened_privately(self, stream: Stream, request: Open) -> None:
        """As `TunnelOwner.opened_privately`."""
        if self._visiting is not None:
            stream.reset(Reason.ROLE_REFUSED)
            return
        if self._indoors is None:
            self._indoors = Indoors(self.identity, self._instance.served)
        self._indoors.open(stream, request)

    def reachable(self, message: Reachable) -> None:
        """As `TunnelOwner.reachable`."""
        if self._visiting is not None:
            self._visiting(message)

    def _may_install(self) -> bool:
        now = asyncio.get_running_loop().time()
        if self._installs is None:
            self._installs = TokenBucket(rate=INSTALLS_PER_SECOND, burst=INSTALLS_BURST, now=now)
        if self._installs.take(now):
            return True
        self._logged.warning("installs", now, "edge %s sends certificates without end: ignored", self.endpoint)
        return False

    # Renewal

    def renew_if_due(self) -> None:
        """Called once in a while: ask for a new certificate at two thirds of its life."""
        now = time.time()
        if now < max(self.identity.renew_at, self._renewal_at) or not self.up:
            return
        if self.identity.expires - now < EXPIRY_WARNING:
            log.warning("the certificate for edge %s expires soon and was not renewed yet", self.endpoint)
        self._renewal_at = now + RENEW_RETRY
        self._renewal = spawn(self._ask_for_renewal(), name="renew certificate")

    async def _ask_for_renewal(self) -> None:
        csr = await asyncio.get_running_loop().run_in_executor(None, self.identity.make_request)
        for tunnel in self.tunnels():
            if tunnel.link is not None and tunnel.session is not None:
                tunnel.session.send_control(RenewRequest(csr=csr))
                return

    async def renew_expired(self) -> None:
        """The edge refuses the expired certificate for a tunnel, but exchanges it. LocalError if it cannot be kept."""
        csr = await asyncio.get_running_loop().run_in_executor(None, self.identity.make_request)
        conversation = Conversation()
        try:
            await conversation.open(self.endpoint, self.context())
            answer = await conversation.ask(RenewRequest(csr=csr), Renewed)
        finally:
            conversation.close()
        await self._install(answer)

    async def _install_logged(self, message: Renewed) -> None:
        try:
            await self._install(message)
        except TunnelgwError as error:
            log.error("the renewed certificate from edge %s was not installed: %s", self.endpoint, error.text)

    async def _install(self, message: Renewed) -> None:
        async with self._installing:
            install = self.identity.install
            await asyncio.get_running_loop().run_in_executor(None, install, message.certificate, message.ca)
        if not self.identity.outdated:  # signed just before the edge changed its authority: not again at once
            self._renewal_at = 0.0
        log.info("the certificate for edge %s was renewed", self.endpoint)
        self._changed()

    async def _learn(self, message: Trust) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with self._installing:
                if digest(message.ca) == self.trust:  # each worker of the edge says it
                    return
                await loop.run_in_executor(None, self.identity.learn, message.ca)
        except TunnelgwError as error:
            log.error("the authorities that edge %s named are not trusted: %s", self.endpoint, error.text)
            return
        log.info("edge %s changes its authority: what it named is trusted from now on", self.endpoint)
        self.renew_if_due()

    def status(self) -> dict[str, Any]:
        """For `tunnelgw status`."""
        now = asyncio.get_running_loop().time()
        return {
            "address": str(self.endpoint),
            "name": self.identity.name,
            "domain": self.domain,
            "state": "up" if self.up else "away",
            "error": "" if self.up else self.main.trouble,
            "certificate_expires": self.identity.expires,
            **keys_of(self.identity),
            "tunnels": [_tunnel_status(supervisor, now) for supervisor in self.supervisors()],
        }


def claim_answer(results: list[ClaimResult]) -> dict[str, Any]:
    """The edges' answers for one service as one: accepted where any edge accepted it, else partly where any did so."""
    addresses = list(dict.fromkeys(address for result in results for address in result.addresses))
    if any(not result.refused for result in results):
        return {"state": "accepted", "addresses": addresses}
    for result in sorted(results, key=lambda result: not result.addresses):
        why = {"reason": result.refused, "message": result.message, "hint": result.hint}
        return {"state": "partly", "addresses": addresses, **why} if addresses else {"state": "refused", **why}
    return {"state": "waiting", "message": "no edge has answered yet"}


def _tunnel_status(supervisor: Supervisor, now: float) -> dict[str, Any]:
    tunnel = supervisor.tunnel
    session = tunnel.session
    return {
        "worker": supervisor.worker or 0,
        "state": "up" if supervisor.up else "detached" if session is not None else "away",
        "seconds": round(now - tunnel.since, 1) if supervisor.up else 0.0,
        "rtt_seconds": round(session.rtt, 6) if session is not None else 0.0,
        "streams": session.stream_count if session is not None else 0,
        "resumes": tunnel.resumes,
        "datagrams_dropped": session.datagrams_dropped if session is not None else 0,
        "error": supervisor.trouble,
    }
