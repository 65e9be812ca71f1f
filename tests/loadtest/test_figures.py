"""Medians, ratios, CPU time and memory of runs whose content is known, and the page that is made of them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from loadtest import figures, report
from loadtest.figures import Median
from loadtest.report import Outcome
from loadtest.scenario import Scenario
from loadtest.stage import Run

if TYPE_CHECKING:
    from pathlib import Path


class Speed(Scenario):
    name, unit = "speed", "req/s"


class Wait(Scenario):
    name, unit, higher_is_better = "wait", "ms", False


class Lone(Scenario):
    name, unit = "nobody's", "req/s"


def run(contender: str, turn: int, value: float, *, scenario: str = "speed", **more: object) -> Run:
    settings: dict[str, object] = {"requests": value * 2, "bytes": value * 26, "elapsed": 2.0} | more
    return Run(scenario=scenario, contender=contender, turn=turn, value=value, **settings)  # type: ignore[arg-type]


RUNS = [
    run("tunnelgw", 1, 300, cpu={"edge": 0.03, "connector": 0.012}, peak={"edge": 40 << 20, "connector": 30 << 20}),
    run("tunnelgw", 0, 100, cpu={"edge": 0.02, "connector": 0.01}, peak={"edge": 41 << 20, "connector": 30 << 20}),
    run("tunnelgw", 2, 200, cpu={"edge": 0.02, "connector": 0.02}, peak={"edge": 40 << 20, "connector": 30 << 20}),
    run("haproxy", 0, 200, cpu={"front": 0.04}, peak={"front": 20 << 20}),
    run("haproxy", 1, 200, cpu={"front": 0.04}, peak={"front": 20 << 20}),
    run("haproxy", 2, 50, cpu={"front": 0.04}, peak={"front": 20 << 20}),
    run("tunnelgw", 0, 10, scenario="wait", requests=0, bytes=0, extra={"p99 ms": 12.0}),
    run("haproxy", 0, 25, scenario="wait", requests=0, bytes=0),
]


@pytest.fixture
def outcome() -> Outcome:
    return Outcome(
        [Speed(), Wait(), Lone()],
        ["tunnelgw", "haproxy", "frp"],
        runs=list(RUNS),
        absent={("speed", "frp"): "it fell over", ("wait", "frp"): "it fell over", ("nobody's", "frp"): "no udp"},
        skipped={"chisel": "not on PATH"},
    )


def test_a_median_and_its_spread() -> None:
    found = Median.of([1.0, 5.0, 2.0])
    assert found == Median(2.0, 1.0, 5.0)
    assert found.spread == 1.0
    assert Median.of([]) is None
    assert Median(0.0, 0.0, 0.0).spread == 0.0


def test_ratios_are_of_the_same_turn(outcome: Outcome) -> None:
    ours, theirs = outcome.of("speed", "tunnelgw"), outcome.of("speed", "haproxy")
    assert [one.turn for one in ours] == [0, 1, 2]
    assert figures.ratio(ours, theirs) == Median(1.5, 0.5, 4.0)
    assert figures.ratio(ours[:1], theirs[1:]) is None
    assert figures.ratio(ours, []) is None


def test_where_less_is_better_a_ratio_above_one_is_ours(outcome: Outcome) -> None:
    found = figures.ratio(outcome.of("wait", "tunnelgw"), outcome.of("wait", "haproxy"), higher_is_better=False)
    assert found == Median(2.5, 2.5, 2.5)


def test_cpu_time_for_a_request_and_for_bytes(outcome: Outcome) -> None:
    cost = figures.cost(outcome.of("speed", "tunnelgw"))
    assert cost is not None
    assert cost.unit == "µs/request"
    assert cost.parts == {"edge": pytest.approx(50.0), "connector": pytest.approx(50.0)}
    assert cost.total == pytest.approx(100.0)
    bulk = figures.cost([run("x", 0, 500, requests=0, bytes=2e9, cpu={"one": 3.0})])
    assert bulk == figures.Cost({"one": 1.5}, "s/GB")
    megabytes = figures.cost([run("x", 0, 500, requests=10, bytes=1e7, cpu={"one": 0.01})])
    assert megabytes is not None
    assert megabytes.unit == "s/GB"
    assert figures.cost(outcome.of("wait", "tunnelgw")) is None


def test_peak_memory_is_that_of_the_largest_run(outcome: Outcome) -> None:
    assert figures.peaks(outcome.of("speed", "tunnelgw")) == {"edge": 41 << 20, "connector": 30 << 20}
    assert figures.peaks([]) == {}


def test_the_median_of_a_latency_has_a_ratio_of_its_own(outcome: Outcome) -> None:
    medians = {"tunnelgw": 1.0, "haproxy": 3.0}
    outcome.runs = [replace(one, extra={"p50 ms": medians[one.contender]}) for one in outcome.runs]
    table = report.ratios(outcome).splitlines()
    for name in ("wait", "speed"):  # less of it is better, whatever the figure above it is
        (below,) = [number for number, line in enumerate(table, 1) if line.startswith(f"| {name}")]
        assert table[below] == "| … p50 | 3.00 | - |"


def test_no_page_takes_the_place_of_another(outcome: Outcome, tmp_path: Path) -> None:
    about = {"date": "2026-01-01", "commit": "abc, with local changes"}
    pages = [report.write(outcome, about, f"page {number}", folder=tmp_path) for number in range(3)]
    assert [page.name for page in pages] == [f"2026-01-01-abc{end}.md" for end in ("", "-2", "-3")]
    assert [page.read_text() for page in pages] == ["page 0", "page 1", "page 2"]
    assert all(page.with_suffix(".json").exists() for page in pages)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (17791.5, "17,792"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.05, "0.05")]
)
def test_numbers(value: float, text: str) -> None:
    assert report.number(value) == text


def test_the_table_of_ratios(outcome: Outcome) -> None:
    assert report.ratios(outcome).splitlines() == [
        "| tunnelgw to | haproxy | frp |",
        "| --- | --- | --- |",
        "| speed | 1.50 (0.50 to 4.00) | - |",
        "| wait | 2.50 | - |",
    ]


def test_the_table_of_figures(outcome: Outcome) -> None:
    assert report.values(outcome).splitlines()[2:] == [
        "| speed (req/s) | 200 ±50% | 200 ±38% | - |",
        "| wait (ms, less is better) | 10.0 | 25.0 | - |",
        "| … p99 ms | 12.0 | - | - |",
    ]


def test_the_table_of_cpu_and_memory(outcome: Outcome) -> None:
    assert report.costs(outcome).splitlines()[2:] == [
        "| speed (µs/request) | 100 (50.0, 50.0) | 100 (100) | - |",
        "| … memory (MiB) | 71.0 (41.0, 30.0) | 20.0 (20.0) | - |",
    ]
    assert report.parts(outcome) == "tunnelgw: edge, connector; haproxy: front"


def test_every_dash_has_its_reason(outcome: Outcome) -> None:
    assert report.absences(outcome) == [
        "- chisel: not measured, not on PATH",
        "- frp: it fell over (speed; wait)",
        "- frp: no udp (nobody's)",
    ]


def test_what_is_written(outcome: Outcome, tmp_path: Path) -> None:
    about = {"date": "2026-01-02", "commit": "abc1234, with local changes", "cpu": "one"}
    text = report.markdown(outcome, about, "In turn.", ["frp: as documented"])
    page = report.write(outcome, about, text, folder=tmp_path / "results")
    assert page == tmp_path / "results" / "2026-01-02-abc1234.md"
    assert page.read_text() == text
    for part in ("- cpu: one", "In turn.", "| speed | 1.50", "- frp: as documented", "it fell over"):
        assert part in text
    content = json.loads(page.with_suffix(".json").read_text())
    assert len(content["runs"]) == len(RUNS)
    assert content["runs"][0]["cpu"] == {"edge": 0.03, "connector": 0.012}
    assert content["scenarios"]["wait"] == {"unit": "ms", "higher_is_better": False}
    assert {"scenario": "speed", "contender": "frp", "why": "it fell over"} in content["absent"]
    assert content["skipped"] == {"chisel": "not on PATH"}


def test_versions_are_those_of_programs_that_are_there() -> None:
    about = report.environment(python3=("python3", "--version"), nothing=("no-such-program", "--version"))
    assert about["python3"].startswith("Python 3.")
    assert "nothing" not in about
    assert about["cpu"].endswith("cores")
