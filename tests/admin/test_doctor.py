"""What doctor says of each hop, with real sockets on loopback."""

from __future__ import annotations

import email.utils
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tunnelgw.admin import doctor
from tunnelgw.config.model import Endpoint, ServiceConfig, Target
from tunnelgw.identity import certs
from tunnelgw.net.tls import tunnel_client_context, tunnel_server_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from pathlib import Path


@contextmanager
def serving(handle: Callable[[socket.socket], None]) -> Iterator[int]:
    """One connection on loopback, handled in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                with listener.accept()[0] as sock:
                    sock.settimeout(10)
                    handle(sock)
            except OSError:
                return

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        listener.close()
        thread.join(10)


@pytest.fixture
def free_port() -> Iterator[int]:
    """Bound, not listening: connections are refused."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def edge(tmp_path: Path) -> tuple[ssl.SSLContext, str]:
    authority = certs.make_authority("test", now=time.time())
    material = certs.make_server(authority, ["tgw.invalid"], now=time.time())
    (tmp_path / "crt").write_text(material.certificate)
    (tmp_path / "key").write_text(material.key)
    return tunnel_server_context(
        tmp_path / "crt", tmp_path / "key", authority=authority.certificate
    ), authority.certificate


def shake(context: ssl.SSLContext) -> Callable[[socket.socket], None]:
    def handle(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True) as tls:
            tls.recv(1)

    return handle


def test_tls_of_the_right_edge_and_of_an_impostor(tmp_path: Path) -> None:
    context, authority = edge(tmp_path)
    stranger = certs.make_authority("stranger", now=time.time()).certificate
    for trusted, ok in ((authority, True), (stranger, False)):
        ours = tunnel_client_context(None, None, authority=trusted)
        with serving(shake(context)) as port:
            check = doctor.shake_hands("127.0.0.1", port, server_name="tgw.invalid", context=ours)
        assert check.ok is ok, check
        assert ok or "foreign certificate" in str(check)


def test_something_that_is_no_tls(tmp_path: Path) -> None:
    ours = tunnel_client_context(None, None, authority=edge(tmp_path)[1])

    def answer(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with serving(answer) as port:
        check = doctor.shake_hands("127.0.0.1", port, server_name="tgw.invalid", context=ours)
    assert str(check).startswith("FAIL  TLS: ")


@pytest.mark.parametrize(("offset", "ok"), [(0, True), (-30, True), (3600, False), (-86400, False)])
def test_clock(offset: float, ok: bool) -> None:
    def answer(sock: socket.socket) -> None:
        sock.recv(4096)
        date = email.utils.formatdate(time.time() + offset, usegmt=True)
        sock.sendall(f"HTTP/1.1 308 Permanent Redirect\r\ndate: {date}\r\nlocation: /\r\n\r\n".encode())

    with serving(answer) as port:
        assert doctor.clock(["127.0.0.1"], host="edge.example.com", port=port).ok is ok


@pytest.mark.parametrize("reply", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nDate: tomorrow\r\n\r\n"])
def test_a_clock_that_cannot_be_compared_is_no_failure(reply: bytes) -> None:
    def answer(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(reply)

    with serving(answer) as port:
        assert doctor.clock(["127.0.0.1"], host="x", port=port).ok


@pytest.mark.parametrize(("allowed", "text"), [("reno cubic bbr", "BBR, wherever"), ("reno cubic", "no BBR, so slow")])
def test_bbr(tmp_path: Path, allowed: str, text: str) -> None:
    (tmp_path / "allowed").write_text(f"{allowed}\n")
    check = doctor.lossy_lines(tmp_path / "allowed")
    assert check.ok
    assert check.text.startswith(text)
    assert doctor.lossy_lines(tmp_path / "hidden").text.startswith("no BBR")


def test_names_and_ports(free_port: int) -> None:
    assert doctor.resolve("localhost")[0].ok
    check, addresses = doctor.resolve("does-not-exist.invalid")
    assert (check.ok, addresses) == (False, [])
    assert "add an A or AAAA record" in str(check)
    assert not doctor.resolve("a" * 300)[0].ok
    assert "refused" in str(doctor.reach("127.0.0.1", free_port))
    assert not doctor.points_here("does-not-exist.invalid", ["192.0.2.1"]).ok
    assert [check.ok for check in doctor.listening([Endpoint("0.0.0.0", free_port)])] == [False]


def test_targets(tmp_path: Path, free_port: int) -> None:
    def ok(target: Target) -> bool:
        return doctor.target(ServiceConfig("x", target)).ok

    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert ok(Target("http", "127.0.0.1", listener.getsockname()[1]))
    assert not ok(Target("http", "127.0.0.1", free_port))
    assert ok(Target("file", path=str(tmp_path)))
    assert not ok(Target("file", path=str(tmp_path / "none")))
    assert not ok(Target("unix", path=str(tmp_path / "none")))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        sock.listen()
        assert ok(Target("unix", path=str(tmp_path / "s")))


def test_udp_targets() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        assert "is not refused" in str(doctor.target(ServiceConfig("x", Target("udp", "127.0.0.1", port))))
        assert doctor.target(ServiceConfig("x", Target("udp", "localhost", port))).ok, "it may mean ::1 first"
    check = doctor.target(ServiceConfig("x", Target("udp", "127.0.0.1", port)))
    assert not check.ok
    assert "refused" in str(check)


def test_certificates_and_state(tmp_path: Path) -> None:
    now = time.time()
    assert doctor.certificate(now + 30 * 86400).ok
    assert "expires in" in str(doctor.certificate(now + 86400))
    assert "expired" in str(doctor.certificate(now - 86400))
    tmp_path.chmod(0o700)
    assert doctor.private(tmp_path).ok
    tmp_path.chmod(0o755)
    assert "chmod 700" in str(doctor.private(tmp_path))
    assert not doctor.private(tmp_path / "none").ok


def test_a_certificate_that_could_not_be_ordered() -> None:
    check = doctor.orders("the issuer said no", name="certificate of x", kinds=("tls-alpn-01", "http-01"))
    assert not check.ok
    assert "port 443 or 80" in str(check)
    assert "edge certificate renew" in str(check)
    assert "DNS settings" in str(doctor.orders("no", name="certificate of x", kinds=("dns-01",)))


def test_short_lives_are_no_failure() -> None:
    soon = time.time() + 3 * 86400
    assert not doctor.certificate(soon).ok
    assert doctor.certificate(soon, soon=0.0).ok
    assert not doctor.certificate(time.time() - 1, soon=0.0).ok
