"""Broken services, slow or vanishing visitors, and ends in the middle of something."""

from __future__ import annotations

import contextlib
import hashlib
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from tests.ports import free_port
from tests.system.harness import World, run, wait_until
from tests.system.service import pattern
from tests.system.targets import RawTarget, read_all, read_exactly, read_head

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.system
VERSIONS = pytest.mark.parametrize("version", ["--http1.1", "--http2"])
OK = b"HTTP/1.1 200 OK\r\n"


class Broken:
    """A service whose path says how it misbehaves; counts its requests and notices when its peer is gone."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.gone = threading.Event()

    def __call__(self, sock: socket.socket) -> None:
        while head := read_head(sock):
            what = head.split(b" ")[1].decode().strip("/")
            self.requests.append(head.split(b"\r\n")[0])
            answer = getattr(self, what.replace("-", "_"))
            if answer(sock) is None:
                return

    def fine(self, sock: socket.socket) -> bool:
        sock.sendall(OK + b"Content-Length: 4\r\n\r\nfine")
        return True

    def cut_length(self, sock: socket.socket) -> None:
        sock.sendall(OK + b"Content-Length: 100\r\n\r\nonly this")

    def cut_chunks(self, sock: socket.socket) -> None:
        sock.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n9\r\nonly this\r\n")

    def nothing(self, sock: socket.socket) -> None:
        return

    def junk(self, sock: socket.socket) -> None:
        sock.sendall(b"this is not HTTP\r\n\r\n")

    def two_lengths(self, sock: socket.socket) -> None:
        sock.sendall(OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!")

    def huge_head(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            for number in range(1200):
                sock.sendall((OK if not number else b"") + b"X-%d: %b\r\n" % (number, b"y" * 1000))

    def early(self, sock: socket.socket) -> bool:
        sock.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\nafter")
        return True

    def surplus(self, sock: socket.socket) -> bool:
        sock.sendall(OK + b"Content-Length: 5\r\n\r\nfirst" + OK + b"Content-Length: 8\r\n\r\nsmuggled")
        return True

    def endless(self, sock: socket.socket) -> None:
        sock.sendall(OK + b"Content-Type: text/plain\r\n\r\n")
        try:
            while True:
                sock.sendall(bytes(65536))
        except OSError:
            self.gone.set()


@pytest.fixture(scope="module")
def broken() -> Broken:
    return Broken()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, broken: Broken) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("broken")) as world, RawTarget(broken) as target:
        world.start_edge()
        world.connector("home", f"[services.web]\ntarget = {target.port}")
        yield world


@VERSIONS
@pytest.mark.parametrize("path", ["cut-length", "cut-chunks"])
def test_a_cut_response_is_seen_as_cut(world: World, version: str, path: str) -> None:
    done = world.curl(f"https://web.example.com/{path}", version, check=False)
    assert done.returncode in (18, 92), "incomplete, or the stream was reset"
    assert done.stdout in (b"only this", b""), "a reset may overtake what came before it"
    assert world.curl("https://web.example.com/fine", version).stdout == b"fine"


@VERSIONS
@pytest.mark.parametrize("path", ["nothing", "junk", "two-lengths", "huge-head"])
def test_an_invalid_response_is_502(world: World, version: str, path: str) -> None:
    assert world.code(f"https://web.example.com/{path}", version) == 502
    assert world.curl("https://web.example.com/fine", version).stdout == b"fine"


@VERSIONS
def test_a_post_is_never_repeated(world: World, broken: Broken, version: str) -> None:
    before = len(broken.requests)
    assert world.code("https://web.example.com/nothing", version, "-d", "x") == 502
    assert len(broken.requests) == before + 1


@VERSIONS
def test_an_early_hint_comes_before_the_response(world: World, version: str) -> None:
    done = world.curl("https://web.example.com/early", version, "-D", "-")
    assert done.stdout.endswith(b"\r\n\r\nafter")
    assert b" 200" in done.stdout


@VERSIONS
def test_bytes_that_nobody_asked_for_answer_nobody(world: World, version: str) -> None:
    second = f"https://web.example.com:{world.port}/fine"
    done = world.curl("https://web.example.com/surplus", version, second)
    assert done.stdout in (b"firstfine", b"finefirst")


@VERSIONS
def test_a_visitor_that_leaves_ends_the_download_at_home(world: World, broken: Broken, version: str) -> None:
    broken.gone.clear()
    done = world.curl("https://web.example.com/endless", version, "--max-time", "4", "-o", "/dev/null", check=False)
    assert done.returncode == 28
    assert broken.gone.wait(10), "the service is told"


def test_slow_heads_are_cut_and_others_served(tmp_path: Path) -> None:
    with World(tmp_path, tables="[limits]\nrequest_head_seconds = 6\nconnections_per_address = 8") as world:
        world.start_edge()
        world.connector("home", f"[services.web]\ntarget = {world.service('web')}")
        with world.tls("web.example.com") as silent, world.tls("web.example.com") as slow:
            slow.sendall(b"GET / HTTP/1.1\r\nHost: web.exa")
            assert world.code("https://web.example.com/") == 200
            assert read_all(slow).startswith(b"HTTP/1.1 408 ")
            assert read_all(silent) == b""
        with contextlib.ExitStack() as stack:
            for _ in range(8):
                idle = stack.enter_context(world.tls("web.example.com"))
                idle.sendall(b"GET /status/201 HTTP/1.1\r\nHost: web.example.com\r\n\r\n")
                assert b" 201 " in read_head(idle)
            assert world.curl("https://web.example.com/", check=False).returncode != 0, "one too many"
            idle.sendall(b"GET /status/202 HTTP/1.1\r\nHost: web.example.com\r\n\r\n")
            assert b" 202 " in read_head(idle), "who is in stays in"
        wait_until(lambda: world.curl("https://web.example.com/", check=False).returncode == 0, what="room again")


@pytest.mark.parametrize("who", ["edge", "home"])
def test_sigterm_lets_a_download_finish(tmp_path: Path, who: str) -> None:
    size = 40_000_000
    with World(tmp_path) as world:
        world.start_edge()
        home = world.connector("home", f"[services.web]\ntarget = {world.service('web')}")
        stopped = world.edge if who == "edge" else home.process
        assert stopped is not None
        with world.tls("web.example.com") as visitor:
            visitor.sendall(f"GET /bytes/{size} HTTP/1.1\r\nHost: web.example.com\r\n\r\n".encode())
            assert b" 200 " in read_head(visitor)
            got = hashlib.sha256(read_exactly(visitor, 1_000_000))
            stopped.signal(signal.SIGTERM)
            got.update(read_exactly(visitor, size - 1_000_000))
        assert got.hexdigest() == hashlib.sha256(pattern(size)).hexdigest()
        assert stopped.popen.wait(20) == 0


def test_a_kill_in_the_middle_is_an_error_and_not_a_hang(tmp_path: Path) -> None:
    with World(tmp_path, extra="resume_seconds = 1\npark_seconds = 1") as world:
        world.start_edge()
        home = world.connector("home", f"[services.web]\ntarget = {world.service('web')}")
        assert home.process is not None
        with world.tls("web.example.com") as visitor:
            visitor.sendall(b"GET /gated HTTP/1.1\r\nHost: web.example.com\r\n\r\n")
            assert b" 200 " in read_head(visitor)
            home.process.kill()
            with contextlib.suppress(OSError):
                assert not read_all(visitor).endswith(b"0\r\n\r\n"), "cut, not ended"


def test_what_cannot_start_says_why(tmp_path: Path) -> None:
    """One line on standard error, 2 for configuration and 1 for the rest."""
    with World(tmp_path) as world:
        world.start_edge()
        again = world.edge_command("run", check=False)
        assert again.returncode == 1
        assert len(again.stderr.strip().splitlines()) == 1, again.stderr
        other = tmp_path / "other.toml"
        text = world.config.read_text().replace(str(world.state), str(tmp_path / "other-state"))
        other.write_text(text.replace(f"127.0.0.1:{world.metrics_port}", f"127.0.0.1:{free_port()}"))
        (tmp_path / "other-state").mkdir(mode=0o700)
        taken = run("edge", "run", "--config", str(other), check=False)
        assert taken.returncode == 1
        assert len(taken.stderr.strip().splitlines()) == 1, taken.stderr
        other.write_text("domain = 5\nlisten = ['nowhere']\n")
        bad = run("edge", "run", "--config", str(other), check=False)
        assert bad.returncode == 2
        assert "other.toml:1" in bad.stderr
        assert "other.toml:2" in bad.stderr
        missing = run("connect", "--config", str(tmp_path / "nowhere.toml"), check=False)
        assert missing.returncode in (1, 2)
        assert len(missing.stderr.strip().splitlines()) == 1, missing.stderr
