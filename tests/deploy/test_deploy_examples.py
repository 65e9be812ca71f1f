"""Every example file means something to the program that it is for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.deploy_places import EXAMPLES
from tunnelgw.config.load import PROBLEM, check

NGINX_MODULES = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
TOML = sorted(EXAMPLES.rglob("*.toml"))
NGINX = sorted(EXAMPLES.rglob("nginx-*.conf"))
CADDY = sorted(EXAMPLES.rglob("Caddyfile-*"))


@pytest.mark.parametrize("file", TOML, ids=lambda file: file.name)
def test_configuration(file: Path) -> None:
    # Certificate files that are not on this machine are warnings, not problems.
    assert [str(problem) for problem in check(file) if problem.severity == PROBLEM] == []


def with_certificates(text: str, folder: Path) -> str:
    """The same configuration, with a certificate that exists in place of each that it names."""
    for name in set(re.findall(r"/etc/ssl/[\w.]+\.pem", text)):
        key = name.removesuffix(".pem") + ".key"
        cert_file, key_file = folder / Path(name).name, folder / Path(key).name
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
             "-subj", "/CN=example.com", "-keyout", key_file, "-out", cert_file],
            capture_output=True, timeout=30, check=True,
        )  # fmt: skip
        text = text.replace(name, str(cert_file)).replace(key, str(key_file))
    return text


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
@pytest.mark.parametrize("file", NGINX, ids=lambda file: file.name)
def test_nginx(file: Path, tmp_path: Path) -> None:
    text = with_certificates(file.read_text(), tmp_path)
    if "load_module" in text and not NGINX_MODULES.exists():
        pytest.skip("nginx's stream module is not installed (libnginx-mod-stream)")
    # Ports above 1024, so that the test needs neither root nor a free port 443.
    text = re.sub(r"(listen (?:\[::\]:)?)(443|80)\b", lambda found: f"{found[1]}{20000 + int(found[2])}", text)
    config = tmp_path / "nginx.conf"
    config.write_text(f"pid {tmp_path}/nginx.pid;\nerror_log stderr;\n{text}")
    done = subprocess.run(
        ["nginx", "-t", "-p", tmp_path, "-c", config, "-e", "stderr"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr or os.geteuid() != 0, done.stderr


@pytest.mark.skipif(shutil.which("caddy") is None, reason="caddy is not installed")
@pytest.mark.parametrize("file", CADDY, ids=lambda file: file.name)
def test_caddy(file: Path, tmp_path: Path) -> None:
    config = tmp_path / "Caddyfile"
    config.write_text(with_certificates(file.read_text(), tmp_path))
    done = subprocess.run(
        ["caddy", "validate", "--adapter", "caddyfile", "--config", config],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
