"""A 20 Mbit/s uplink at home, full of four downloads, and small requests beside them.

The uplink is the kernel's own: on a loopback interface of our own (a network namespace) what home sends over the link
goes through a token bucket, and nothing else does. A relay in between would hide from both ends what the kernel queues.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from loadtest.scenario import Measurement, RunError, Scenario, Setup, Target
from loadtest.scenes.children import ROOT, latency, visits

if TYPE_CHECKING:
    from loadtest.processes import Group

DOWNLOADS = 4
SETTLE = 3.0  # seconds until all of them are at full speed
RATE = 10.0  # small requests a second: next to nothing of the uplink
CHANNELS = 16
WARMING = 15.0  # at most: the connections of the small requests are made one after the other
MTU, LOOPBACK_MTU = 1500, 65536  # loopback's own packets are longer than what a home sends, and than a bucket


def alone() -> bool:
    """Is this a network namespace of its own, with nothing but a loopback?"""
    names = [line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]]
    return names == ["lo"]


def commands(port: int, *, megabits: int, matching: str) -> list[str]:
    """What makes loopback narrow for packets whose `matching` (sport or dport) is the link's port."""
    return [
        f"ip link set dev lo mtu {MTU}",
        "tc qdisc add dev lo root handle 1: htb",  # what no filter names is not held up
        "tc class add dev lo parent 1: classid 1:2 htb rate 10gbit quantum 60000",
        f"tc qdisc add dev lo parent 1:2 handle 20: tbf rate {megabits}mbit burst 16kb latency 100ms",
        f"tc filter add dev lo parent 1: protocol ip u32 match ip {matching} {port} 0xffff flowid 1:2",
    ]


@dataclass(frozen=True)
class Narrow:
    """An uplink of so many Mbit/s from home to the edge; there is one at a time."""

    megabits: int

    def lay(self, group: Group, port: int, *, dialled_by: Literal["home", "edge"]) -> int:
        """Narrow loopback for as long as the member "wire" lives; the port stays the same."""
        matching = "dport" if dialled_by == "home" else "sport"
        arguments = [str(port), str(self.megabits), matching]
        group.start("wire", [sys.executable, "-m", "loadtest.scenes.uplink", *arguments], ready="ready", cwd=ROOT)
        return port


class Uplink(Scenario):
    """p99 of a small request; RunError if the uplink was not full all the time."""

    name = "small requests beside a full 20 Mbit/s uplink, p99"
    unit = "ms"
    higher_is_better = False
    setup = Setup(wire=Narrow(20))
    seconds = 20

    def needs(self) -> str:
        """A loopback that may be changed."""
        return "" if os.geteuid() == 0 and alone() else "needs a network namespace of its own (unshare --net, as root)"

    def run(self, target: Target, seconds: float) -> Measurement:
        """Downloads first, then the requests."""
        lasting = SETTLE + seconds + WARMING
        with contextlib.ExitStack() as stack:
            loads = [stack.enter_context(visits(target, "download", seconds=lasting)) for _ in range(DOWNLOADS)]
            time.sleep(SETTLE)
            found = latency(target, rate=RATE, seconds=seconds, channels=CHANNELS)
            if ended := [load for load in loads if not load.running]:
                raise RunError(f"a download ended before its time: {ended[0].answer(seconds=0.0)}")
            volume = sum(load.answer(seconds=lasting)["megabytes_per_second"] for load in loads)
        extra = {"p50 ms": found["p50_ms"], "max ms": found["max_ms"], "generator late by ms": found["sender_ms"],
                 "downloads MB/s": round(volume, 2)}  # fmt: skip
        return Measurement(value=found["p99_ms"], requests=found["requests"], extra=extra)


SCENARIOS = [Uplink()]


def main() -> None:
    """PORT MEGABITS sport|dport: make it narrow, and wide again at SIGTERM."""
    port, megabits, matching = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    if not alone():
        raise SystemExit("this loopback is everybody's")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        for command in commands(port, megabits=megabits, matching=matching):
            subprocess.run(command.split(), check=True, capture_output=True)
        print("ready", flush=True)
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
    finally:
        subprocess.run(["tc", "qdisc", "del", "dev", "lo", "root"], check=False, capture_output=True)
        subprocess.run(f"ip link set dev lo mtu {LOOPBACK_MTU}".split(), check=False)


if __name__ == "__main__":
    main()
