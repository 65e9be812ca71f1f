"""What a connector offers, looked at by itself: what this edge can serve, and which of two offers has a place.

Invariant: after `refuse_twice` no two verdicts hold one place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tunnelgw.access.addresses import normalise_network
from tunnelgw.access.passwords import check_user
from tunnelgw.config.names import service_name
from tunnelgw.edge.places import ports_text
from tunnelgw.edge.routes import route_kind
from tunnelgw.errors import Refused
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.paths import normalise_path
from tunnelgw.routing.protocols import PROTOCOLS
from tunnelgw.routing.table import sharing
from tunnelgw.routing.units import HostAt, PortUnit, port_number, port_of, unit_text
from tunnelgw.wire.control import EDGE_METRICS

if TYPE_CHECKING:
    from tunnelgw.wire.control import Offer

KINDS = ("http", "h2c", "tls", "tcp", "udp")
AFFINITIES = ("", "cookie", "address")
TEXT_MOST = 1000  # characters of a refusal, beyond which no further holder is named


@dataclass(slots=True)
class Verdict:
    """What became of one offer so far. names: hosts on ports that others may share, instead of hosts and ports.

    held: another one has something of it, and may let go.
    """

    offer: Offer
    hosts: list[str] = field(default_factory=list)
    ports: list[PortUnit] = field(default_factory=list)
    names: list[HostAt] = field(default_factory=list)
    refused: Refused | None = None
    hint: str = ""
    held: bool = False

    @property
    def at_ports(self) -> list[PortUnit | HostAt]:
        """Every unit but hosts on 443."""
        return [*self.ports, *self.names]

    @property
    def opened(self) -> list[PortUnit]:
        """Every port that is to be open for it."""
        return [*self.ports, *dict.fromkeys(name.port for name in self.names)]

    def share_ports(self) -> None:
        """Of an offer with a protocol: each of its hosts on each of its ports is a place of its own."""
        if self.offer.protocol:
            self.names = [HostAt(port, host) for port in map(port_number, self.ports) for host in self.hosts]
            self.hosts, self.ports = [], []

    def drop(self, unit: PortUnit | HostAt) -> None:
        """It does not get this one."""
        if isinstance(unit, HostAt):
            self.names.remove(unit)
        else:
            self.ports.remove(unit)

    def refuse(self, refusal: Refused, hint: str = "") -> None:
        """Keep the first refusal: the others are often its consequence."""
        self.held = self.held or refusal.reason is Reason.CLAIM_HELD
        if self.refused is None:
            self.refused, self.hint = refusal, hint

    def lose(self, refusal: Refused, hint: str = "") -> None:
        """Somebody else has a part of it: each one that has some is named, beside what was refused before."""
        if self.refused is not None:
            if len(self.refused.text) < TEXT_MOST:  # there may be one for each host on each port
                text = f"{self.refused.text}; {refusal.text}"
                self.refused = Refused(text, reason=self.refused.reason)
            hint = self.hint or hint
        else:
            self.refused = refusal
        self.hint = hint
        self.held = self.held or refusal.reason is Reason.CLAIM_HELD


def check_kind(offer: Offer) -> None:
    """`Refused(CLAIM_UNSUPPORTED)` for what this edge cannot serve, whatever its place."""
    at_home = offer.tls == "home" and offer.kind in ("http", "h2c") and not (offer.ports or offer.plain_http)
    if offer.kind not in KINDS or not _may_share(offer) or (offer.tls and (offer.private or not at_home)):
        what = f"private {offer.kind}" if offer.private else offer.protocol or offer.kind
        how = f" with tls = {offer.tls!r}" if offer.tls and what == offer.kind else ""
        raise Refused(f"this edge does not serve {what} services{how}", reason=Reason.CLAIM_UNSUPPORTED)
    if offer.kind == "udp" and (offer.hosts or not offer.ports):
        raise Refused("a udp service has ports, and no host names", reason=Reason.CLAIM_UNSUPPORTED)
    if offer.affinity not in AFFINITIES or (offer.affinity == "cookie" and route_kind(offer) not in ("http", "h2c")):
        raise Refused(f"no affinity {offer.affinity!r} for this service here", reason=Reason.CLAIM_UNSUPPORTED)
    try:
        if offer.private:
            _check_private_name(offer.name)
        if offer.group:
            service_name(offer.group)  # it is shown to the operator
        normalise_path(offer.path)
        for network in offer.allow_from:
            normalise_network(network)
        for line in offer.users:
            check_user(line)
    except ValueError as error:
        raise Refused(str(error), reason=Reason.CLAIM_UNSUPPORTED) from None


def _check_private_name(name: str) -> None:
    """`ValueError` for a name that a grant could take for something else: visitors know a private service by it."""
    if service_name(name) == EDGE_METRICS:
        raise ValueError(f"{EDGE_METRICS} is the edge's own private service; choose another name")


def _may_share(offer: Offer) -> bool:
    """False for a protocol that this edge does not know, or not in this way."""
    if not offer.protocol:
        return True
    known = PROTOCOLS.get(offer.protocol)
    fits = known is not None and offer.kind in known.kinds and not (offer.tls or offer.private)
    return fits and bool(offer.hosts and offer.ports)


def refuse_twice(verdicts: list[Verdict]) -> None:
    """Of two services that want the same place the first has it: a host with one path, a pass-through host, a port."""
    used: dict[str, dict[str, str]] = {}  # host → path → who may share the host by other paths
    _refuse_ports(verdicts)
    for verdict in verdicts:
        shares = sharing(route_kind(verdict.offer))
        for host in tuple(verdict.hosts):
            path = normalise_path(verdict.offer.path)
            there = used.setdefault(host, {})
            mixed = bool(shares) and any(other and other != shares for other in there.values())
            if there and (path in there or mixed or not (shares and all(there.values()))):
                verdict.hosts.remove(host)
                text = f"{host}{path} is used by another service of yours"
                if mixed:
                    text = (
                        f"TLS of {host} ends at home for one service and at the edge for another: let all say the same"
                    )
                verdict.refuse(Refused(text, reason=Reason.CLAIM_HELD))
            else:
                there[path] = shares


def _refuse_ports(verdicts: list[Verdict]) -> None:
    """The same for ports, which are raw or for one protocol, and for hosts on them."""
    uses: dict[PortUnit, tuple[str, str]] = {}  # for which protocol, and the first service that has it
    taken: dict[PortUnit | HostAt, str] = {}  # by which service
    for verdict in verdicts:
        use, ours = verdict.offer.protocol, verdict.offer.name
        lost: dict[str, list[PortUnit]] = {}
        for unit in verdict.at_ports:
            port = port_of(unit)
            first_use, first = uses.setdefault(port, (use, ours))
            if unit not in taken and first_use == use:
                taken[unit] = ours
                continue
            verdict.drop(unit)
            if isinstance(unit, HostAt) and unit in taken:
                verdict.lose(_used(unit_text(unit), taken[unit]))
            else:
                lost.setdefault(taken.get(unit, first), []).append(port)
        for theirs, ports in lost.items():
            verdict.lose(_used(ports_text(ports), theirs))


def _used(what: str, service: str) -> Refused:
    return Refused(f"{what} is used by your service {service}", reason=Reason.CLAIM_HELD)
