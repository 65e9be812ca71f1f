"""Beside a web server that owns 443: real nginx and Caddy, with the very files that the documentation shows.

What a test changes in them: ports above 1024, loopback, and certificates of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.ports import free_port
from tests.system.harness import Process, World, run

if TYPE_CHECKING:
    from collections.abc import Callable

FILES = Path(__file__).resolve().parents[2] / "deploy" / "examples" / "beside"
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
CADDY = shutil.which("caddy")
STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
VISITOR = ["--interface", "127.0.0.5"]  # an address that only a visitor has

needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
needs_caddy = pytest.mark.skipif(CADDY is None, reason="caddy is not installed")
needs_stream = pytest.mark.skipif(not STREAM.exists(), reason="nginx's stream module is not installed")
pytestmark = pytest.mark.system


def certificate(folder: Path, *names: str) -> tuple[Path, Path]:
    """A self-signed certificate for these names, and its key."""
    chain, key = folder / f"{names[0]}.pem", folder / f"{names[0]}.key"
    alternatives = ",".join(f"DNS:{name}" for name in names)
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
               "-days", "7", "-subj", f"/CN={names[0]}", "-addext", f"subjectAltName={alternatives}"]  # fmt: skip
    subprocess.run([*command, "-out", str(chain), "-keyout", str(key)], check=True, capture_output=True)
    return chain, key


def changed(name: str, changes: dict[str, str]) -> str:
    """A file of the examples with every one of these changes; each must apply."""
    text = (FILES / name).read_text()
    for old, new in changes.items():
        assert old in text, f"{name} has no {old!r}"
        text = text.replace(old, new)
    return text


def write_edge(world: World, name: str, changes: dict[str, str]) -> None:
    """The example as this edge's file, with a state folder of its own."""
    text = changed(name, changes)
    world.config.write_text(
        f'state_dir = "{world.state}"\n{text}\n[metrics]\nlisten = "127.0.0.1:{world.metrics_port}"\n'
    )
    run("check", str(world.config))


def start_nginx(world: World, name: str, changes: dict[str, str], *, port: int) -> Process:
    """The example in nginx, in the foreground, with no folder of the machine."""
    text = re.sub(r"(?m)^\s*listen \[::\].*\n", "", changed(name, changes))
    temporary = "".join(
        f"{kind}_temp_path {world.folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = text.replace("http {", f"http {{ access_log off; {temporary}", 1)
    user = "user root;\n" if os.geteuid() == 0 else ""
    file = world.folder / "nginx.conf"
    file.write_text(f"daemon off;\n{user}pid {world.folder}/nginx.pid;\nerror_log stderr;\n{text}")
    command = [str(NGINX), "-p", str(world.folder), "-c", str(file), "-e", "stderr"]
    return world.add("nginx", command, port=port)


def start_caddy(world: World, name: str, changes: dict[str, str], *, port: int) -> Process:
    """The example in Caddy, without its admin port and with a home of its own."""
    text = changed(name, changes)
    head = f"admin off\n\thttp_port {free_port()}\n"
    text = (
        text.replace("{\n", f"{{\n\t{head}", 1)
        if text.startswith("{\n")
        else f"{{\n\t{head}\tauto_https off\n}}\n{text}"
    )
    file = world.folder / "Caddyfile"
    file.write_text(text)
    command = [str(CADDY), "run", "--adapter", "caddyfile", "--config", str(file)]
    return world.add("caddy", command, port=port, env={"HOME": str(world.folder)})


def nginx_ends_tls(world: World, port: int, chain: Path, key: Path) -> None:
    start_nginx(world, "nginx-tls-proxy.conf", {
        "listen 80 default_server": f"listen 127.0.0.1:{free_port()} default_server",
        "listen 443 ssl http2": f"listen 127.0.0.1:{port} ssl http2",
        "/etc/ssl/example.com.pem": str(chain), "/etc/ssl/example.com.key": str(key),
        "http://127.0.0.1:8080": f"http://127.0.0.1:{world.http_port}",
    }, port=port)  # fmt: skip


def caddy_ends_tls(world: World, port: int, chain: Path, key: Path) -> None:
    start_caddy(world, "Caddyfile-tls-proxy", {
        "*.example.com {": f"https://*.example.com:{port} {{\n\tbind 127.0.0.1",
        "/etc/ssl/example.com.pem": str(chain), "/etc/ssl/example.com.key": str(key),
        "127.0.0.1:8080": f"127.0.0.1:{world.http_port}",
    }, port=port)  # fmt: skip


def fields_seen(answer: bytes) -> dict[str, str]:
    return {name.lower(): value for name, value in json.loads(answer)["fields"]}


@pytest.mark.parametrize(
    "start_proxy",
    [pytest.param(nginx_ends_tls, marks=needs_nginx), pytest.param(caddy_ends_tls, marks=needs_caddy)],
)
def test_behind_a_proxy_that_ends_tls(tmp_path: Path, start_proxy: Callable[[World, int, Path, Path], None]) -> None:
    with World(tmp_path) as world:
        write_edge(world, "edge-behind-tls-proxy.toml", {
            '"edge.example.com:8443"': f'"127.0.0.1:{world.port}"',
            '["0.0.0.0:8443", "[::]:8443"]': f'["127.0.0.1:{world.port}"]',
            "127.0.0.1:8080": f"127.0.0.1:{world.http_port}",
        })  # fmt: skip
        world.start_edge()
        world.connector("home", f"[services.web]\ntarget = {world.service('web')}")
        port = free_port()
        start_proxy(world, port, *certificate(tmp_path, "example.com", "*.example.com"))

        for version in ("--http1.1", "--http2"):
            assert world.curl("https://web.example.com/", version, port=port).stdout == b"hello from web\n", (
                "no redirect"
            )
        names = ("For", "Host", "Port", "Prefix", "Proto")
        lies = [word for name in names for word in ("-H", f"X-Forwarded-{name}: 6.6.6.6")]
        spoofed = [*lies, "-H", "X-Real-IP: 6.6.6.6", "-H", "Forwarded: for=6.6.6.6", *VISITOR]
        fields = fields_seen(world.curl("https://web.example.com/headers", *spoofed, port=port).stdout)
        assert fields["x-forwarded-for"].split(", ")[0] == "127.0.0.5"
        assert fields["x-real-ip"] == "127.0.0.5"
        assert fields["x-forwarded-proto"] == "https"
        assert "6.6.6.6" not in str(fields)
        body = tmp_path / "body"
        body.write_bytes(os.urandom(20_000_000))
        answer = json.loads(world.curl("https://web.example.com/upload", "-T", str(body), port=port).stdout)
        assert answer["sha256"] == hashlib.sha256(body.read_bytes()).hexdigest()
        upgrade = ["-H", "Connection: Upgrade", "-H", "Upgrade: websocket", "-H", "Sec-WebSocket-Version: 13",
                   "-H", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "--http1.1", "--max-time", "4"]  # fmt: skip
        done = world.curl("https://web.example.com/ws", *upgrade, "-w", "%{http_code}", port=port, check=False)
        assert done.stdout == b"101"
        direct = world.curl("http://web.example.com/", "-o", "/dev/null", "-w", "%{http_code}", *VISITOR).stdout
        assert direct == b"301", "whoever is no trusted proxy is redirected"


@needs_nginx
@needs_stream
def test_behind_sni_pass_through(tmp_path: Path) -> None:
    public, website = free_port(), free_port()
    chain, key = certificate(tmp_path, "example.com", "*.example.com")
    www, www_key = certificate(tmp_path, "www.example.com", "example.com")
    pages = tmp_path / "html"
    pages.mkdir()
    (pages / "index.html").write_text("the website\n")
    with World(tmp_path) as world:
        write_edge(world, "edge-behind-sni.toml", {
            '"edge.example.com:443"': f'"127.0.0.1:{public}"',
            "127.0.0.1:8443": f"127.0.0.1:{world.port}",
            "/etc/tunnelgw/tls/example.com.pem": str(chain), "/etc/tunnelgw/tls/example.com.key": str(key),
        })  # fmt: skip
        world.start_edge()
        start_nginx(world, "nginx-sni.conf", {
            "listen 80 default_server": f"listen 127.0.0.1:{free_port()} default_server",
            "listen 443;": f"listen 127.0.0.1:{public};",
            "/usr/lib/nginx/modules/ngx_stream_module.so": str(STREAM),
            "127.0.0.1:8444": f"127.0.0.1:{website}", "127.0.0.1:8443": f"127.0.0.1:{world.port}",
            "/etc/ssl/www.example.com.pem": str(www), "/etc/ssl/www.example.com.key": str(www_key),
            "/var/www/html": str(pages),
        }, port=public)  # fmt: skip
        # Join and tunnel come in through nginx too.
        world.connector("home", f"[services.web]\ntarget = {world.service('web')}")
        assert world.status()["connectors"][0]["state"] == "up"
        trusted = ["--cacert", str(chain), *VISITOR]
        assert world.curl("https://web.example.com/", *trusted, port=public).stdout == b"hello from web\n"
        fields = fields_seen(world.curl("https://web.example.com/headers", *trusted, port=public).stdout)
        assert (fields["x-forwarded-for"], fields["x-real-ip"]) == ("127.0.0.5", "127.0.0.5")
        assert fields["x-forwarded-port"] == str(public)
        assert world.curl("https://www.example.com/", "--cacert", str(www), port=public).stdout == b"the website\n"
        direct = world.curl("https://web.example.com/", check=False)
        assert direct.returncode == 35, "without a PROXY header nothing comes in"
        assert "unrecognized name" in world.s_client("nobody.example.com", port=public).stderr


def write_connector(world: World, changes: dict[str, str]) -> None:
    text = changed("connector-in-front.toml", changes)
    home = world.connector(
        "vps", "", allow=("--allow-host", "www.example.com", "--allow-host", "example.com"), start=False
    )
    home.config.write_text(f'state_dir = "{home.state}"\n{text}')
    run("check", str(home.config))
    home.start()


def in_front(world: World, chain: Path, key: Path) -> None:
    write_edge(world, "edge-in-front.toml", {
        '"edge.example.com:443"': f'"127.0.0.1:{world.port}"\nlisten = ["127.0.0.1:{world.port}"]\nlisten_http = []',
        "/etc/tunnelgw/tls/example.com.pem": str(chain), "/etc/tunnelgw/tls/example.com.key": str(key),
    })  # fmt: skip
    world.start_edge()
    world.connector("home", f"[services.web]\ntarget = {world.service('web')}")


@needs_nginx
def test_in_front_of_nginx(tmp_path: Path) -> None:
    website = free_port()
    www, www_key = certificate(tmp_path, "www.example.com", "example.com")
    with World(tmp_path) as world:
        in_front(world, *certificate(tmp_path, "edge.example.com", "*.example.com"))
        start_nginx(world, "nginx-in-front.conf", {
            "127.0.0.1:8444": f"127.0.0.1:{website}",
            "/etc/ssl/www.example.com.pem": str(www), "/etc/ssl/www.example.com.key": str(www_key),
            "root /var/www/html;": 'location / { return 200 "website for $remote_addr"; }',
        }, port=website)  # fmt: skip
        write_connector(world, {"127.0.0.1:443": f"127.0.0.1:{world.port}", "127.0.0.1:8444": f"127.0.0.1:{website}"})
        for host in ("www.example.com", "example.com"):
            for version in ("--http1.1", "--http2"):
                got = world.curl(f"https://{host}/", "--cacert", str(www), version, *VISITOR).stdout
                assert got == b"website for 127.0.0.5"
        assert world.curl("https://web.example.com/").stdout == b"hello from web\n"


@needs_caddy
def test_in_front_of_caddy(tmp_path: Path) -> None:
    website = free_port()
    www, www_key = certificate(tmp_path, "www.example.com", "example.com")
    pages = tmp_path / "html"
    pages.mkdir()
    (pages / "index.html").write_text("the website\n")
    with World(tmp_path) as world:
        in_front(world, *certificate(tmp_path, "edge.example.com", "*.example.com"))
        acme = re.search(r"tls \{.*?\n\t\}", (FILES / "Caddyfile-in-front").read_text(), re.DOTALL)
        assert acme is not None
        start_caddy(world, "Caddyfile-in-front", {
            "https_port 8444": f"https_port {website}", acme[0]: f"tls {www} {www_key}", "/var/www/html": str(pages),
        }, port=website)  # fmt: skip
        # Caddy reads no PROXY header.
        changes = {"127.0.0.1:443": f"127.0.0.1:{world.port}", "127.0.0.1:8444": f"127.0.0.1:{website}"}
        write_connector(world, changes | {'proxy_protocol = "v2"': ""})
        for version in ("--http1.1", "--http2"):
            assert world.curl("https://www.example.com/", "--cacert", str(www), version).stdout == b"the website\n"
        assert world.curl("https://web.example.com/").stdout == b"hello from web\n"
