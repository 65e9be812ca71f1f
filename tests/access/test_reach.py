"""What a visitor may reach: the lists, every way to write an address into another, rules and host texts."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelgw.access.reach import (
    NEVER,
    PRIVATE,
    Address,
    Policy,
    carried,
    is_metadata,
    is_public,
    opened_by,
    parse_host,
    parse_rule,
)
from tunnelgw.errors import Refused
from tunnelgw.obs.reasons import Reason

HOME = ("192.168.1.0/24", "fd12:3456::/64")
EVERYTHING = ("0.0.0.0/0", "::/0")


def allowed(policy: Policy, address: str, port: int = 80, *, own: tuple[str, ...] = ()) -> bool:
    mine = {ipaddress.ip_address(text) for text in own}
    try:
        policy.check(ipaddress.ip_address(address), port, is_own=mine.__contains__)
    except Refused as error:
        return error.reason is not Reason.ADDRESS_REFUSED
    return True


def hidden_in(inner: str) -> list[str]:
    """Every IPv6 address that is, leads or may lead to this IPv4 address."""
    number = int(ipaddress.IPv4Address(inner))
    numbers = [
        0xFFFF << 32 | number,  # ::ffff:a.b.c.d
        number,  # ::a.b.c.d
        0xFFFF << 48 | number,  # ::ffff:0:a.b.c.d
        0x0064FF9B << 96 | number,
        0x0064FF9B0001 << 80 | number,
        0x0064FF9B0001ABCD << 64 | number,
        0x2002 << 112 | number << 80 | 1,
        0x2001 << 112 | number << 64 | 0xFFFFFFFF,  # Teredo: the server
        0x2001 << 112 | 0x08080808 << 64 | number ^ 0xFFFFFFFF,  # and the client
        0x2A001234 << 96 | 0x5EFE << 32 | number,
        0x2A001234 << 96 | 0x02005EFE << 32 | number,
    ]
    return [str(ipaddress.IPv6Address(found)) for found in numbers]


def test_an_exit_leads_out_and_not_to_its_neighbours() -> None:
    """With IPv6 the addresses of a home are public ones."""
    near = {ipaddress.ip_address("2a00:1:2:3::5")}
    leads_out = Policy((), (), exit=True)
    leads_out.check(ipaddress.ip_address("2a00:1:2:4::5"), 80, is_near=near.__contains__)
    with pytest.raises(Refused):
        leads_out.check(ipaddress.ip_address("2a00:1:2:3::5"), 80, is_near=near.__contains__)
    listed = Policy(("2a00:1:2:3::/64",), ("2a00:1:2:3::/64",), exit=True)
    listed.check(ipaddress.ip_address("2a00:1:2:3::5"), 80, is_near=near.__contains__)


def test_only_what_both_sides_name() -> None:
    policy = Policy(HOME, ("192.168.0.0/16", "10.0.0.0/8"))
    assert allowed(policy, "192.168.1.7")
    assert not allowed(policy, "192.168.2.7")  # granted, not offered
    assert not allowed(policy, "fd12:3456::7")  # offered, not granted
    assert not allowed(policy, "10.0.0.1")
    assert not allowed(policy, "93.184.216.34")
    for nothing in (Policy((), EVERYTHING), Policy(HOME, ()), Policy((), ())):
        assert not allowed(nothing, "192.168.1.7")


def test_ports_of_either_side_count() -> None:
    policy = Policy(("192.168.1.0/24", "192.168.2.5:80"), ("192.168.1.5:22", "[fd00::/8]:443", ":5000-5010"))
    assert allowed(policy, "192.168.1.5", 22)
    assert not allowed(policy, "192.168.1.5", 23)
    assert not allowed(policy, "192.168.1.6", 22)
    assert allowed(policy, "192.168.1.6", 5000)
    assert allowed(policy, "192.168.1.6", 5010)
    assert not allowed(policy, "192.168.1.6", 5011)
    assert not allowed(policy, "192.168.2.5", 5000)  # the connector offers its port 80 only
    assert not allowed(policy, "192.168.1.5", 0)
    assert not allowed(policy, "192.168.1.5", 65536)


@pytest.mark.parametrize("text", [str(network[0]) for network in NEVER] + [str(network[-1]) for network in NEVER])
def test_never_whoever_grants_it(text: str) -> None:
    for policy in (Policy(EVERYTHING, EVERYTHING), Policy((), (), exit=True), Policy(EVERYTHING, (), exit=True)):
        assert not allowed(policy, text)
        if "." in text:
            assert not any(allowed(policy, written) for written in hidden_in(text)), text


NAMED = (
    "127.0.0.1", "127.1.2.3", "0.0.0.0", "169.254.169.254", "169.254.170.2", "224.0.0.251", "239.1.2.3",
    "255.255.255.255", "100.100.100.200", "192.0.0.192", "168.63.129.16",
)  # fmt: skip


@pytest.mark.parametrize("text", NAMED)
def test_an_address_in_an_address_is_judged_as_both(text: str) -> None:
    for written in hidden_in(text):
        assert not allowed(Policy(EVERYTHING, EVERYTHING, exit=True), written), written


@pytest.mark.parametrize(
    "text", ["::", "::1", "fe80::1", "febf::1", "fec0::1", "ff02::1", "ff0e::1", "fd00:ec2::254", "fd20:ce::254"]
)
def test_never_in_ipv6(text: str) -> None:
    assert not allowed(Policy(EVERYTHING, EVERYTHING, exit=True), text)


def test_a_zone_is_refused() -> None:
    assert not allowed(Policy(EVERYTHING, EVERYTHING, exit=True), "2a00::1%1")


def test_an_exit_leads_to_the_public_internet_only() -> None:
    policy = Policy((), (), exit=True)
    for text in ("93.184.216.34", "8.8.8.8", "2a00:1450::1", "2606:4700::1111", "64:ff9b::808:808"):
        assert allowed(policy, text), text
    private = [str(network[1]) for network in PRIVATE]
    for text in (*private, "fd00::1", "fc00::1", "4000::1", "100::1", "64:ff9b:1::808:808"):
        assert not allowed(policy, text), text
    for text in private:
        assert not any(allowed(policy, written) for written in hidden_in(text)), text


def test_mapped_is_the_ipv4_address_itself() -> None:
    policy = Policy(HOME, EVERYTHING)
    assert allowed(policy, "::ffff:192.168.1.7")
    assert not allowed(policy, "::ffff:192.168.2.7")
    assert allowed(Policy((), (), exit=True), "::ffff:8.8.8.8")


def test_own_addresses_unless_listed() -> None:
    own = ("192.168.1.2", "93.184.216.34", "2a00::5")
    assert allowed(Policy(HOME, HOME), "192.168.1.2", own=own)  # listed: the network was named on purpose
    assert not allowed(Policy(EVERYTHING, EVERYTHING), "192.168.1.2", own=own)  # everything is no list
    out = Policy((), (), exit=True)
    assert not allowed(out, "93.184.216.34", own=own)
    assert not allowed(out, "2a00::5", own=own)
    assert not allowed(out, "::ffff:93.184.216.34", own=own)
    assert not allowed(out, "64:ff9b::5db8:d822", own=own)
    assert not allowed(out, "2002:5db8:d822::1", own=own)
    assert allowed(out, "93.184.216.35", own=own)
    only_ssh = Policy(("192.168.1.2:22",), EVERYTHING)
    assert allowed(only_ssh, "192.168.1.2", 22, own=own)
    assert not allowed(only_ssh, "192.168.1.2", 80, own=own)


def test_the_connectors_file_alone_opens_what_is_closed() -> None:
    opened = Policy(("127.0.0.1/32", "169.254.169.254:80"), EVERYTHING)
    assert allowed(opened, "127.0.0.1")
    assert allowed(opened, "::ffff:127.0.0.1")
    assert not allowed(opened, "127.0.0.2")
    assert allowed(opened, "169.254.169.254")
    assert not allowed(opened, "169.254.169.254", 443)
    assert not allowed(Policy(EVERYTHING, ("127.0.0.1/32",)), "127.0.0.1")  # a grant opens nothing
    assert not allowed(Policy(("126.0.0.0/7",), EVERYTHING), "127.0.0.1")  # wider than loopback: not meant
    assert not allowed(Policy(("127.0.0.1/32",), ("10.0.0.0/8",)), "127.0.0.1")
    assert str(opened_by(parse_rule("127.0.0.0/8"))) == "127.0.0.0/8"
    assert opened_by(parse_rule("192.168.1.0/24")) is None
    assert opened_by(parse_rule("0.0.0.0/0")) is None
    assert opened_by(parse_rule(":22")) is None


addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


@given(addresses)
def test_public_is_never_among_the_never(address: Address) -> None:
    if is_public(address):
        for inner in (address, *carried(address)):
            assert not any(inner in network for network in NEVER if network.version == inner.version)
            assert not any(inner in network for network in PRIVATE if network.version == inner.version)


@given(st.ip_addresses(v=4))
def test_every_way_of_writing_is_found(address: ipaddress.IPv4Address) -> None:
    if int(address) > 1:
        for written in hidden_in(str(address)):
            assert address in carried(ipaddress.ip_address(written)), written


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("192.168.1.0/24", "192.168.1.0/24"), ("192.168.1.5", "192.168.1.5/32"),
        ("192.168.1.5:22", "192.168.1.5/32:22"),
        ("192.168.1.0/24:80-90", "192.168.1.0/24:80-90"), (":5000-5010", ":5000-5010"), ("fd00::/8", "fd00::/8"),
        ("[fd00::/8]:443", "[fd00::/8]:443"), ("[::1]", "::1/128"), ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("10.0.0.0/8:1-65535", "10.0.0.0/8"),
    ],
)  # fmt: skip
def test_rules_have_one_form(text: str, form: str) -> None:
    assert str(parse_rule(text)) == form
    assert parse_rule(form) == parse_rule(text)


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "192.168.1.1/24", "192.168.1.0/33", "nas.lan", "192.168.1.0/24:", "192.168.1.0/24:0", ":70000",
        ":90-80", ":ssh", "[fd00::/8]443", "[fd00::/8]:", "127.1", "0x7f000001", "fd00::/8:443x", "\u0661.168.1.1",
    ],
)  # fmt: skip
def test_what_is_no_rule(text: str) -> None:
    with pytest.raises(ValueError, match=r"[a-z]"):
        parse_rule(text)


@given(st.text(max_size=40))
def test_rules_raise_nothing_else(text: str) -> None:
    try:
        rule = parse_rule(text)
    except ValueError:
        return
    assert parse_rule(str(rule)) == rule


ODD_ADDRESSES = (
    "0x7f.1", "127.1", "0177.0.0.1", "2130706433", "0x7f000001", "127.0.0.1.", "0x7f.0x0.0x0.0x1", "127.0.1", "1",
    "00000177.1", "foo.1", "foo.0x1", "127.0.0.01", "[127.0.0.1", "::1%lo", "fe80::1%1",
    "127\u30020\u30020\u30021", "\u2460.1.1.1", "\uff10.0.0.0", "a b", "", ".", "a..b", "-a.b", "a-.b",
    "a" * 64, "x" * 300, "a/b", "a:80", "user@host", "a\x00b", "a\nb",
    "m\u00fcnchen.de", "1.2.3.4/32", "0X7F.1",
)  # fmt: skip


@pytest.mark.parametrize("text", ODD_ADDRESSES)
def test_odd_spellings_are_neither_addresses_nor_names(text: str) -> None:
    with pytest.raises(ValueError, match="neither"):
        parse_host(text)


def test_hosts_have_one_spelling() -> None:
    assert parse_host("127.0.0.1") == ipaddress.ip_address("127.0.0.1")
    assert parse_host("[::1]") == parse_host("::1") == ipaddress.ip_address("::1")
    assert parse_host("NAS.Lan.") == "nas.lan"
    assert parse_host("my_printer") == "my_printer"
    assert parse_host("1password.com") == "1password.com"


@given(st.text(alphabet="0123456789abcdefx.", min_size=1, max_size=20))
def test_no_name_is_an_address_to_the_system(text: str) -> None:
    try:
        found = parse_host(text)
    except ValueError:
        return
    if isinstance(found, str):
        with pytest.raises(OSError, match="illegal IP address"):
            socket.inet_aton(found)


def test_networks_for_a_browser() -> None:
    policy = Policy(("192.168.1.0/24", "fd00::/64"), ("192.168.0.0/16", "192.168.1.128/25:80", ":22", "10.0.0.0/8"))
    assert policy.networks() == ["192.168.1.0/24", "192.168.1.128/25", "fd00::/64"]


@pytest.mark.parametrize(
    "text",
    ["169.254.169.254", "169.254.170.23", "100.100.100.200", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe",
     "2002:a9fe:a9fe::1", "fd00:ec2::254", "fd20:ce::254", "fd00:ec2::254%1"],
)  # fmt: skip
def test_metadata_addresses_in_every_form(text: str) -> None:
    assert is_metadata(text)


@pytest.mark.parametrize("text", ["169.254.1.1", "127.0.0.1", "fd00::1", "10.0.0.1"])
def test_what_is_no_metadata_address(text: str) -> None:
    assert not is_metadata(text)


def test_a_name_is_no_address() -> None:
    with pytest.raises(ValueError, match="metadata"):
        is_metadata("metadata")
