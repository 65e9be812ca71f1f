"""Two machines of the lab with a TUN tunnel between them that is a pair of sockets (packetpipe.py), for tests.

    visitor ── internet ── … ── router ── home        a visitor's packets leave at home, into 192.168.1.0/24 or beyond

What the kernels had before is noted, so that a test can ask whether all of it is back.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.lab.network import Network, inside
from tests.system.harness import Process, end_all, wait_until
from tests.system.sshd import configure
from tunnelgw.access.nftables import MARK

if TYPE_CHECKING:
    from types import TracebackType

PIPE = Path(__file__).with_name("packetpipe.py")
ANSWERS = Path(__file__).with_name("answers.py")
ROOM = 4 * 1024 * 1024  # of the pipe
SNDBUFFORCE = 32  # asm-generic/socket.h
SWITCHES = (
    "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv6.conf.lan.accept_ra",
    "net.ipv6.conf.wan.accept_ra", "net.ipv4.conf.all.src_valid_mark",
)  # fmt: skip
LAN = "192.168.1.1"  # a machine of home's network, which is not the connector
LEAKS = """
table inet leaks { chain seen { type filter hook prerouting priority -300;
    iifname "visitor" icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, 143 } accept
    iifname "visitor" ip daddr %s accept
    iifname "visitor" counter
    }
}
"""
PROGRAMS = ("ping", "iperf3", "curl", "ssh", "dig")


def missing() -> str:
    """Programs that are not there; empty if all are."""
    names = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"needs {', '.join(names)}" if names else ""


class Machines:
    """The machines of a lab's network, what runs on them, and what their kernels hold."""

    python, pipe = sys.executable, PIPE

    def __init__(self, folder: Path, net: Network, children: list[Process]) -> None:
        self.folder = folder
        self.net = net
        self.children = children
        self.before: dict[str, dict[str, Any]] = {}
        for role, server in (("visitor", "203.0.113.1"), ("home", LAN)):
            self.resolv_conf(role).write_text(
                f"# as it was\nsearch example.net\nnameserver {server}\noptions timeout:1\n"
            )

    def resolv_conf(self, role: str) -> Path:
        return Path("/etc/netns") / self.net.namespace(role) / "resolv.conf"

    def spawn(self, name: str, role: str, *command: str, descriptors: tuple[int, ...] = ()) -> Process:
        child = Process(name, inside(self.net.namespace(role), list(command)), self.folder, pass_fds=descriptors,
                        env={"PYTHONPATH": str(PIPE.parents[2])})  # fmt: skip
        self.children.append(child)
        return child

    def exec(self, role: str, *command: str, code: int | None = 0, seconds: float = 30.0) -> str:
        """What a program in a namespace says, to its end; its exit code must be `code`, unless that is None."""
        done = subprocess.run(inside(self.net.namespace(role), list(command)), capture_output=True, text=True,
                              check=False, timeout=seconds, cwd=PIPE.parents[2])  # fmt: skip
        assert code is None or done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def ping(self, address: str, *options: str, role: str = "visitor", wait: str = "-w10") -> bool:
        """Whether an answer comes back; asked again each second."""
        return " 1 received" in self.exec(role, "ping", "-c1", wait, *options, address, code=None)

    def no_ping(self, address: str, *options: str, role: str = "visitor") -> bool:
        """Whether no answer comes back to the one question."""
        return not self.ping(address, *options, role=role, wait="-W3")

    def web(self, role: str, address: str) -> Process:
        """A web server there; its log says who asked."""
        server = self.spawn("web", role, sys.executable, "-um", "http.server", "8000", "--bind", address)
        server.wait_for("Serving")
        return server

    def sshd(self, role: str, address: str) -> Process:
        """An ssh server there that `ssh` can ask."""
        folder = self.folder / f"sshd-{role}"
        folder.mkdir()
        server = self.spawn("sshd", role, *configure(folder, 22), "-o", f"ListenAddress={address}:22")
        server.wait_for(f"listening on {address}")
        return server

    def ssh(self, role: str, address: str, command: str) -> str:
        """What a command says there."""
        config = self.folder / f"sshd-{role}" / "ssh_config"
        return self.exec("visitor", "ssh", "-F", str(config), address, command)

    def names(self, role: str, address: str, reply: str) -> Process:
        """A name server there."""
        server = self.spawn("names", role, sys.executable, str(ANSWERS), address, reply)
        server.wait_for("ready")
        return server

    def get(self, address: str, *options: str) -> str:
        """curl's exit code, as text, or "200"."""
        place = f"[{address}]" if ":" in address else address
        return self.exec("visitor", "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "5", *options,
                         f"http://{place}:8000/", code=None)  # fmt: skip

    def shut(self, *addresses: str, options: tuple[str, ...] = ()) -> bool:
        """Whether no web server answers at any of them."""
        return all(self.get(address, "-m", "1.5", *options) == "000" for address in addresses)

    def measured(self, role: str = "router") -> Process:
        """An iperf3 there that `flow` and `speed` can ask."""
        server = self.spawn("iperf3", role, "iperf3", "-s", "--forceflush")
        server.wait_for("listening")
        return server

    def flow(self, address: str, *options: str, seconds: int = 2) -> dict[str, Any]:
        """What iperf3 at the visitor's says in the end."""
        said = self.exec("visitor", "iperf3", "-J", "-c", address, "-t", str(seconds), *options, seconds=seconds + 30)
        found = json.loads(said)
        assert "error" not in found, found["error"]
        return found["end"]

    def speed(self, address: str, *options: str, seconds: int = 2) -> float:
        """Mbit/s, as the receiver counts them."""
        return float(self.flow(address, *options, seconds=seconds)["sum_received"]["bits_per_second"]) / 1e6

    def packets(self, role: str) -> int:
        """What its interface was given to send, in packets or many at once."""
        (facts,) = json.loads(self.exec(role, "ip", "-j", "-s", "link", "show", "dev", "tgw-visit"))
        return int(facts["stats64"]["tx"]["packets"])

    def cuts_udp(self) -> bool:
        """Whether this kernel's TUN interfaces take UDP in many segments (Linux 6.2)."""
        return tuple(map(int, os.uname().release.split("-")[0].split(".")[:2])) >= (6, 2)

    def kernel(self, role: str) -> dict[str, Any]:
        """Whatever a tunnel may change."""
        switches = self.exec(role, "sysctl", *SWITCHES, code=None)
        rules = re.sub(r"packets \d+ bytes \d+", "", self.exec(role, "nft", "list", "ruleset"))
        return {
            "links": re.findall(r"^\d+: ([^:]+)", self.exec(role, "ip", "link"), re.MULTILINE),
            "addresses": [line for line in self.exec(role, "ip", "address").splitlines() if "inet" in line],
            "routes": sorted(self.exec(role, "ip", "route", "show", "table", "all").splitlines()),
            "routes6": sorted(self.exec(role, "ip", "-6", "route", "show", "table", "all").splitlines()),
            "rules": self.exec(role, "ip", "rule") + self.exec(role, "ip", "-6", "rule"),
            "tables": rules,
            "switches": "\n".join(line for line in switches.splitlines() if "cannot stat" not in line),
            "names": self.resolv_conf(role).read_text(),
        }

    def wait_gone(self, interface: str, role: str) -> None:
        """Until this interface is: it goes with its process, a moment later."""
        wait_until(lambda: interface not in self.exec(role, "ip", "link"), what=f"no {interface} at the {role}")

    def wait_as_before(self, role: str) -> None:
        """Until nothing of a tunnel is left there. (The kernel removes what belongs to an interface a moment later.)"""
        wait_until(lambda: self.kernel(role) == self.before[role], seconds=30, what=f"{self.kernel(role)}\nas before")

    # What leaves the visitor, seen from outside.

    def count_leaks(self, link: str = "198.51.100.10") -> None:
        """From now on the next router counts what comes from the visitor, but for what neighbours say and the link.

        That it counts is shown with a leak on purpose, in each family: a packet that bears the mark of the link.
        """
        for address in ("203.0.113.1", "2001:db8:5::1"):
            self.net.exec("internet", "nft", "-f", "-", stdin=LEAKS % link)
            assert self.leaks() == 0
            assert self.ping(address, "-m", str(MARK)), "a packet with the mark leaves past the tunnel"
            assert self.leaks() > 0, f"a packet to {address} was not counted"
            self.net.exec("internet", "nft", "delete", "table", "inet", "leaks")
        self.net.exec("internet", "nft", "-f", "-", stdin=LEAKS % link)

    def leaks(self) -> int:
        """Packets since `count_leaks`, but for those to the edge's address for tunnels."""
        found = re.search(r"counter packets (\d+)",
                          self.net.exec("internet", "nft", "list", "table", "inet", "leaks"))  # fmt: skip
        assert found is not None
        return int(found[1])


class Tunnels(Machines):
    """The lab's network with both ends in it; `with Tunnels(folder) as tunnels`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, Network(uplink="1gbit"), [])
        self.before = {role: self.kernel(role) for role in ("visitor", "home")}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        problems = end_all(self.children)
        self.net.close()
        if error is None:
            assert problems == []

    def connect(
        self, networks: str = "192.168.1.0/24", *, leads_out: bool = False, edges: str = "", domains: str = "",
        seconds: float = 20.0,
    ) -> tuple[Process, Process]:  # fmt: skip
        """Start both ends: the far side, the visitor."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with near, far:
            for end in (near, far):
                end.setsockopt(socket.SOL_SOCKET, SNDBUFFORCE, ROOM)
            out = "yes" if leads_out else "no"
            python = (sys.executable, str(PIPE))
            home = self.spawn("home", "home", *python, "home", str(far.fileno()), "home", networks, out,
                              descriptors=(far.fileno(),))  # fmt: skip
            home.wait_for("ready", seconds=seconds)
            visit = self.spawn("visit", "visitor", *python, "visit", str(near.fileno()), out, edges, domains,
                               descriptors=(near.fileno(),))  # fmt: skip
            visit.wait_for("ready", seconds=seconds)
        return home, visit


def cut(process: Process) -> None:
    """The pipe carries nothing from now on, in this direction: a dead link."""
    process.signal(signal.SIGUSR1)


def go_on(process: Process) -> None:
    """It works again."""
    process.signal(signal.SIGUSR2)
