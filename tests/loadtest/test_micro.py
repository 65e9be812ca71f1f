"""The small measurements of one process run, and print what they say they print."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest


@pytest.mark.parametrize("name", ["edge", "gateway", "http", "wire"])
def test_prints_figures(name: str) -> None:
    command = [sys.executable, "-m", f"loadtest.micro_{name}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) >= 5
    assert all(re.search(r"\d", line) for line in lines)
