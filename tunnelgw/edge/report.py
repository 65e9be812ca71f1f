"""What one worker tells about itself: numbers for metrics, and its part of `edge status`.

Invariant: only reads; nothing here is asked for while a visitor waits.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tunnelgw.edge.places import name_address, port_addresses
from tunnelgw.routing.members import READY
from tunnelgw.routing.units import HostAt

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tunnelgw.edge.app import Edge
    from tunnelgw.obs.snapshot import ProcessSnapshot
    from tunnelgw.routing.members import Members
    from tunnelgw.routing.table import Route

REFUSED_TOLD = 64  # services of one connector: whoever offers more that is refused mends those first


def numbers(edge: Edge) -> ProcessSnapshot:
    """This worker's numbers."""
    budget = edge.connectors.budget
    edge.counters.buffered, edge.counters.lag = budget.held, edge.wheel.lag
    edge.counters.datagrams_dropped = budget.datagrams_dropped
    edge.live.account()
    found = edge.counters.snapshot()
    found["certificates"] = edge.certificates.expiries()
    found["state_failing"] = int(edge.health.failing)
    found["order_failures"] = edge.certificates.failures()
    for connector in edge.connectors:
        session = connector.session
        found["connectors"][connector.name] = {
            "up": int(connector.state == "up"),
            "detached": int(connector.state == "detached"),
            "rtt": session.rtt if session is not None else 0.0,
            "reconnects": connector.reconnects,
            "resumes": connector.resumes,
            "streams": session.stream_count if session is not None else 0,
        }
    now = edge.loop.time()
    for route, members in _shared(edge):
        ready = edge.connectors.groups.standing(route.connector, route.service, now) == READY
        able = ready and not members.failing(route.connector, now)
        found["members"].setdefault(route.label, {})[route.connector] = int(able)
    return found


def report(edge: Edge) -> dict[str, Any]:
    """What is routed, and how connectors are."""
    members = {id(route): members for route, members in _shared(edge)}
    return {
        "routes": [_route(edge, ports, members.get(id(ports[0]))) for ports in _alike(edge.table.routes())],
        "connectors": {
            connector.name: {"state": connector.state, "since": connector.since, "address": connector.peer}
            for connector in edge.connectors
        },
        "refused": _refused(edge),
        "private": {name: sorted(services) for name, services in edge.connectors.visits.private_services().items()},
        "visits": [
            {
                "name": visit.name,
                "state": visit.state,
                "since": visit.since,
                "address": visit.peer,
                "streams": len(visit.joints),
                "rtt": visit.session.rtt if visit.session is not None else 0.0,
            }
            for visit in edge.connectors.visits
        ],
        "troubles": edge.certificates.troubles(),
        "time": time.time(),
    }


def _refused(edge: Edge) -> list[dict[str, Any]]:
    """Services that are not served, or only in part."""
    return [
        {
            "connector": name,
            "service": result.name,
            "reason": result.refused,
            "message": result.message,
            "hint": result.hint,
            "partly": bool(result.addresses),
        }
        for name, results in edge.claims.refused.items()
        for result in results[:REFUSED_TOLD]
    ]


def _alike(routes: Iterable[Route]) -> list[list[Route]]:
    """The raw ports of a range are one address: neighbours that one service claimed together, as lists of routes."""
    found: list[list[Route]] = []
    for route in sorted(routes, key=lambda route: (route.connector, route.service, route.kind, route.port)):
        last = found[-1][-1] if found else None
        follows = last is not None and not route.host and (last.kind, last.port) == (route.kind, route.port - 1)
        if follows and last is not None and (last.connector, last.service) == (route.connector, route.service):
            found[-1].append(route)
        else:
            found.append([route])
    return found


def _address(edge: Edge, ports: list[Route]) -> str:
    unit = ports[0].unit
    if isinstance(unit, str):
        return edge.claims.url(ports[0].kind, unit, ports[0].path)
    if isinstance(unit, HostAt):
        return name_address(unit, ports[0].protocol)
    return port_addresses(edge.config.address.host, [route.port_unit for route in ports])[0]


def _route(edge: Edge, ports: list[Route], members: Members | None) -> dict[str, Any]:
    """One route, or those of a range of ports."""
    route = ports[0]
    connector = edge.connectors.by_name.get(route.connector)
    unhealthy = connector is not None and route.service in connector.unhealthy
    failing = members is not None and members.failing(route.connector, edge.loop.time())
    return {
        "address": _address(edge, ports),
        "host": route.host,
        "service": route.service,
        "connector": route.connector,
        "since": route.since,
        "tls": "home" if route.kind in ("tls", "home") else "",
        "group": route.group,
        "priority": route.priority,
        "health": "unhealthy" if unhealthy else "failing" if failing else "",
    }


def _shared(edge: Edge) -> Iterator[tuple[Route, Members]]:
    """Every member's own route of every group, with its group."""
    for visible in edge.table.visible():
        if visible.members is not None:
            for route in visible.members.routes:
                yield route, visible.members
