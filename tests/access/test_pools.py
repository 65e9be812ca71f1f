"""Addresses of TUN tunnels: the same after a restart, of one visitor at a time, never where somebody is."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelgw.access.pools import COMMON, POOL4, Pool, of_version, packed
from tunnelgw.errors import Refused


def test_the_same_for_the_same_name() -> None:
    one, again, other = Pool("home", []), Pool("home", []), Pool("office", [])
    assert (one.network4, one.network6) == (again.network4, again.network6)
    assert one.network4 != other.network4
    assert one.network6 != other.network6
    assert one.take("laptop") == again.take("laptop")


@given(st.text(max_size=20))
def test_where_they_are(name: str) -> None:
    pool = Pool(name, [])
    assert pool.network4.subnet_of(POOL4)
    assert pool.network4.prefixlen == 24
    assert pool.network4.network_address.packed[1] >= COMMON
    assert pool.network6.subnet_of(ipaddress.IPv6Network("fd00::/8"))
    assert pool.network6.prefixlen == 64


def test_not_where_somebody_is() -> None:
    taken: list[str] = []
    for _ in range(20):
        network = Pool("home", taken).network4
        assert not any(ipaddress.IPv4Network(text).overlaps(network) for text in taken)
        taken.append(str(network))
    assert Pool("home", ["fd00::/8", "192.168.1.0/24", "10.0.0.0/16"]).network4 == Pool("home", []).network4
    with pytest.raises(Refused, match="every private network"):
        Pool("home", ["10.0.0.0/8"])


def test_each_visitor_has_its_own_until_they_are_gone() -> None:
    pool = Pool("home", [])
    taken = [pool.take(f"visitor {number}") for number in range(253)]
    assert len(set(taken)) == 253
    assert all(four in pool.network4 and six in pool.network6 for four, six in taken)
    assert pool.gateway4 not in {four for four, _ in taken}
    assert pool.network4.broadcast_address not in {four for four, _ in taken}
    assert pool.take("visitor 7") == taken[7], "it has one already"
    with pytest.raises(Refused, match="too many"):
        pool.take("one more")
    pool.give_back("visitor 7")
    assert pool.take("one more") == taken[7]


def test_families() -> None:
    networks = ["192.168.1.0/24", "fd00:1::/64", "192.168.1.5", "192.168.0.0/24"]
    assert of_version(networks, 4) == ["192.168.0.0/23"]
    assert of_version(networks, 6) == ["fd00:1::/64"]
    assert packed(["10.0.0.1", "::1"]) == [b"\x0a\0\0\1", bytes(15) + b"\1"]
