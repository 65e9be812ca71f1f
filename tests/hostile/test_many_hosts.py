"""A hundred and fifty hosts of one service: every spelling of each is the same host, under the same rules.

Others compared case exactly once a list was long, and a rule that named `a.example.com` was none for `A.example.com`.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import bcrypt
import pytest

from tests.hostile.frames import GET, Visitor2, request
from tests.hostile.visitor import Visitor
from tests.net.certs import Authority
from tests.system.harness import World, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.system
MANY = 150
CREDENTIALS = b"Basic " + base64.b64encode(b"ann:right")


def spellings(host: str) -> list[bytes]:
    plain = host.encode()
    return [plain, plain.upper(), plain.title(), plain + b".", plain.upper() + b".", plain + b":443", plain + b".:443"]


def hosts(kind: str) -> list[str]:
    return [f"{kind}{number}.many.example.com" for number in range(MANY)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("many")
    certificate, key = Authority().write(folder, "*.many.example.com")
    users = folder / "users"
    users.write_text("ann:" + bcrypt.hashpw(b"right", bcrypt.gensalt(4)).decode() + "\n")
    with World(folder) as world:
        text = world.config.read_text()
        files = f'issuer = "files"\ncertificates = [{{ cert = "{certificate}", key = "{key}" }}]'
        world.config.write_text(text.replace('issuer = "self-signed"', files))
        world.start_edge()
        target = world.service("many")
        services = "".join(
            f"[services.{kind}]\ntarget = {target}\nhost = {hosts(kind)}\n{rule}\n"
            for kind, rule in (("closed", 'allow_from = ["192.0.2.0/24"]'), ("asks", f'basic_auth_file = "{users}"'))
        )
        world.connector("home", services, allow=("--allow-host", "*.many.example.com"))
        wait_until(lambda: world.code(f"https://{hosts('asks')[-1]}/") == 401, what="the services are there")
        yield world


@pytest.mark.parametrize(("kind", "status"), [("closed", 403), ("asks", 401)])
def test_every_spelling_meets_the_same_rule(world: World, kind: str, status: int) -> None:
    for host in hosts(kind):
        with Visitor(world, host) as visitor:
            assert [visitor.get(b"/", spelled).status for spelled in spellings(host)] == [status] * 7, host


def test_every_spelling_is_served_to_who_may_come_in(world: World) -> None:
    for host in hosts("asks"):
        with Visitor(world, host) as visitor:
            for spelled in spellings(host):
                visitor.send(b"GET / HTTP/1.1\r\nHost: %b\r\nAuthorization: %b\r\n\r\n" % (spelled, CREDENTIALS))
                assert visitor.answer().status == 200, spelled


@pytest.mark.parametrize(("kind", "status"), [("closed", 403), ("asks", 401)])
def test_over_http2(world: World, kind: str, status: int) -> None:
    for host in hosts(kind)[::5]:
        with Visitor2(world, name=host) as visitor:
            for number, spelled in enumerate(spellings(host)):
                fields = [(name, spelled if name == b":authority" else value) for name, value in GET]
                visitor.send(request(fields, stream=2 * number + 1))
                assert visitor.outcome(2 * number + 1) == ("status", status), spelled


def test_names_in_the_hello_are_the_same_in_any_case(world: World) -> None:
    for host in hosts("asks")[::10]:
        with Visitor(world, host.upper()) as visitor:
            assert visitor.get(b"/", host.encode()).status == 401


def test_a_name_beside_them_is_nobodys(world: World) -> None:
    host = hosts("asks")[7]
    with Visitor(world, host) as visitor:
        for other in (
            b"asks150.many.example.com",
            b"x." + host.encode(),
            b"many.example.com",
            hosts("closed")[7].encode(),
        ):
            assert visitor.get(b"/", other).status in (404, 421)
