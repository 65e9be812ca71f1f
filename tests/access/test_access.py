"""Grants, networks and address keys."""

from __future__ import annotations

import ipaddress
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelgw.access.addresses import Networks, address_key, allowed_from, normalise_network
from tunnelgw.access.grants import ANY_HOST, Grant, check_host, check_ports, grant_command, may_visit, ranges_of
from tunnelgw.errors import Refused
from tunnelgw.obs.reasons import Reason

EDGE = ("edge.example.com",)


def host_allowed(grant: Grant, host: str, service: str = "wiki") -> bool:
    try:
        check_host(grant, host, service=service, domain="example.com", edge_names=EDGE)
    except Refused as error:
        return error.reason is not Reason.CLAIM_NOT_GRANTED
    return True


def ports_allowed(grant: Grant, first: int, last: int) -> bool:
    try:
        check_ports(grant, (first, last))
    except Refused as error:
        return error.reason is not Reason.CLAIM_NOT_GRANTED
    return True


def test_the_default_is_the_services_own_name() -> None:
    grant = Grant()
    assert host_allowed(grant, "wiki.example.com")
    assert host_allowed(grant, "wiki.example.com", service="Wiki")
    for host in ("other.example.com", "example.com", "*.example.com", "wiki.example.org", "a.wiki.example.com"):
        assert not host_allowed(grant, host)
    assert not ports_allowed(grant, 2222, 2222)


def test_named_hosts_replace_the_default() -> None:
    grant = Grant(hosts=("www.example.org", "*.apps.example.com"))
    assert host_allowed(grant, "www.example.org")
    assert host_allowed(grant, "x.apps.example.com")
    assert host_allowed(grant, "*.apps.example.com")
    for host in ("wiki.example.com", "a.b.apps.example.com", "apps.example.com", "*.example.com", "*.example.org"):
        assert not host_allowed(grant, host)
    assert not host_allowed(Grant(hosts=("a.x",)), "*.a.x")


def test_nobody_gets_the_edges_own_name() -> None:
    assert not host_allowed(Grant(), "edge.example.com", service="edge")
    assert not host_allowed(Grant(hosts=("edge.example.com",)), "edge.example.com")
    assert not host_allowed(Grant(hosts=(ANY_HOST,)), "edge.example.com")
    assert host_allowed(Grant(hosts=(ANY_HOST,)), "*.example.net")


def test_without_a_domain_there_is_no_default() -> None:
    with pytest.raises(Refused):
        check_host(Grant(), "wiki.", service="wiki", domain="", edge_names=())


def test_port_ranges() -> None:
    grant = Grant(ports=((30000, 30100), (2222, 2222), (30101, 30200)))
    assert ports_allowed(grant, 2222, 2222)
    assert ports_allowed(grant, 30050, 30150)  # across two granted ranges that touch
    assert ports_allowed(grant, 30000, 30200)
    for first, last in ((2221, 2222), (2222, 2223), (29999, 30000), (30200, 30201), (1, 65535), (30002, 30001)):
        assert not ports_allowed(grant, first, last)


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ((30000, 30100), "port 30000-30009, 30020-30029, 30031-30100 of the range 30000-30100 is not granted"),
        ((30005, 30015), "port 30005-30009 of the range 30005-30015 is not granted"),
        ((30010, 30020), "port 30020 of the range 30010-30020 is not granted"),
        ((1, 2), "port 1-2 is not granted"),
        ((7, 7), "port 7 is not granted"),
    ],
)
def test_what_is_missing_of_a_range_is_named(wanted: tuple[int, int], text: str) -> None:
    grant = Grant(ports=((30010, 30019), (30030, 30030), (30012, 30013)))
    with pytest.raises(Refused) as caught:
        check_ports(grant, wanted)
    assert caught.value.text == text


@given(st.lists(st.integers(1, 60), max_size=30))
def test_ranges_are_the_ports_again(ports: list[int]) -> None:
    found = ranges_of(ports)
    assert [port for low, high in found for port in range(low, high + 1)] == sorted(set(ports))
    assert all(later[0] > earlier[1] + 1 for earlier, later in itertools.pairwise(found))


def test_the_command_that_would_allow_it() -> None:
    grant = Grant(hosts=("a.example.com",), ports=((2222, 2222),))
    assert grant_command("home", grant, hosts=["*.b.example.com"]) == (
        "tunnelgw edge grant home --allow-host a.example.com --allow-host '*.b.example.com'"
    )
    assert grant_command("home", grant, ports=[(30000, 30100)]) == (
        "tunnelgw edge grant home --allow-port 2222 --allow-port 30000-30100"
    )


def test_services_for_visitors() -> None:
    grant = Grant(services=("wiki", "home/ssh"))
    assert may_visit(grant, connector="any", service="wiki")
    assert may_visit(grant, connector="home", service="ssh")
    assert not may_visit(grant, connector="other", service="ssh")
    assert not may_visit(Grant(), connector="home", service="ssh")


def test_networks() -> None:
    networks = Networks(["192.0.2.0/24", "2001:db8::/32", "198.51.100.7", "::ffff:203.0.113.0/120"])
    for address in (
        "192.0.2.255",
        "::ffff:192.0.2.1",
        "2001:db8:1::1",
        "198.51.100.7",
        "203.0.113.9",
        "2001:db8::1%eth0",
    ):
        assert address in networks
    for address in ("192.0.3.0", "2001:db9::1", "198.51.100.8", "", "unix", "192.0.2", "::192.0.2.1"):
        assert address not in networks
    assert not Networks([])
    assert "192.0.2.1" not in Networks([])
    for bad in ("192.0.2.1/24", "x", "192.0.2.0/33", ""):
        with pytest.raises(ValueError):
            normalise_network(bad)


def test_allow_from() -> None:
    assert allowed_from((), "192.0.2.1")
    assert allowed_from(("192.0.2.0/24",), "192.0.2.1")
    assert not allowed_from(("192.0.2.0/24",), "198.51.100.1")
    assert not allowed_from(("192.0.2.0/24",), "not an address")


def test_address_keys() -> None:
    assert address_key("192.0.2.1") == "192.0.2.1"
    assert address_key("::ffff:192.0.2.1") == "192.0.2.1"
    assert address_key("2001:db8:1:2:3:4:5:6") == address_key("2001:DB8:1:2::") == "2001:db8:1:2::/64"
    assert address_key("2001:db8:1:3::") != address_key("2001:db8:1:2::")
    assert address_key("fe80::1%eth0") == "fe80::/64"
    assert address_key("") == ""
    assert address_key("junk:") == "junk:"


@given(st.ip_addresses(), st.lists(st.tuples(st.ip_addresses(), st.integers(0, 32)), max_size=5))
def test_networks_agree_with_the_standard_library(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
    raw: list[tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]],
) -> None:
    def plain(item: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        return (item.ipv4_mapped if isinstance(item, ipaddress.IPv6Address) else None) or item

    networks = [ipaddress.ip_network(f"{plain(base)}/{length}", strict=False) for base, length in raw]
    expected = any(plain(address) in network for network in networks)
    assert (str(address) in Networks(map(str, networks))) == expected
