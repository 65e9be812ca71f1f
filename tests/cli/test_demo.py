"""The demo as a user runs it."""

from __future__ import annotations

import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_the_curl_line_works_and_nothing_is_left(
    tmp_path: Path, environment: dict[str, str], end: signal.Signals
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        demo = subprocess.Popen(
            [sys.executable, "-m", "tunnelgw", "demo", "--port", str(taken.getsockname()[1])],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={**environment, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        try:
            assert demo.stdout is not None
            lines = []
            for line in demo.stdout:
                lines.append(line)
                if "Ctrl-C" in line:
                    break
            assert "is taken; using" in lines[0], lines
            command = next(line.strip() for line in lines if line.strip().startswith("curl "))
            words = [*shlex.split(command), "-sS", "--max-time", "20"]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            assert "Hello from home" in done.stdout, done.stderr
            requests = (line for line in demo.stdout if line.strip())
            assert "GET hello.localhost" in next(requests)
            children = Path(f"/proc/{demo.pid}/task/{demo.pid}/children").read_text().split()
        finally:
            demo.send_signal(end)
            rest, _ = demo.communicate(timeout=30)
    assert demo.returncode == 0, rest
    assert "nothing is left behind" in rest
    assert list(temporary.iterdir()) == []
    assert len(children) == 2  # edge and connector
    assert not any(Path(f"/proc/{child}").exists() for child in children)
