"""From an accepted offer to routes of the table.

Invariant: the labels of one connector in metrics are bounded, however often its paths change.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tunnelgw.access.addresses import normalise_network
from tunnelgw.edge.places import port_label
from tunnelgw.edge.sharing import token_of
from tunnelgw.routing.table import Route
from tunnelgw.routing.units import host_of, port_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tunnelgw.obs.counters import ProcessCounters
    from tunnelgw.routing.units import HostAt, PortUnit, Unit
    from tunnelgw.wire.control import Offer

LABELS_MAX = 8192  # route labels that one connector may ever make in this process: counters outlive their routes
OTHER_LABEL = "other"


class RouteMaker:
    """Makes the routes of connectors. `secret()`: what members are named with in cookies."""

    __slots__ = ("_counters", "_labels", "_secret")

    def __init__(self, counters: ProcessCounters, secret: Callable[[], bytes]) -> None:
        self._counters = counters
        self._secret = secret
        self._labels: dict[str, set[str]] = {}  # by connector

    def make(
        self,
        name: str,
        offer: Offer,
        hosts: Iterable[str],
        at_ports: Iterable[PortUnit | HostAt],
        before: Iterable[Route],
    ) -> Iterator[Route]:
        """The routes of one offer at these units, as in `Verdict`; `before`: the connector's routes until now."""
        since = {(route.unit, route.path): route.since for route in before}
        kind = route_kind(offer)
        # What is passed through is one address to the edge, whatever paths it has at home.
        shown = "/" if kind == "home" else offer.path
        places: list[tuple[Unit, str, str]] = [(host, offer.path, f"{host}{shown}") for host in hosts]
        places += [(unit, "/", port_label(unit)) for unit in at_ports]
        for unit, path, named in places:
            host, label = host_of(unit), self._label(name, named)
            yield Route(
                kind=kind,
                host=host,
                path=path,
                port=port_number(unit),
                protocol=offer.protocol,
                connector=name,
                service=offer.name,
                counters=self._counters.route(label),
                strip_path=offer.strip_path,
                plain_http=offer.plain_http,
                response_seconds=offer.response_seconds,
                allow_from=tuple(sorted(normalise_network(network) for network in offer.allow_from)),
                users=tuple(offer.users),
                label=label,
                since=since.get((unit, path)) or time.time(),
                group=offer.group,
                priority=offer.priority,
                affinity=offer.affinity,
                token=token_of(self._secret(), name, f"{host}{path}") if offer.affinity == "cookie" else "",
            )

    def _label(self, name: str, label: str) -> str:
        """The label of a route in metrics: for one who makes ever new paths, no new ones from some point on."""
        labels = self._labels.setdefault(name, set())
        if label not in labels:
            if len(labels) >= LABELS_MAX:
                return OTHER_LABEL
            labels.add(label)
        return label


def route_kind(offer: Offer) -> str:
    """As `Route.kind`."""
    return "home" if offer.tls == "home" else offer.kind
