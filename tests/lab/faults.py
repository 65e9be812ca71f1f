"""What can go wrong, one function each: `fault(lab)` makes it happen, and ends it where it has an end.

A function returns when the fault is over as far as the world outside goes: the router has power again, the process was
started again and serves. Whether tunnelgw got over it is the business of whoever called. `meanwhile` is called while it
lasts, for a look.

`FAULTS` names them with what a visitor may notice, for the soak and for people.
"""

from __future__ import annotations

import os
import re
import resource
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.lab.lab import HOME_WEB, WEB_NAME
from tests.lab.network import DIRECT6
from tests.lab.programs import now
from tests.system.harness import wait_until

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.lab.lab import Lab
    from tests.lab.programs import Program

MTU = 1280  # less than any path should have: a tunnel in a tunnel
BLACK_HOLE_SECONDS = 8.0
CLOCK_SECONDS = 1.5  # in which each process has noticed a clock that moved, and made what is due
LONG_SLEEP_SECONDS = 90.0  # longer than requests are parked (20 s), shorter than a tunnel is kept (120 s)
# `response_seconds` of a service whose slowness is to be told, beside all other faults: longer than a dead link goes
# unnoticed, or a request that waits for the link would be told of the service.
LATE_SECONDS = 10.0
WEB = f"https://{WEB_NAME}/"


def pause(seconds: float) -> None:
    """How long a fault lasts; not a wait for anything."""
    threading.Event().wait(seconds)


def nothing() -> None:
    """To do meanwhile."""


# Links.


def link_reset(lab: Lab) -> None:
    """RST to both sides."""
    lab.relay.reset()


def link_frozen(lab: Lab) -> None:
    """Nothing passes any more, in silence."""
    lab.relay.freeze()


def link_stalls(lab: Lab, *, seconds: float = 2.0) -> None:
    """Nothing passes for a while, then everything: loss, as TCP shows it."""
    lab.relay.stall(seconds)
    pause(seconds)


def half_close_home(lab: Lab) -> None:
    """A middlebox sends a FIN to home; the other direction goes on."""
    lab.relay.half_close("near")


def half_close_edge(lab: Lab) -> None:
    """A middlebox sends a FIN to the edge; the other direction goes on."""
    lab.relay.half_close("far")


def bytewise(lab: Lab, *, seconds: float = 3.0) -> None:
    """Every byte in a packet of its own for a while."""
    lab.relay.bytewise(seconds)
    pause(seconds)


def carrier_forgets(lab: Lab) -> None:
    """The CGNAT loses its mappings, and drops in silence what belonged to them."""
    lab.net.forget("carrier")


def router_forgets(lab: Lab) -> None:
    """The NAT at home loses its mappings."""
    lab.net.forget("router")


def address_changes(lab: Lab) -> None:
    """Home gets another public address."""
    lab.net.change_public_address()


def router_reboots(lab: Lab, *, seconds: float = 10.0) -> None:
    """No power for a while; then all mappings are gone."""
    lab.net.power_off("router")
    pause(seconds)
    lab.net.power_on("router")


def edge_moves(lab: Lab) -> None:
    """The edge's address changes behind its DNS name."""
    lab.move_edge()


def mtu_black_hole(lab: Lab, *, seconds: float = BLACK_HOLE_SECONDS) -> None:
    """Large packets vanish on the way, both ways, and no ICMP tells."""
    lab.net.shrink(MTU)
    pause(seconds)
    lab.net.grow()


def ipv6_breaks(lab: Lab, *, seconds: float = 6.0) -> None:
    """The edge gets an IPv6 address, over which nothing passes a while later; IPv4 is fine. Then it is back."""
    lab.name_edge(DIRECT6, lab.at["direct"])
    lab.net.forget("carrier")
    pause(seconds)
    lab.net.drop("carrier", "forward", "meta nfproto ipv6")
    pause(seconds)
    lab.net.heal("carrier")
    lab.name_edge()
    lab.net.forget("carrier")  # or the tunnel would stay where it went meanwhile


# Processes.


def connector_restarts(lab: Lab, *, away: float = 0.0) -> None:
    """SIGTERM, and a start."""
    lab.connector.stop()
    pause(away)
    lab.connector.start()


def connector_dies(lab: Lab, *, away: float = 1.0) -> None:
    """SIGKILL, and a start."""
    lab.connector.kill()
    pause(away)
    lab.connector.start()


def connector_sleeps(lab: Lab, *, seconds: float = 12.0, meanwhile: Callable[[], None] = nothing) -> None:
    """The machine at home sleeps (SIGSTOP), and wakes."""
    wakes = now() + seconds
    lab.connector.pause()
    try:
        meanwhile()
        pause(wakes - now())
    finally:
        lab.connector.go_on()


def connector_sleeps_long(lab: Lab) -> None:
    """The machine at home sleeps for longer than requests are parked."""
    connector_sleeps(lab, seconds=LONG_SLEEP_SECONDS)


def other_restarts(lab: Lab) -> None:
    """SIGTERM of the other connector of a group (`Lab.group`), and a start."""
    assert lab.group, "no other connector"
    lab.other.stop()
    lab.other.start()


def other_dies(lab: Lab, *, away: float = 1.0) -> None:
    """SIGKILL of the other connector of a group (`Lab.group`), and a start."""
    assert lab.group, "no other connector"
    lab.other.kill()
    pause(away)
    lab.other.start()


def edge_restarts(lab: Lab, *, away: float = 0.0) -> None:
    """SIGTERM, and a start."""
    lab.edge.stop()
    pause(away)
    lab.edge.start()


def edge_dies(lab: Lab, *, away: float = 1.0) -> None:
    """SIGKILL, and a start."""
    lab.edge.kill()
    pause(away)
    lab.edge.start()


def edge_upgrades(lab: Lab) -> None:
    """A new process takes over; the old one ends what it has in progress."""
    lab.edge.start(arguments=("--upgrade",))


# The service at home.


def service_down(lab: Lab, *, seconds: float = 1.0, meanwhile: Callable[[], None] = nothing) -> None:
    """SIGKILL of the local service, and a start."""
    lab.service.kill()
    meanwhile()
    pause(seconds)
    lab.service.start()


def service_slow(lab: Lab, *, seconds: float = LATE_SECONDS + 2, meanwhile: Callable[[], None] = nothing) -> None:
    """The local service answers nobody for a while (SIGSTOP)."""
    lab.service.pause()
    try:
        meanwhile()
        pause(seconds)
    finally:
        lab.service.go_on()


def service_resets(lab: Lab, *, seconds: float = 2.0, meanwhile: Callable[[], None] = nothing) -> None:
    """RST for whatever is sent to the local service, on connections that are there and on new ones."""
    lab.net.drop("home", "input", f"tcp dport {HOME_WEB}", how="reject with tcp reset")
    try:
        meanwhile()
        pause(seconds)
    finally:
        lab.net.heal("home")


# Nothing left.


def fill(path: Path) -> None:
    """To the last byte of its file system."""
    for size in (65536, 16):
        with path.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(size))


def disks_full(lab: Lab, *, seconds: float = 1.0, meanwhile: Callable[[], None] = nothing) -> None:
    """Not a byte is left under the states of edge and connector (`Lab.state_mb`), and changes are refused."""
    assert lab.state_mb, "no file systems of their own"
    fillers = [state / "filler" for state in (lab.edge_state, lab.home_state)]

    def refused() -> bool:
        done = lab.exec("vps", *lab.edge_command("invite", "name"), check=False)
        assert not done.returncode or "the disk is full" in done.stderr, done.stderr
        return bool(done.returncode)

    try:
        for filler in fillers:
            fill(filler)
        wait_until(refused, seconds=40, what="the space that the store has in reserve is used up")
        meanwhile()
        pause(seconds)
    finally:
        for filler in fillers:
            filler.unlink()
    wait_until(lambda: lab.metric("tunnelgw_state_failing") == 0, seconds=30, what="the edge notices")


@contextmanager
def exhausted(program: Program) -> Iterator[Callable[[], None]]:
    """Not one more descriptor for this program's processes, beyond those that they have.

    To be called again when some were given back meanwhile, which would be free to take.
    """
    before: dict[int, tuple[int, int]] = {}

    def tighten() -> None:
        for pid in program.pids():
            with suppress(ProcessLookupError, FileNotFoundError):  # a child that signs ends by itself
                taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
                before.setdefault(pid, resource.prlimit(pid, resource.RLIMIT_NOFILE))
                limit = min(set(range(len(taken) + 1)) - taken)
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[pid][1]))

    try:
        tighten()
        yield tighten
    finally:
        for pid, limits in before.items():
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def edge_without_descriptors(lab: Lab, *, seconds: float = 2.0) -> None:
    """The edge cannot open anything more for a while."""
    with exhausted(lab.edge) as tighten:

        def turned_away() -> bool:
            tighten()
            return bool(lab.curl(WEB, check=False, seconds=5).returncode)

        wait_until(turned_away, seconds=40, what="one is turned away")
        pause(seconds)


def connector_without_descriptors(lab: Lab, *, seconds: float = 2.0) -> None:
    """The connector cannot open anything more for a while; it has a link."""
    wait_until(lambda: lab.code(WEB, check=False) == 200, seconds=60, what="home is there")
    with exhausted(lab.connector) as tighten:

        def told() -> bool:
            """By ssh: a request may go on a connection to the service that is kept, and be answered."""
            tighten()
            return bool(lab.ssh("true", check=False).returncode)

        wait_until(told, seconds=40, what="one whose connection to its service would be new is told")
        pause(seconds)


# The clock.


def clocks_jump(lab: Lab, *, days: int = 365, meanwhile: Callable[[], None] = nothing) -> None:
    """By a year, of edge and connector (`Lab.clock`), and back; each time the link is cut, and a new one is made."""
    assert lab.clock is not None, "no clock to move"

    def lived_by() -> bool:
        """What the edge says by itself has a date of its own."""
        said = re.search(r"(?i)\ndate: .* (\d{4}) ", lab.curl(f"http://{WEB_NAME}/", "-i").stdout)
        return said is not None and said[1] in {date[:4] for date in lab.clock.dates()}

    for step, look in ((days, meanwhile), (-days, nothing)):
        lab.clock.move(step)
        wait_until(lived_by, what="the edge lives by the other clock")
        wait_until(lambda: lab.relay.reset() >= 2, what="a link to cut")
        # What is due by this clock is made before it moves again: a process that begins reads it at once, others late.
        pause(CLOCK_SECONDS)
        wait_until(lambda: all(one["state"] == "up" for one in lab.status()["connectors"]), seconds=60, what="all up")
        look()


@dataclass(frozen=True, slots=True)
class Fault:
    """`breaks`: what visitors may notice, which verdict.py reads strictly.

    "": nothing.
    "old": nothing, but what was under way is carried by an old process from then on, whose tunnels do not resume.
    "sessions": what lasts is cut.
    "streams": what was under way is cut, or told.
    "edge": connections are cut, and refused until it is over.
    "away": requests that waited too long are told, and a POST on a kept connection whose service hung up meanwhile.
    "service": requests of the web service are told or cut, until it is over.
    "late": they are told that it did not answer in time.
    "connections": new ones are turned away.
    "targets": requests that need a new connection to their service are told.
    """

    happen: Callable[..., None]  # of a lab
    breaks: str = ""
    weight: int = 2  # how often the soak takes it, beside others
    seconds: float = 5.0  # it takes about as long: the soak begins none that it has no time for
    link: bool = True  # it may cost the link

    @property
    def name(self) -> str:
        return self.happen.__name__


FAULTS = {
    fault.name: fault
    for fault in (
        Fault(link_reset, weight=4),
        Fault(link_frozen, weight=3),
        Fault(link_stalls),
        Fault(half_close_home),
        Fault(half_close_edge),
        Fault(bytewise),
        Fault(carrier_forgets),
        Fault(router_forgets),
        Fault(address_changes),
        Fault(router_reboots, seconds=11),
        Fault(edge_moves),
        Fault(mtu_black_hole, weight=1, seconds=9),
        Fault(ipv6_breaks, weight=1, seconds=13),
        Fault(connector_sleeps, weight=1, seconds=13),
        Fault(connector_sleeps_long, "away", weight=1, seconds=LONG_SLEEP_SECONDS + 1),
        Fault(connector_restarts, "sessions", seconds=12),
        Fault(connector_dies, "streams"),
        Fault(other_restarts, weight=1),
        Fault(other_dies),
        Fault(service_down, "service", link=False),
        Fault(service_slow, "late", weight=1, link=False, seconds=13),
        Fault(service_resets, "service", link=False),
        Fault(disks_full, link=False),
        Fault(edge_without_descriptors, "connections", link=False),
        Fault(connector_without_descriptors, "targets", link=False),
        Fault(clocks_jump, seconds=10),
        Fault(edge_restarts, "edge", weight=1, seconds=13),
        Fault(edge_dies, "edge", weight=1),
        Fault(edge_upgrades, "old", weight=1),
    )
}


def choose(dice: random.Random) -> Fault:
    """One of them."""
    known = list(FAULTS.values())
    return dice.choices(known, [fault.weight for fault in known])[0]
