"""The public addresses of an edge, made of what its workers report.

Invariant: each address once for each connector that serves it, the preferred one first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tunnelgw.admin.shapes import PublicAddress
    from tunnelgw.obs.snapshot import ProcessSnapshot


def public_addresses(
    reports: Sequence[dict[str, Any]], numbers: ProcessSnapshot, state: Callable[[str], str]
) -> list[PublicAddress]:
    """`state(connector)`: the best one that any worker sees. What is wrong with a member in one worker is wrong."""
    seen = [route for report in reports for route in report["routes"]]
    routes = {(route["address"], route["priority"], route["connector"]): route for route in seen}
    ill = {(route["address"], route["connector"]): route["health"] for route in seen if route["health"]}
    troubles = {host: why for report in reports for host, (_, why) in report["troubles"].items()}
    return [
        {
            "address": address,
            "service": route["service"],
            "connector": connector,
            "state": state(connector),
            "since": route["since"],
            "certificate_expiry": numbers["certificates"].get(route["host"], 0.0),
            "certificate_problem": troubles.get(route["host"], ""),
            "tls": route["tls"],
            "group": route["group"],
            "priority": route["priority"],
            "health": ill.get((address, connector), ""),
        }
        for (address, _, connector), route in sorted(routes.items(), key=lambda item: item[0])
    ]
