"""An upgrade of the edge while the link of a connector is lost, or is lost soon after it."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.ports import free_port
from tests.system.control import ask
from tests.system.crowd import HOST
from tests.system.harness import Connector, wait_until
from tests.system.load import Visitor2
from tests.system.upgrading import Upgrading

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.system
HERE = Path(__file__).parent
REQUEST = b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % HOST.encode()
SECONDS = 40  # for anything that must come; idle connections are kept for 75


class Relayed(Upgrading):
    """The connector's link goes through a relay."""

    def begin(self) -> None:
        self.start_edge()
        self.relay_port, self.relay_control = free_port(), self.folder / "relay.sock"
        self.start_relay()
        self.home = Connector(self, "home", f"[services.web]\ntarget = {self.service('web')}\n")
        self.home.join("--edge", f"127.0.0.1:{self.relay_port}")
        self.home.start()

    def start_relay(self) -> None:
        command = [sys.executable, str(HERE / "relay.py"), str(self.relay_port), str(self.port)]
        self.relay = self.add("relay", [*command, "--control", str(self.relay_control)], port=self.relay_port)

    def served(self) -> bool:
        return self.curl(f"https://{HOST}/", check=False).stdout == b"hello from web\n"

    def restart_connector(self) -> None:
        assert self.home.process is not None
        self.home.process.stop()
        self.home.start()

    def lose_links(self) -> None:
        ask(self.relay_control, "reset")


@pytest.fixture(params=[1, 2], ids=["one", "two workers"])
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Relayed]:
    with Relayed(tmp_path, workers=request.param) as world:
        world.begin()
        wait_until(world.served, what="the service is there")
        yield world


def answer(sock: socket.socket) -> bytes:
    """One short response."""
    got = b""
    while not got.endswith(b"hello from web\n"):
        data = sock.recv(65536)
        assert data, got
        got += data
    return got


@pytest.mark.parametrize("how", [Relayed.restart_connector, Relayed.lose_links], ids=["restart", "link lost"])
def test_who_rests_in_the_old_process_is_sent_on_when_it_has_no_tunnel(
    world: Relayed, how: Callable[[Relayed], None]
) -> None:
    """It would be told that home is away, while everybody else is served."""
    first = world.voice
    with world.tls(HOST, alpn=["http/1.1"]) as kept:
        kept.settimeout(SECONDS)
        kept.sendall(REQUEST)
        assert answer(kept)
        kept2 = Visitor2(world, HOST)
        assert kept2.get("/") == (200, "hello from web\n")
        world.upgrade("command")
        wait_until(world.served, what="the new process serves")
        how(world)
        wait_until(world.served, what="the new process serves after that")
        assert kept.recv(1) == b""  # closed, and no request was in it
        with contextlib.suppress(ConnectionError):
            assert kept2.get("/")[0] == 0  # not taken: the last GOAWAY says so, and that it may be asked elsewhere
        kept2.close()
    assert first.popen.wait(SECONDS) == 0


def test_a_link_that_is_lost_when_the_upgrade_begins_comes_back_first(world: Relayed) -> None:
    """What is in progress resumes in the old process, which alone knows the session; nobody else may repeat it."""
    first = world.voice
    with world.tls(HOST, alpn=["http/1.1"]) as under_way:
        under_way.settimeout(SECONDS)
        under_way.sendall(b"POST /slow?seconds=6 HTTP/1.1\r\nHost: %b\r\nContent-Length: 0\r\n\r\n" % HOST.encode())
        wait_until(lambda: re.search(r"(?m)^tunnelgw_streams\S* 1", world.metrics()), what="the request is under way")
        world.relay.kill()
        first.wait_for("link lost")
        new = world.command()
        new.wait_for("accepting as soon as nothing waits for a link")
        world.start_relay()
        new.wait_for("(?m)^ready")
        got = b""
        while b"at last" not in got:
            data = under_way.recv(65536)
            assert data, got
            got += data
        assert got.startswith(b"HTTP/1.1 200 ")
    assert first.popen.wait(SECONDS) == 0
    wait_until(world.served, what="the new process serves")
