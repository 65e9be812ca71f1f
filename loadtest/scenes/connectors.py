"""A thousand connectors with ten thousand routes: what one route's visitors notice of the others.

The target that is given is the edge with one connector and one route; beside it an edge is started for many homes
(homes.py), one of which is a process like the target's, and the same route is asked for in turn.
"""

from __future__ import annotations

import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest.h2load import parse
from loadtest.processes import Group
from loadtest.scenario import ADDRESS, HOST, Measurement, RunError, Scenario, Setup, Target
from loadtest.scenes.children import ROOT
from loadtest.scenes.homes import service_name, settle
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

DOMAIN = "example.com"
CONNECTORS, SERVICES = 1000, 10
FEW = 100  # connectors while the edge's idle CPU is taken
IDLE_SECONDS = 30.0
PER_PROCESS = 250
TURNS = 4  # of load on each of both edges
STARTED = 300.0  # seconds in which all are up at the latest
MIB = 1024 * 1024
COMMAND = [sys.executable, "-m", "tunnelgw"]


def certificate(folder: Path) -> None:
    """For every service of the domain."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "7",
         "-keyout", "key.pem", "-out", "cert.pem", "-subj", f"/CN={DOMAIN}", "-addext",
         f"subjectAltName=DNS:*.{DOMAIN}"], cwd=folder, check=True, capture_output=True,
    )  # fmt: skip


def ups(text: str) -> int:
    """How many a process of homes said are up, last of all; -1 if it said nothing yet."""
    said = re.findall(r"^up (\d+)", text, re.MULTILINE)
    return int(said[-1]) if said else -1


@dataclass
class Crowd:
    """An edge and its homes; number 0 is a process of its own."""

    group: Group
    port: int
    folder: Path

    @classmethod
    def settle(cls, group: Group, service: int, *, count: int, services: int) -> Crowd:
        """Everything that is written before anything starts, and the edge."""
        from tunnelgw.admin.setup import create_state

        folder, port = group.folder, free_port()
        certificate(folder)
        (folder / "edge.toml").write_text(f"""
domain = "{DOMAIN}"
address = "{ADDRESS}:{port}"
listen = ["{ADDRESS}:{port}"]
listen_http = []
state_dir = "{folder}/edge"
[tls]
issuer = "files"
certificates = [{{ cert = "{folder}/cert.pem", key = "{folder}/key.pem" }}]
[limits]
connections_per_address = 20000
""")
        create_state(folder / "edge")
        settle(
            folder / "edge", folder / "homes", address=f"{ADDRESS}:{port}", domain=DOMAIN,
            target=f"http://127.0.0.1:{service}", count=count, services=services,
        )  # fmt: skip
        group.start("edge", [*COMMAND, "edge", "run", "--config", str(folder / "edge.toml")])
        group.wait_for("edge", "ready", seconds=STARTED)
        return cls(group, port, folder)

    def first(self) -> None:
        """Number 0, as its owner would run it."""
        config = self.folder / "homes" / "0" / "connector.toml"
        self.group.start("connector", [*COMMAND, "connect", "--config", str(config)], ready="ready")

    def more(self, first: int, count: int) -> None:
        """Processes of homes, from this number on."""
        for begin in range(first, first + count, PER_PROCESS):
            part = str(min(PER_PROCESS, first + count - begin))
            command = [sys.executable, "-m", "loadtest.scenes.homes", str(self.folder / "homes"), str(begin), part]
            self.group.start(f"homes{begin}", command, cwd=ROOT)
        self.wait_up()

    def up(self) -> int:
        """Homes with a tunnel, number 0 left out."""
        return sum(max(0, ups(log.read_text())) for log in self.folder.glob("homes*.log"))

    def dials(self) -> int:
        """How often number 0 got a tunnel."""
        return len(re.findall(r"tunnel (?:up|resumed)", (self.folder / "connector.log").read_text()))

    def wanted(self) -> int:
        """How many there are to be."""
        return sum(int(how.command[-1]) for name, how in self.group.starts.items() if name.startswith("homes"))

    def wait_up(self) -> None:
        """Until all have their tunnels; RunError with what went wrong."""
        wanted = self.wanted()
        wait(lambda: self.up() >= wanted, lambda: f"{self.up()} of {wanted} connectors were up")


def wait(condition: Callable[[], bool], otherwise: Callable[[], str]) -> None:
    """Until it is so; RunError with what `otherwise` says if that takes longer than anything may."""
    end = time.monotonic() + STARTED
    while not condition():
        if time.monotonic() > end:
            raise RunError(f"{otherwise()} after {STARTED:g} s")
        time.sleep(0.02)


def asked(port: int, host: str, seconds: float) -> float:
    """Requests per second at one route, every one answered."""
    command = ["h2load", "--h1", "-t", "1", "-D", f"{seconds * 1000:.0f}ms", "--warm-up-time=500ms", "-c", "32",
               "--connect-to", f"{ADDRESS}:{port}", f"https://{host}/small"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds * 3 + 30)
    return parse(done.stdout + done.stderr).requests


class Connectors(Scenario):
    """Requests per second of one route among all, in percent of those of a route alone."""

    name = f"{CONNECTORS:,} connectors, {CONNECTORS * SERVICES:,} routes, beside one"
    long = True
    unit = "%"
    setup = Setup()
    rounds = 1
    seconds = 5

    def refuses(self, contender: str) -> str:
        """Only we have such a thing as a connector with an identity."""
        return "" if contender == "tunnelgw" else "tunnelgw beside itself"

    def needs(self) -> str:
        """A link and a descriptor for each."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        return "" if files >= 2 * CONNECTORS else f"{files} open files are too few for {CONNECTORS} links"

    def run(self, target: Target, seconds: float) -> Measurement:
        """Few, and idle; then all; then load in turn; then the edge is restarted."""
        from loadtest.home import start_nginx

        with tempfile.TemporaryDirectory(prefix="tunnelgw-bench-") as folder:
            group = Group(Path(folder))
            try:
                crowd = Crowd.settle(group, start_nginx(group), count=CONNECTORS, services=SERVICES)
                return self._measured(crowd, target, seconds)
            finally:
                group.stop()

    def _measured(self, crowd: Crowd, target: Target, seconds: float) -> Measurement:
        group = crowd.group
        crowd.first()
        crowd.more(1, FEW - 1)
        say(f"{FEW} are up; idle for {IDLE_SECONDS:g} s")
        few = group.memory("edge")
        time.sleep(5)
        before = group.cpu("edge")
        time.sleep(IDLE_SECONDS)
        idle = (group.cpu("edge") - before) / IDLE_SECONDS
        say(f"{100 * idle:.2f} % of a core; the others start")
        begin, before = time.monotonic(), group.cpu("edge")
        crowd.more(FEW, CONNECTORS - FEW)
        joined, spent = time.monotonic() - begin, group.cpu("edge") - before
        many = group.memory("edge")
        say(f"{CONNECTORS} are up after {joined:.1f} s ({spent:.1f} s of the edge's CPU), {many / MIB:.0f} MiB")
        alone, among = [], []
        for _ in range(TURNS):
            alone.append(asked(target.port, HOST, seconds))
            among.append(asked(crowd.port, f"{service_name(0, 0)}.{DOMAIN}", seconds))
        say(f"requests/s alone {alone}, among all {among}; the edge is restarted")
        ready, back, again = restarted(crowd)
        return Measurement(
            value=round(100 * statistics.median(among) / statistics.median(alone), 1),
            extra={
                "req/s alone": statistics.median(alone), "req/s among all": statistics.median(among),
                f"idle edge with {FEW}, % of a core": round(100 * idle, 2),
                f"edge MiB with {FEW}": round(few / MIB, 1), "edge MiB with all": round(many / MIB, 1),
                "first start, s": round(joined, 1), "first start, CPU s of the edge": round(spent, 1),
                "restart, s until the edge is ready": round(ready, 1), "restart, s until all are back": round(back, 1),
                "restart, CPU s of the edge": round(again, 1),
            },
        )  # fmt: skip


def restarted(crowd: Crowd) -> tuple[float, float, float]:
    """Seconds from the edge's end until it is ready, and until every home is back; the CPU time of the new one."""
    begin, group, dials = time.monotonic(), crowd.group, crowd.dials()
    group.end("edge", seconds=30)
    wait(lambda: not crowd.up(), lambda: f"{crowd.up()} connectors had not noticed that the edge is gone")
    group.again("edge")
    group.wait_for("edge", "ready", seconds=STARTED)
    ready = time.monotonic() - begin
    say(f"the edge is ready after {ready:.1f} s")
    crowd.wait_up()
    wait(lambda: crowd.dials() > dials, lambda: "the connector with a process of its own was not back")
    back, spent = time.monotonic() - begin, group.cpu("edge")
    asked(crowd.port, f"{service_name(0, 0)}.{DOMAIN}", 1)
    return ready, back, spent


def say(text: str) -> None:
    """Progress: it takes minutes."""
    print(f"connectors: {text}", file=sys.stderr, flush=True)


SCENARIOS = [Connectors()]
