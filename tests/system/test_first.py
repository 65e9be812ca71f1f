"""The way of one request, and what the README promises first."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.system.harness import World

pytestmark = pytest.mark.system
SERVICE = Path(__file__).with_name("service.py")


def test_one_request(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        world.start_edge()
        port = free_port()
        world.add("service", [sys.executable, str(SERVICE), str(port), "web"], port=port)
        world.connector("home", f'[services.web]\ntarget = "http://127.0.0.1:{port}"')
        assert world.curl("https://web.example.com/").stdout == b"hello from web\n"
        assert world.code("https://web.example.com/status/418") == 418
