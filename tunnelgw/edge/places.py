"""The names of what an offer takes: in the registry of claims, in metrics, between processes, and for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnelgw.access.grants import port_text, ranges_of
from tunnelgw.routing.units import HostAt, port_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunnelgw.routing.units import PortUnit

RANGES_TOLD = 16  # in one text: who has more of them is not read to the end


def host_key(host: str, path: str) -> str:
    """The claim of a host and path."""
    return f"host:{host}{path}"


def port_key(unit: PortUnit | HostAt, protocol: str) -> str:
    """The claim of a port, raw or by a host for this protocol. (`port:` is TCP, and older than UDP.)"""
    if isinstance(unit, HostAt):
        return f"name:{unit.port}:{protocol}:{unit.host}"
    return f"port:{unit}" if isinstance(unit, int) else f"udp:{unit[1]}"


def port_name(port: PortUnit) -> str:
    """A port between processes: "22", "udp:53"."""
    return str(port) if isinstance(port, int) else f"udp:{port[1]}"


def port_named(name: str) -> PortUnit:
    """The port of such a name. ValueError."""
    return ("udp", int(name[4:])) if name.startswith("udp:") else int(name)


def port_label(unit: PortUnit | HostAt) -> str:
    """What it is in metrics: "tcp:22", "udp:53", "tcp:25565/a.example.com"."""
    if isinstance(unit, HostAt):
        return f"tcp:{unit.port}/{unit.host}"
    return f"tcp:{unit}" if isinstance(unit, int) else f"udp:{unit[1]}"


def ports_text(ports: Sequence[PortUnit]) -> str:
    """Some ports of one transport for people, neighbours as a range: "udp port 53, 60-70"."""
    udp = "" if isinstance(ports[0], int) else "udp "
    ranges = ranges_of(map(port_number, ports))
    more = f" and {len(ranges) - RANGES_TOLD} more" if len(ranges) > RANGES_TOLD else ""
    return f"{udp}port {', '.join(map(port_text, ranges[:RANGES_TOLD]))}{more}"


def port_addresses(edge: str, ports: Sequence[PortUnit]) -> list[str]:
    """The public addresses of some ports of one transport, neighbours as a range: "udp://edge.example.com:60-70"."""
    scheme = "tcp" if not ports or isinstance(ports[0], int) else "udp"
    return [f"{scheme}://{edge}:{port_text(found)}" for found in ranges_of(map(port_number, ports))]


def name_address(name: HostAt, protocol: str) -> str:
    """The public address of a host on a port that is for one protocol."""
    return f"{protocol}://{name.host}:{name.port}"
