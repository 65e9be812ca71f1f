"""The figures as bars with error marks, a small picture for each scenario. Needs matplotlib (the extra `bench`)."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from loadtest.figures import OURS, Median

if TYPE_CHECKING:
    from pathlib import Path

    from loadtest.report import Outcome
    from loadtest.scenario import Scenario

COLUMNS = 4
COLOURS = {True: "#1f6fb2", False: "#b9bec6"}  # ours, theirs


def missing() -> str:
    """Why no picture can be drawn; "" if one can."""
    if importlib.util.find_spec("matplotlib") is None:
        return "matplotlib is not installed (pip install -e '.[bench]')"
    return ""


def draw(outcome: Outcome, path: Path, title: str) -> None:
    """Write the picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    scenarios = outcome.done()
    high = -(-len(scenarios) // COLUMNS)
    each = 0.6 + 0.19 * len(outcome.contenders)
    figure, axes = pyplot.subplots(high, COLUMNS, figsize=(4.2 * COLUMNS, each * high + 0.6), squeeze=False)
    flat = list(axes.flat)
    for axis, scenario in zip(flat, scenarios, strict=False):
        bars(axis, outcome, scenario)
    for axis in flat[len(scenarios) :]:
        axis.set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / (each * high + 0.6)))
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def bars(axis: Any, outcome: Outcome, scenario: Scenario) -> None:
    """One scenario: a bar for each contender, with marks at its smallest and largest figure."""
    found = {name: Median.of(run.value for run in outcome.of(scenario.name, name)) for name in outcome.contenders}
    names = [name for name in outcome.contenders if found[name]]
    medians = [median for median in found.values() if median]
    errors = [[m.middle - m.least for m in medians], [m.most - m.middle for m in medians]]
    axis.barh(
        names, [m.middle for m in medians], xerr=errors, color=[COLOURS[name == OURS] for name in names],
        height=0.7, error_kw={"linewidth": 0.8, "capsize": 2},
    )  # fmt: skip
    axis.invert_yaxis()
    axis.set_title(scenario.name, fontsize=8, loc="left")
    axis.set_xlabel(scenario.unit if scenario.higher_is_better else f"{scenario.unit} (less is better)", fontsize=7)
    axis.tick_params(labelsize=7)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
