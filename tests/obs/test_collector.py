"""The text of /metrics: exactly the documented families, and promtool has nothing to say."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given, settings
from prometheus_client.parser import text_string_to_metric_families

from tests.obs.test_counters import snapshots
from tunnelgw.obs.collector import render
from tunnelgw.obs.counters import DURATION_BOUNDS, ProcessCounters
from tunnelgw.obs.reasons import Reason
from tunnelgw.obs.snapshot import ProcessSnapshot, empty

FAMILIES = {
    "tunnelgw_build_info": ("gauge", {"version"}),
    "tunnelgw_tunnels": ("gauge", {"connector", "state"}),
    "tunnelgw_tunnel_rtt_seconds": ("gauge", {"connector"}),
    "tunnelgw_tunnel_reconnects_total": ("counter", {"connector"}),
    "tunnelgw_tunnel_resumes_total": ("counter", {"connector"}),
    "tunnelgw_streams": ("gauge", {"connector"}),
    "tunnelgw_requests_total": ("counter", {"route", "code"}),
    "tunnelgw_request_duration_seconds": ("histogram", {"route"}),
    "tunnelgw_bytes_total": ("counter", {"route", "direction"}),
    "tunnelgw_member_ready": ("gauge", {"route", "connector"}),
    "tunnelgw_failovers_total": ("counter", {"reason"}),
    "tunnelgw_members_left_out_total": ("counter", {"reason"}),
    "tunnelgw_connections": ("gauge", {"listener"}),
    "tunnelgw_refused_total": ("counter", {"reason"}),
    "tunnelgw_parked_requests": ("gauge", set()),
    "tunnelgw_parked_requests_total": ("counter", set()),
    "tunnelgw_buffered_bytes": ("gauge", set()),
    "tunnelgw_datagrams_dropped_total": ("counter", set()),
    "tunnelgw_loop_lag_seconds": ("gauge", set()),
    "tunnelgw_certificate_expiry_timestamp_seconds": ("gauge", {"host"}),
    "tunnelgw_certificate_order_failures": ("gauge", {"host"}),
    "tunnelgw_state_failing": ("gauge", set()),
}


def full() -> ProcessSnapshot:
    counters = ProcessCounters()
    route = counters.route("jellyfin.example.com/")
    for status, seconds in ((200, 0.004), (200, 0.3), (502, 100.0)):
        route.observe(status, seconds)
    route.bytes_in, route.bytes_out = 10, 2**40
    counters.route("tcp:2222").bytes_in = 1
    counters.refuse(Reason.NAME_UNKNOWN)
    counters.connection_opened("https")
    counters.park()
    counters.move(Reason.TARGET_REFUSED)
    counters.leave_out(Reason.TARGET_REFUSED)
    snapshot = counters.snapshot()
    states = {"home": (1, 0), "office": (0, 1), "cabin": (0, 0)}
    for name, (up, detached) in states.items():
        snapshot["connectors"][name] = {
            "up": up, "detached": detached, "rtt": 0.02, "reconnects": 3, "resumes": 4, "streams": 5,
        }  # fmt: skip
    snapshot["members"]["jellyfin.example.com/"] = {"home": 1, "office": 0}
    snapshot["certificates"]["jellyfin.example.com"] = 1.8e9
    snapshot["order_failures"]["jellyfin.example.com"] = 2
    return snapshot


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(text: bytes, name: str, **labels: str) -> float:
    return samples(text)[name, frozenset(labels.items())]


def test_families_types_and_labels_are_the_documented_ones() -> None:
    text = render(full()).decode()
    types = dict(line.split(" ")[2:4] for line in text.splitlines() if line.startswith("# TYPE"))
    assert types == {name: kind for name, (kind, _) in FAMILIES.items()}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        name, _, rest = line.partition(" ")[0].partition("{")
        family = next(known for known in (name, name.rsplit("_", 1)[0]) if known in FAMILIES)
        found = {part.partition("=")[0] for part in rest.rstrip("}").split('",') if part}
        assert found - {"le"} == FAMILIES[family][1], line


def test_values() -> None:
    text = render(full())
    route = "jellyfin.example.com/"
    assert value(text, "tunnelgw_requests_total", route=route, code="200") == 2
    assert value(text, "tunnelgw_request_duration_seconds_bucket", route=route, le="0.005") == 1
    assert value(text, "tunnelgw_request_duration_seconds_bucket", route=route, le=str(DURATION_BOUNDS[-1])) == 2
    assert value(text, "tunnelgw_request_duration_seconds_bucket", route=route, le="+Inf") == 3
    assert value(text, "tunnelgw_request_duration_seconds_count", route=route) == 3
    assert value(text, "tunnelgw_bytes_total", route=route, direction="out") == 2**40
    assert value(text, "tunnelgw_refused_total", reason="name_unknown") == 1
    assert value(text, "tunnelgw_parked_requests") == 1
    assert value(text, "tunnelgw_member_ready", route=route, connector="home") == 1
    assert value(text, "tunnelgw_member_ready", route=route, connector="office") == 0
    assert value(text, "tunnelgw_failovers_total", reason="target_refused") == 1
    assert value(text, "tunnelgw_members_left_out_total", reason="target_refused") == 1


@pytest.mark.parametrize(("connector", "state"), [("home", "up"), ("office", "detached"), ("cabin", "away")])
def test_a_known_connector_is_in_exactly_one_state_and_keeps_its_series(connector: str, state: str) -> None:
    text = render(full())
    found = {
        name: value(text, "tunnelgw_tunnels", connector=connector, state=name) for name in ("up", "detached", "away")
    }
    assert found == {name: float(name == state) for name in found}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
@pytest.mark.parametrize("snapshot", [empty(), full()], ids=["empty", "full"])
def test_promtool_finds_nothing(snapshot: ProcessSnapshot) -> None:
    done = subprocess.run(["promtool", "check", "metrics"], input=render(snapshot), capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@given(snapshots)
@settings(max_examples=25)
def test_any_snapshot_renders(snapshot: ProcessSnapshot) -> None:
    assert samples(render(snapshot))


def test_a_label_cannot_break_out() -> None:
    snapshot = empty()
    snapshot["certificates"]['a"} 1\nevil_total 7\\'] = 1.0
    lines = render(snapshot).decode().splitlines()
    assert not any(line.startswith("evil_total") for line in lines)
