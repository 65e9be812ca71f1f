"""From what a connector offers to routes: every claim checked against its grant and against who holds it.

A connector always says all it offers; the answer is a whole new set of routes, swapped in at once. Claims that stay
keep their streams; services that are gone lose theirs. Members of a group hold an address together (sharing.py). What
was accepted is remembered, so that after a restart of the edge a visitor of a connector that is not back yet waits
instead of getting 404.

Who owns what: the registry says who holds an address (shared by all workers), the table routes, `Ports` listens.
Invariant: no route exists that the grant does not cover, or that another connector holds and does not share, not even
for a moment.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import msgspec

from tunnelgw.access.grants import Grant, check_host, check_ports, grant_command
from tunnelgw.edge.offers import Verdict, check_kind, refuse_twice
from tunnelgw.edge.places import host_key, name_address, port_addresses, port_key, ports_text
from tunnelgw.edge.routes import RouteMaker
from tunnelgw.edge.sharing import (
    explain,
    host_command,
    port_command,
    terms_of,
    wish_for_host,
    wish_for_port,
)
from tunnelgw.edge.shut import ShutPorts
from tunnelgw.errors import LocalError, Refused
from tunnelgw.identity.claims import USED
from tunnelgw.obs.reasons import Reason
from tunnelgw.obs.sparing import Sparing
from tunnelgw.routing.hostname import normalise_pattern
from tunnelgw.routing.units import HostAt, host_of, port_number, port_of, port_unit
from tunnelgw.wire.control import ClaimResult, Claims, Offer, Services

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tunnelgw.edge.connector import Connector
    from tunnelgw.edge.connectors import Connectors
    from tunnelgw.edge.passthrough import Live
    from tunnelgw.edge.ports import Ports
    from tunnelgw.identity.claims import Held, Wish
    from tunnelgw.identity.registry import Registry
    from tunnelgw.obs.counters import ProcessCounters
    from tunnelgw.routing.table import Route, RouteTable
    from tunnelgw.routing.units import PortUnit, Unit

log = logging.getLogger(__name__)

PORTS_MAX = 1024  # ports of one connector: each costs a descriptor
HOSTS_MAX = 1024  # host names of one connector: each costs a route, and a certificate
GRANTED_MAX = 64  # ranges of its grant that a connector is told, to choose a port from
HINTED = 16  # hosts that the command in a hint names
BRIEF_FROM = 400  # services from which on refusals are answered with the label and the beginning of the text
LINES = 250  # of refused claims, of all connectors in a minute: all of one large connector are worth reading once
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Services).decode


class ClaimDesk:
    """Answers `Services`. Inputs: `decide` (a connector said what it offers), `restore` and `withdraw`."""

    def __init__(
        self,
        *,
        domain: str,
        edge_names: frozenset[str],
        address: str,
        https_port: int,
        registry: Registry,
        table: RouteTable,
        ports: Ports,
        live: Live,
        connectors: Connectors,
        counters: ProcessCounters,
        changed: Callable[[Iterable[str]], None],
        own: Mapping[int, str],
        logs: Callable[[str], bool] = lambda _name: True,
    ) -> None:
        """`changed`: routes of these hosts ("" for ports) came, went or are others.

        `own`: TCP ports on which the edge itself listens, with the setting that says so.

        `logs`: whether this worker is the one that logs a connector's refusals; each worker decides them all.
        """
        self._domain = domain
        self._edge_names = edge_names
        self._address = address
        self._https_port = https_port
        self._registry = registry
        self._table = table
        self._ports = ports
        self._live = live
        self._connectors = connectors
        self._counters = counters
        self._changed = changed
        self._logs = logs
        self._sparing = Sparing(log, lines=LINES)
        self._routes = RouteMaker(counters, registry.affinity_secret)
        self._offers: dict[str, Services] = {}  # as last said, to decide again when a grant changes
        self._unsaved: set[str] = set()  # whose offers the store did not take
        self.shut = ShutPorts(ports, own)
        self.refused: dict[str, list[ClaimResult]] = {}  # of each connector what was refused, whole or in part
        self.waiting: set[str] = set()  # connectors that were refused what another one holds
        self.unrouted: set[str] = set()  # whose routes did not fit beside another one's that are about to change

    async def decide(self, connector: Connector, services: Services, *, opening: bool = True) -> None:
        """Check, hold, route, open, answer; and remember. `opening`: ports that are closed are opened."""
        name = connector.name
        record = self._registry.get(name)
        if record is None or record.revoked:
            return
        before = self._offers.get(name)
        if before is None or before.offers != services.offers or name in self._unsaved:
            self._remember(name, services)
        self._offers[name] = services
        verdicts = self._check(name, record.grant, services.offers)
        self._hold(name, record.grant, verdicts)
        await self.shut.open(name, verdicts if opening else (), time.monotonic())
        if self._connectors.by_name.get(name) is not connector:  # revoked meanwhile
            self._close(port for verdict in verdicts for port in verdict.opened)
            return
        self._route(name, verdicts)
        private = {verdict.offer.name for verdict in verdicts if verdict.offer.private and verdict.refused is None}
        self._connectors.visits.offered(name, frozenset(private))
        self.waiting.discard(name)
        for verdict in verdicts:
            if verdict.refused is not None:
                if verdict.held:
                    self.waiting.add(name)
                self._counters.refuse(verdict.refused.reason)
                if self._logs(name):
                    self._log_refusal(name, verdict, verdict.refused)
        results = [self._result(verdict, brief=len(verdicts) > BRIEF_FROM) for verdict in verdicts]
        self.refused[name] = [result for result in results if result.refused]
        granted = list(record.grant.ports[:GRANTED_MAX])
        connector.tell(Claims(revision=services.revision, results=results, ports=granted))

    async def again(self, connector: Connector) -> None:
        """The grant changed, or a held name may be free: decide once more about what was offered last."""
        name = connector.name
        services = self._offers.get(name)
        if services is not None:
            if connector.link is None and name not in self._unsaved and self._registry.overtaken(name):
                # Another worker has heard of it since, and remembered that; to insist would take it back.
                services = self._offers[name] = self._remembered(name) or services
            # The ports of one that is away were closed when it left; they open when it is back.
            await self.decide(connector, services, opening=connector.session is not None)
        else:
            await self.restore(connector)  # it came with a backup

    async def reopen(self, connector: Connector) -> None:
        """Try ports once more that could not be opened; decide again if one can be now."""
        name = connector.name
        if connector.session is None:
            self.shut.forget(name)  # they are tried when it is back
        elif opened := await self.shut.retry(name, time.monotonic()):
            await self.again(connector)
            self._close(opened)  # what it does not want any more

    async def restore(self, connector: Connector) -> None:
        """The edge started: routes of a connector that is not back yet."""
        if connector.name not in self._offers and (services := self._remembered(connector.name)) is not None:
            self._offers[connector.name] = services
            await self.decide(connector, services)

    def withdraw(self, name: str) -> None:
        """The connector was revoked: its routes, ports and streams go."""
        self._offers.pop(name, None)
        self.refused.pop(name, None)
        self.shut.forget(name)
        self.waiting.discard(name)
        self.unrouted.discard(name)
        before = self._table.routes_of(name)
        self._table.replace(name, ())
        self._close(route.port_unit for route in before)
        self._serve(name, before, ())
        self._changed(route.host for route in before)

    # The steps.

    def _remembered(self, name: str) -> Services | None:
        found = self._registry.remembered_offers(name)
        return _decode(found) if found is not None else None

    def _remember(self, name: str, services: Services) -> None:
        try:
            self._registry.remember_offers(name, _encode(services))
            self._unsaved.discard(name)
        except LocalError as error:  # a full disk: only a restart of the edge would miss it
            self._unsaved.add(name)
            log.error("what connector %s offers is not remembered: %s", name, error.text)

    def _check(self, name: str, grant: Grant, offers: Iterable[Offer]) -> list[Verdict]:
        verdicts = [Verdict(offer) for offer in offers]
        ports = hosts = 0
        for verdict in verdicts:
            offer = verdict.offer
            try:
                check_kind(offer)
                verdict.hosts = self._hosts(offer)
            except Refused as refusal:
                verdict.refuse(refusal)
                continue
            hosts += len(verdict.hosts)
            if hosts > HOSTS_MAX:
                verdict.hosts = []
                verdict.refuse(Refused(f"more than {HOSTS_MAX} host names", reason=Reason.CLAIM_UNSUPPORTED))
            if offer.private:  # whatever else it says: it has no public address
                continue
            ports += sum(max(0, high - low + 1) for low, high in offer.ports)  # counted before any list is made
            if ports > PORTS_MAX:
                verdict.refuse(Refused(f"more than {PORTS_MAX} ports", reason=Reason.CLAIM_UNSUPPORTED))
            else:
                verdict.ports = [
                    port_unit(offer.kind, port) for low, high in offer.ports for port in range(low, high + 1)
                ]
            used = [host for other in verdicts[:HINTED] for host in other.hosts[:HINTED]]
            self._check_grant(name, grant, verdict, used[:HINTED])
            verdict.share_ports()
        refuse_twice(verdicts)
        return verdicts

    def _hosts(self, offer: Offer) -> list[str]:
        """The normalised hosts of an offer; the default one where it names neither host nor port; none if private."""
        if offer.private:
            return []
        if not offer.hosts:
            return [] if offer.ports else [f"{offer.name}.{self._domain}"]
        try:
            return [normalise_pattern(host) for host in offer.hosts]
        except ValueError as error:
            raise Refused(str(error), reason=Reason.CLAIM_UNSUPPORTED) from None

    def _own_hosts(self, offer: Offer) -> list[str]:
        """As `_hosts`, of an offer that was perhaps refused for them."""
        try:
            return self._hosts(offer)
        except Refused:
            return []

    def _check_grant(self, name: str, grant: Grant, verdict: Verdict, used: list[str]) -> None:
        offer = verdict.offer
        for host in tuple(verdict.hosts):
            try:
                check_host(grant, host, service=offer.name, domain=self._domain, edge_names=self._edge_names)
            except Refused as refusal:
                verdict.hosts.remove(host)
                may_be_granted = host not in self._edge_names
                hosts = [*(used if not grant.hosts else ()), host]
                verdict.refuse(refusal, grant_command(name, grant, hosts=hosts) if may_be_granted else "")
        for ports in offer.ports:
            try:
                check_ports(grant, ports)
            except Refused as refusal:
                verdict.ports = []
                verdict.refuse(refusal, grant_command(name, grant, ports=offer.ports))

    def _hold(self, name: str, grant: Grant, verdicts: list[Verdict]) -> None:
        """Take what is free or shared; what another connector holds stays its own, and both hear of it."""
        wanted: dict[str, Wish] = {}
        for verdict in verdicts:
            offer = verdict.offer
            terms = terms_of(offer) if verdict.hosts or verdict.at_ports else ""
            wanted |= {host_key(host, offer.path): wish_for_host(grant, host, terms) for host in verdict.hosts}
            for unit in verdict.at_ports:
                wanted[port_key(unit, offer.protocol)] = wish_for_port(offer, grant, unit, terms)
        refused = self._registry.hold(name, wanted)
        used = [host for verdict in verdicts[:HINTED] for host in verdict.hosts[:HINTED]][:HINTED]
        for verdict in verdicts:
            offer = verdict.offer
            for host in tuple(verdict.hosts):
                key = host_key(host, offer.path)
                if (held := refused.get(key)) is not None:
                    verdict.hosts.remove(host)
                    command = host_command(name, grant, host, used)
                    text, hint = self._told(name, held, wanted[key], offer, host, host, command=command)
                    verdict.refuse(Refused(text, reason=Reason.CLAIM_HELD), hint)
            self._hold_at_ports(name, grant, verdict, wanted, refused)

    def _hold_at_ports(
        self, name: str, grant: Grant, verdict: Verdict, wanted: dict[str, Wish], refused: dict[str, Held]
    ) -> None:
        """Take those away that others hold; each holder is named with its ports, and hears of them, once."""
        offer = verdict.offer
        lost: dict[tuple[Held, Wish, str], list[PortUnit | HostAt]] = {}
        for unit in verdict.at_ports:
            key = port_key(unit, offer.protocol)
            if (held := refused.get(key)) is not None:
                verdict.drop(unit)
                lost.setdefault((held, wanted[key], host_of(unit)), []).append(unit)
        told = []
        for (held, wish, host), units in lost.items():
            ports = ports_text([port_of(unit) for unit in units])
            what = f"{host} on {ports}" if host and held.why != USED else ports
            command = port_command(name, grant, offer, units[0])
            told.append(self._told(name, held, wish, offer, what, units[0], command=command))
        if told:
            verdict.lose(Refused("; ".join(text for text, _ in told), reason=Reason.CLAIM_HELD), told[0][1])

    def _told(
        self, name: str, held: Held, wish: Wish, offer: Offer, what: str, unit: Unit, *, command: str
    ) -> tuple[str, str]:
        """As `explain`, of something that another one holds, who hears of it too."""
        self._connectors.notify_holder(held.holder, claimant=name, what=what)
        return explain(what, held, wish, offer, self._offer_at(held.holder, offer, unit), command=command)

    def _offer_at(self, holder: str, mine: Offer, unit: Unit) -> Offer | None:
        """The offer of another connector that has this unit; of several, the one most like ours."""
        known = self._offers.get(holder)
        found = [offer for offer in (known.offers if known is not None else ()) if self._has(offer, unit)]
        return max(found, key=lambda offer: (offer.name, offer.path) == (mine.name, mine.path), default=None)

    def _has(self, offer: Offer, unit: Unit) -> bool:
        """Whether a unit is one of those that an offer names."""
        if isinstance(unit, str):
            return not offer.protocol and unit in self._own_hosts(offer)
        if isinstance(unit, HostAt) and unit.host not in self._own_hosts(offer):
            return False
        number = port_number(unit)
        return port_unit(offer.kind, number) == port_of(unit) and any(
            low <= number <= high for low, high in offer.ports
        )

    def _log_refusal(self, name: str, verdict: Verdict, refused: Refused) -> None:
        """Each refusal once per interval, however often it is decided again; another cause or hint is another one."""
        self._sparing.warning(
            f"{name} {verdict.offer.name} {refused.text} {verdict.hint}", time.monotonic(),
            "connector %s, service %s refused (%s): %s; to allow it: %s",
            name, verdict.offer.name, refused.reason.label, refused.text, verdict.hint or "-",
        )  # fmt: skip

    def _route(self, name: str, verdicts: list[Verdict]) -> None:
        before = self._table.routes_of(name)
        make = self._routes.make
        routes = [
            route
            for verdict in verdicts
            for route in make(name, verdict.offer, verdict.hosts, verdict.at_ports, before)
        ]
        try:
            self._table.replace(name, routes)
        except Refused as refusal:  # the registry is asked first: only while another worker is ahead of this one
            self.unrouted.add(name)
            self._close(port for verdict in verdicts for port in verdict.opened)
            log.error("connector %s: %s", name, refusal.text)
            return
        self.unrouted.discard(name)
        self._serve(name, before, routes)
        self._close(route.port_unit for route in before)
        self._changed(route.host for route in (*before, *routes))
        self._connectors.groups.serve(name)  # those who wait for a group that it is a member of from now on

    def _serve(self, name: str, before: Iterable[Route], routes: Iterable[Route]) -> None:
        """Streams of services that are gone end, and nobody waits for one."""
        services = {route.service for route in routes}
        for service in {route.service for route in before} - services:
            self._live.cut(name, service)
        self._connectors.serves(name, services)

    def _close(self, ports: Iterable[PortUnit]) -> None:
        """Those of these ports that nobody holds any more."""
        for port in ports:
            if port and not self._table.holders(port) and not self.shut.opening(port):
                self._ports.close(port)

    def _result(self, verdict: Verdict, *, brief: bool) -> ClaimResult:
        """`brief`: of so many, the label alone must do, or the answer were larger than a message may be."""
        offer, refused = verdict.offer, verdict.refused
        addresses = [self.url(offer.kind, host, offer.path) for host in verdict.hosts]
        addresses += port_addresses(self._address, verdict.ports)
        addresses += [name_address(name, offer.protocol) for name in verdict.names]
        return ClaimResult(
            name=offer.name,
            addresses=addresses,
            refused=refused.reason.label if refused is not None else "",
            message=refused.text[: 60 if brief else 1000] if refused is not None else "",
            hint="" if brief else verdict.hint[:1000],
        )

    def url(self, kind: str, host: str, path: str) -> str:
        """The public address of a host and path, as a person would type it."""
        port = "" if self._https_port == 443 else f":{self._https_port}"
        return f"tls://{host}:{self._https_port}" if kind in ("tcp", "tls") else f"https://{host}{port}{path}"
