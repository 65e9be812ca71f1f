"""What can go wrong, one function each: `fault(lab)` makes it happen, and ends it where it has an end.

A function returns when the fault is over as far as the world outside goes: the router has power again, the process was
started again and serves. Whether tunnelgw got over it is the business of whoever called.

`FAULTS` names them with what a visitor may notice, for the soak and for people.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.lab.network import DIRECT6

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tests.lab.lab import Lab

MTU = 1280  # less than any path should have: a tunnel in a tunnel
BLACK_HOLE_SECONDS = 8.0


def pause(seconds: float) -> None:
    """How long a fault lasts; not a wait for anything."""
    threading.Event().wait(seconds)


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


def connector_sleeps(lab: Lab, *, seconds: float = 12.0) -> None:
    """The machine at home sleeps (SIGSTOP), and wakes."""
    lab.connector.pause()
    pause(seconds)
    lab.connector.go_on()


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


@dataclass(frozen=True, slots=True)
class Fault:
    """`breaks`: what visitors may notice.

    "": nothing. "streams": what was under way is cut. "edge": connections are cut, and refused until it is over. "old":
    nothing, but what was under way is carried by an old process from then on, whose tunnels do not resume.
    """

    happen: Callable[[Lab], None]
    breaks: str = ""
    weight: int = 2  # how often the soak takes it, beside others

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
        Fault(router_reboots),
        Fault(edge_moves),
        Fault(mtu_black_hole, weight=1),
        Fault(ipv6_breaks, weight=1),
        Fault(connector_sleeps, weight=1),
        Fault(connector_restarts, "streams"),
        Fault(connector_dies, "streams"),
        Fault(edge_restarts, "edge", weight=1),
        Fault(edge_dies, "edge", weight=1),
        Fault(edge_upgrades, "old", weight=1),
    )
}


def choose(dice: random.Random) -> Fault:
    """One of them."""
    known = list(FAULTS.values())
    return dice.choices(known, [fault.weight for fault in known])[0]
