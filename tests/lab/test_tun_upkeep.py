"""What other programs change in the network of both machines while a TUN tunnel is up, and moves to another place."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import pytest

from tests.lab.tunnels import LAN
from tests.system.harness import wait_until

if TYPE_CHECKING:
    from tests.lab.tunnels import Tunnels

DOCKER = """
table ip filter {
    chain FORWARD { type filter hook forward priority 0; policy accept
        oifname "docker0" accept
    }
}
"""


def settled(tunnels: Tunnels, role: str, wanted: object) -> None:
    """Until this machine is as it was with the tunnel up."""
    wait_until(lambda: tunnels.kernel(role) == wanted, seconds=30, what=f"{tunnels.kernel(role)}\nas {wanted}")


@pytest.mark.parametrize("leads_out", [False, True], ids=["network", "exit"])
@pytest.mark.parametrize(
    "command",
    [
        "ip link delete tgw-visit", "ip link set tgw-visit down", "ip rule delete priority 29798",
        "ip -6 rule delete priority 29798", "ip route flush table 29798", "ip address flush dev tgw-visit",
        "nft flush ruleset",
    ],
    ids=lambda text: text.replace(" ", "-"),
)  # fmt: skip
def test_what_others_remove_at_the_visitors(tunnels: Tunnels, command: str, leads_out: bool) -> None:
    """It is made anew, and at the end all of it is gone."""
    home, visit = tunnels.connect("192.168.1.0/24,2001:db8:4::/64", leads_out=leads_out)
    assert tunnels.ping(LAN)
    before = tunnels.kernel("visitor")
    tunnels.exec("visitor", *command.split())
    settled(tunnels, "visitor", before)
    assert "made anew" in visit.text()
    assert tunnels.ping(LAN)
    assert tunnels.ping("2001:db8:4::1")
    assert visit.stop() == home.stop() == 0
    tunnels.wait_as_before("visitor")


@pytest.mark.parametrize("command", ["ip link delete tgw-home", "nft flush ruleset"])
def test_what_others_remove_at_the_far_side(tunnels: Tunnels, command: str) -> None:
    """Who is there notices a pause; names are asked at the same address."""
    tunnels.names("router", LAN, "192.168.1.1")
    home, _ = tunnels.connect("192.168.1.0/24,2001:db8:4::/64", domains="lan")
    before = tunnels.kernel("home")
    tunnels.exec("home", *command.split())
    settled(tunnels, "home", before)
    wait_until(lambda: tunnels.ping(LAN), what="packets again")
    assert tunnels.ping("2001:db8:4::1")
    assert tunnels.exec("visitor", "getent", "ahostsv4", "nas.lan").split()[0] == "192.168.1.1"
    assert home.stop() == 0
    tunnels.wait_as_before("home")


def test_while_the_interface_is_gone_nothing_leaks(tunnels: Tunnels) -> None:
    """An exit's interface is deleted again and again."""
    tunnels.connect(leads_out=True)
    tunnels.web("vps", "198.51.100.2")
    assert tunnels.get("198.51.100.2") == "200"
    tunnels.count_leaks()
    for _ in range(3):
        before = tunnels.kernel("visitor")
        tunnels.exec("visitor", "ip", "link", "delete", "tgw-visit")
        assert tunnels.get("198.51.100.2") in ("000", "200")
        settled(tunnels, "visitor", before)
    assert tunnels.get("198.51.100.2") == "200"
    assert tunnels.leaks() == 0


def test_another_program_that_begins_to_forward(tunnels: Tunnels) -> None:
    """Docker starts while a visitor is there: what it passes on is let through from then on, and after the end."""
    home, _ = tunnels.connect()
    table = ("nft", "list", "table", "inet", "tunnelgw_home")
    assert "meta nfproto ipv4 drop" in tunnels.exec("home", *table)
    tunnels.net.exec("home", "nft", "-f", "-", stdin=DOCKER)
    home.wait_for("IPv4 forwarding stays on")
    wait_until(lambda: "nfproto ipv4 drop" not in tunnels.exec("home", *table), what="rules for two")
    assert tunnels.ping(LAN)
    assert home.stop() == 0
    assert "net.ipv4.ip_forward = 1" in tunnels.kernel("home")["switches"]


def given(last: int, network: str) -> bytes:
    """What a far side gives: an address, its own with names, a network."""
    addresses, dns = [f"10.9.{last}.9"], [f"10.9.{last}.1"]
    return json.dumps({"addresses": addresses, "routes": [network], "dns": dns, "udp_segments": False}).encode()


def asked(pipe: socket.socket, name: bytes) -> tuple[str, str]:
    """Where a question about this name comes from and goes to."""
    while name not in (parcel := pipe.recv(65536)):
        continue
    return socket.inet_ntoa(parcel[22:26]), socket.inet_ntoa(parcel[26:30])


def table(tunnels: Tunnels) -> list[str]:
    """IPv4's routes into the tunnel."""
    text = tunnels.exec("visitor", "ip", "route", "show", "table", "29798", code=None)
    return sorted(line.strip() for line in text.splitlines())


def test_a_far_side_that_becomes_another(tunnels: Tunnels) -> None:
    """The next connector of a group gives other addresses, networks and name servers: nothing of before is left."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        far.settimeout(10)
        visit = tunnels.spawn("visit", "visitor", tunnels.python, str(tunnels.pipe), "visit", str(near.fileno()), "no",
                              "", "lan", descriptors=(near.fileno(),))  # fmt: skip
        for last, network in ((1, "192.168.1.0/24"), (2, "10.20.0.0/16"), (1, "192.168.1.0/24")):
            far.send(given(last, network))
            into = f"dev tgw-visit scope link src 10.9.{last}.9"
            wanted = sorted([f"10.9.{last}.1 {into}", f"{network} {into}", "throw 203.0.113.1"])
            wait_until(lambda wanted=wanted: table(tunnels) == wanted, what=f"{table(tunnels)}\nas {wanted}")
            visit.wait_for(f"ready 10.9.{last}.9")
            kernel = tunnels.kernel("visitor")
            assert [line.split()[1] for line in kernel["addresses"] if "tgw-visit" in line] == [f"10.9.{last}.9/32"]
            assert f"ip saddr != 10.9.{last}.9 masquerade" in kernel["tables"]
            assert kernel["tables"].count("masquerade") == 1
            tunnels.exec("visitor", "dig", "+tries=1", "+time=1", f"nas{last}.lan", code=None)
            assert asked(far, f"nas{last}".encode()) == (f"10.9.{last}.9", f"10.9.{last}.1")
        assert visit.stop() == 0
    tunnels.wait_as_before("visitor")


def test_a_machine_that_moves(tunnels: Tunnels) -> None:
    """Its next place has home's addresses as well: the routers and name servers of that one stay reachable."""
    _, visit = tunnels.connect()
    throw = ("ip", "route", "show", "table", "29798", "type", "throw")
    assert "203.0.113.1" in tunnels.exec("visitor", *throw)
    tunnels.net.ip("internet", "address add 192.168.1.254/24 dev visitor", f"address add {LAN}/24 dev visitor")
    here = tunnels.web("internet", "0.0.0.0")
    tunnels.resolv_conf("visitor").write_text(f"nameserver {LAN}\n")
    tunnels.net.ip("visitor", "address add 192.168.1.77/24 dev wan", "route replace default via 192.168.1.254")
    wait_until(lambda: tunnels.exec("visitor", *throw).split()[1::2] == [LAN, "192.168.1.254"],
               what="the routers of this place")  # fmt: skip
    assert tunnels.get(LAN) == tunnels.get("192.168.1.254") == "200"
    assert here.text().count("192.168.1.77 - -") == 2
    assert tunnels.ping("192.168.1.2"), "the rest is home's"
    assert visit.popen.poll() is None
