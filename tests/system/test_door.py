"""The front door: what strangers see, two homes on one port, several workers."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from tests.ports import free_port
from tests.system.harness import World, wait_until
from tests.system.targets import RawTarget, read_all, read_exactly

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.system
HANDSHAKE = 22


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("door")) as world:
        world.start_edge()
        for name in ("home", "other"):
            port = world.service(name)
            world.connector(
                name, f'[services.{name}]\ntarget = "http://127.0.0.1:{port}"\n[services.x-{name}]\ntarget = {port}'
            )
        yield world


def client_hello(name: str, *, alpn: list[str] | None = None) -> bytes:
    """The first record of a real handshake, as OpenSSL writes it."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(alpn)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def refused(world: World, metric: str) -> float:
    """The counter `tunnelgw_refused_total` of this reason."""
    text = world.metrics()
    found = re.search(rf'^tunnelgw_refused_total{{reason="{metric}"}} ([0-9.e+]+)$', text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_two_homes_on_one_port(world: World) -> None:
    assert world.curl("https://home.example.com/").stdout == b"hello from home\n"
    assert world.curl("https://other.example.com/").stdout == b"hello from other\n"
    assert {item["connector"] for item in world.status()["addresses"]} == {"home", "other"}


@pytest.mark.parametrize("name", ["unknown.example.com", "a.home.example.com", "", "example.com"])
def test_an_unknown_name_gets_an_alert_and_no_certificate(world: World, name: str) -> None:
    before = refused(world, "name_unknown")
    done = world.s_client(name)
    assert "unrecognized name" in done.stderr
    assert "BEGIN CERTIFICATE" not in done.stdout
    assert "no peer certificate available" in done.stdout
    wait_until(lambda: refused(world, "name_unknown") > before, what="it is counted")


@pytest.mark.parametrize("name", ["home.example.com", "HOME.Example.COM"])
def test_the_certificate_is_the_names_own(world: World, name: str) -> None:
    done = world.s_client(name, "-verify_hostname", "home.example.com")
    assert "CN = home.example.com" in done.stdout
    assert "hostname mismatch" not in done.stdout + done.stderr


def test_an_unknown_protocol_inside_tls(world: World) -> None:
    done = world.s_client("home.example.com", "-alpn", "imap")
    assert "no application protocol" in done.stderr
    assert "no peer certificate available" in done.stdout
    done = world.s_client("home.example.com", "-alpn", "acme-tls/1")
    assert "no application protocol" in done.stderr


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
def test_old_versions_of_tls_are_refused(world: World, version: str) -> None:
    done = world.s_client("home.example.com", version, "-cipher", "ALL:@SECLEVEL=0")
    assert "no peer certificate available" in done.stdout


def test_tls_1_2_and_1_3(world: World) -> None:
    assert world.code("https://home.example.com/", "--tls-max", "1.2") == 200
    assert world.code("https://home.example.com/", "--tlsv1.3") == 200


def test_a_ticket_of_one_name_is_no_ticket_for_another(world: World) -> None:
    """Resumed or not, the name that was asked for decides."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # the session is there at once
    with context.wrap_socket(
        socket.create_connection(("127.0.0.1", world.port)), server_hostname="home.example.com"
    ) as one:
        session = one.session
    sock = socket.create_connection(("127.0.0.1", world.port), timeout=30)
    with context.wrap_socket(sock, server_hostname="other.example.com", session=session) as two:
        assert not two.session_reused
        two.sendall(b"GET / HTTP/1.1\r\nHost: other.example.com\r\nConnection: close\r\n\r\n")
        assert read_all(two).endswith(b"hello from other\n")


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_client_hello_in_many_records_and_segments(world: World, size: int) -> None:
    """Cut into TLS records of `size` bytes and sent in pieces: the same answer as in one piece."""
    record = client_hello("home.example.com")
    message = record[5:]
    pieces = [message[start : start + size] for start in range(0, len(message), size)]
    cut = b"".join(bytes([HANDSHAKE, 3, 1]) + len(piece).to_bytes(2, "big") + piece for piece in pieces)
    with socket.create_connection(("127.0.0.1", world.port), timeout=30) as visitor:
        visitor.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(cut), 700):
            visitor.sendall(cut[start : start + 700])
        answer = read_exactly(visitor, 6)
    assert answer[0] == HANDSHAKE, answer
    assert answer[5] == 2, "a ServerHello"


def test_half_a_client_hello_and_then_the_end(world: World) -> None:
    before = refused(world, "hello_invalid")
    with socket.create_connection(("127.0.0.1", world.port), timeout=30) as visitor:
        visitor.sendall(client_hello("home.example.com")[:100])
        visitor.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            assert len(read_all(visitor)) in (0, 7)  # nothing, or an alert
    wait_until(lambda: refused(world, "hello_invalid") > before, what="it is counted")


def test_plain_http_on_the_tls_port(world: World) -> None:
    with socket.create_connection(("127.0.0.1", world.port), timeout=30) as visitor:
        visitor.sendall(b"GET / HTTP/1.1\r\nHost: home.example.com\r\n\r\n")
        answer = read_all(visitor)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"https" in answer


@pytest.mark.parametrize(
    "junk",
    [b"SSH-2.0-scanner\r\n", b"\x80\x2e\x01\x00\x02" + bytes(40), bytes(64), b"\x16\x03\x01\xff\xff" + bytes(90)],
)
def test_junk_is_closed_at_once(world: World, junk: bytes) -> None:
    with socket.create_connection(("127.0.0.1", world.port), timeout=8) as visitor:
        visitor.sendall(junk)
        with contextlib.suppress(ConnectionError):
            assert len(read_all(visitor)) < 50


def test_an_address_as_a_name_gets_an_alert(world: World) -> None:
    done = world.s_client("127.0.0.1")
    assert "alert illegal parameter" in done.stderr
    assert "no peer certificate available" in done.stdout


def test_a_stranger_with_our_protocol(world: World) -> None:
    """ALPN tgw/1 without a certificate leads to the tunnel port, which answers nothing but a join."""
    with world.tls("edge.example.com", alpn=["tgw/1"]) as stranger:
        assert stranger.selected_alpn_protocol() == "tgw/1"
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert b"HTTP" not in read_all(stranger)
    assert world.code("https://home.example.com/") == 200


def test_silence_is_cut(world: World) -> None:
    with socket.create_connection(("127.0.0.1", world.port), timeout=20) as visitor:
        visitor.sendall(client_hello("home.example.com")[:50])
        with contextlib.suppress(ConnectionError):
            assert read_all(visitor) == b"", "within 15 s"


# Workers.


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, int]]:
    port = free_port()
    with (
        RawTarget(lambda sock: sock.sendall(b"raw\n")) as raw,
        World(tmp_path_factory.mktemp("workers"), workers=2, extra='port_bind = "127.0.0.1"') as world,
    ):
        world.start_edge()
        web = world.service("web")
        services = f"""
            [services.web]
            target = "http://127.0.0.1:{web}"
            [services.raw]
            target = "tcp://127.0.0.1:{raw.port}"
            port = {port}
        """
        world.connector("home", services, allow=("--allow-port", str(port)))
        yield world, port


def tunnels(world: World) -> int:
    return next(item["tunnels"] for item in world.status()["connectors"] if item["name"] == "home")


def workers(world: World) -> list[int]:
    """The process ids of the edge's workers."""
    assert world.edge is not None
    with open(f"/proc/{world.edge.pid}/task/{world.edge.pid}/children") as children:
        return [int(word) for word in children.read().split()]


def every_connection_works(world: World, port: int) -> None:
    """Enough connections that each worker has some."""
    for _ in range(20):
        assert world.curl("https://web.example.com/").stdout == b"hello from web\n"
        with socket.create_connection(("127.0.0.1", port), timeout=30) as visitor:
            assert read_all(visitor) == b"raw\n"


def test_two_workers(two_workers: tuple[World, int]) -> None:
    world, port = two_workers
    assert len(workers(world)) == 2
    wait_until(lambda: tunnels(world) == 2, what="a tunnel to each worker")
    every_connection_works(world, port)
    assert "tunnelgw_requests_total" in world.metrics()


def test_a_ticket_of_another_worker_costs_a_full_handshake_and_nothing_else(two_workers: tuple[World, int]) -> None:
    world, _ = two_workers
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    session: ssl.SSLSession | None = None
    resumed = []
    for _ in range(40):
        sock = socket.create_connection(("127.0.0.1", world.port), timeout=30)
        with context.wrap_socket(sock, server_hostname="web.example.com", session=session) as visitor:
            visitor.sendall(b"GET / HTTP/1.1\r\nHost: web.example.com\r\nConnection: close\r\n\r\n")
            assert read_all(visitor).endswith(b"hello from web\n")
            resumed.append(visitor.session_reused)
            session = session or visitor.session
    assert any(resumed), "the worker that gave it takes it"


def test_a_killed_worker_is_replaced(two_workers: tuple[World, int]) -> None:
    world, port = two_workers
    wait_until(lambda: tunnels(world) == 2, what="a tunnel to each worker")
    before = workers(world)
    for victim in before:
        known = set(workers(world))
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda known=known: len(set(workers(world)) - known) == 1, what="a new worker")
        wait_until(lambda: tunnels(world) == 2, seconds=30, what="its tunnel")
        every_connection_works(world, port)
    assert not set(before) & set(workers(world))


def test_changes_reach_every_worker(tmp_path: Path) -> None:
    """expose, unexpose, grant and revoke hold on every connection, whichever worker has it."""
    with World(tmp_path, workers=2) as world:
        world.start_edge()
        port = world.service("web")
        home = world.connector("home", "")
        wait_until(lambda: tunnels(world) == 2, what="a tunnel to each worker")
        home.command("expose", "web", str(port))
        for _ in range(20):
            assert world.curl("https://web.example.com/").stdout == b"hello from web\n", "at once"

        def everywhere(code: int) -> bool:
            """Every worker follows within half a second."""
            return all(world.curl("https://web.example.com/", check=False).returncode == code for _ in range(20))

        world.edge_command("grant", "home", "--allow-host", "other.example.com")
        wait_until(lambda: everywhere(35), what="taken back")
        world.edge_command("grant", "home", "--allow-host", "web.example.com")
        wait_until(lambda: everywhere(0), what="granted")
        world.edge_command("revoke", "home")
        wait_until(lambda: everywhere(35), what="revoked")
        assert tunnels(world) == 0
