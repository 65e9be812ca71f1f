"""Prometheus and Grafana files: valid for promtool, and about metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.deploy.deploy_places import DEPLOY
from tunnelgw.obs.collector import SnapshotCollector
from tunnelgw.obs.reasons import BY_LABEL
from tunnelgw.obs.snapshot import empty

if TYPE_CHECKING:
    from pathlib import Path

PROMETHEUS = DEPLOY / "prometheus"
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def known_metrics() -> set[str]:
    """Sample names that /metrics may show."""
    names = set()
    for family in SnapshotCollector(empty).collect():
        if family.type == "counter":
            names.add(f"{family.name}_total")
        elif family.type == "histogram":
            names |= {f"{family.name}_{end}" for end in ("bucket", "sum", "count")}
        else:
            names.add(family.name)
    return names


def rules() -> list[dict[str, Any]]:
    content = yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())
    found: list[dict[str, Any]] = content["groups"][0]["rules"]
    return found


def expressions() -> list[str]:
    """Of every panel, with Grafana's variables filled in."""
    dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return [expr.replace("$__rate_interval", "5m").replace("$instance", ".*") for expr in found]


@needs_promtool
def test_scrape_configuration_and_rules() -> None:
    promtool("check", "config", PROMETHEUS / "scrape.yaml")
    promtool("check", "rules", PROMETHEUS / "alerts.yaml")


@needs_promtool
def test_alerts_fire_when_they_should() -> None:
    promtool("test", "rules", PROMETHEUS / "alerts.test.yaml")


@needs_promtool
def test_dashboard_expressions(tmp_path: Path) -> None:
    records = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(expressions())]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": records}]}))
    promtool("check", "rules", file)


def test_only_known_metrics_are_used() -> None:
    for expr in [*expressions(), *(rule["expr"] for rule in rules())]:
        assert set(re.findall(r"tunnelgw_\w+", expr)) <= known_metrics(), expr


def test_every_metric_is_on_the_dashboard() -> None:
    shown = set(re.findall(r"tunnelgw_\w+", " ".join(expressions())))
    missing = known_metrics() - shown
    assert {name for name in missing if not name.startswith("tunnelgw_request_duration_seconds_")} == set()


def test_every_alert_says_what_to_do() -> None:
    tested = (PROMETHEUS / "alerts.test.yaml").read_text()
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "action"}
        assert rule["alert"] in tested or rule["alert"] == "TunnelgwJoinAttempts"


def test_reasons_in_alerts_exist() -> None:
    for rule in rules():
        for pattern in re.findall(r'reason=~?"([^"]+)"', rule["expr"]):
            assert set(pattern.split("|")) <= set(BY_LABEL)


def test_panels_do_not_overlap() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
