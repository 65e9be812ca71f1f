"""h2spec, where it is installed: every case of HTTP/2 conformance against a real edge, over TLS.

conformance.py goes through the same sections with frames of our own, so that nothing depends on the program.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.system.harness import World

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.system


@pytest.mark.skipif(shutil.which("h2spec") is None, reason="h2spec is not on PATH (github.com/summerwind/h2spec)")
def test_every_case_passes(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        world.start_edge()
        port = world.service("web")
        world.connector(
            "home", f'[services.web]\ntarget = {port}\nhost = "localhost"', allow=("--allow-host", "localhost")
        )
        command = ["h2spec", "-S", "-h", "localhost", "-p", str(world.port), "-t", "-k", "-o", "10"]  # -S: strict cases
        done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    found = re.search(r"(\d+) tests, (\d+) passed, (\d+) skipped, (\d+) failed", done.stdout)
    assert found, done.stdout + done.stderr
    assert found.groups() == ("147", "147", "0", "0"), done.stdout[done.stdout.find("Failures") :]
