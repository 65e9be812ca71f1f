"""TLS as visitors see it, on a real edge: what testssl.sh finds, resumption, ends, and what browsers are told."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.net.certs import Authority
from tests.system.harness import World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "home.example.com"
# What testssl.sh says of the test's own certificate (`cert_`: it names no place to ask for revocations), of the scanned
# name's DNS, of the service's fields (`security_headers`), and of its own openssl (`engine_problem`): not of the edge.
# Its openssl may leave before the ticket has come, and then it does not know (`sessionresumption`): tested below.
ELSEWHERE = ("cert_", "DNS_", "security_headers", "engine_problem", "sessionresumption")
QUIET = {"OK", "INFO", "LOW"}


def world_of(folder: Path) -> World:
    """An edge with a certificate for NAME and for *.w.example.com, of an authority in `ca.pem`."""
    authority = Authority()
    (folder / "ca.pem").write_text(authority.pem)
    pairs = [authority.write(folder, NAME), authority.write(folder, "*.w.example.com")]
    listed = ", ".join(f'{{ cert = "{cert}", key = "{key}" }}' for cert, key in pairs)
    world = World(folder)
    text = world.config.read_text()
    world.config.write_text(
        text.replace('issuer = "self-signed"', f'issuer = "files"\ncertificates = [{listed}]\nhsts_seconds = 31536000')
    )
    return world


def served(world: World) -> None:
    world.start_edge()
    port = world.service("home")
    services = f"""
        [services.home]
        target = {port}
        [services.wild]
        target = {port}
        host = ["a.w.example.com", "b.w.example.com"]
    """
    world.connector("home", services, allow=("--allow-host", "*"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world_of(tmp_path_factory.mktemp("tls")) as made:
        served(made)
        yield made


def visit(
    world: World, context: ssl.SSLContext, name: str, *, host: str = "", session: ssl.SSLSession | None = None
) -> tuple[bytes, ssl.SSLSession | None, bool]:
    """One request, to the edge's close_notify: the answer, the session for the next time, whether it was resumed."""
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # set by default before Python 3.11.4
    sock = socket.create_connection(("127.0.0.1", world.port), timeout=30)
    with context.wrap_socket(sock, server_hostname=name, session=session, suppress_ragged_eofs=False) as tls:
        tls.sendall(f"GET / HTTP/1.1\r\nHost: {host or name}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while data := tls.recv(65536):  # SSLError if the end came without close_notify
            answer += data
        return answer, tls.session, bool(tls.session_reused)


def trusting(world: World, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(world.folder / "ca.pem"))
    context.maximum_version = version
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_sessions_resume_and_end_in_order(world: World, version: ssl.TLSVersion) -> None:
    context = trusting(world, version)
    answer, session, resumed = visit(world, context, NAME)
    assert answer.endswith(b"hello from home\n")
    assert not resumed
    answer, _, resumed = visit(world, context, NAME, session=session)
    assert answer.endswith(b"hello from home\n")
    assert resumed


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_of_one_name_opens_no_other(world: World, version: ssl.TLSVersion) -> None:
    """One wildcard certificate, a ticket from A, SNI B: Host must be B. With another certificate: no resumption."""
    context = trusting(world, version)
    _, session, _ = visit(world, context, "a.w.example.com")
    answer, _, _ = visit(world, context, "b.w.example.com", session=session)
    assert answer.startswith(b"HTTP/1.1 200 ")
    for host in ("a.w.example.com", NAME):
        answer, _, _ = visit(world, context, "b.w.example.com", host=host, session=session)
        assert answer.startswith(b"HTTP/1.1 421 ")
    _, _, resumed = visit(world, context, NAME, session=session)
    assert not resumed


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_browsers_are_told_to_stay_with_https(world: World, version: str) -> None:
    said = world.curl(f"https://{NAME}/", version, "-i").stdout.lower()
    assert said.count(b"strict-transport-security: max-age=31536000\r\n") == 1
    assert b"strict-transport" not in world.curl(f"http://{NAME}/", "-i").stdout.lower()


@pytest.mark.slow
@pytest.mark.timeout(520)
@pytest.mark.skipif(shutil.which("testssl") is None, reason="needs testssl.sh")
def test_testssl_finds_nothing_above_low(world: World, tmp_path: Path) -> None:
    """Protocols, categories of suites, forward secrecy, order, what the server says of itself, and each vulnerability.

    Not renegotiation: for that testssl.sh sends no name, and gets an alert. `tests/edge/test_visitors_tls.py` has it.
    """
    vulnerabilities = ["-H", "-I", "-T", "-BB", "-C", "-B", "-O", "-Z", "-W", "-F", "-D", "-J", "-A", "-L", "-4"]
    found = tmp_path / "found.json"
    subprocess.run(
        ["testssl", "--quiet", "--color", "0", "--warnings", "batch", "--ip", "127.0.0.1", "--jsonfile", str(found),
         "--add-ca", str(world.folder / "ca.pem"), "-p", "-s", "-f", "-P", "-S", *vulnerabilities,
         f"{NAME}:{world.port}"],
        capture_output=True, timeout=500, check=False,
    )  # fmt: skip
    findings = json.loads(found.read_text())
    assert {"SSLv2", "TLS1", "TLS1_1", "TLS1_2", "TLS1_3", "CRIME_TLS", "heartbleed", "BREACH"} <= {
        finding["id"] for finding in findings
    }
    bad = [one for one in findings if one["severity"] not in QUIET and not one["id"].startswith(ELSEWHERE)]
    assert not bad, bad
