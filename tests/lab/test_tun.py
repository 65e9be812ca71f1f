"""A TUN tunnel between two machines: what goes through it, what does not, and what is left of it. (As a pipe: what the
tunnel itself does is tested elsewhere.)"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import stat
import struct

import pytest

from tests.lab.tunnels import LAN, Tunnels, cut, go_on
from tests.system.harness import wait_until
from tunnelgw.access.nftables import MARK
from tunnelgw.net.tun import DEVICE

REPAIR = "import asyncio; from tunnelgw.visitor.device import repair; print(asyncio.run(repair()))"
MARKED = """
import socket
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, %d)
sock.settimeout(5)
sock.connect(("198.51.100.10", 8000))
print("through")
"""


SENDER = f"""
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.IPPROTO_UDP, 103, 1200)  # UDP_SEGMENT
sock.sendto(b"".join(bytes([number]) * 1200 for number in range(40)), ("{LAN}", 7000))
"""
RECEIVER = f"""
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("{LAN}", 7000))
print("listening")
got = [sock.recv(65536) for _ in range(40)]
assert sorted(got) == [bytes([number]) * 1200 for number in range(40)]
print(len(got), "packets of 1200 bytes, right")
"""


def test_into_a_network(tunnels: Tunnels) -> None:
    """Real programs, both families; nothing else goes there, and everything is as before in the end."""
    home, visit = tunnels.connect("192.168.1.0/24,2001:db8:4::/64")
    router, outside = tunnels.web("router", LAN), tunnels.web("vps", "198.51.100.2")
    assert tunnels.ping(LAN)
    assert tunnels.ping("2001:db8:4::1")
    assert tunnels.ping("192.168.1.2"), "the connector's own address is in the network"
    assert tunnels.get(LAN) == "200"
    assert "192.168.1.2 - -" in router.text(), "it comes from the connector"
    assert tunnels.get("198.51.100.2") == "200"
    assert "203.0.113.2 - -" in outside.text(), "what is not in the network goes its own way"
    tunnels.sshd("router", LAN)
    assert "from 192.168.1.2 " in tunnels.ssh("router", LAN, "echo from $SSH_CONNECTION")
    assert visit.stop() == home.stop() == 0
    tunnels.wait_as_before("visitor")
    tunnels.wait_as_before("home")
    assert tunnels.no_ping(LAN)


def test_a_network_that_is_here_too(tunnels: Tunnels) -> None:
    """A hotel with home's addresses: its router and name server stay reachable, the rest is home's."""
    tunnels.net.ip("internet", "address add 192.168.1.254/24 dev visitor", f"address add {LAN}/24 dev visitor")
    tunnels.net.ip("visitor", "address add 192.168.1.77/24 dev wan", "route replace default via 192.168.1.254")
    tunnels.resolv_conf("visitor").write_text(f"nameserver {LAN}\n")
    tunnels.connect()
    here = tunnels.web("internet", "0.0.0.0")
    there = tunnels.web("home", "192.168.1.2")
    assert tunnels.get(LAN) == tunnels.get("192.168.1.254") == "200"
    assert here.text().count("192.168.1.77 - -") == 2
    assert tunnels.get("192.168.1.2") == "200"
    assert "GET" in there.text()


def test_only_what_is_granted(tunnels: Tunnels) -> None:
    """One address of the network: not its neighbour, not the connector by any of its addresses, not what is behind."""
    home, _ = tunnels.connect(f"{LAN}/32")
    for role, address in (("home", "0.0.0.0"), ("router", LAN), ("router", "100.64.0.2")):
        tunnels.web(role, address)
    gateway = tunnels.kernel("home")["addresses"][-1].split()[1].partition("/")[0]
    assert tunnels.get(LAN) == "200"
    table = ("table", "29798")
    for address in ("192.168.1.2", "100.64.0.2", "127.0.0.1", "169.254.169.254"):
        tunnels.exec("visitor", "ip", "route", "replace", address, "dev", "tgw-visit", *table)
        assert tunnels.shut(address, options=("--interface", "tgw-visit")), address
    assert tunnels.shut(gateway), "its address in the tunnel answers names, nothing else"
    assert tunnels.ping(gateway)
    assert home.stop() == 0
    assert "claim_not_granted" in home.text()


def test_the_kernel_alone_lets_nobody_further(tunnels: Tunnels) -> None:
    """The far side's rules hold without the check in the process: everything is given to the kernel."""
    home, _ = tunnels.connect(f"{LAN}/32,0.0.0.0/31")
    home.signal(signal.SIGHUP)
    home.wait_for("trusting")
    for role, address in (("home", "0.0.0.0"), ("router", LAN)):
        tunnels.web(role, address)
    assert tunnels.get(LAN) == "200"
    for address in ("192.168.1.2", "100.64.0.2", "10.181.240.200", "198.51.100.2", "169.254.169.254", "127.0.0.1"):
        tunnels.exec("visitor", "ip", "route", "replace", address, "dev", "tgw-visit", "table", "29798")
        assert tunnels.shut(address, options=("--interface", "tgw-visit")), address
        assert tunnels.no_ping(address, "-I", "tgw-visit"), address


def test_a_source_that_was_not_given(tunnels: Tunnels) -> None:
    home, _ = tunnels.connect()
    tunnels.exec("visitor", "nft", "flush", "chain", "inet", "tunnelgw_visit", "others")
    tunnels.exec("visitor", "ip", "address", "add", "10.181.240.99/32", "dev", "tgw-visit")
    assert tunnels.no_ping(LAN, "-I", "10.181.240.99")
    assert tunnels.no_ping(LAN, "-I", "203.0.113.2")
    assert tunnels.ping(LAN)
    assert home.stop() == 0
    assert "'address_refused': 2" in home.text()


DOCKER = """
table ip filter {
    chain DOCKER-USER { }
    chain FORWARD { type filter hook forward priority 0; policy drop
        jump DOCKER-USER
    }
}
"""


def test_beside_docker(tunnels: Tunnels) -> None:
    """It drops what is not its own, which is said; the two rules of docs/vpn.md let ours pass."""
    tunnels.net.exec("home", "nft", "-f", "-", stdin=DOCKER)
    home, _ = tunnels.connect()
    home.wait_for("see docs/vpn.md, 'Docker and firewalls'")
    tunnels.web("router", LAN)
    assert tunnels.get(LAN) == "000"
    for match in ("iifname", "oifname"):
        tunnels.exec("home", "nft", "insert", "rule", "ip", "filter", "DOCKER-USER", match, "tgw-home", "accept")
    assert tunnels.get(LAN) == "200"


def test_nothing_comes_in_unasked(tunnels: Tunnels) -> None:
    """Neither a machine of home's network nor the connector itself reaches the visitor's own services."""
    tunnels.connect()
    tunnels.web("visitor", "0.0.0.0")
    visitor = next(one.split()[1] for one in tunnels.kernel("visitor")["addresses"] if "tgw-visit" in one)
    address = visitor.partition("/")[0]
    tunnels.exec("router", "ip", "route", "add", address, "via", "192.168.1.2")
    for role in ("router", "home"):
        assert tunnels.exec(role, "curl", "-s", "-m", "2", f"http://{address}:8000/", code=28) == ""
    assert tunnels.ping(address, role="home"), "it may see that the visitor is there"
    assert tunnels.no_ping(address, role="router")


def test_everything_through_an_exit(tunnels: Tunnels) -> None:
    """Both families leave at home; nothing leaves past the tunnel, not even while it is dead."""
    home, visit = tunnels.connect(leads_out=True)
    web, web6 = tunnels.web("vps", "198.51.100.2"), tunnels.web("vps", "2001:db8:1::2")
    tunnels.web("vps", "198.51.100.10")
    tunnels.count_leaks()
    assert tunnels.get("198.51.100.2") == tunnels.get("2001:db8:1::2") == "200"
    assert "192.0.2.2 - -" in web.text(), "from home's public address"
    assert "2001:db8:4::2 - -" in web6.text()
    assert tunnels.leaks() == 0
    cut(home)
    cut(visit)
    assert tunnels.shut("198.51.100.2", "2001:db8:1::2")
    for options in (("-I", "wan"), ("-I", "203.0.113.2"), ("-I", "2001:db8:5::2")):
        assert tunnels.no_ping("2001:db8:1::2" if ":" in options[1] else "198.51.100.2", *options)
    assert tunnels.shut("198.51.100.2", options=("--interface", "wan"))
    assert tunnels.leaks() == 0
    assert "through" in tunnels.exec("visitor", "python3", "-c", MARKED % MARK), "the link to the edge may dial anew"
    assert tunnels.leaks() == 0
    go_on(home)
    go_on(visit)
    wait_until(lambda: tunnels.get("198.51.100.2") == "200", what="the tunnel is back")
    assert visit.stop() == home.stop() == 0
    tunnels.wait_as_before("visitor")
    tunnels.wait_as_before("home")


def test_without_ipv6_at_the_exit_there_is_none(tunnels: Tunnels) -> None:
    tunnels.net.ip("home", "route delete default via 2001:db8:4::1")
    tunnels.connect(leads_out=True)
    tunnels.web("vps", "2001:db8:1::2")
    tunnels.web("vps", "198.51.100.2")
    tunnels.count_leaks()
    assert tunnels.shut("2001:db8:1::2")
    assert tunnels.get("198.51.100.2") == "200"
    assert tunnels.leaks() == 0


def test_a_kill_stays_closed_until_it_is_undone(tunnels: Tunnels) -> None:
    """SIGKILL with an exit: the interface is gone, nothing leaks, names are not lost; one command undoes it."""
    _, visit = tunnels.connect(leads_out=True)
    tunnels.web("vps", "198.51.100.2")
    assert "nameserver 127.116.103.119" in tunnels.resolv_conf("visitor").read_text()
    tunnels.count_leaks()
    visit.kill()
    tunnels.wait_gone("tgw-visit", "visitor")
    assert tunnels.shut("198.51.100.2")
    assert tunnels.leaks() == 0
    assert "nameserver 203.0.113.1" in tunnels.resolv_conf("visitor").read_text().splitlines()
    said = tunnels.exec("visitor", tunnels.python, "-c", REPAIR)
    assert "kill switch" in said
    assert "resolv.conf" in said
    tunnels.wait_as_before("visitor")
    assert tunnels.get("198.51.100.2") == "200"


@pytest.mark.parametrize("leads_out", [False, True], ids=["network", "exit"])
def test_after_a_kill_of_both_they_begin_anew(tunnels: Tunnels, leads_out: bool) -> None:
    for process in tunnels.connect(leads_out=leads_out):
        process.kill()
    tunnels.wait_gone("tgw-home", "home")
    tunnels.wait_gone("tgw-visit", "visitor")
    home, visit = tunnels.connect(leads_out=leads_out)
    assert tunnels.ping(LAN)
    assert "is as it was before" in visit.text() or not leads_out
    assert visit.stop() == home.stop() == 0
    tunnels.wait_as_before("visitor")
    tunnels.wait_as_before("home")


def test_one_at_a_time(tunnels: Tunnels) -> None:
    """A second one says so, and undoing what runs is refused; neither harms the first."""
    _, visit = tunnels.connect(leads_out=True)
    with pytest.raises(AssertionError, match="already"):
        tunnels.exec("visitor", tunnels.python, "-c", REPAIR)
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        second = tunnels.spawn("second", "visitor", tunnels.python, str(tunnels.pipe), "visit", str(near.fileno()),
                               "no", "", "", descriptors=(near.fileno(),))  # fmt: skip
        assert second.popen.wait(20) == 1
    assert "another process of this machine runs tunnelgw visit --tun already" in second.text()
    assert tunnels.ping(LAN)
    assert visit.popen.poll() is None


def test_names(tunnels: Tunnels) -> None:
    """With domains: those names are home's, others are asked where they were. Without: nothing changes."""
    tunnels.names("router", LAN, "192.168.1.1")
    tunnels.names("internet", "203.0.113.1", "198.51.100.2")
    _, visit = tunnels.connect(domains="home.example,.LAN.")
    for name, address in (
        ("nas.home.example", "192.168.1.1"), ("home.example", "192.168.1.1"), ("printer.lan", "192.168.1.1"),
        ("nothome.example", "198.51.100.2"), ("www.example.org", "198.51.100.2"),
    ):  # fmt: skip
        assert tunnels.exec("visitor", "getent", "ahostsv4", name).split()[0] == address, name
        assert tunnels.exec("visitor", "dig", "+short", "+tcp", "+tries=1", name).strip() == address, name
    visit.kill()
    assert tunnels.exec("visitor", "getent", "ahostsv4", "www.example.org").split()[0] == "198.51.100.2"
    tunnels.exec("visitor", tunnels.python, "-c", REPAIR)
    tunnels.wait_as_before("visitor")


def test_names_at_an_exit(tunnels: Tunnels) -> None:
    """Every name is asked there, but for the edge's own: it is found also while the tunnel is dead."""
    far = tunnels.names("router", LAN, "192.168.1.1")
    near = tunnels.names("internet", "203.0.113.1", "198.51.100.10")
    home, visit = tunnels.connect(leads_out=True, edges="edge.example.com")
    assert tunnels.exec("visitor", "getent", "ahostsv4", "www.example.org").split()[0] == "192.168.1.1"
    assert tunnels.exec("visitor", "getent", "ahostsv4", "edge.example.com").split()[0] == "198.51.100.10"
    cut(home)
    assert tunnels.exec("visitor", "getent", "ahostsv4", "edge.example.com").split()[0] == "198.51.100.10"
    near.kill()
    assert tunnels.exec("visitor", "getent", "ahostsv4", "edge.example.com").split()[0] == "198.51.100.10", "remembered"
    assert "www.example.org" in far.text()
    assert "www.example.org" not in near.text()
    assert "edge.example.com" not in far.text()
    assert visit.popen.poll() is None


def test_udp_in_many_segments(tunnels: Tunnels) -> None:
    """What a program sends at once (QUIC does) crosses at once, and arrives as the packets that it is."""
    _, visit = tunnels.connect()
    receiver = tunnels.spawn("receiver", "router", tunnels.python, "-uc", RECEIVER)
    receiver.wait_for("listening")
    before = tunnels.packets("visitor")
    tunnels.exec("visitor", tunnels.python, "-c", SENDER)
    receiver.wait_for("40 packets of 1200 bytes, right")
    assert tunnels.packets("visitor") - before <= 40
    if tunnels.cuts_udp():
        assert tunnels.packets("visitor") - before <= 3, "in one piece, and an answer or so"
    assert visit.popen.poll() is None


def test_speed(tunnels: Tunnels) -> None:
    """Far above what is asked for; segments stay together on the whole way."""
    tunnels.connect("192.168.1.0/24,2001:db8:4::/64")
    tunnels.measured()
    ways = ((LAN,), (LAN, "-R"), ("2001:db8:4::1",), (LAN, "-P", "8"))
    speeds = [max(tunnels.speed(*way) for _ in range(3)) for way in ways]  # the best of three: machines are busy
    print(*(f"{speed:.0f}" for speed in speeds), "Mbit/s")
    assert min(speeds) > 150, speeds


def test_whatever_a_visitor_sends_the_far_side_lives(tunnels: Tunnels) -> None:
    """Parcels with wrong bytes, by the thousand, at a real interface; then an honest one is answered."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        home = tunnels.spawn("home", "home", tunnels.python, str(tunnels.pipe), "home", str(far.fileno()), "home",
                             "192.168.1.0/24", "no", descriptors=(far.fileno(),))  # fmt: skip
        home.wait_for("ready")
        near.settimeout(10)
        own = hostile(near)
        near.send(bytes(10) + echo(own, "192.168.1.1"))
        while socket.inet_aton("192.168.1.1") not in (answer := near.recv(65536)):
            continue
        assert answer[10] == 0x45
        assert home.stop() == 0
    assert "protocol_error" in home.text()


def hostile(pipe: socket.socket) -> str:
    """Thousands of parcels; our address."""
    own = json.loads(pipe.recv(65536))["addresses"][0]
    chance = random.Random(11)
    kinds = [0, 1, 3, 4, 5, 0x81, 0x84, 255]
    for _ in range(5000):
        header = chance.choice(
            [bytes(10), bytes((1, chance.choice(kinds), 0, 0, chance.randrange(256), 5, 20, 0, 16, 0))]
        )
        packet = bytearray(echo(own, "192.168.1.1", chance.randrange(3000), chance.choice([1, 6, 6, 17])))
        for _ in range(chance.randrange(5)):
            packet[chance.randrange(60) % len(packet)] = chance.randrange(256)
        pipe.send(header + packet)
    return str(own)


def echo(source: str, destination: str, size: int = 0, protocol: int = 1) -> bytes:
    """An IPv4 packet with a right checksum, an echo request if its protocol is ICMP."""
    inside = struct.pack("!BBHHH", 8, 0, 0xF7FD, 1, 1) + bytes(12) + bytes(size)
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(inside), 1, 0, 64, protocol, 0, socket.inet_aton(source),
                       socket.inet_aton(destination))  # fmt: skip
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return head[:10] + struct.pack("!H", checksum) + head[12:] + inside


@pytest.mark.parametrize("role", ["home", "visitor"])
def test_rights(tunnels: Tunnels, role: str) -> None:
    """Not root, but CAP_NET_ADMIN: enough for both ends; without it one line says what is missing."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        arguments = ("visit", str(near.fileno()), "no", "", "") if role == "visitor" else (
            "home", str(near.fileno()), "home", "192.168.1.0/24,2001:db8:4::/64", "no"
        )  # fmt: skip
        command = (tunnels.python, str(tunnels.pipe), *arguments)
        device = tunnels.folder / "tun"  # as it is on machines with udev: for everybody
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(10, 200))
        device.chmod(0o666)
        mount = ("sh", "-ec", f'mount --bind {device} {DEVICE}; exec "$@"', "sh")
        unprivileged = (*mount, "setpriv", "--reuid", "65534", "--clear-groups")
        without = tunnels.spawn("without", role, *unprivileged, "--bounding-set=-net_admin", *command,
                                descriptors=(near.fileno(),))  # fmt: skip
        assert without.popen.wait(20) == 1
        assert without.text().startswith("a TUN interface needs root or the capability CAP_NET_ADMIN")
        tunnels.wait_as_before(role)
        able = tunnels.spawn("able", role, *unprivileged, "--inh-caps=+net_admin", "--ambient-caps=+net_admin",
                             *command, descriptors=(near.fileno(),))  # fmt: skip
        able.wait_for("ready" if role == "home" else "prepared")
        if role == "visitor":
            far.send(
                json.dumps(
                    {"addresses": ["10.9.9.9"], "routes": ["192.168.1.0/24"], "dns": [], "udp_segments": False}
                ).encode()
            )
            able.wait_for("ready")
        assert able.stop() == 0
        tunnels.wait_as_before(role)
