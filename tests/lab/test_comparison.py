"""`python -m loadtest.faults` measures what it says: on a real lab, and from reports whose content is known."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.faults import CASES, CONTENDERS, ENDURING, WAITS, Row, judged, measure, table
from tests.lab import faults, network
from tests.lab.lab import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.lab import Lab

pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.slow]
KINDS = {kind for kinds in ENDURING.values() for kind in kinds} | set(WAITS)
NAMES = [case.name for case in CASES]


def report(*, longest: float = 0.1, **failed: dict[str, int]) -> dict[str, Any]:
    facts = {"longest": longest, "retried": 0}
    return {"kinds": {kind: {**facts, "failed": failed.get(kind, {})} for kind in KINDS}}


def row(**changed: Any) -> Row:
    fine = {
        "failed": 0, "cut": dict.fromkeys(ENDURING, 0), "longest": 0.2, "recovered": 0.3, "retried": 0, "causes": {}
    }  # fmt: skip
    return Row(**{**fine, **changed})


def test_what_failed_before_is_not_counted_again() -> None:
    before = report(h1={"reset": 2}, ssh={"reset": 1})
    after = report(h1={"reset": 3, "refused": 4}, h2={"reset": 1}, ssh={"reset": 1}, ticks={"reset": 1}, longest=7.0)
    found = judged(before, after, recovered=8.0)
    assert (found.failed, found.longest, found.recovered) == (6, 7.0, 8.0)
    assert found.cut == {"download": 0, "upload": 0, "WebSocket": 1, "ssh": 0}
    assert found.causes == {"h1: reset": 1, "h1: refused": 4, "h2: reset": 1, "ticks: reset": 1}


def test_the_table_shows_the_worst_round() -> None:
    cut = {"download": 1, "upload": 0, "WebSocket": 0, "ssh": 9}
    rounds = [{"link_reset": row()}, {"link_reset": row(failed=3, cut=cut, longest=9.0)}]
    line = table({"tunnelgw": rounds}, CASES).splitlines()[-1]
    assert line == "| the link is reset | tunnelgw | 0 to 3 | download, ssh | 0.2 to 9.0 | 0.3 |"


def test_each_fault_is_one_of_the_lab_and_has_words_of_its_own() -> None:
    assert set(NAMES) <= set(faults.FAULTS)
    assert len({case.text for case in CASES}) == len(NAMES)


def test_without_the_peer_it_says_what_is_missing(tmp_path: Path) -> None:
    """Before anything is started, also where the lab itself could be built."""
    for program in network.PROGRAMS:
        (tmp_path / program).symlink_to(str(shutil.which(program)))
    command = [sys.executable, "-m", "loadtest.faults", "--peer", "frp", "--no-write"]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "frps and frpc not on PATH" in done.stderr
    assert set(CONTENDERS) == {"tunnelgw", "frp"}


def test_a_reset_is_measured(lab: Lab) -> None:
    found = measure(CASES[NAMES.index("link_reset")], lab, lab.load())
    assert (found.failed, found.causes, set(found.cut.values())) == (0, {}, {0})
    assert 0.0 < found.longest < 10.0
    assert 0.0 < found.recovered < 30.0
