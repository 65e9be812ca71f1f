"""The small values of both files: host names, endpoints, networks, ports, paths and service names.

Each parser takes what the file holds and returns the normal form, or raises `Bad` with one sentence that says what is
wrong and what to write instead. Invariant: nothing but `Bad` comes out, whatever the value.
"""

from __future__ import annotations

import ipaddress
import re

from tunnelgw.access.reach import parse_rule
from tunnelgw.config.model import Endpoint, PortRange

_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")
# Container and machine names hold underscores; a visitor's host name may not.
_MACHINE = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_-]{1,63})*")
_PORTS = re.compile(r"([0-9]{1,5})(?:\s*-\s*([0-9]{1,5}))?")


# Top-level labels that no public server signs: RFC 6761, 6762, 7686, 8375, and what home routers hand out.
_PRIVATE = frozenset({
    "localhost", "local", "test", "invalid", "example", "onion", "internal", "lan", "home", "corp", "intranet",
    "private", "arpa", "localdomain",
})  # fmt: skip


class Bad(ValueError):  # noqa: N818 - reads as "raise Bad(...)"
    """A value that cannot be used; the text is for the operator."""


def service_name(name: str) -> str:
    """A DNS label in lower case."""
    if _LABEL.fullmatch(name):
        return name
    raise Bad(f'"{printable(name)}" is not a service name: lower-case letters, digits and hyphens, at most 63')


def host_name(value: str, *, wildcard: bool) -> str:
    """A visitor's host name in lower case, without the final dot; `*.` in front only where `wildcard`."""
    name = value.strip().lower().removesuffix(".")
    shown = printable(value)
    if not name.isascii():
        raise Bad(f'"{shown}" has letters outside ASCII{_a_label(name)}')
    if "://" in name or "/" in name:
        raise Bad(f'"{shown}" is not a host name: leave out the scheme, and write a path as path = "/..."')
    if is_address(name.strip("[]")):
        raise Bad(f'"{shown}" is an address; a host must be a name')
    if ":" in name:
        raise Bad(f'"{shown}" is not a host name: leave out the port')
    rest = name.removeprefix("*.")
    if rest != name and not wildcard:
        raise Bad(f'"{shown}" has a wildcard, which is not possible here')
    if "*" in rest:
        raise Bad(f'"{shown}": a wildcard stands for the first label only, as in "*.example.com"')
    labels = rest.split(".")
    if len(rest) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise Bad(f'"{shown}" is not a host name: labels of letters, digits and hyphens, joined by dots')
    if labels[-1].isdigit():
        raise Bad(f'"{shown}" is not a host name: its last label is a number')
    if rest != name and len(labels) < 2:
        raise Bad(f'"{shown}" would cover a whole top-level domain')
    return name


def is_private(name: str) -> bool:
    """Whether a host name or wildcard means something on private networks only, so that no public issuer signs it."""
    labels = name.removeprefix("*.").split(".")
    return len(labels) < 2 or labels[-1] in _PRIVATE


def _a_label(name: str) -> str:
    """The hint that gives the A-label form, if there is one."""
    try:
        return f'; write it as "{name.encode("idna").decode()}"'
    except UnicodeError:
        return ""


def is_address(text: str) -> bool:
    """True for an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def machine(text: str) -> str:
    """A host that we dial or listen on: an address (brackets removed) or a name, lower case."""
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if is_address(inner):
        return str(ipaddress.ip_address(inner))
    if ":" in inner:
        raise Bad(f'"{printable(text)}" is not an IPv6 address')
    name = inner.lower().removesuffix(".")
    if re.fullmatch(r"(0x[0-9a-f]+|[0-9]+)(\.(0x[0-9a-f]+|[0-9]+))*", name):
        # inet_aton() reads 2852039166 or 0xa9.0xfe.0xa9.0xfe as an address: an odd spelling is never meant well.
        raise Bad(f'"{printable(text)}" is not an address: write all four decimal numbers')
    if not _MACHINE.fullmatch(name):
        raise Bad(f'"{printable(text)}" is neither a host name nor an address')
    return name


def port_number(text: str, *, zero: bool = False) -> int:
    """1 to 65535, or from 0 where `zero`."""
    if not re.fullmatch(r"[0-9]{1,5}", text) or not (0 if zero else 1) <= int(text) <= 65535:
        raise Bad(f'"{printable(text)}" is not a port: a number from {0 if zero else 1} to 65535')
    return int(text)


def split_endpoint(text: str) -> tuple[str, str]:
    """Host (brackets removed) and port text, which is empty where there is none."""
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise Bad(f'"{printable(text)}" is not "[IPv6 address]:port"')
        if not is_address(host) or ":" not in host:
            raise Bad(f'"{printable(text)}": there is no IPv6 address between the brackets')
        return host, rest[1:]
    if text.count(":") > 1:
        raise Bad(f'"{printable(text)}": write an IPv6 address in brackets, as in "[::1]:443"')
    host, _, port = text.partition(":")
    return host, port


def endpoint(value: str, *, default_port: int | None = None, listening: bool = False) -> Endpoint:
    """`host:port`; the port may be left out where there is a default, and be 0 where we listen."""
    text = value.strip()
    if "://" in text:
        raise Bad(f'"{printable(value)}": leave out the scheme, write host:port')
    host, port = split_endpoint(text)
    if not host:
        raise Bad(f'"{printable(value)}" names no host; write host:port')
    if not port and host.isdigit():
        raise Bad(f'"{printable(value)}" names no host; write host:{printable(host)}')
    if not port:
        if default_port is None or text.endswith(":"):
            raise Bad(f'"{printable(value)}" names no port; write "{Endpoint(machine(host), default_port or 443)}"')
        return Endpoint(machine(host), default_port)
    return Endpoint(machine(host), port_number(port, zero=listening))


def network(value: str) -> str:
    """A network in normal form; an address is a network of one."""
    try:
        return str(ipaddress.ip_network(value.strip()))
    except ValueError:
        pass
    try:
        wide = ipaddress.ip_network(value.strip(), strict=False)
    except ValueError:
        raise Bad(f'"{printable(value)}" is not a network; write for example "192.168.1.0/24"') from None
    raise Bad(f'"{printable(value)}" has bits behind its mask; write "{wide}"')


def reach_rule(value: str) -> str:
    """A network, ports of one (`192.168.1.5:22`), or ports alone, in normal form."""
    try:
        return str(parse_rule(value))
    except ValueError as error:
        raise Bad(printable(str(error))) from None


def reach_network(value: str) -> str:
    """As `reach_rule`, and a network is named."""
    rule = reach_rule(value)
    if rule.startswith(":") and "::" not in rule:
        raise Bad(f'"{printable(value)}" names no network; write for example "192.168.1.0/24{rule}"')
    return rule


def port_range(value: int | str) -> PortRange:
    """`2222`, `"2222"` or `"30000-30100"`."""
    found = _PORTS.fullmatch(str(value).strip())
    if not found:
        raise Bad(f'"{printable(str(value))}" is not a port: write 2222, or "30000-30100" for a range')
    first, last = port_number(found[1]), port_number(found[2] or found[1])
    if last < first:
        raise Bad(f'"{printable(str(value))}" ends before it begins')
    return PortRange(first, last)


def path_prefix(value: str) -> str:
    """A path of a route: begins with "/", no dot segments, no query; a final "/" is removed."""
    shown = printable(value)
    if not value.startswith("/"):
        raise Bad(f'"{shown}" must begin with "/"')
    if not re.fullmatch(r"[A-Za-z0-9/._~!$&'()*+,;=:@%-]*", value):
        raise Bad(f'"{shown}" has a character that is not possible in a path; escape it as %XX, leave out ? and #')
    if re.search(r"%(?![0-9A-Fa-f]{2})", value):
        raise Bad(f'"{shown}" has a "%" without two hex digits')
    if re.search(r"%(2[eEfF]|5[cC]|00)", value):
        raise Bad(f'"{shown}" must not escape ".", "/", "\\" or NUL')
    if "//" in value:
        raise Bad(f'"{shown}" has an empty segment')
    if any(segment in (".", "..") for segment in value.split("/")):
        raise Bad(f'"{shown}" has a "." or ".." segment')
    return value.rstrip("/") or "/"


def printable(text: str) -> str:
    """For messages: control characters shown as escapes, and not endless."""
    cut = text if len(text) <= 100 else text[:100] + "..."
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in cut)
