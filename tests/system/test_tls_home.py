"""Services whose TLS ends at home, with certificates from a real ACME server: the edge passes bytes and has no key."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import ssl
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from websockets.asyncio.client import connect

from tests.ports import free_port
from tests.system.control import ask
from tests.system.harness import Connector, World, wait_until
from tests.system.pebble import Pebble, has_certificate, needs_pebble, shown
from tests.system.service import BLOCK, pattern

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.system, needs_pebble]
HERE = Path(__file__).parent
NAME = "photos.example.com"
SIZE = 10 * 1024 * 1024


def services(port: int, pebble: Pebble, *, more: str = "") -> str:
    return f"""
        [services.photos]
        target = {port}
        tls = "home"
        {more}
        {pebble.tables}
    """


def albums(port: int) -> str:
    return f"""
        [services.albums]
        target = {port}
        tls = "home"
        host = "{NAME}"
        path = "/albums"
        strip_path = true
        [services.closed]
        target = {port}
        tls = "home"
        host = "{NAME}"
        path = "/closed"
        allow_from = ["192.0.2.0/24"]
        [services.notes]
        target = {port}
        tls = "home"
        [services.web]
        target = {port}
    """


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Pebble]]:
    with World(tmp_path_factory.mktemp("tls-home")) as world:
        pebble = Pebble(world)
        pebble.start()
        world.start_edge()
        port = world.service("web")
        world.connector("home", services(port, pebble, more=albums(port)), allow=("--allow-host", "*.example.com"))
        for name in (NAME, "notes.example.com"):
            wait_until(lambda name=name: has_certificate(world, pebble, name), seconds=60, what=f"{name}: certificate")
        yield world, pebble


@pytest.fixture
def world(started: tuple[World, Pebble]) -> World:
    return started[0]


def key_file(world: World, name: str = NAME) -> Path:
    """Where the connector keeps the certificate and key of a name."""
    (found,) = (world.connectors["home"].state / "acme").rglob(f"hosts/{name}.pem")
    return found


def private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def key_shapes(path: Path) -> dict[str, bytes]:
    """The secret of a key as it may lie in a file or in memory."""
    key = private_key(path)
    number = key.private_numbers().private_value
    der = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return {
        "big endian": number.to_bytes(32, "big"),
        "little endian": number.to_bytes(32, "little"),  # as OpenSSL keeps it to compute with
        "PEM": base64.b64encode(der)[16:112],  # from a multiple of four on, past what all keys begin with
    }


def memory_holds(pid: int, wanted: dict[str, bytes]) -> set[str]:
    """Which of these byte strings are in the readable memory of a process."""
    found: set[str] = set()
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            place, rights, *_ = line.split()
            if "r" not in rights or line.rstrip().endswith(("[vvar]", "[vsyscall]")):
                continue
            low, high = (int(end, 16) for end in place.split("-"))
            with contextlib.suppress(OSError, OverflowError):  # a device, or unmapped this moment
                data = os.pread(memory.fileno(), high - low, low)
                plain = data.replace(b"\n", b"")
                found |= {name for name, value in wanted.items() if value in data or value in plain}
    return found


def test_the_visitor_sees_a_certificate_of_the_connectors_own(started: tuple[World, Pebble]) -> None:
    world, pebble = started
    seen = shown(world, pebble, NAME)
    assert seen["subjectAltName"] == (("DNS", NAME),)
    path = key_file(world)
    public = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    text = world.s_client(NAME, "-showcerts").stdout
    pem = re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n", text, re.DOTALL)[0]
    assert pem in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert private_key(path).public_key().public_bytes(*public) in ssl.PEM_cert_to_DER_cert(pem)
    status = world.status()
    entry = next(entry for entry in status["addresses"] if entry["service"] == "photos")
    assert entry["address"] == f"https://{NAME}:{world.port}/"
    assert entry["tls"] == "home"
    assert entry["certificate_expiry"] == 0.0
    assert "at home" in world.edge_command("status").stdout
    home = json.loads(world.connectors["home"].command("status", "--json").stdout)
    assert home["acme_account"].startswith("https://")
    ours = next(entry for entry in home["services"] if entry["name"] == "photos")
    assert ours["certificate_expires"] == pytest.approx(ssl.cert_time_to_seconds(seen["notAfter"]), abs=1)
    assert ours["certificate_error"] == ""
    assert home["acme_account"] in world.connectors["home"].command("status").stdout
    doctor = world.connectors["home"].command("doctor", check=False).stdout
    assert re.search("ok .*certificate of photos", doctor), doctor


def test_the_edge_has_no_key(world: World) -> None:
    assert world.edge is not None
    home = world.connectors["home"]
    assert home.process is not None
    shapes = key_shapes(key_file(world))
    world.curl(f"https://{NAME}/bytes/100000")
    assert memory_holds(home.process.pid, shapes), "or the search below finds nothing anywhere"
    assert memory_holds(world.edge.pid, shapes) == set()
    for folder, expected in ((world.state, False), (home.state, True)):
        files = [path for path in folder.rglob("*") if path.is_file() and not path.is_socket()]
        plain = [path.read_bytes().replace(b"\n", b"") for path in files]
        assert any(value in data for value in shapes.values() for data in plain) is expected


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_requests_of_every_kind(world: World, version: str, tmp_path: Path) -> None:
    answer = json.loads(world.curl(f"https://{NAME}/headers?x=1", version, "--interface", "127.0.0.9").stdout)
    fields = {name.lower(): value for name, value in answer["fields"]}
    assert fields["x-forwarded-for"] == "127.0.0.9"
    assert fields["x-forwarded-proto"] == "https"
    assert fields["x-forwarded-host"].partition(":")[0] == NAME
    assert answer["path"] == "/headers?x=1"
    assert world.curl(f"https://{NAME}/", version, "-w", "%{http_version}").stdout.endswith(version[-1].encode()[-1:])
    assert hashlib.sha256(world.curl(f"https://{NAME}/bytes/{SIZE}", version).stdout).digest() == _digest(SIZE)
    last = world.curl(f"https://{NAME}/bytes/{SIZE}", version, "-H", "Connection: close", "--limit-rate", "8M").stdout
    assert hashlib.sha256(last).digest() == _digest(SIZE), "also where our end comes long before the last byte arrives"
    body = pattern(SIZE)
    (tmp_path / "body").write_bytes(body)
    upload = world.curl(f"https://{NAME}/upload", version, "-T", str(tmp_path / "body"))
    assert json.loads(upload.stdout) == {"bytes": SIZE, "sha256": hashlib.sha256(body).hexdigest()}
    inside = json.loads(world.curl(f"https://{NAME}/albums/headers/7", version).stdout)
    assert inside["path"] == "/headers/7", "another service of this host, told apart at home"
    assert world.code(f"https://{NAME}/closed/", version) == 403
    assert world.code("https://notes.example.com/", version) == 200
    assert world.code("https://web.example.com/", version) == 200, "whose TLS ends at the edge, beside them"
    for mine, other in ((NAME, "notes.example.com"), (NAME, "web.example.com"), ("web.example.com", NAME)):
        assert world.code(f"https://{mine}/", version, "-H", f"Host: {other}") == 421
    assert world.code(f"http://{NAME}/x") == 301


def _digest(size: int) -> bytes:
    return hashlib.sha256(BLOCK * (size // len(BLOCK))).digest()


def test_a_websocket(world: World) -> None:
    large = pattern(2_000_000)

    async def talk() -> None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        url = f"wss://{NAME}:{world.port}/ws"
        async with connect(
            url, host="127.0.0.1", port=world.port, ssl=context, max_size=None, open_timeout=30, proxy=None
        ) as connection:
            await connection.send("grüße")
            assert await connection.recv() == "echo grüße"
            await connection.send(large)
            assert await connection.recv() == large

    asyncio.run(asyncio.wait_for(talk(), 60))


def test_what_is_no_visitor(world: World) -> None:
    """Validation without a challenge, and a protocol that nobody speaks here: an alert, from home."""
    for alpn in ("acme-tls/1", "smtp"):
        assert "no application protocol" in world.s_client(NAME, "-alpn", alpn).stderr
    assert world.status()["addresses"]


def test_a_certificate_outlives_the_connector_and_is_renewed(started: tuple[World, Pebble]) -> None:
    world, pebble = started
    home = world.connectors["home"]
    before = shown(world, pebble, NAME)["serialNumber"]
    assert home.process is not None
    assert home.process.stop() == 0
    home.start()
    wait_until(lambda: has_certificate(world, pebble, NAME), what="served again")
    assert shown(world, pebble, NAME)["serialNumber"] == before, "kept, not ordered again"
    assert home.process.stop() == 0
    record = key_file(world).with_suffix(".json")
    found = json.loads(record.read_text())
    record.write_text(json.dumps({**found, "renew_at": 1.0, "issued_at": 1.0}))
    home.start()
    wait_until(
        lambda: has_certificate(world, pebble, NAME) and shown(world, pebble, NAME)["serialNumber"] != before,
        seconds=60, what="a new certificate",
    )  # fmt: skip
    assert world.code(f"https://{NAME}/") == 200


def test_links_that_break_in_the_middle(tmp_path: Path) -> None:
    """Files instead of ACME, and a download over a link that is cut three times."""
    size = 32 * 1024 * 1024
    with World(tmp_path) as world:
        world.start_edge()
        relay, control = free_port(), tmp_path / "relay.sock"
        command = [sys.executable, str(HERE / "relay.py"), str(relay), str(world.port), "--control", str(control)]
        world.add("relay", command, port=relay)
        certificate, key = tmp_path / "photos.crt", tmp_path / "photos.key"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-subj", "/CN=x", "-addext", f"subjectAltName=DNS:{NAME}", "-days", "7", "-out", str(certificate),
             "-keyout", str(key)], check=True, capture_output=True,
        )  # fmt: skip
        key.chmod(0o600)
        tables = f'[tls]\ncertificates = [{{ cert = "{certificate}", key = "{key}" }}]'
        port = world.service("web")
        home = Connector(world, "home", f'[services.photos]\ntarget = {port}\ntls = "home"\n{tables}')
        home.join("--edge", f"127.0.0.1:{relay}")
        home.start()
        target = tmp_path / "download"
        download = world.aside(
            ["curl", "-s", "--cacert", str(certificate), "--limit-rate", "4M", "--resolve",
             f"{NAME}:{world.port}:127.0.0.1", "-o", str(target), "-w", "%{http_code} %{num_connects}",
             f"https://{NAME}:{world.port}/bytes/{size}"], stdout=subprocess.PIPE,
        )  # fmt: skip
        for number in range(1, 4):
            mark = size // 5 * number
            wait_until(
                lambda mark=mark: target.exists() and target.stat().st_size > mark,
                seconds=60, what=f"{mark} bytes of the download", logs=world.logs,
            )  # fmt: skip
            assert download.poll() is None
            ask(control, "reset")
        output, _ = download.communicate(timeout=120)
        assert output == b"200 1"
        assert hashlib.sha256(target.read_bytes()).digest() == _digest(size)


@pytest.mark.skipif(shutil.which("caddy") is None, reason="caddy is not installed")
def test_a_tls_target_keeps_its_own_acme(tmp_path: Path) -> None:
    """Bytes untouched, acme-tls/1 included: a Caddy at home gets its certificate by itself."""
    name = "cloud.example.com"
    with World(tmp_path) as world:
        pebble = Pebble(world)
        pebble.start()
        world.start_edge()
        port = free_port()
        world.connector("home", f'[services.cloud]\ntarget = "tls://127.0.0.1:{port}"')
        file = tmp_path / "Caddyfile"
        file.write_text(f"""{{
            admin off
            http_port {free_port()}
            https_port {port}
            default_bind 127.0.0.1
            acme_ca {pebble.directory}
            acme_ca_root {pebble.ca_file}
            auto_https disable_redirects
        }}
        {name} {{
            tls {{
                issuer acme {{
                    dir {pebble.directory}
                    trusted_roots {pebble.ca_file}
                    disable_http_challenge
                }}
            }}
            respond "from caddy"
        }}
        """)
        command = [str(shutil.which("caddy")), "run", "--adapter", "caddyfile", "--config", str(file)]
        environment = {
            "HOME": str(tmp_path),
            "XDG_DATA_HOME": str(tmp_path / "caddy"),
            "XDG_CONFIG_HOME": str(tmp_path),
        }
        world.add("caddy", command, port=port, env=environment)
        wait_until(lambda: has_certificate(world, pebble, name), seconds=60, what="a certificate", logs=world.logs)
        assert shown(world, pebble, name)["subjectAltName"] == (("DNS", name),)
        assert world.curl(f"https://{name}/").stdout == b"from caddy"
        with socket.create_connection(("127.0.0.1", world.port), timeout=30):
            assert world.status()["addresses"][0]["tls"] == "home"
