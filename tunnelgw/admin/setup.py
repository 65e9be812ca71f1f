"""Making an edge: its state with the authorities, and what its operator has to do next.

Invariant: state that exists is never made anew; a new key would cut off every connector that trusts the old one.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING

from tunnelgw.admin.restore import finish
from tunnelgw.errors import LocalError
from tunnelgw.identity.ca import Authorities
from tunnelgw.store.sqlite import FILE_NAME, SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

# Documentation addresses: connecting a UDP socket to one sends nothing, and tells which address we would send from.
_SOMEWHERE = ((socket.AF_INET, "192.0.2.1", "A"), (socket.AF_INET6, "2001:db8::1", "AAAA"))


def state_exists(state_dir: Path) -> bool:
    """True if an edge was made here before."""
    return (state_dir / FILE_NAME).exists()


def create_state(state_dir: Path) -> None:
    """The store with both authorities and the edge's certificate. LocalError (exit 2) if there is one already."""
    if state_exists(state_dir):
        raise LocalError(f"{state_dir} holds the state of an edge already; name another --state-dir", exit_code=2)
    store = SqliteStore(state_dir / FILE_NAME)
    try:
        authorities = Authorities(store)
        authorities.edge()
        authorities.visitors()
    finally:
        store.close()


def open_state(state_dir: Path) -> SqliteStore:
    """The store of an edge that exists, after a restore that was interrupted. LocalError if there is none."""
    finish(state_dir)
    if not state_exists(state_dir):
        raise LocalError(f"{state_dir} holds no state of an edge; make one with: tunnelgw edge init --domain DOMAIN")
    return SqliteStore(state_dir / FILE_NAME)


def dns_records(domain: str, host: str) -> list[str]:
    """The records that lead visitors and connectors here, one a line, columns aligned; `host` may be an address."""
    names = [f"*.{domain}", domain]
    addresses = {kind: _own_address(family, probe) for family, probe, kind in _SOMEWHERE}
    try:
        given = ipaddress.ip_address(host)
    except ValueError:
        names = list(dict.fromkeys((host, *names)))
    else:
        addresses = {"A" if given.version == 4 else "AAAA": str(given)}
    width = max(len(name) for name in names) + 2
    lines = [
        f"{name + '.':{width}}{kind:5} {address or '<IPv4 address of this machine>'}"
        for name in names
        for kind, address in addresses.items()
        if address or kind == "A"
    ]
    if not addresses.get("AAAA"):
        lines.append(f"{'':{width}}{'AAAA':5} for the same names, if this machine has an IPv6 address")
    return lines


def has_ipv6() -> bool:
    """Does the kernel make IPv6 sockets?"""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


def _own_address(family: int, probe: str) -> str:
    """This machine's public address of that family; empty if it has none (or sits behind the provider's NAT)."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((probe, 9))
            address = str(sock.getsockname()[0])
    except OSError:
        return ""
    return address if ipaddress.ip_address(address).is_global else ""
