"""Which addresses are this machine's own, and which its neighbours'."""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
import sys

import pytest

from tunnelgw.net import route


def ask(*texts: str) -> list[bool]:
    return [route.is_own(ipaddress.ip_address(text)) for text in texts]


OWN = ("127.0.0.1", "127.1.2.3", "::1")
OTHERS = ("203.0.113.77", "192.0.2.1", "2001:db8::77", "8.8.8.8", "255.255.255.255", "224.0.0.1")


@pytest.mark.parametrize("netlink", [True, False])
def test_loopback_is_ours_and_others_are_not(monkeypatch: pytest.MonkeyPatch, netlink: bool) -> None:
    if not netlink:
        monkeypatch.delattr("socket.AF_NETLINK")
    assert ask(*OWN) == [True] * len(OWN)
    assert ask(*OTHERS[:4]) == [False] * 4
    if netlink:
        assert ask(*OTHERS[4:]) == [False] * 2


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root, and unshare")
def test_secondary_addresses_and_local_networks_are_ours() -> None:
    """A second address of the same network is reached from the first one: only the route's type tells."""
    script = """
set -e
ip link set lo up
ip link add one type veth peer name other
ip link set other up
ip link set one up
ip address add 198.51.100.2/25 dev one
ip address add 198.51.100.10/25 dev one
ip address add 2001:db8::2/64 dev one nodad
ip route add local 203.0.113.0/24 dev lo
ip route add default via 198.51.100.1
ip route add 192.0.2.0/24 via 198.51.100.1
ip -6 route add default via 2001:db8::1
exec "$0" -c '
import ipaddress
from tunnelgw.net.route import is_near, is_own
for text in ("198.51.100.3", "198.51.100.1", "2001:db8::3", "2001:db8::1"):
    assert is_near(ipaddress.ip_address(text)), text
for text in ("8.8.8.8", "192.0.2.7", "2001:db8:1::3"):
    assert not is_near(ipaddress.ip_address(text)), text
for text in ("198.51.100.2", "198.51.100.10", "2001:db8::2", "203.0.113.9"):
    assert is_own(ipaddress.ip_address(text)), text
for text in ("198.51.100.3", "198.51.100.127", "2001:db8::3", "8.8.8.8"):
    assert not is_own(ipaddress.ip_address(text)), text
'
"""
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", script, sys.executable], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 0, done.stderr
