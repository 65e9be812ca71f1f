"""The tables' text, and that nftables takes it."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import subprocess

import pytest

from tunnelgw.access import nftables, reach
from tunnelgw.access.pools import Pool

POOL = Pool("home", [])
NETWORKS = ["192.168.1.0/24", "192.168.1.5/32", "fd00:1::/64"]
TABLES = {
    "a network": nftables.home(POOL, NETWORKS, exit=False, dns_port=5353),
    "an exit": nftables.home(POOL, [], exit=True, dns_port=5353),
    "both, on a machine that did not forward": nftables.home(
        POOL, NETWORKS, exit=True, dns_port=5353, off={6: 0, 4: 7}, hears=["enp3s0.10", "wlan0"]
    ),
    "everything": nftables.home(POOL, ["0.0.0.0/0", "::/0"], exit=True, dns_port=5353),
    "nothing": nftables.home(POOL, [], exit=False, dns_port=5353),
    "a visitor": nftables.visit(["10.1.2.3"], exit=False),
    "a visitor with an exit": nftables.visit(["10.1.2.3", "fd00::3"], exit=True, unmarked=True),
    "before addresses are known": nftables.visit([], exit=True),
    "removed": nftables.removed(nftables.HOME),
}


@pytest.mark.parametrize("text", TABLES.values(), ids=TABLES.keys())
def test_nftables_takes_it(text: str) -> None:
    """As a check only: nothing is changed."""
    if os.geteuid() != 0 or shutil.which("nft") is None:
        pytest.skip("needs root and nft")
    done = subprocess.run(["nft", "-c", "-f", "-"], input=text, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 0, done.stderr


def chain(text: str, name: str) -> list[str]:
    """The rules of a chain."""
    return [line.strip() for line in text.partition(f"chain {name} {{\n")[2].partition("    }\n")[0].splitlines()]


def test_what_is_not_listed_is_dropped_in_the_end() -> None:
    for text in (TABLES["a network"], TABLES["an exit"], TABLES["nothing"]):
        assert chain(text, "from_visitors")[-1] == "drop"
        assert chain(text, "out")[-1] == "drop"
        assert 'iifname "tgw-home" oifname "tgw-home" drop' in chain(text, "onwards")
    assert [line for line in chain(TABLES["nothing"], "out") if "accept" in line] == []
    assert "accept" not in chain(TABLES["a network"], "out")
    assert "ip daddr { 192.168.1.0/24 } accept" in chain(TABLES["a network"], "out"), "collapsed"


def test_never_is_opened_by_its_name_alone() -> None:
    """As `access/reach.py` has it."""
    rules = chain(nftables.home(POOL, ["0.0.0.0/0", "169.254.1.0/24"], exit=False, dns_port=1), "out")
    at = next(number for number, rule in enumerate(rules) if "169.254.0.0/16" in rule)
    assert rules.index("ip daddr { 169.254.1.0/24 } accept") < at < rules.index("ip daddr { 0.0.0.0/0 } accept")
    itself = chain(nftables.home(POOL, ["0.0.0.0/0", "::/0"], exit=False, dns_port=1), "from_visitors")
    assert "/0" not in "".join(itself)


def dropped(rules: list[str]) -> list[reach.Network]:
    """What the rules of a chain drop by its destination, wherever it comes from."""
    lines = [rule for rule in rules if rule.endswith("} drop") and " != " not in rule]
    return [ipaddress.ip_network(text) for line in lines for text in re.findall(r"[0-9a-f.:]+(?:/[0-9]+)?(?=[, ])",
            line.partition("{")[2])]  # fmt: skip


def test_what_is_never_reached_is_the_same_list_as_for_connections() -> None:
    """All of it, whole, and nothing else but the mapped addresses, which no packet has."""
    found = dropped(chain(TABLES["a network"], "out"))
    mapped = ipaddress.ip_network("::ffff:0:0/96")
    assert mapped in found
    for version in (4, 6):
        ours = [one for one in found if one.version == version and one != mapped]
        theirs = [one for one in reach.NEVER if one.version == version]
        assert ours == list(ipaddress.collapse_addresses(theirs))  # type: ignore[type-var]
    for text in ("168.63.129.16", "192.0.0.192", "fec0::1", "fd00:ec2::23", "169.254.170.2", "::1"):
        assert any(ipaddress.ip_address(text) in network for network in found), text


def test_an_exit_leads_to_the_internet_alone() -> None:
    rules = chain(TABLES["an exit"], "out")
    assert rules.index("accept") > max(number for number, rule in enumerate(rules) if " drop" in rule)
    found = dropped(rules)
    for network in reach.PRIVATE:
        assert any(network.version == one.version and network.subnet_of(one) for one in found), network
    assert "ip6 daddr != { 2000::/3, 64:ff9b::/96 } drop" in rules


def test_what_did_not_forward_forwards_nothing_else() -> None:
    text = TABLES["both, on a machine that did not forward"]
    assert chain(text, "onwards")[-2:] == ["meta nfproto ipv4 drop", "meta nfproto ipv6 drop"]
    assert f"chain {nftables.OFF}4_beside_7 {{" in text
    assert '"enp3s0.10", "wlan0"' in text
    assert "nfproto" not in TABLES["an exit"], "a router goes on routing"


def test_only_an_exit_has_a_kill_switch() -> None:
    assert "chain leave" not in TABLES["a visitor"]
    for name in ("a visitor with an exit", "before addresses are known"):
        leave = chain(TABLES[name], "leave")
        assert leave[-1].startswith("counter reject")
        assert f"meta mark {nftables.MARK:#x} accept" in leave
        assert chain(TABLES[name], "pass")[-1] == "counter drop"
