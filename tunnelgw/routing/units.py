"""The units of the public address space: each is held as a whole, by one connector or by those of a group.

A unit is a host on 443, a TCP port, a UDP port, or a host on a TCP port that hosts share. A number can be a TCP port
and a UDP port, of two services and of two connectors: those are two units.
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class HostAt(NamedTuple):
    """A host on a TCP port that the hosts of one protocol share."""

    port: int
    host: str


PortUnit = int | tuple[Literal["udp"], int]  # TCP, or UDP
Unit = str | PortUnit | HostAt  # a host on 443 is its name


def port_unit(kind: str, port: int) -> PortUnit:
    """The unit of a port of a service of this kind."""
    return ("udp", port) if kind == "udp" else port


def port_of(unit: PortUnit | HostAt) -> PortUnit:
    """The port that it is, or is on."""
    return unit.port if isinstance(unit, HostAt) else unit


def port_number(unit: Unit) -> int:
    """The number of its port; 0 for a host on 443."""
    if isinstance(unit, str):
        return 0
    return unit if isinstance(unit, int) else unit.port if isinstance(unit, HostAt) else unit[1]


def host_of(unit: Unit) -> str:
    """Its host; "" for a raw port."""
    return unit if isinstance(unit, str) else unit.host if isinstance(unit, HostAt) else ""


def unit_text(unit: Unit) -> str:
    """A unit for people: "a.example.com", "port 22", "udp port 53", "a.example.com on port 25565"."""
    if isinstance(unit, str):
        return unit
    if isinstance(unit, HostAt):
        return f"{unit.host} on port {unit.port}"
    return f"port {unit}" if isinstance(unit, int) else f"udp port {unit[1]}"
