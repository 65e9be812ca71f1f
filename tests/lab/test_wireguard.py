"""WireGuard at home, reached by a phone through a UDP port: behind two NATs, over links that are cut."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.lab.lab import SSH_PORT, Lab
from tests.lab.network import VPS
from tests.system.harness import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PORT = 51820
HOME, PHONE = "10.99.0.1", "10.99.0.2"
MISSING = [name for name in ("wireguard-go", "wg", "ping") if shutil.which(name) is None]
if not os.path.exists("/dev/net/tun"):
    MISSING.append("/dev/net/tun")
pytestmark = [
    pytest.mark.system,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    services = f'[services.wireguard]\ntarget = "udp://127.0.0.1:{PORT}"\nport = {PORT}\n'
    with Lab(tmp_path, services=services) as lab:
        grant = ("--allow-port", f"{SSH_PORT}", "--allow-port", f"{PORT}")
        lab.tunnelgw("vps", "edge", "grant", "home", *grant, "--config", str(lab.edge_config))
        address = f"udp://edge.example.com:{PORT}"
        wait_until(lambda: address in {one["address"] for one in lab.status()["addresses"]}, what=address)
        yield lab


def interface(lab: Lab, role: str, address: str, key: str) -> str:
    """A WireGuard interface there; its name, which must be the only one on the machine: its socket's path is shared."""
    name = f"tgw{os.getpid() % 1_000_000}{role[0]}"
    lab.spawn(f"wireguard-{role}", role, ["wireguard-go", "-f", name])
    wait_until(lambda: lab.exec(role, "wg", "show", name, check=False).returncode == 0, what=f"{name} is there")
    file = lab.folder / f"{role}.key"
    file.write_text(key)
    lab.exec(role, "wg", "set", name, "private-key", str(file))
    lab.exec(role, "ip", "address", "add", f"{address}/24", "dev", name)
    lab.exec(role, "ip", "link", "set", name, "mtu", "1280", "up")
    return name


def pings(lab: Lab, count: int, *options: str) -> int:
    """How many of so many pings from the phone to home were answered."""
    done = lab.exec(
        "visitor", "ping", "-n", "-q", "-i", "0.2", "-W", "5", "-c", f"{count}", *options, HOME, check=False
    )
    return int(done.stdout.partition(" packets transmitted, ")[2].split()[0])


def test_a_phone_reaches_home(lab: Lab) -> None:
    keys = {role: lab.exec("vps", "wg", "genkey").stdout for role in ("home", "visitor")}
    public = {role: lab.exec("vps", "wg", "pubkey", stdin=key).stdout.strip() for role, key in keys.items()}
    at_home = interface(lab, "home", HOME, keys["home"])
    phone = interface(lab, "visitor", PHONE, keys["visitor"])
    lab.exec("home", "wg", "set", at_home, "listen-port", f"{PORT}",
             "peer", public["visitor"], "allowed-ips", f"{PHONE}/32")  # fmt: skip
    lab.exec("visitor", "wg", "set", phone, "peer", public["home"], "allowed-ips", f"{HOME}/32",
             "endpoint", f"{VPS}:{PORT}", "persistent-keepalive", "25")  # fmt: skip
    assert pings(lab, 10) == 10, lab.logs()
    assert pings(lab, 10, "-s", "1200") == 10, "packets as large as they get"
    seen = lab.exec("home", "wg", "show", at_home, "endpoints").stdout.split()[1]
    for cut in (lab.relay.reset, lab.relay.freeze):
        before = lab.resumes()
        cut()
        lab.wait_resumed(before)
        assert pings(lab, 10) == 10, lab.logs()
    assert lab.exec("home", "wg", "show", at_home, "endpoints").stdout.split()[1] == seen, "one flow all the time"
    assert lab.metric("tunnelgw_tunnel_reconnects_total") == 0
    assert lab.metric("tunnelgw_connections", listener="udp") == 1
