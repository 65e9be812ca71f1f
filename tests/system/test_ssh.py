"""ssh into the machine at home: the real programs, against a real sshd on loopback."""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.ports import free_port
from tests.system.harness import World, port_answers, wait_until
from tests.system.sshd import SSHD, configure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.system, pytest.mark.skipif(SSHD is None, reason="sshd is not installed")]
SIZE = 100_000_000


@dataclass(frozen=True, slots=True)
class Way:
    """The public port of the sshd at home, its port at home, and a client configuration that trusts its key."""

    world: World
    port: int
    home_port: int
    web_port: int
    config: Path

    def run(self, program: str, *arguments: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [program, "-F", str(self.config), *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + self.world.logs()
        return done


def start_sshd(world: World, folder: Path) -> int:
    port = free_port()
    world.add("sshd", configure(folder, port), port=port)
    return port


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    folder = tmp_path_factory.mktemp("ssh")
    with World(folder, extra='port_bind = "127.0.0.1"') as world:
        world.start_edge()
        home_port, port = start_sshd(world, folder), free_port()
        services = f"""
            [services.ssh]
            target = "tcp://127.0.0.1:{home_port}"
            port = {port}
            [services.shell]
            target = "tcp://127.0.0.1:{home_port}"
            host = "shell.example.com"
        """
        world.connector("home", services, allow=("--allow-port", str(port)))
        yield Way(world, port, home_port, world.service("web"), folder / "ssh_config")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """100 MB and their hash."""
    path = tmp_path_factory.mktemp("file") / "file"
    data = os.urandom(SIZE)
    path.write_bytes(data)
    return path, hashlib.sha256(data).hexdigest()


def hash_of(path: Path) -> str:
    with path.open("rb") as got:
        return hashlib.file_digest(got, "sha256").hexdigest()


def test_a_command(way: Way) -> None:
    done = way.run("ssh", "-p", str(way.port), "127.0.0.1", "echo in; echo err >&2; echo $SSH_CONNECTION")
    first, connection = done.stdout.splitlines()
    assert first == "in"
    assert connection.split()[3] == str(way.home_port)
    assert "err" in done.stderr


def test_output_of_a_command_with_an_exit_code(way: Way) -> None:
    command = ["ssh", "-F", str(way.config), "-p", str(way.port), "127.0.0.1", "head -c 5000000 /dev/zero; exit 7"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    assert (len(done.stdout), done.returncode) == (5_000_000, 7)


def test_a_jump_through_home(way: Way) -> None:
    """From home on to a machine that only home can reach; here it is the same one."""
    done = way.run("ssh", "-J", f"127.0.0.1:{way.port}", "-p", str(way.home_port), "localhost", "echo jumped")
    assert done.stdout == "jumped\n"


@pytest.mark.slow
def test_scp_there_and_back(way: Way, file: tuple[Path, str], tmp_path: Path) -> None:
    path, digest = file
    there, back = tmp_path / "there", tmp_path / "back"
    way.run("scp", "-P", str(way.port), str(path), f"127.0.0.1:{there}")
    assert hash_of(there) == digest
    way.run("scp", "-P", str(way.port), f"127.0.0.1:{there}", str(back))
    assert hash_of(back) == digest


def test_a_port_forward_inside(way: Way) -> None:
    local = free_port()
    forward = f"127.0.0.1:{local}:127.0.0.1:{way.web_port}"
    command = ["ssh", "-F", str(way.config), "-p", str(way.port), "-N", "-o", "ExitOnForwardFailure=yes", "-L", forward]
    with subprocess.Popen([*command, "127.0.0.1"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as client:
        try:
            wait_until(lambda: port_answers(local), what="the forwarded port listens")
            got = subprocess.run(
                ["curl", "-s", "--max-time", "30", f"http://127.0.0.1:{local}/bytes/10000000"],
                capture_output=True, check=False,
            )  # fmt: skip
            assert len(got.stdout) == 10_000_000
        finally:
            client.terminate()


def test_through_tls_on_443(way: Way) -> None:
    """Where only 443 gets out: TLS ends at the edge, ssh is inside."""
    openssl = f"openssl s_client -quiet -connect 127.0.0.1:{way.world.port} -servername shell.example.com"
    done = way.run("ssh", "-o", f"ProxyCommand={openssl}", "shell.example.com", "echo through tls")
    assert done.stdout == "through tls\n"
