"""Namespaces that look like the internet with a home behind two NATs.

    visitor ── internet ── vps            the edge
                  │
               carrier                    NAT (a CGNAT), drops what it does not know
                  │ 100.64.0.0/24
               router                     NAT (at home), narrow uplink
                  │ 192.168.1.0/24
                home                      the connector and its services

IPv4 is translated twice; IPv6 is routed, and the router lets nothing in that was not asked for. The relay sits in
`internet`, on addresses of its own: which way a tunnel goes is decided by what the edge's name means at home.

A network belongs to one process, which its namespaces' names say. Invariant: `sweep`, at each start, removes the
networks of processes that are gone, with everything that runs in them, and never those of a living one.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PREFIX = "tgw-lab"
ROLES = ("internet", "vps", "carrier", "router", "home", "visitor")
PROGRAMS = ("ip", "nft", "tc", "conntrack", "sysctl")

VPS = "198.51.100.2"  # where visitors go
DIRECT = ("198.51.100.10", "198.51.100.11")  # where tunnels may go, past the relay: one at a time
RELAYED = ("198.51.100.129", "198.51.100.130")  # the relay's, also one at a time
DIRECT6 = "2001:db8:1::10"
HOME = "192.168.1.2"
ROUTER_WAN = "100.64.0.2"
PUBLIC = ("192.0.2.2", "192.0.2.3")  # the carrier's: home's public address, one at a time
UPLINK = "20mbit"
# Seconds after which a NAT forgets a silent connection: far below what carriers use, above the tunnel's pings.
FORGETS = {"carrier": 12, "router": 20}

# (namespace, interface) pairs that are joined by a cable.
CABLES = [
    ("internet", "visitor", "visitor", "wan"),
    ("internet", "vps", "vps", "wan"),
    ("internet", "carrier", "carrier", "wan"),
    ("carrier", "lan", "router", "wan"),
    ("router", "lan", "home", "lan"),
]
ADDRESSES = {
    "internet": [
        ("visitor", "203.0.113.1/25"), ("visitor", "2001:db8:5::1/64"), ("vps", "198.51.100.1/25"),
        ("vps", "2001:db8:1::1/64"), ("carrier", "192.0.2.1/24"), ("carrier", "2001:db8:2::1/64"),
        ("lo", f"{RELAYED[0]}/32"),
    ],
    "visitor": [("wan", "203.0.113.2/25"), ("wan", "2001:db8:5::2/64")],
    "vps": [
        ("wan", f"{VPS}/25"), ("wan", f"{DIRECT[0]}/25"), ("wan", "2001:db8:1::2/64"), ("wan", f"{DIRECT6}/64")
    ],
    "carrier": [
        ("wan", f"{PUBLIC[0]}/24"), ("wan", "2001:db8:2::2/64"), ("lan", "100.64.0.1/24"), ("lan", "2001:db8:3::1/64")
    ],
    "router": [
        ("wan", f"{ROUTER_WAN}/24"), ("wan", "2001:db8:3::2/64"), ("lan", "192.168.1.1/24"), ("lan", "2001:db8:4::1/64")
    ],
    "home": [("lan", f"{HOME}/24"), ("lan", "2001:db8:4::2/64")],
}  # fmt: skip
ROUTES = {
    "internet": ["2001:db8:3::/64 via 2001:db8:2::2", "2001:db8:4::/64 via 2001:db8:2::2"],
    "visitor": ["default via 203.0.113.1", "default via 2001:db8:5::1"],
    "vps": ["default via 198.51.100.1", "default via 2001:db8:1::1"],
    "carrier": ["default via 192.0.2.1", "default via 2001:db8:2::1", "2001:db8:4::/64 via 2001:db8:3::2"],
    "router": ["default via 100.64.0.1", "default via 2001:db8:3::1"],
    "home": ["default via 192.168.1.1", "default via 2001:db8:4::1"],
}
# A NAT as carriers and routers have it: what it does not know is dropped, in silence; ports are random, so that a
# mapping that was forgotten is not made again by chance.
NAT = """
table ip nat {
    chain postrouting { type nat hook postrouting priority srcnat; oifname "wan" masquerade fully-random; }
}
table inet filter {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname "lan" ct state new accept
        %s
    }
    chain input {
        type filter hook input priority filter; policy accept;
        iifname "wan" ct state established,related accept
        iifname "wan" meta l4proto ipv6-icmp accept
        iifname "wan" drop
    }
}
"""
RULES = {"carrier": NAT % 'iifname "wan" meta nfproto ipv6 ct state new accept', "router": NAT % ""}
SYSCTL = [
    "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.default.dad_transmits=0",
    "net.ipv6.conf.default.accept_ra=0", "net.ipv6.conf.default.keep_addr_on_down=1",
]  # fmt: skip
_ROUTING = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]
_NAT = [*_ROUTING, "net.netfilter.nf_conntrack_tcp_loose=0"]
MORE_SYSCTL = {
    "internet": _ROUTING,
    **{role: [*_NAT, f"net.netfilter.nf_conntrack_tcp_timeout_established={FORGETS[role]}"] for role in FORGETS},
}
CLONE_NEWNET = 0x40000000  # sched.h
FAULTS = "faults"  # the nftables table in which faults live
_numbers = itertools.count(1)


def unavailable() -> str:
    """Why there can be no lab here; empty if there can."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"needs {', '.join(missing)}" if missing else ""


def born(pid: int) -> str:
    """When a process began, in the kernel's ticks: with its number it is unique. Empty if it lives no more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def inside(namespace: str, command: list[str]) -> list[str]:
    """A command that runs there, with its own /etc/hosts. It becomes the program: its process id stays."""
    return ["ip", "netns", "exec", namespace, *command]


def run(command: list[str], *, stdin: str = "") -> str:
    """Standard output; AssertionError with what it said if it failed."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}\n{stdin}"
    return done.stdout


def _delete(namespace: str) -> None:
    """The namespace, and whatever runs in it."""
    end = time.monotonic() + 10
    while pids := subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, check=False).stdout.split():
        assert time.monotonic() < end, f"{namespace}: processes {pids} do not end"
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.01)
    subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)
    shutil.rmtree(Path("/etc/netns") / namespace, ignore_errors=True)
    with contextlib.suppress(OSError):
        Path("/etc/netns").rmdir()


def sweep() -> list[str]:
    """Remove what processes left behind that are gone; returns the namespaces."""
    names = {path.name for folder in ("/run/netns", "/etc/netns") for path in Path(folder).glob(f"{PREFIX}-*")}
    removed = []
    for name in sorted(names):
        owner = re.fullmatch(rf"{PREFIX}-(\d+)-(\d+)-\d+-\w+", name)
        if owner is None or born(int(owner[1])) == owner[2]:
            continue
        _delete(name)
        removed.append(name)
    return removed


class Network:
    """The six namespaces of one lab; see the module's text. `close()` removes them."""

    def __init__(self, *, uplink: str = UPLINK) -> None:
        sweep()
        self.name = f"{PREFIX}-{os.getpid()}-{born(os.getpid())}-{next(_numbers)}"
        self.public = PUBLIC[0]
        try:
            self._build(uplink)
        except BaseException:
            self.close()
            raise

    def _build(self, uplink: str) -> None:
        run(["ip", "-batch", "-"], stdin="".join(f"netns add {self.namespace(role)}\n" for role in ROLES))
        for role in ROLES:  # before there are interfaces, which take their settings from here
            if role in RULES:
                self.exec(role, "nft", "-f", "-", stdin=RULES[role])  # conntrack's settings are there after it
            self.exec(role, "sysctl", "-qw", *SYSCTL, *MORE_SYSCTL.get(role, ()))
        cables = [
            f"link add name {near} netns {self.namespace(one)} type veth"
            f" peer name {far} netns {self.namespace(other)}\n"
            for one, near, other, far in CABLES
        ]
        run(["ip", "-batch", "-"], stdin="".join(cables))
        for role in ROLES:
            interfaces = {near for one, near, _, _ in CABLES if one == role} | {
                far for _, _, other, far in CABLES if other == role
            }
            self.ip(role, *(f"link set dev {interface} up" for interface in ("lo", *interfaces)),
                    *(f"address add {address} dev {interface}" for interface, address in ADDRESSES[role]),
                    *self._routes(role))  # fmt: skip
            folder = Path("/etc/netns") / self.namespace(role)
            folder.mkdir(parents=True)
            (folder / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
        self.narrow(uplink)

    def close(self) -> None:
        """Remove it all, and whatever still runs inside."""
        for role in ROLES:
            _delete(self.namespace(role))

    # For tests and people.

    def namespace(self, role: str) -> str:
        """As `ip netns` knows it."""
        return f"{self.name}-{role}"

    def exec(self, role: str, *command: str, stdin: str = "") -> str:
        """Run a program in a namespace to its end; its output."""
        return run(inside(self.namespace(role), list(command)), stdin=stdin)

    def listeners(self, role: str, *ports: int) -> list[socket.socket]:
        """Sockets that listen there, on both families, held by this process as systemd holds those of its units."""

        def make() -> list[socket.socket]:
            with open(f"/run/netns/{self.namespace(role)}") as place:
                if ctypes.CDLL(None, use_errno=True).setns(place.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            return [
                socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
                for port in ports
            ]

        with ThreadPoolExecutor(1) as elsewhere:  # a thread of its own may be in another namespace, and ends there
            return elsewhere.submit(make).result()

    def ip(self, role: str, *lines: str) -> None:
        """Lines of `ip -batch`."""
        run(["ip", "-n", self.namespace(role), "-batch", "-"], stdin="\n".join(lines) + "\n")

    def hosts(self, role: str, names: dict[str, tuple[str, ...]]) -> None:
        """What names mean there from now on: written in place, for running programs see this very file."""
        lines = [f"{address} {name}" for name, addresses in names.items() for address in addresses]
        text = "\n".join(["127.0.0.1 localhost", "::1 localhost", *lines]) + "\n"
        with (Path("/etc/netns") / self.namespace(role) / "hosts").open("r+") as file:
            file.write(text)
            file.truncate()

    def narrow(self, rate: str) -> None:
        """Home's uplink, by a token bucket."""
        self.exec("router", "tc", "qdisc", "replace", "dev", "wan", "root", "tbf", "rate", rate,
                  "burst", "32kb", "latency", "100ms")  # fmt: skip

    # Faults of the network itself.

    def forget(self, role: str) -> None:
        """A NAT loses every mapping; what belonged to them is dropped in silence from now on."""
        self.exec(role, "conntrack", "-F")

    def mappings(self, role: str) -> str:
        """The connections that a NAT knows."""
        return self.exec(role, "conntrack", "-L", "-p", "tcp")

    def change_public_address(self) -> str:
        """Home gets another public address: the old one is gone, with the mappings on it."""
        old, self.public = self.public, PUBLIC[self.public == PUBLIC[0]]
        self.move("carrier", "wan", f"{old}/24", f"{self.public}/24")
        return self.public

    def power_off(self, role: str) -> None:
        """A router without power: its cables are dead and everything is forgotten."""
        self.ip(role, "link set dev wan down", "link set dev lan down")
        self.forget(role)

    def power_on(self, role: str) -> None:
        """It is back, and knows what is in its configuration."""
        self.ip(role, "link set dev wan up", "link set dev lan up", *self._routes(role))

    def move(self, role: str, interface: str, old: str, new: str) -> None:
        """An address of a machine (with its length) is replaced by another one."""
        self.ip(role, f"address delete {old} dev {interface}", f"address add {new} dev {interface}",
                *self._routes(role))  # fmt: skip

    def shrink(self, mtu: int) -> None:
        """A black hole: the cable between carrier and router takes less, and nobody is told (no ICMP comes back)."""
        for role in ("carrier", "router"):  # first: one word of it, and the sender would know
            self.drop(role, "output", "icmp type destination-unreachable", "icmpv6 type packet-too-big")
        for role, interface in (("carrier", "lan"), ("router", "wan")):
            self.ip(role, f"link set dev {interface} mtu {mtu}")

    def grow(self) -> None:
        """Undo `shrink`."""
        for role, interface in (("carrier", "lan"), ("router", "wan")):
            self.ip(role, f"link set dev {interface} mtu 1500")
            self.heal(role)

    def drop(self, role: str, hook: str, *matches: str, how: str = "drop") -> None:
        """From now on packets that match vanish there, or what nftables calls `how`; hook: forward, input or output."""
        rules = "\n".join(f"{match} {how}" for match in matches)
        chain = f"chain {hook} {{ type filter hook {hook} priority -10; {rules}\n }}\n"
        self.exec(role, "nft", "-f", "-", stdin=f"table inet {FAULTS} {{ {chain} }}")

    def heal(self, role: str) -> None:
        """Undo every `drop`."""
        self.exec(role, "nft", "-f", "-", stdin=f"table inet {FAULTS}\ndelete table inet {FAULTS}\n")

    def _routes(self, role: str) -> list[str]:
        return [f"route replace {route}" for route in ROUTES[role]]
