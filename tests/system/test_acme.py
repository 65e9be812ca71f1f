"""Certificates from a real ACME server: ordered, shown, renewed, revoked; failing, and coming back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.system.harness import World
from tests.system.pebble import Pebble, needs_pebble, shown

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.system, needs_pebble]


def home(world: World, *names: str) -> None:
    port = world.service("web")
    world.connector("home", "\n".join(f"[services.{name}]\ntarget = {port}" for name in names))


@pytest.mark.parametrize("kind", ["http-01", "tls-alpn-01"])
def test_a_new_service_gets_its_certificate(tmp_path: Path, kind: str) -> None:
    with World(tmp_path, issuer="acme") as world:
        pebble = Pebble(world)
        pebble.start()
        world.tables = pebble.tables + f'challenge = "{kind}"\n'
        world.write_config()
        edge = world.start_edge()
        before = edge.memory()
        home(world, "web")
        assert shown(world, pebble, "web.example.com")["subjectAltName"] == (("DNS", "web.example.com"),)
        assert world.curl("https://web.example.com/").stdout == b"hello from web\n"
        print("memory", before, edge.memory())
