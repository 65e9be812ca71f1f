"""Everything that services with `tls = "home"` need beside their target: certificates, and the end of TLS.

Made when the first such service is declared, and imported only then: the gateway costs 8 MB. Certificates come from
files or from an ACME server, ordered by a short-lived child and proven through the edge's own front door.

Invariants: a certificate is ordered only for a host that is ours by our own file and that an edge which is connected
accepted; keys stay below `state_dir`, 0600.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tunnelgw.config.acme import home_challenges
from tunnelgw.connector.ending import Ending, hosts_of
from tunnelgw.gateway.service import trusted_nobody
from tunnelgw.gateway.settings import GatewaySettings
from tunnelgw.net.acme import AcmeIssuer
from tunnelgw.net.certificates import Certificates
from tunnelgw.net.issuers import FilesIssuer, Issuer, Pair
from tunnelgw.net.timers import Wheel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tunnelgw.config.model import ConnectorConfig, ServiceConfig
    from tunnelgw.connector.joined import JoinedEdge
    from tunnelgw.obs.reasons import Reason
    from tunnelgw.wire.control import Open
    from tunnelgw.wire.events import StreamEnd
    from tunnelgw.wire.flow import Budget


class Household:
    """Inputs: `replace` (configuration), `look` (edges said something), `drain` and `close` at the end."""

    __slots__ = ("_config", "_issuer", "_served", "_wheel", "certificates", "ending")

    def __init__(
        self, config: ConnectorConfig, *, join: Callable[[StreamEnd, Open], Reason | None], memory: Budget
    ) -> None:
        """`join`, `memory`: as `Ending` needs them."""
        loop = asyncio.get_running_loop()
        self._config = config
        self._served: tuple[tuple[ServiceConfig, ...], tuple[str, ...]] = (), ()  # services, domains of edges
        self._issuer = issuer_of(config)
        self._wheel = Wheel(loop)
        self.certificates = Certificates(loop, self._wheel, self._issuer)
        self.ending = Ending(join=join, contexts=self.certificates, wheel=self._wheel, memory=memory)
        self.ending.gateway.reload(GatewaySettings(hsts=config.tls.hsts), trusted_nobody)
        self.certificates.start()
        self.certificates.open()  # whether an edge leads here yet is for `look` to say

    def replace(self, config: ConnectorConfig, edges: Sequence[JoinedEdge]) -> None:
        """Another configuration."""
        before, self._config = self._config, config
        if (before.tls, before.acme) != (config.tls, config.acme):
            self._issuer = issuer_of(config)
            self.certificates.replace(self._issuer)
            self.ending.gateway.reload(GatewaySettings(hsts=config.tls.hsts), trusted_nobody)
        self.look(edges)

    def look(self, edges: Sequence[JoinedEdge]) -> None:
        """What edges are called and what they accepted may have changed."""
        services = tuple(service for service in self._config.services if not _refused(service.name, edges))
        served = services, tuple(edge.domain for edge in edges)
        if served != self._served:
            self._served = served
            self.ending.replace(*served)
        self.certificates.want({host for edge in edges if edge.up for host in self._accepted(edge)})

    def _accepted(self, edge: JoinedEdge) -> set[str]:
        """Hosts that this edge leads here, as far as our own file asks for them."""
        found: set[str] = set()
        for service in self._config.services:
            result = edge.claims.get(service.name)
            if service.tls == "home" and result is not None:
                found |= {_host(address) for address in result.addresses} & set(hosts_of(service, [edge.domain]))
        return found

    def drain(self) -> None:
        """Serve what is under way and nothing more."""
        self.ending.gateway.drain()

    async def close(self) -> None:
        """End what runs, children included."""
        await self.certificates.stop()
        self._wheel.close()

    # Answers.

    def account(self) -> str:
        """URL of the ACME account, once there is one; "" for files. A CAA record can name it (RFC 8657)."""
        return self._issuer.account() if isinstance(self._issuer, AcmeIssuer) else ""

    def status(self, service: ServiceConfig) -> dict[str, Any]:
        """Of the certificates of a service, the worst one: when it ends (0.0: there is none), and what is wrong."""
        hosts = hosts_of(service, self._served[1])
        found = self.certificates.expiries(hosts)
        asked, troubles = self.certificates.asked(), self.certificates.troubles(hosts)
        problems = {host: "being ordered" if host in asked else why for host, (_, why) in troubles.items()}
        return {
            "tls": "home",
            "certificate_expires": min(found.values(), default=0.0),
            "certificate_error": "; ".join(f"{host}: {why}" for host, why in problems.items() if why),
        }


def issuer_of(config: ConnectorConfig) -> Issuer:
    """The operator's files, or an account of our own at an ACME server, kept under `state_dir`/acme."""
    if config.tls.issuer == "files":
        return FilesIssuer(Pair(files.cert, files.key) for files in config.tls.certificates)
    return AcmeIssuer(config.state_dir / "acme", config.acme, challenges=home_challenges(config.acme))


def _refused(name: str, edges: Sequence[JoinedEdge]) -> bool:
    """Whether edges answered about a service, and none of them gives it any address."""
    answers = [edge.claims[name] for edge in edges if name in edge.claims]
    return bool(answers) and all(answer.refused and not answer.addresses for answer in answers)


def _host(address: str) -> str:
    """The host in a public address that an edge told; "" in one that is none."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""
