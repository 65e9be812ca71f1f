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
NAMES = [case.name for case in CASES]


def row(**changed: Any) -> Row:
    fine = {
        "failed": 0, "cut": dict.fromkeys(ENDURING, 0), "longest": 0.2, "recovered": 0.3, "retried": 0, "causes": {}
    }  # fmt: skip
    return Row(**{**fine, **changed})


def failure(kind: str, cause: str, *, since: float) -> dict[str, Any]:
    return {"kind": kind, "cause": cause, "number": 1, "began": since, "since": since, "ended": 101.0}


def test_what_was_in_progress_is_cut_and_what_was_begun_anew_failed() -> None:
    """A small request failed in any case: it is none of those that go on for long."""
    failures = [
        failure("h1", "reset", since=99.0),
        failure("h2", "refused", since=100.5),
        failure("download", "cut short", since=99.0),
        failure("download", "refused", since=100.5),
        failure("ticks", "reset", since=50.0),
        failure("ssh", "reset", since=50.0),
        failure("ssh", "reset", since=50.0),
    ]
    kinds = {kind: {"longest": 0.1, "retried": 1} for kind in WAITS}
    kinds["ssh"]["longest"] = 7.0
    found = judged({"kinds": kinds, "failures": failures}, began=100.0, recovered=8.0)
    assert (found.failed, found.longest, found.recovered, found.retried) == (3, 7.0, 8.0, len(WAITS))
    assert found.cut == {"download": 1, "upload": 0, "WebSocket": 1, "ssh": 2}
    assert found.causes["ssh: reset"] == 2
    assert sum(found.causes.values()) == len(failures)


def test_the_table_shows_the_worst_round() -> None:
    cut = {"download": 1, "upload": 0, "WebSocket": 0, "ssh": 9}
    rounds = [{"link_reset": row()}, {"link_reset": row(failed=3, cut=cut, longest=9.0)}]
    head, _, line = table({"tunnelgw": rounds, "frp": []}, CASES[:1]).splitlines()
    assert line == "| the link is reset | 0 to 3 | download, ssh | 0.2 to 9.0 | 0.3 | - | - | - | - |"
    assert head.count("|") == line.count("|")


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
    found = measure(CASES[NAMES.index("link_reset")], lab)
    assert (found.failed, found.causes, set(found.cut.values())) == (0, {}, {0})
    assert 0.0 < found.longest < 10.0
    assert 0.0 < found.recovered < 30.0
