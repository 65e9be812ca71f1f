"""`basic_auth_file` from end to end: asked at the edge, and changed while it runs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import bcrypt
import pytest

from tests.system.harness import World, run, wait_until
from tunnelgw.config.model import ServiceConfig
from tunnelgw.config.targets import parse_target
from tunnelgw.connector.serve import offer

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.system


def line(name: str, password: str) -> str:
    return f"{name}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()}\n"


def test_only_who_knows_the_password(tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("# who may come in\n" + line("ann", "right-1"))
    with World(tmp_path) as world:
        world.start_edge()
        port = world.service("one")
        service = f'[services.one]\ntarget = {port}\nbasic_auth_file = "{users}"\n'
        home = world.connector("home", service)
        url = "https://one.example.com/"
        wait_until(lambda: world.code(url) == 401, what="the service asks for a password")
        assert world.code(url, "-u", "ann:right-1") == 200
        assert world.code(url, "-u", "ann:right-1", "--http2") == 200
        assert world.code(url, "-u", "ann:wrong") == 401
        users.write_text(line("ann", "right-2"))
        wait_until(lambda: world.code(url, "-u", "ann:right-1") == 401, what="the file is read again")
        assert world.code(url, "-u", "ann:right-2") == 200
        users.write_text("ann:right-3\n")
        assert home.process is not None
        home.process.wait_for("not reloaded: .*a plain password")
        assert world.code(url, "-u", "ann:right-2") == 200
        done = run("check", str(home.config), check=False)
        assert done.returncode == 2
        assert "htpasswd -nB" in done.stderr + done.stdout
        assert "right-3" not in world.logs() + done.stderr + done.stdout


def test_hashes_leave_home_only_where_the_edge_asks() -> None:
    users = (line("ann", "right").strip(),)
    service = ServiceConfig("one", parse_target("http://127.0.0.1:1"), users=users)
    assert offer(service).users == list(users)
    assert offer(dataclasses.replace(service, tls="home")).users == []
    assert users[0] not in repr(service)
