"""The systemd files: accepted by systemd's own tools, and fit for what the program needs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.deploy_places import DEPLOY
from tunnelgw.admin.takeover import STOP_SECONDS
from tunnelgw.cli.parser import build_parser
from tunnelgw.cli.units import unit_name, unit_text
from tunnelgw.edge.app import GRACE_SECONDS

SYSTEMD = DEPLOY / "systemd"
SERVICES = ("tunnelgw-edge.service", "tunnelgw-connector.service")


def settings(name: str) -> dict[str, str]:
    """Key to value; a key that is given twice is a mistake in these files."""
    found: dict[str, str] = {}
    for line in (SYSTEMD / name).read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#") and key != "ExecStartPre":
            # A second filter takes away from the first.
            assert key not in found or (key, value) == ("SystemCallFilter", "~@privileged"), key
            found.setdefault(key, value)
    return found


def preparations(name: str) -> list[str]:
    """What systemd runs first."""
    return re.findall(r"^ExecStartPre=(.*)$", (SYSTEMD / name).read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", SERVICES)
def test_bbr_is_allowed_where_that_can_be(name: str) -> None:
    """As root ("+"), and a kernel without it is no failure ("-")."""
    assert preparations(name) == [
        "-+/usr/sbin/modprobe -q tcp_bbr",
        '-+/usr/sbin/sysctl -q "net.ipv4.tcp_allowed_congestion_control=reno cubic bbr"',
    ]


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    program = tmp_path / "tunnelgw"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for name in (*SERVICES, "tunnelgw-edge.socket"):
        text = (SYSTEMD / name).read_text().replace("/usr/local/bin/tunnelgw", str(program))
        (tmp_path / name).write_text(text)
    shutil.copytree(SYSTEMD / "tunnelgw-connector.service.d", tmp_path / "tunnelgw-connector.service.d")
    said = run("systemd-analyze", "verify", *(tmp_path / name for name in (*SERVICES, "tunnelgw-edge.socket")))
    assert "tunnelgw" not in said


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("name", SERVICES)
def test_little_is_exposed(name: str) -> None:
    said = run("systemd-analyze", "security", "--offline=true", SYSTEMD / name)
    level = re.search(r"Overall exposure level for .*: ([0-9.]+)", said)
    assert level is not None
    assert float(level[1]) <= 2.0  # docs/security.md says so


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("name", SERVICES)
def test_packets_cost_one_capability(tmp_path: Path, name: str) -> None:
    """The drop-in that docs/vpn.md shows, beside the units."""
    program, folder = tmp_path / "tunnelgw", tmp_path / f"{name}.d"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    folder.mkdir()
    shutil.copy(SYSTEMD / "packets.conf", folder)
    unit = tmp_path / name
    unit.write_text((SYSTEMD / unit.name).read_text().replace("/usr/local/bin/tunnelgw", str(program)))
    assert "tunnelgw" not in run("systemd-analyze", "verify", unit)
    level = re.search(
        r"Overall exposure level for .*: ([0-9.]+)", run("systemd-analyze", "security", "--offline=true", unit)
    )
    assert level is not None
    assert float(level[1]) <= 2.5


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd is not installed")
def test_systemd_accepts_the_user() -> None:
    run("systemd-sysusers", "--dry-run", SYSTEMD / "sysusers.d" / "tunnelgw.conf")


@pytest.mark.parametrize("name", SERVICES)
def test_commands_exist(name: str) -> None:
    program, *arguments = settings(name)["ExecStart"].split()
    assert program == "/usr/local/bin/tunnelgw"
    assert build_parser().parse_args(arguments).run


@pytest.mark.parametrize("name", SERVICES)
def test_sandbox(name: str) -> None:
    found = settings(name)
    assert found["Type"] == "notify"
    assert found["User"] == found["Group"] == "tunnelgw"
    assert found["UMask"] == "0077"
    assert found["StateDirectoryMode"] == "0700"
    assert found["ProtectSystem"] == "strict"
    assert found["NoNewPrivileges"] == found["PrivateTmp"] == found["MemoryDenyWriteExecute"] == "yes"
    assert found["LimitCORE"] == "0"
    assert found["Restart"] == "always"
    assert "HUP" in found["ExecReload"]


def test_capabilities() -> None:
    edge, connector = map(settings, SERVICES)
    assert edge["CapabilityBoundingSet"] == edge["AmbientCapabilities"] == "CAP_NET_BIND_SERVICE"
    assert connector["CapabilityBoundingSet"] == ""
    assert "AmbientCapabilities" not in connector


def test_transparent_services_need_one_capability() -> None:
    more = settings("tunnelgw-connector.service.d/transparent.conf")
    assert more["CapabilityBoundingSet"] == more["AmbientCapabilities"] == "CAP_NET_ADMIN"
    assert set(more) == {"CapabilityBoundingSet", "AmbientCapabilities", "ProtectKernelTunables"}
    connector = settings("tunnelgw-connector.service")
    assert "AF_NETLINK" in connector["RestrictAddressFamilies"].split()


def test_an_upgrade_fits_the_unit() -> None:
    """The old process names the new one, which systemd then asks to stop alone; it has the time to stop all others."""
    edge = settings("tunnelgw-edge.service")
    assert edge["Type"] == "notify"
    assert edge.get("NotifyAccess", "main") == "main"
    assert edge["KillMode"] == "mixed"
    assert float(edge["TimeoutStopSec"]) > GRACE_SECONDS + STOP_SECONDS
    assert "kill --kill-whom=main --signal=SIGUSR2" in (SYSTEMD / "tunnelgw-edge.service").read_text()


WITHOUT_WRITABLE_CODE = """
import ctypes, sys
PR_SET_MDWE, REFUSE_EXEC_GAIN = 65, 1
if ctypes.CDLL(None).prctl(PR_SET_MDWE, REFUSE_EXEC_GAIN, 0, 0, 0) != 0:
    sys.exit(77)
import mmap
try:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
except OSError:
    pass
else:
    sys.exit("memory can still be writable and executable")
import aiohttp.web, h11, httptools, msgspec, ngh2, prometheus_client, sqlite3, ssl, tomlkit, uvloop
import datetime
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
key, name, now = ec.generate_private_key(ec.SECP256R1()), x509.Name([]), datetime.datetime(2024, 1, 1)
builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
assert builder.sign(key, hashes.SHA256()).serial_number == 1
httptools.HttpRequestParser(object()).feed_data(b"GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
ssl.create_default_context()
async def main():
    import asyncio
    await asyncio.sleep(0)
uvloop.run(main())
"""


def test_dependencies_work_without_writable_code() -> None:
    """What MemoryDenyWriteExecute=yes forbids, forbidden by the kernel for a child process."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_WRITABLE_CODE], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE (Linux 6.3)")
    assert done.returncode == 0, done.stderr


def test_what_service_installs_is_this_unit() -> None:
    for role in ("edge", "connector"):
        name = unit_name(role)
        config = Path(f"/etc/tunnelgw/{role}.toml")
        state = Path("/var/lib/tunnelgw") / role
        installed = unit_text(role, config=config, state_dir=state, program="/usr/local/bin/tunnelgw")
        assert installed == (SYSTEMD / name).read_text()


def test_another_state_folder_and_a_program_with_a_space() -> None:
    text = unit_text("edge", config=Path("/srv/e.toml"), state_dir=Path("/srv/100%"), program="/opt/my tools/tunnelgw")
    assert 'ExecStart="/opt/my tools/tunnelgw" edge run --config /srv/e.toml\n' in text
    assert "ReadWritePaths=/srv/100%%\n" in text
