"""One process's numbers as JSON-like dicts, and how those of several workers become one.

The shape is the contract between a worker, the supervisor that asks every worker, and the collector that renders.
Counters and gauges add up; a round trip and the loop's lag are the worst one; a certificate's expiry is the earliest
one, and `state_failing` is 1 if any worker cannot save the state.

Invariant: `merge` is commutative and associative, and `merge([one])` equals that one.
PURE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from collections.abc import Iterable


class RouteSnapshot(TypedDict):
    """`RouteCounters`: requests by status (as text, for JSON), bytes, and the histogram's buckets (not cumulated)."""

    requests: dict[str, int]
    bytes_in: int
    bytes_out: int
    durations: list[int]
    duration_sum: float


class ConnectorSnapshot(TypedDict):
    """One known connector in one process: tunnels `up` and `detached` there; both zero means away.

    `rtt` is in seconds, 0.0 for unknown; `reconnects` counts new sessions after the first, `resumes` resumed ones.
    """

    up: int
    detached: int
    rtt: float
    reconnects: int
    resumes: int
    streams: int


class ProcessSnapshot(TypedDict):
    """Everything that /metrics shows of one process; `certificates` maps a host to its expiry in Unix seconds.

    `failovers` and `left_out` count by reason; `members` maps a shared route's label to its connectors: 1 for one that
    takes new streams, 0 for one that does not.
    `order_failures` maps a host to the orders of a certificate for it that failed since the last one that succeeded.
    """

    routes: dict[str, RouteSnapshot]
    refused: dict[str, int]
    failovers: dict[str, int]
    left_out: dict[str, int]
    connections: dict[str, int]
    parked: int
    parked_total: int
    buffered_bytes: int
    datagrams_dropped: int
    loop_lag: float
    connectors: dict[str, ConnectorSnapshot]
    members: dict[str, dict[str, int]]
    certificates: dict[str, float]
    state_failing: int
    order_failures: dict[str, int]


def empty() -> ProcessSnapshot:
    """A snapshot in which nothing happened."""
    return {
        "routes": {},
        "refused": {},
        "failovers": {},
        "left_out": {},
        "connections": {},
        "parked": 0,
        "parked_total": 0,
        "buffered_bytes": 0,
        "datagrams_dropped": 0,
        "loop_lag": 0.0,
        "connectors": {},
        "members": {},
        "certificates": {},
        "state_failing": 0,
        "order_failures": {},
    }


def merge(snapshots: Iterable[ProcessSnapshot]) -> ProcessSnapshot:
    """The snapshots of several workers as one; the arguments stay as they are."""
    total = empty()
    for snapshot in snapshots:
        for label, route in snapshot["routes"].items():
            known = total["routes"].get(label)
            total["routes"][label] = _copy_route(route) if known is None else _add_routes(known, route)
        _add_counts(total["refused"], snapshot["refused"])
        _add_counts(total["failovers"], snapshot["failovers"])
        _add_counts(total["left_out"], snapshot["left_out"])
        _add_counts(total["connections"], snapshot["connections"])
        total["parked"] += snapshot["parked"]
        total["parked_total"] += snapshot["parked_total"]
        total["buffered_bytes"] += snapshot["buffered_bytes"]
        total["datagrams_dropped"] += snapshot["datagrams_dropped"]
        total["loop_lag"] = max(total["loop_lag"], snapshot["loop_lag"])
        for name, connector in snapshot["connectors"].items():
            other = total["connectors"].get(name)
            total["connectors"][name] = connector.copy() if other is None else _add_connectors(other, connector)
        for label, members in snapshot["members"].items():
            known_members = total["members"].setdefault(label, {})
            for name, ready in members.items():  # trouble in one worker is trouble
                known_members[name] = min(ready, known_members.get(name, ready))
        total["state_failing"] = max(total["state_failing"], snapshot["state_failing"])
        for host, expiry in snapshot["certificates"].items():
            total["certificates"][host] = min(expiry, total["certificates"].get(host, expiry))
        for host, failures in snapshot["order_failures"].items():  # every worker tells of the same orders
            total["order_failures"][host] = max(failures, total["order_failures"].get(host, failures))
    return total


def _add_counts(total: dict[str, int], more: dict[str, int]) -> None:
    for key, count in more.items():
        total[key] = total.get(key, 0) + count


def _copy_route(route: RouteSnapshot) -> RouteSnapshot:
    return {**route, "requests": dict(route["requests"]), "durations": list(route["durations"])}


def _add_routes(one: RouteSnapshot, other: RouteSnapshot) -> RouteSnapshot:
    requests = dict(one["requests"])
    _add_counts(requests, other["requests"])
    return {
        "requests": requests,
        "bytes_in": one["bytes_in"] + other["bytes_in"],
        "bytes_out": one["bytes_out"] + other["bytes_out"],
        "durations": [a + b for a, b in zip(one["durations"], other["durations"], strict=True)],
        "duration_sum": one["duration_sum"] + other["duration_sum"],
    }


def _add_connectors(one: ConnectorSnapshot, other: ConnectorSnapshot) -> ConnectorSnapshot:
    return {
        "up": one["up"] + other["up"],
        "detached": one["detached"] + other["detached"],
        "rtt": max(one["rtt"], other["rtt"]),
        "reconnects": one["reconnects"] + other["reconnects"],
        "resumes": one["resumes"] + other["resumes"],
        "streams": one["streams"] + other["streams"],
    }
