"""Renders a snapshot as Prometheus text: the only importer of prometheus_client, itself imported at the first scrape.

Invariant: the family names and labels are those of docs/metrics.md, for every snapshot, an empty one
included; a label never holds what a visitor sent.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from tunnelgw import __version__
from tunnelgw.obs.counters import DURATION_BOUNDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tunnelgw.obs.snapshot import ProcessSnapshot

# The 0.0.4 text format, which every scraper reads: in OpenMetrics a counter and a gauge may not share the stem
# `tunnelgw_parked_requests`.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(snapshot: ProcessSnapshot) -> bytes:
    """The body of /metrics for this (merged) snapshot."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SnapshotCollector(lambda: snapshot))
    return generate_latest(registry)


class SnapshotCollector(Collector):
    """Turns what `snapshot()` returns into metric families at each scrape."""

    def __init__(self, snapshot: Callable[[], ProcessSnapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """All families, in the documentation's order."""
        snapshot = self._snapshot()
        yield _build_info()
        yield from _tunnels(snapshot)
        yield from _routes(snapshot)
        yield from _members(snapshot)
        yield from _process(snapshot)


def _build_info() -> Metric:
    family = GaugeMetricFamily("tunnelgw_build_info", "Always 1; the label names the version.", labels=["version"])
    family.add_metric([__version__], 1)
    return family


def _tunnels(snapshot: ProcessSnapshot) -> Iterator[Metric]:
    tunnels = GaugeMetricFamily(
        "tunnelgw_tunnels",
        "Tunnels of each known connector by state; away is 1 while it has none.",
        labels=["connector", "state"],
    )
    rtt = GaugeMetricFamily(
        "tunnelgw_tunnel_rtt_seconds", "Smoothed round trip to the connector (0: not measured).", labels=["connector"]
    )
    reconnects = CounterMetricFamily(
        "tunnelgw_tunnel_reconnects", "Sessions begun anew after the first one.", labels=["connector"]
    )
    resumes = CounterMetricFamily(
        "tunnelgw_tunnel_resumes", "Sessions resumed on a new link, no stream lost.", labels=["connector"]
    )
    streams = GaugeMetricFamily("tunnelgw_streams", "Open streams.", labels=["connector"])
    for name, connector in sorted(snapshot["connectors"].items()):
        up, detached = connector["up"], connector["detached"]
        tunnels.add_metric([name, "up"], up)
        tunnels.add_metric([name, "detached"], detached)
        tunnels.add_metric([name, "away"], 0 if up or detached else 1)
        rtt.add_metric([name], connector["rtt"])
        reconnects.add_metric([name], connector["reconnects"])
        resumes.add_metric([name], connector["resumes"])
        streams.add_metric([name], connector["streams"])
    yield from (tunnels, rtt, reconnects, resumes, streams)


def _routes(snapshot: ProcessSnapshot) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "tunnelgw_requests", "Finished HTTP exchanges by route and status.", labels=["route", "code"]
    )
    duration = HistogramMetricFamily(
        "tunnelgw_request_duration_seconds", "From the request's head to the response's end.", labels=["route"]
    )
    transferred = CounterMetricFamily(
        "tunnelgw_bytes", "Bytes from (in) and to (out) visitors.", labels=["route", "direction"]
    )
    for label, route in sorted(snapshot["routes"].items()):
        for status, count in sorted(route["requests"].items()):
            requests.add_metric([label, status], count)
        cumulated = accumulate(route["durations"])
        bounds = [*(str(bound) for bound in DURATION_BOUNDS), "+Inf"]
        duration.add_metric([label], list(zip(bounds, cumulated, strict=True)), route["duration_sum"])
        transferred.add_metric([label, "in"], route["bytes_in"])
        transferred.add_metric([label, "out"], route["bytes_out"])
    yield from (requests, duration, transferred)


def _members(snapshot: ProcessSnapshot) -> Iterator[Metric]:
    ready = GaugeMetricFamily(
        "tunnelgw_member_ready",
        "1 while the connector takes new streams of a route that it serves with others.",
        labels=["route", "connector"],
    )
    for label, members in sorted(snapshot["members"].items()):
        for name, value in sorted(members.items()):
            ready.add_metric([label, name], value)
    yield ready
    moved = CounterMetricFamily(
        "tunnelgw_failovers", "Requests asked of another member, by why the first one failed.", labels=["reason"]
    )
    for reason, count in sorted(snapshot["failovers"].items()):
        moved.add_metric([reason], count)
    yield moved
    left_out = CounterMetricFamily(
        "tunnelgw_members_left_out", "Members left out because they failed too often, by how.", labels=["reason"]
    )
    for reason, count in sorted(snapshot["left_out"].items()):
        left_out.add_metric([reason], count)
    yield left_out


def _process(snapshot: ProcessSnapshot) -> Iterator[Metric]:
    connections = GaugeMetricFamily("tunnelgw_connections", "Open visitor connections.", labels=["listener"])
    for listener, open_now in sorted(snapshot["connections"].items()):
        connections.add_metric([listener], open_now)
    yield connections
    refused = CounterMetricFamily("tunnelgw_refused", "What was refused, by reason.", labels=["reason"])
    for reason, count in sorted(snapshot["refused"].items()):
        refused.add_metric([reason], count)
    yield refused
    yield GaugeMetricFamily(
        "tunnelgw_parked_requests", "Requests that wait for their connector.", value=snapshot["parked"]
    )
    yield CounterMetricFamily(
        "tunnelgw_parked_requests", "Requests that ever waited for their connector.", value=snapshot["parked_total"]
    )
    yield GaugeMetricFamily(
        "tunnelgw_buffered_bytes", "Bytes received and not yet passed on.", value=snapshot["buffered_bytes"]
    )
    yield CounterMetricFamily(
        "tunnelgw_datagrams_dropped",
        "Datagrams for connectors and visiting machines that their tunnels did not take in time.",
        value=snapshot["datagrams_dropped"],
    )
    yield GaugeMetricFamily(
        "tunnelgw_loop_lag_seconds",
        "How late the event loop was at worst in the last minute.",
        value=snapshot["loop_lag"],
    )
    expiry = GaugeMetricFamily(
        "tunnelgw_certificate_expiry_timestamp_seconds", "When the host's certificate expires.", labels=["host"]
    )
    for host, timestamp in sorted(snapshot["certificates"].items()):
        expiry.add_metric([host], timestamp)
    yield expiry
    yield GaugeMetricFamily(
        "tunnelgw_state_failing", "1 while the state cannot be saved (a full disk).", value=snapshot["state_failing"]
    )
    failures = GaugeMetricFamily(
        "tunnelgw_certificate_order_failures", "Orders for the host that failed since one succeeded.", labels=["host"]
    )
    for host, count in sorted(snapshot["order_failures"].items()):
        failures.add_metric([host], count)
    yield failures
