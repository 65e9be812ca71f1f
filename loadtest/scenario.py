"""What contenders, scenarios and the bench agree on.

A contender (loadtest/contenders/) is started for a `Setup` and is then a `Target`. A scenario (loadtest/scenes/) asks
for a setup, puts a load on a target and returns a `Measurement`. The bench starts targets, takes turns, and reads CPU
time and peak memory of each of a target's parts from /proc around `run`: a scenario measures nothing of that kind
itself unless it wants more than that (memory of each of many idle visitors, for example: `Target.memory`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from loadtest.processes import Group

HOST = "bench.example.com"
ADDRESS = "127.0.0.1"


class Kind(StrEnum):
    """The job that a contender does for a scenario."""

    WEB = "web"  # TLS ends at the front, plain HTTP to nginx at home
    TCP = "tcp"  # a port whose bytes go to nginx's plain port at home, encrypted between edge and home
    PASS = "pass-through"  # TLS ends in nginx at home; the front sees the name alone
    UDP = "udp"  # a port whose datagrams go to a UDP port at home
    TUN = "tun"  # an interface at the visitor's; its packets leave into home's network. In namespaces: scenes/tun.py


class Wire(Protocol):
    """What lies between edge and home: a relay with delay, a narrow uplink. A frozen dataclass, so that it compares."""

    def lay(self, group: Group, port: int, *, dialled_by: Literal["home", "edge"]) -> int:
        """Start a relay to 127.0.0.1:`port` as a member "wire" of the group; returns the relay's port.

        dialled_by: who connects to it. What home sends travels from the relay's accepted side to `port` where home
        dials, and the other way where the edge does (as with two proxies, of which the one at home must be reachable).
        """
        ...


class Home(Protocol):
    """A service at home that is not nginx. A frozen dataclass, so that it compares."""

    def start(self, group: Group) -> int:
        """Start it as a member of the group, one for all contenders; returns its port on 127.0.0.1."""
        ...


@dataclass(frozen=True)
class Setup:
    """How contenders are started. Scenarios with equal setups share started contenders."""

    kind: Kind = Kind.WEB
    workers: int = 1  # processes of the edge, where a contender has such a number
    wire: Wire | None = None
    home: Home | None = None  # None: nginx, plain for WEB and TCP, with TLS for PASS; UDP needs one, TUN none


@dataclass
class Target:
    """A started contender."""

    contender: str
    setup: Setup
    port: int  # on 127.0.0.1; the visitor's side
    certificate: Path  # what the front (PASS: home) shows for HOST, and the only thing to trust
    folder: Path  # of its own, with configuration and logs
    group: Group  # its processes; a wire is the member "wire"
    parts: tuple[str, ...]  # the members that are the contender, edge first; the others are not counted

    def pids(self) -> dict[str, list[int]]:
        """The live processes of each part, children included."""
        return {part: self.group.pids(part) for part in self.parts if part in self.group.members}

    def memory(self) -> int:
        """Resident bytes of all parts now."""
        return sum(self.group.memory(part) for part in self.pids())

    def died(self) -> bool:
        """Whether a process ended that nobody stopped."""
        return any(process.poll() is not None for process in self.group.members.values())

    def stop(self, *parts: str) -> None:
        """End these parts (all of them) and keep their configuration."""
        for part in reversed(parts or self.parts):
            self.group.end(part)

    def start(self, *parts: str) -> None:
        """Start stopped parts (all of them) again, edge first, each waited for until it serves or has its tunnel."""
        for part in parts or self.parts:
            self.group.again(part)


@dataclass
class Measurement:
    """What one run gave."""

    value: float  # in the scenario's unit
    requests: float = 0  # answered while `run` lasted, warming up included; 0: requests are not its measure
    bytes: float = 0  # of bodies, likewise
    extra: dict[str, float] = field(default_factory=dict)  # {"p99 ms": 3.1}: further figures, units in their names


class Scenario:
    """One kind of load. Subclass it; attributes may be set by instance or class."""

    name: str
    unit: str  # "req/s", "MB/s", "ms", ...
    higher_is_better: bool = True
    setup: Setup = Setup()
    fresh: bool = False  # contenders are started anew before each run
    http2: bool = False  # visitors speak HTTP/2
    quick: bool = False  # a part of `--quick`
    long: bool = False  # takes minutes: run only where `--only` names it
    seconds: float = 0  # of one run; 0: what the bench is told
    rounds: int = 0  # likewise

    def needs(self) -> str:
        """Why it cannot run on this machine; "" if it can."""
        return ""

    def refuses(self, contender: str) -> str:
        """Why this contender has no figure here though it does the setup's kind of job; "" if it has."""
        return ""

    def run(self, target: Target, seconds: float) -> Measurement:
        """Load `target` for about `seconds`. Raises `RunError` where an answer was wrong or missing."""
        raise NotImplementedError


class RunError(RuntimeError):
    """A run that does not count: somebody was not answered, or wrongly. Its text is shown in the table."""
