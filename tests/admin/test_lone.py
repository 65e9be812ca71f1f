"""A connector for what commands share: it ends by itself, however the command that started it did."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from tests.ports import free_port
from tunnelgw.identity import certs, home
from tunnelgw.identity.records import CONNECTOR

if TYPE_CHECKING:
    from pathlib import Path


def test_it_ends_when_the_command_was_killed_before_it_was_ready(tmp_path: Path) -> None:
    edge, state = f"127.0.0.1:{free_port()}", tmp_path / "state"
    now = time.time()
    authority = certs.make_authority("tunnelgw tunnels", now=now)
    request = home.new_request()
    made = certs.sign_connector(authority, certs.read_request(request.csr), name="home", role=CONNECTOR, now=now)
    home.save_joined(
        state, edge=edge, request=request, pin=authority.pin, name="home", role=CONNECTOR, domain="example.com",
        certificate=made.certificate, authority=authority.certificate,
    )  # fmt: skip
    config = tmp_path / "connector.toml"
    config.write_text(f'edge = "{edge}"\nstate_dir = "{state}"\n')
    nobody, ours = os.pipe()
    os.close(nobody)
    command = [sys.executable, "-Pm", "tunnelgw.admin.lone", str(config)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=ours, stderr=subprocess.PIPE)
    os.close(ours)
    try:
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert b"Traceback (most recent" not in said
    assert not (state / "control.sock").exists()
