"""What has no port of its own (ICMP, fragments) passes by what is allowed of an address as a whole."""

from __future__ import annotations

import ipaddress

import pytest

from tunnelgw.access.reach import Policy

HOST = ipaddress.ip_address("192.168.1.5")


@pytest.mark.parametrize(
    ("offered", "granted", "any_port", "every_port"),
    [
        (["192.168.1.0/24"], ["192.168.1.0/24"], True, True),
        (["192.168.1.0/24"], ["192.168.1.5:22"], True, False),
        (["192.168.1.5:22"], ["192.168.1.0/24"], True, False),
        (["192.168.1.0/24"], ["192.168.1.5:1-65535"], True, True),
        (["192.168.1.0/24"], ["192.168.1.5:1-99", "192.168.1.5:100-65535"], True, True),
        (["192.168.1.0/24"], ["192.168.1.5:1-99", "192.168.1.5:101-65535"], True, False),
        (["192.168.1.5:22"], ["192.168.1.5:23"], False, False),
        (["192.168.1.0/24"], ["192.168.2.0/24"], False, False),
        ([], [], False, False),
    ],
)
def test_passes(offered: list[str], granted: list[str], any_port: bool, every_port: bool) -> None:
    policy = Policy(offered, granted)
    assert policy.passes(HOST, whole=False) is any_port
    assert policy.passes(HOST, whole=True) is every_port


def test_an_exit_and_an_own_address() -> None:
    policy = Policy([], [], exit=True)
    assert policy.passes(ipaddress.ip_address("9.9.9.9"), whole=True)
    assert not policy.passes(HOST, whole=False)
    assert not policy.passes(ipaddress.ip_address("9.9.9.9"), whole=True, is_own=lambda _: True)
