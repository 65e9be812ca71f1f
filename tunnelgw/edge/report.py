"""What one worker tells about itself: numbers for metrics, and its part of `edge status`.

Invariant: only reads; nothing here is asked for while a visitor waits.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunnelgw.edge.app import Edge
    from tunnelgw.obs.snapshot import ProcessSnapshot


def numbers(edge: Edge) -> ProcessSnapshot:
    """This worker's numbers."""
    edge.counters.buffered, edge.counters.lag = edge.connectors.budget.held, edge.wheel.lag
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
    return found


def report(edge: Edge) -> dict[str, Any]:
    """What is routed, and how connectors are."""
    host = edge.config.address.host
    return {
        "routes": [
            {
                "address": f"tcp://{host}:{route.port}"
                if route.port
                else edge.claims.url(route.kind, route.host, route.path),
                "host": route.host,
                "service": route.service,
                "connector": route.connector,
                "since": route.since,
                "tls": "home" if route.kind in ("tls", "home") else "",
            }
            for route in edge.table.routes()
        ],
        "connectors": {
            connector.name: {"state": connector.state, "since": connector.since, "address": connector.peer}
            for connector in edge.connectors
        },
        "troubles": edge.certificates.troubles(),
        "time": time.time(),
    }
