"""The tunnels of visiting machines, and what each may open: the grant is asked for every stream.

A visitor's OPEN names a private service, a connector whose networks it wants, or an exit. Allowed, it is joined to a
stream to that connector, whose OPEN says who the visitor is, the fingerprint of the key that its link proved, and what
its grant covers; the connector checks the key end to end. Refused, it is reset with a reason that tells nothing about
what was not granted. With several workers each has its own visits, and a tunnel to every connector.

Invariant: a private stream exists only while the grant covers it and a connector offers what it leads to.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from tunnelgw.access.grants import may_visit
from tunnelgw.edge.joint import Caller, Joint
from tunnelgw.edge.visit import Visit
from tunnelgw.errors import Refused
from tunnelgw.obs.counters import RouteCounters
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.table import Route
from tunnelgw.wire.control import EDGE_ITSELF, EDGE_METRICS, PRIVATE_KINDS, Open, Reachable, Reached
from tunnelgw.wire.stream import PRIVATE_FLOW

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunnelgw.access.grants import Grant
    from tunnelgw.edge.connectors import Connectors
    from tunnelgw.identity.records import Connector as Record
    from tunnelgw.net.link import Link
    from tunnelgw.wire.control import Hello
    from tunnelgw.wire.stream import Stream

log = logging.getLogger(__name__)

INSTANCES_MAX = 16  # processes of one identity that visit at once, as several ssh; a new one replaces who is away


class Within(Protocol):
    """What the edge itself offers visitors."""

    def open(self, stream: Stream, request: Open) -> None:
        """A stream that ends here; allowed already."""

    def names(self) -> tuple[str, ...]:
        """Private services that there are."""

    def review(self, name: str, grant: Grant) -> None:
        """What this visitor has open here and is not granted any more ends now."""


class Visits:
    """All visits of this process. Inputs: `accept`, `changed`, `offered`, `remove`, and what visits tell."""

    def __init__(self, connectors: Connectors) -> None:
        self.all = connectors
        self.flows: dict[tuple[str, int], Joint] = {}  # by connector and its stream
        self.within: Within | None = None  # set by the composition root
        self._by_name: dict[str, dict[str, Visit]] = {}  # then by instance
        self._offered: dict[str, frozenset[str]] = {}  # private services by connector
        self._counters = RouteCounters("private")  # private streams are counted by nobody's route

    def __iter__(self) -> Iterator[Visit]:
        return (visit for instances in tuple(self._by_name.values()) for visit in tuple(instances.values()))

    @property
    def streams(self) -> int:
        """Private streams that are open."""
        return sum(len(visit.joints) for visit in self)

    def waiting(self) -> int:
        """Streams whose visitor has lost its link, and ends that may have been lost with it."""
        away = [(visit.session, len(visit.joints)) for visit in self if visit.link is None]
        return sum(streams or (session is not None and not session.settled) for session, streams in away)

    # Tunnels.

    def accept(self, link: Link, hello: Hello, *, version: int, identity: Record, serial: str, key: str) -> None:
        """An authenticated hello of a visitor. Refused where it has too many tunnels, or a later dial is there."""
        instances = self._by_name.setdefault(identity.name, {})
        visit = instances.get(hello.instance)
        if visit is None:
            self._make_room(identity.name, instances)
            visit = Visit(self, identity.name, hello.instance, identity.grant)
        instances[hello.instance] = visit
        self._by_name[identity.name] = instances  # making room may have emptied it
        visit.grant = identity.grant
        visit.accept(link, hello, version=version, serial=serial, key=key)

    def _make_room(self, name: str, instances: dict[str, Visit]) -> None:
        if len(instances) < INSTANCES_MAX:
            return
        away = [visit for visit in instances.values() if visit.link is None]
        if not away:
            text = f"{name} has {INSTANCES_MAX} tunnels already: end one of them"
            raise Refused(text, reason=Reason.CONNECTION_LIMIT)
        min(away, key=lambda visit: (len(visit.joints), visit.since)).give_up(Reason.CANCELLED)

    def forget(self, visit: Visit) -> None:
        """Its session is over."""
        instances = self._by_name.get(visit.name, {})
        if instances.get(visit.instance) is visit:
            del instances[visit.instance]
            if not instances:
                self._by_name.pop(visit.name, None)

    def remove(self, name: str, reason: Reason) -> None:
        """Revoked, or no visitor any more: cut its tunnels, and with them all that they opened."""
        for visit in tuple(self._by_name.get(name, {}).values()):
            visit.cut(reason)

    def changed(self, record: Record) -> None:
        """Its grant or its certificates: what is not covered any more ends now."""
        serials = {issued.serial for issued in record.issued}
        for visit in tuple(self._by_name.get(record.name, {}).values()):
            if visit.serial not in serials:
                log.warning("visitor %s joined again with another key: the old one is cut", record.name)
                visit.cut(Reason.REVOKED)
                continue
            visit.grant = record.grant
            self._review(visit)

    def offered(self, connector: str, services: frozenset[str]) -> None:
        """The private services of a connector from now on; what was withdrawn ends."""
        if self._offered.get(connector, frozenset()) == services:
            return
        self._offered[connector] = services
        for visit in self:
            self._review(visit)

    def private_services(self) -> dict[str, frozenset[str]]:
        """By connector."""
        return {name: services for name, services in self._offered.items() if services}

    def _review(self, visit: Visit) -> None:
        for joint in tuple(visit.joints.values()):
            try:
                self._place(visit.grant, joint.asked, joint.route.connector)
                self._same_networks(visit.grant, joint)
            except Refused as refusal:
                joint.cut(refusal.reason if refusal.reason is Reason.VISIT_NOT_GRANTED else Reason.WITHDRAWN)
        if self.within is not None:
            self.within.review(visit.name, visit.grant)
        visit.tell(self.reachable(visit.grant))

    def _same_networks(self, grant: Grant, joint: Joint) -> None:
        """The connector judged by what it was told: under another grant it has to judge anew."""
        if joint.asked.kind == "via" and tuple(joint.caller.request.networks) != grant.networks:
            raise Refused("the networks of its grant changed", reason=Reason.VISIT_NOT_GRANTED)

    def reachable(self, grant: Grant) -> Reachable:
        """What a grant covers of what there is."""
        found = [
            Reached(connector=connector, service=service, up=self._up(connector))
            for connector, services in sorted(self._offered.items())
            for service in sorted(services)
            if may_visit(grant, connector=connector, service=service)
        ]
        if self.within is not None:
            found += [
                Reached(connector=EDGE_ITSELF, service=service, up=True)
                for service in self.within.names()
                if may_visit(grant, connector=EDGE_ITSELF, service=service)
            ]
        return Reachable(services=found[:4096], networks=list(grant.networks), exits=list(grant.exits))

    def _up(self, connector: str) -> bool:
        known = self.all.by_name.get(connector)
        return known is not None and known.link is not None

    # Streams.

    def opened(self, visit: Visit, stream: Stream, request: Open) -> None:
        """A visitor wants something: join it, or reset it with the reason."""
        try:
            connector = self._place(visit.grant, request)
        except Refused as refusal:
            self.all.counters.refuse(refusal.reason)
            label, text = refusal.reason.label, "visitor %s was refused (%s): %s"
            self.all.say(f"{visit.name} {label} {refusal.text}", text, visit.name, label, refusal.text)
            stream.reset(refusal.reason)
            return
        told = self._told(visit, request)
        if connector == EDGE_ITSELF:
            assert self.within is not None
            self.within.open(stream, told)
            return
        route = Route(kind=request.kind, host="", connector=connector, service=request.service, counters=self._counters)
        Joint(self, visit.joints, stream, request, route, Caller(told)).open()

    def _told(self, visit: Visit, request: Open) -> Open:
        """What the far side hears; nothing of it is taken from what the visitor says of itself."""
        host, _, port = visit.peer.rpartition(":")
        networks = visit.grant.networks if request.kind == "via" else ()
        return Open(
            service=request.service,
            kind=request.kind,
            visitor=host,
            visitor_port=int(port) if port.isdecimal() else 0,
            edge=visit.local[0],
            edge_port=visit.local[1],
            by=visit.name,
            key=visit.key,
            networks=list(networks),
        )

    def _place(self, grant: Grant, request: Open, connector: str = "") -> str:
        """The connector that this is for. Refused: VISIT_NOT_GRANTED, SERVICE_UNKNOWN, NOT_IMPLEMENTED.

        connector: where it was found before, and must be still.
        """
        name = request.service
        if request.kind not in PRIVATE_KINDS:
            raise Refused("it asked for a stream that only the edge opens", reason=Reason.ROLE_REFUSED)
        if request.kind == "private":
            return self._private(grant, name, connector or request.connector)
        covered = name in grant.exits if request.kind == "exit" else bool(grant.networks)
        if not covered:
            raise Refused(f"no grant for {request.kind} {name}", reason=Reason.VISIT_NOT_GRANTED)
        if name != EDGE_ITSELF and name not in self.all.by_name:
            raise Refused(f"{name} is no connector", reason=Reason.SERVICE_UNKNOWN)
        if name == EDGE_ITSELF and (request.kind == "via" or self.within is None):
            raise Refused("the edge has no networks to offer", reason=Reason.NOT_IMPLEMENTED)
        return name

    def _private(self, grant: Grant, service: str, connector: str) -> str:
        named = f"{connector}/{service}" if connector else service
        if service == EDGE_METRICS and connector in ("", EDGE_ITSELF):
            if not may_visit(grant, connector=EDGE_ITSELF, service=service):
                raise Refused(f"no grant for {named}", reason=Reason.VISIT_NOT_GRANTED)
            if self.within is None or service not in self.within.names():
                raise Refused("this edge has no metrics address", reason=Reason.SERVICE_UNKNOWN)
            return EDGE_ITSELF
        granted = service in grant.services or any(item.rpartition("/")[2] == service for item in grant.services)
        if not granted or (connector and not may_visit(grant, connector=connector, service=service)):
            raise Refused(f"no grant for {named}", reason=Reason.VISIT_NOT_GRANTED)
        found = [
            name
            for name, services in sorted(self._offered.items())
            if service in services and connector in ("", name) and may_visit(grant, connector=name, service=service)
        ]
        if not found:
            raise Refused(f"no connector offers {named} as a private service", reason=Reason.SERVICE_UNKNOWN)
        return next(filter(self._up, found), found[0])

    # Datagrams, which are sealed end to end and may be lost.

    def outwards(self, visit: Visit, flow: int, data: bytes) -> None:
        """From a visitor to a connector."""
        joint = visit.joints.get(flow ^ PRIVATE_FLOW)
        if joint is not None and joint.far is not None and joint.asked.kind != "private":
            joint.far.session.send_datagram(PRIVATE_FLOW | joint.far.id, data, joint.near.session.now)

    def inwards(self, connector: str, flow: int, data: bytes) -> None:
        """From a connector to a visitor."""
        joint = self.flows.get((connector, flow ^ PRIVATE_FLOW))
        if joint is not None and joint.far is not None and joint.asked.kind != "private":
            joint.near.session.send_datagram(PRIVATE_FLOW | joint.near.id, data, joint.far.session.now)
