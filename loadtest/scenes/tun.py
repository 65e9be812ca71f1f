"""One flow of iperf3 through `tunnelgw visit --tun`, from a laptop into home's network and back.

In the lab of the tests (tests/lab): six network namespaces, two NATs before home, and an uplink that is too wide to be
what bounds. Both ends of the flow and all of the kernel's own work are on the same cores as what is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loadtest.contenders.base import which
from loadtest.contenders.laptop import Away
from loadtest.scenario import Kind, Measurement, RunError, Scenario, Setup, Target
from tests.lab import network
from tests.lab.tunnels import LAN
from tunnelgw.net.tun import DEVICE

PROGRAMS = ("iperf3", "sshd", "ssh-keygen")  # the lab has an sshd


def lacking() -> str:
    """Why there can be no tunnel between machines of a lab here; "" if there can."""
    if why := network.unavailable():
        return why
    missing = [name for name in PROGRAMS if which(name) is None]
    if not Path(DEVICE).exists():
        missing.append(DEVICE)
    return f"needs {', '.join(missing)}" if missing else ""


def measurement(end: dict[str, Any]) -> Measurement:
    """From what iperf3 says in the end; RunError where nothing came."""
    received = end["sum_received"]
    if not received["bytes"]:
        raise RunError("nothing came through the interface")
    busy = end["cpu_utilization_percent"]
    extra = {
        "generators, cores": round((busy["host_total"] + busy["remote_total"]) / 100, 2),
        "sent again": float(end["sum_sent"]["retransmits"]),
    }
    return Measurement(value=received["bits_per_second"] / 1e6, bytes=received["bytes"], extra=extra)


class Flow(Scenario):
    """Mbit/s of one TCP connection, as its receiver counts them."""

    unit = "Mbit/s"
    setup = Setup(kind=Kind.TUN)
    seconds = 5

    def __init__(self, direction: str, *options: str) -> None:
        self.name = f"TUN, one flow {direction}"
        self.options = options

    def needs(self) -> str:
        """Machines of a lab, and an interface."""
        return lacking()

    def run(self, target: Target, seconds: float) -> Measurement:
        """One iperf3."""
        assert isinstance(target.group, Away), target.contender
        assert target.group.laptop is not None
        return measurement(target.group.laptop.flow(LAN, *self.options, seconds=round(seconds)))


SCENARIOS = [Flow("up"), Flow("down", "-R")]
