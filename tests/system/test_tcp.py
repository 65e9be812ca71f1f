"""Bytes through the whole way: raw ports, PROXY headers, TLS ended here or there, Unix sockets, folders."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import ssl
import struct
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from tests.ports import free_port, free_range
from tests.system.harness import World, port_answers, wait_until
from tests.system.targets import RawTarget, both_ways, read_all, read_exactly

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.system

V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
TLS_KEYS = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "7"]


def own_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate of nobody but itself for `name` and 127.0.0.1, and its key."""
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    command = [
        "openssl",
        "req",
        "-x509",
        *TLS_KEYS,
        "-subj",
        f"/CN={name}",
        "-addext",
        f"subjectAltName=DNS:{name},IP:127.0.0.1",
    ]
    subprocess.run([*command, "-out", str(certificate), "-keyout", str(key)], check=True, capture_output=True)
    return certificate, key


def echo_all(sock: socket.socket) -> None:
    """Reads to the end, then answers with how much and what hash, then ends."""
    data = read_all(sock)
    sock.sendall(f"{len(data)} {hashlib.sha256(data).hexdigest()}".encode())


def echo(sock: socket.socket) -> None:
    """Sends back what it gets, as it comes."""
    while data := sock.recv(65536):
        sock.sendall(data)


def greet(sock: socket.socket) -> None:
    """Speaks first, as ssh and smtp do, then ends."""
    sock.sendall(b"220 welcome\r\n")


def start(world: World, name: str, services: str, *, ports: list[int]) -> None:
    allow = [word for port in ports for word in ("--allow-port", str(port))]
    world.connector(name, services, allow=("--allow-host", "*", *allow))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, extra='port_bind = "127.0.0.1"') as world:
        world.start_edge()
        yield world


def test_half_close_both_ways(world: World) -> None:
    port, first = free_port(), free_port()
    with RawTarget(echo_all) as target, RawTarget(greet) as greeter:
        services = f"""
            [services.raw]
            target = "tcp://127.0.0.1:{target.port}"
            port = {port}
            [services.first]
            target = "tcp://127.0.0.1:{greeter.port}"
            port = {first}
        """
        start(world, "home", services, ports=[port, first])
        body = os.urandom(3_000_000)
        with socket.create_connection(("127.0.0.1", port), timeout=30) as visitor:
            visitor.sendall(body)
            visitor.shutdown(socket.SHUT_WR)
            assert read_all(visitor).decode() == f"{len(body)} {hashlib.sha256(body).hexdigest()}"
        with socket.create_connection(("127.0.0.1", first), timeout=30) as visitor:
            assert read_all(visitor) == b"220 welcome\r\n", "without a byte from the visitor"


def test_a_target_that_is_down_ends_the_connection(world: World) -> None:
    port = free_port()
    start(world, "home", f'[services.raw]\ntarget = "tcp://127.0.0.1:{free_port()}"\nport = {port}', ports=[port])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as visitor, contextlib.suppress(ConnectionError):
        assert read_all(visitor) == b""


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_target_sees_the_visitors_address(world: World, version: str) -> None:
    port = free_port()
    heads: list[bytes] = []
    seen = threading.Event()

    def keep(sock: socket.socket) -> None:
        heads.append(read_all(sock))
        seen.set()

    with RawTarget(keep) as target:
        services = f"""
            [services.raw]
            target = "tcp://127.0.0.1:{target.port}"
            port = {port}
            proxy_protocol = "{version}"
            [services.inside]
            target = "tcp://127.0.0.1:{target.port}"
            host = "inside.example.com"
            proxy_protocol = "{version}"
        """
        start(world, "home", services, ports=[port])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as visitor:
            source = visitor.getsockname()[1]
            visitor.sendall(b"hello")
            visitor.shutdown(socket.SHUT_WR)
            assert read_all(visitor) == b""
        assert seen.wait(10)
        if version == "v1":
            assert heads[0] == f"PROXY TCP4 127.0.0.1 127.0.0.1 {source} {port}\r\nhello".encode()
        else:
            addresses = socket.inet_aton("127.0.0.1") * 2 + struct.pack("!HH", source, port)
            assert heads[0] == V2_SIGNATURE + b"\x21\x11" + struct.pack("!H", 12) + addresses + b"hello"
        seen.clear()
        with world.tls("inside.example.com") as inside:
            source = inside.getsockname()[1]
            inside.sendall(b"inside")
            with contextlib.suppress(OSError):
                inside.unwrap()  # says that it is done; a bare close would be a reset
        assert seen.wait(10)
        assert heads[1].endswith(b"inside")
        shown = f"{source} {world.port}\r\n".encode() if version == "v1" else struct.pack("!HH", source, world.port)
        assert shown in heads[1]


def test_ports_open_and_close_with_the_file(world: World) -> None:
    first, second, third = free_port(), free_port(), free_port()
    allow = [word for port in (first, second, third) for word in ("--allow-port", str(port))]
    with RawTarget(echo) as target:

        def service(name: str, port: int) -> str:
            return f'[services.{name}]\ntarget = "tcp://127.0.0.1:{target.port}"\nport = {port}\n'

        home = world.connector("home", service("a", first) + service("b", second), allow=tuple(allow))
        with (
            socket.create_connection(("127.0.0.1", first), timeout=30) as kept,
            socket.create_connection(("127.0.0.1", second), timeout=30) as cut,
        ):
            for visitor in (kept, cut):
                visitor.sendall(b"before")
                assert read_exactly(visitor, 6) == b"before"
            home.write(service("a", first) + service("c", third))
            wait_until(lambda: port_answers(third), what="the new port is open")
            wait_until(lambda: not port_answers(second), what="the old port is closed")
            kept.sendall(b"and after")
            assert read_exactly(kept, 9) == b"and after", "a service that stays keeps its streams"
            with contextlib.suppress(ConnectionError):
                assert read_all(cut) == b"", "a service that goes loses them"
        assert port_answers(first)
        assert home.process is not None
        home.process.stop()
        world.edge_command("revoke", "home")
        wait_until(lambda: not port_answers(first), what="revoked: the port is closed")


def test_a_range_maps_one_to_one(world: World) -> None:
    low, base = free_range(2), free_range(2)
    services = f'[services.range]\ntarget = "tcp://127.0.0.1:{low}"\nport = "{base}-{base + 1}"'
    with RawTarget(echo, port=low), RawTarget(greet, port=low + 1):
        world.connector("home", services, allow=("--allow-port", f"{base}-{base + 1}"))
        with socket.create_connection(("127.0.0.1", base + 1), timeout=30) as visitor:
            assert read_all(visitor) == b"220 welcome\r\n"
        with socket.create_connection(("127.0.0.1", base), timeout=30) as visitor:
            visitor.sendall(b"echo")
            assert read_exactly(visitor, 4) == b"echo"


def test_a_port_held_by_another_program(world: World) -> None:
    with RawTarget(echo) as target, RawTarget(greet) as owner:
        services = f"""
            [services.taken]
            target = "tcp://127.0.0.1:{target.port}"
            port = {owner.port}
            [services.fine]
            target = "http://127.0.0.1:1"
        """
        start(world, "home", services, ports=[owner.port])
        state = {
            service["name"]: service
            for service in json.loads(world.connectors["home"].command("status", "--json").stdout)["services"]
        }
        assert state["taken"]["reason"] == "port_unavailable"
        assert str(owner.port) in state["taken"]["message"]
        assert state["fine"]["state"] == "accepted"
        with socket.create_connection(("127.0.0.1", owner.port), timeout=30) as visitor:
            assert read_all(visitor) == b"220 welcome\r\n"


def test_tls_ends_at_the_edge_for_tcp(world: World) -> None:
    with RawTarget(echo) as target:
        start(
            world,
            "home",
            f'[services.shell]\ntarget = "tcp://127.0.0.1:{target.port}"\nhost = "shell.example.com"',
            ports=[],
        )
        command = ["openssl", "s_client", "-quiet", "-connect", f"127.0.0.1:{world.port}"]
        with subprocess.Popen(
            [*command, "-servername", "shell.example.com"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        ) as client:  # fmt: skip
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(b"through tls\n")
            client.stdin.flush()
            assert client.stdout.readline() == b"through tls\n"
            client.kill()
        body = os.urandom(2_000_000)
        with world.tls("shell.example.com") as visitor:
            got = both_ways(visitor, body)
        assert hashlib.sha256(got).digest() == hashlib.sha256(body).digest()


def test_unix_sockets(world: World, tmp_path: Path) -> None:
    port, web = free_port(), tmp_path / "web.sock"
    world.service("web", web)
    services = f"""
        [services.web]
        target = "http+unix:{web}"
        [services.raw]
        target = "unix:{web}"
        port = {port}
    """
    start(world, "home", services, ports=[port])
    assert world.curl("https://web.example.com/").stdout == b"hello from web\n"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as visitor:
        visitor.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert read_all(visitor).endswith(b"hello from web\n")


def tls_target(sock: socket.socket, context: ssl.SSLContext) -> None:
    """One HTTP response inside TLS, naming the server name that was asked for."""
    with context.wrap_socket(sock, server_side=True) as inside:
        request = inside.recv(65536)
        if request:
            name = getattr(inside, "asked", "")
            body = f"home {name or context.session_stats()['accept']}\n".encode()
            inside.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body))


def test_https_targets(tmp_path: Path) -> None:
    """Verified against what the system trusts (here: one certificate), or not; a wrong certificate is 502."""
    trusted, trusted_key = own_certificate(tmp_path, "localhost")
    strange, strange_key = own_certificate(tmp_path, "strange.example.org")
    with contextlib.ExitStack() as stack:
        ports = []
        for certificate, key in ((trusted, trusted_key), (strange, strange_key)):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            target = RawTarget(lambda sock, context=context: tls_target(sock, context))
            ports.append(stack.enter_context(target).port)
        world = stack.enter_context(World(tmp_path))
        world.start_edge()
        home = world.connector("home", f"""
            [services.good]
            target = "https://localhost:{ports[0]}"
            [services.wrong]
            target = "https://localhost:{ports[1]}"
            [services.unverified]
            target = "https://localhost:{ports[1]}"
            verify = false
        """, start=False)  # fmt: skip
        home.start(env={"SSL_CERT_FILE": str(trusted)})
        assert world.curl("https://good.example.com/").stdout.startswith(b"home ")
        assert world.curl("https://unverified.example.com/").stdout.startswith(b"home ")
        answer = world.curl("https://wrong.example.com/", "-H", "Accept: application/json", "-w", "%{http_code}").stdout
        assert b'"target_tls"' in answer
        assert answer.endswith(b"502")


def test_tls_passes_through_untouched(world: World, tmp_path: Path) -> None:
    """The visitor sees the target's own certificate, and the edge has none for that name."""
    certificate, key = own_certificate(tmp_path, "cloud.example.com")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with RawTarget(lambda sock: tls_target(sock, context)) as target:
        services = f'[services.cloud]\ntarget = "tls://127.0.0.1:{target.port}"'
        start(world, "home", services, ports=[])
        done = world.curl("https://cloud.example.com/", "--cacert", str(certificate))
        assert done.stdout.startswith(b"home ")
        shown = world.s_client("cloud.example.com", "-showcerts", "-verify_return_error", "-CAfile", str(certificate))
        assert certificate.read_text().strip() in shown.stdout
        assert "Verify return code: 0 (ok)" in shown.stdout
    assert not list(world.state.rglob("cloud.example.com*")), "no key of that name on the edge"


def test_a_folder(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "public"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("0123456789")
    (folder / "sub" / "index.html").write_text("<h1>index</h1>")
    (folder / ".secret").write_text("hidden")
    (tmp_path / "outside.txt").write_text("outside")
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    start(world, "home", f"""
        [services.files]
        target = "file:{folder}"
        listing = true
        [services.unlisted]
        target = "file:{folder}"
    """, ports=[])  # fmt: skip
    base = "https://files.example.com"
    listing = world.curl(f"{base}/").stdout.decode()
    assert "a.txt" in listing
    assert ".secret" not in listing
    assert "link.txt" not in listing
    assert world.code("https://unlisted.example.com/") == 404
    assert world.curl("https://unlisted.example.com/sub/").stdout == b"<h1>index</h1>"
    assert world.curl(f"{base}/a.txt").stdout == b"0123456789"
    assert world.curl(f"{base}/a.txt", "-r", "2-4", "-w", " %{http_code}").stdout == b"234 206"
    assert world.curl(f"{base}/a.txt", "-r", "-3").stdout == b"789"
    assert world.code(f"{base}/a.txt", "-r", "50-60") == 416
    head = world.curl(f"{base}/a.txt", "-I").stdout.decode().lower()
    etag = next(line.partition(": ")[2] for line in head.split("\r\n") if line.startswith("etag: "))
    assert "content-length: 10" in head
    assert world.code(f"{base}/a.txt", "-H", f"If-None-Match: {etag}") == 304
    assert world.code(f"{base}/a.txt", "-H", "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT") == 304
    assert world.code(f"{base}/a.txt", "-X", "POST", "-d", "x") == 405
    for path in ("/../outside.txt", "/sub/../../outside.txt", "/%2e%2e/outside.txt", "/sub/%2e%2e%2f..%2foutside.txt",
                 "/.secret", "/link.txt", "/%00", "/a.txt/", "//etc/passwd", "/..%5coutside.txt"):  # fmt: skip
        answer = world.curl(f"{base}{path}", "--http1.1", "--path-as-is", "-w", "%{http_code}").stdout
        assert answer.endswith((b"404", b"400")), (path, answer)
        assert b"outside\n" not in answer
        assert not answer.startswith((b"outside", b"hidden"))


def test_only_these_addresses_may_come_in(world: World) -> None:
    refused, allowed = free_port(), free_port()
    with RawTarget(greet) as target:
        services = f"""
            [services.a]
            target = "tcp://127.0.0.1:{target.port}"
            port = {refused}
            allow_from = ["192.0.2.0/24"]
            [services.b]
            target = "tcp://127.0.0.1:{target.port}"
            port = {allowed}
            allow_from = ["192.0.2.0/24", "127.0.0.0/8"]
            [services.web]
            target = "http://127.0.0.1:{target.port}"
            allow_from = ["2001:db8::/32"]
        """
        start(world, "home", services, ports=[refused, allowed])
        with socket.create_connection(("127.0.0.1", allowed), timeout=30) as visitor:
            assert read_all(visitor) == b"220 welcome\r\n"
        with (
            contextlib.suppress(ConnectionError),
            socket.create_connection(("127.0.0.1", refused), timeout=30) as visitor,
        ):
            assert read_all(visitor) == b""
        done = world.curl("https://web.example.com/", "-o", "/dev/null", "-w", "%{http_code}", check=False)
        assert done.stdout in (b"403", b"000")


def test_both_families(tmp_path: Path) -> None:
    """Raw ports listen on both; a visitor of IPv6 is told as such, one of IPv4 never as ::ffff:."""
    port = free_port()
    heads: list[bytes] = []
    seen = threading.Semaphore(0)

    def keep(sock: socket.socket) -> None:
        heads.append(read_all(sock))
        seen.release()

    with RawTarget(keep) as target, World(tmp_path) as world:
        listen = f'"127.0.0.1:{world.port}", "[::1]:{world.port}"'
        world.config.write_text(
            world.config.read_text().replace(f'listen = ["127.0.0.1:{world.port}"]', f"listen = [{listen}]")
        )
        world.start_edge()
        services = f"""
            [services.raw]
            target = "tcp://127.0.0.1:{target.port}"
            port = {port}
            proxy_protocol = "v1"
            [services.web]
            target = {world.service("web")}
        """
        start(world, "home", services, ports=[port])
        for address, word in (("127.0.0.1", "TCP4"), ("::1", "TCP6")):
            with socket.create_connection((address, port), timeout=30) as visitor:
                source = visitor.getsockname()[1]
                visitor.shutdown(socket.SHUT_WR)
                assert read_all(visitor) == b""
            assert seen.acquire(timeout=10)
            assert heads[-1] == f"PROXY {word} {address} {address} {source} {port}\r\n".encode()
        resolve = ["--resolve", f"web.example.com:{world.port}:[::1]"]
        fields = json.loads(world.curl("https://web.example.com/headers", "-6", *resolve).stdout)["fields"]
        assert ["x-forwarded-for", "::1"] in [[name.lower(), value] for name, value in fields]


def test_proxy_headers_of_strangers(tmp_path: Path) -> None:
    """With proxy_protocol, who is not trusted or says no header is closed; without it, a header is no ClientHello."""
    extra = 'proxy_protocol = true\ntrusted_proxies = ["127.0.0.2/32"]\npark_seconds = 0'
    with World(tmp_path) as world:
        world.start_edge()
        world.connector("home", f"[services.web]\ntarget = {world.service('web')}")
        option = ["--haproxy-protocol"]
        assert world.curl("https://web.example.com/", *option, check=False).returncode == 35
        assert world.edge is not None
        world.edge.stop()
        world.extra = extra
        world.write_config()
        world.start_edge()
        trusted = ["--interface", "127.0.0.2"]
        assert world.code("https://web.example.com/", *option, *trusted) == 503, "in, but tunnels are not"
        assert world.curl("https://web.example.com/", *trusted, check=False).returncode == 35, "no header"
        assert world.curl("https://web.example.com/", *option, check=False).returncode == 35, "not trusted"
