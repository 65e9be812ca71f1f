"""The search for secrets in what the run writes finds what is there: it would be worth nothing otherwise."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import pytest_runtest_logreport
from tests.system import planted

KEY = "-----BEGIN EC PRIVATE KEY-----"
INVITATION = "tgw1_" + "A" * 80


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is found here, and is not the run's."""
    mine: list[str] = []
    monkeypatch.setattr(planted, "found", mine)
    return mine


@pytest.mark.parametrize(
    ("stream", "what", "count"),
    [
        ("stdout", planted.MARK, 1),
        ("stderr", planted.MARK, 1),
        ("stderr", KEY, 1),
        ("stderr", INVITATION, 1),
        ("stdout", INVITATION, 0),  # what `edge invite` is for
        ("stderr", "tgw1_[hidden]", 0),
        ("stdout", "all is well", 0),
    ],
)
@pytest.mark.parametrize("text", [False, True])
def test_what_a_command_writes(found: list[str], stream: str, what: str, count: int, text: bool) -> None:
    script = f"import sys; sys.{stream}.write({what!r})"
    subprocess.run([sys.executable, "-c", script, "tunnelgw"], capture_output=True, text=text, check=True)
    assert len(found) == count
    assert all(where.startswith(f"standard {'output' if stream == 'stdout' else 'error'} of") for where in found)


def test_what_other_programs_write_is_their_business(found: list[str]) -> None:
    subprocess.run([sys.executable, "-c", f"print({planted.MARK!r})"], capture_output=True, check=True)
    assert found == []


def test_what_a_test_and_its_children_write(found: list[str]) -> None:
    report: Any = SimpleNamespace(
        nodeid="tests/x.py::y",
        sections=[("Captured stdout call", planted.MARK), ("Captured log call", KEY), ("Captured stderr call", "fine")],
    )
    pytest_runtest_logreport(report)
    assert found == ["tests/x.py::y: Captured stdout call", "tests/x.py::y: Captured log call"]
