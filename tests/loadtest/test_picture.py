"""The picture shows everybody who has a figure, with marks for the spread; without matplotlib one line says so."""

from __future__ import annotations

from typing import Any

import pytest

from loadtest import picture
from loadtest.figures import Median
from loadtest.report import Outcome
from loadtest.scenario import Scenario
from loadtest.stage import Run


class Wait(Scenario):
    name, unit, higher_is_better = "wait", "ms", False


class Axis:
    """Takes notes of what an axis of matplotlib is told."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = {}
        self.spines: dict[str, Axis] = {}

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **named: self.told.__setitem__(name, (arguments, named))


def test_bars() -> None:
    values = [("tunnelgw", 2.0), ("tunnelgw", 5.0), ("tunnelgw", 3.0), ("haproxy", 4.0)]
    runs = [Run("wait", name, turn, value, requests=0, bytes=0, elapsed=1) for turn, (name, value) in enumerate(values)]
    axis = Axis()
    axis.spines = {"top": Axis(), "right": Axis()}
    picture.bars(axis, Outcome([Wait()], ["tunnelgw", "frp", "haproxy"], runs=runs), Wait())
    (names, middles), named = axis.told["barh"]
    assert names == ["tunnelgw", "haproxy"]
    assert middles == [3.0, 4.0]
    assert named["xerr"] == [[1.0, 0.0], [2.0, 0.0]]
    assert named["color"][0] != named["color"][1]
    assert axis.told["set_xlabel"][0] == ("ms (less is better)",)
    assert Median.of([2.0, 5.0, 3.0]) == Median(3.0, 2.0, 5.0)


@pytest.mark.parametrize(("found", "says"), [(None, "matplotlib is not installed"), (object(), "")])
def test_matplotlib_is_optional(found: object, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture.importlib.util, "find_spec", lambda name: found)
    assert picture.missing().startswith(says)
    assert bool(picture.missing()) == bool(says)
