"""Options of `tunnelgw visit` for a TUN interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.cli.common import say
from tunnelgw.cli.proxies import far_place
from tunnelgw.errors import LocalError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from tunnelgw.visitor.packets import TunWish


def add_tun_options(visit: ArgumentParser) -> None:
    """What `tun_wish` reads, and `--cleanup`."""
    add = visit.add_argument
    add("--tun", action="store_true", help="a network interface for the whole machine (as root; see docs/vpn.md)")
    add("--dns-domain", action="append", metavar="DOMAIN", help="with --tun: ask for these names at home")
    add("--cleanup", action="store_true", help="undo what a --tun that was killed left behind")


def tun_wish(arguments: Namespace) -> TunWish | None:
    """The interface that was asked for; None: none. LocalError (exit 2)."""
    if not arguments.tun:
        if arguments.dns_domain:
            raise LocalError("--dns-domain is for --tun", exit_code=2)
        return None
    from tunnelgw.config.names import Bad, host_name
    from tunnelgw.visitor.packets import TunWish

    kind, place = ("exit", arguments.exit) if arguments.exit else ("via", arguments.via)
    if not place:
        raise LocalError("--tun needs --via CONNECTOR, --exit CONNECTOR or --exit edge", exit_code=2)
    try:
        domains = tuple(host_name(text.strip(".").lower(), wildcard=False) for text in arguments.dns_domain or ())
    except Bad as error:
        raise LocalError(f"--dns-domain: {error}", exit_code=2) from None
    return TunWish(kind, far_place(kind, place), domains)


def cleanup() -> int:
    """What a process that was killed changed on this machine is put back."""
    from tunnelgw.net.loop import run
    from tunnelgw.visitor.device import repair

    for line in run(repair, require_uvloop=False) or ["there is nothing to undo"]:
        say(line)
    return 0
