"""Host names: one spelling for each, so that routing, certificates and policy never disagree about a name.

The one spelling: lower case, no trailing dot, A-labels, RFC 1123 labels, at most 253 octets; addresses in canonical
form. What must never break: `normalise` is idempotent, and a name that came through it is safe as a dict key, in a log
line and in another head.
"""

from __future__ import annotations

import ipaddress
import re

MAX_NAME = 253  # RFC 1035 section 2.3.4, without the root label

# The group is not possessive: Python 3.11.2, which Debian 12 has, then skips the test that follows it.
_NAME = re.compile(r"(?:(?!-)[a-z0-9-]{1,63}(?<!-)\.)*(?!-)[a-z0-9-]{1,63}(?<!-)")
# A last label of digits alone would be an IPv4 address to somebody (WHATWG URL: "ends in a number").
_ENDS_IN_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
_AUTHORITY = re.compile(rb"(?:\[([0-9A-Fa-f:.]{2,45})\]|([0-9A-Za-z.-]{1,254}))(?::([1-9][0-9]{0,4}))?")


def normalise(name: str) -> str:
    """The one spelling of a DNS name; `ValueError` for anything else (addresses included)."""
    if not name.isascii():
        raise ValueError("not ASCII; write the name with its A-labels (xn--...)")
    lowered = name[:-1].lower() if name.endswith(".") else name.lower()
    if len(lowered) > MAX_NAME or _NAME.fullmatch(lowered) is None:
        raise ValueError("not a host name")
    if _ENDS_IN_NUMBER.fullmatch(lowered) is not None:
        raise ValueError("a host name must not end in a number")
    return lowered


def normalise_pattern(pattern: str) -> str:
    """As `normalise`, and `*.` may stand before the name."""
    if pattern.startswith("*."):
        return "*." + normalise(pattern[2:])
    return normalise(pattern)


def to_ascii(name: str) -> str:
    """The one spelling of a name or wildcard that a person wrote, perhaps in Unicode; `ValueError` if it has none."""
    wildcard, rest = ("*.", name[2:]) if name.startswith("*.") else ("", name)
    if not rest.isascii():
        try:
            rest = rest.encode("idna").decode("ascii")
        except UnicodeError:
            raise ValueError("not a host name") from None
    return wildcard + normalise(rest)


def matches(pattern: str, name: str) -> bool:
    """Whether a normalised pattern covers a normalised name; `*.` stands for exactly one label."""
    if pattern.startswith("*."):
        label, dot, parent = name.partition(".")
        return bool(label) and bool(dot) and label != "*" and parent == pattern[2:]
    return pattern == name


def wildcard_of(name: str) -> str:
    """The only wildcard that covers this name, "" for a single label."""
    _, dot, parent = name.partition(".")
    return "*." + parent if dot else ""


def normalise_address(text: str) -> str:
    """The canonical form of an IPv4 or IPv6 address without brackets or zone; `ValueError` for anything else."""
    if "%" in text:
        raise ValueError("a zone means nothing here")
    return str(ipaddress.ip_address(text))


def is_address(text: str) -> bool:
    """Whether this is an IPv4 or IPv6 address."""
    try:
        normalise_address(text)
    except ValueError:
        return False
    return True


def split_authority(authority: bytes) -> tuple[str, int]:
    """(host in its one spelling, port or 0) of a Host field or `:authority`; `ValueError` for anything doubtful.

    An address is a valid host (IPv6 comes out without brackets); it simply has no route.
    """
    found = _AUTHORITY.fullmatch(authority)
    if found is None:
        raise ValueError("not host[:port]")
    bracketed, name, digits = found.groups()
    port = int(digits) if digits else 0
    if port > 65535:
        raise ValueError("the port is above 65535")
    if bracketed is not None:
        return str(ipaddress.IPv6Address(bracketed.decode("ascii"))), port
    text = name.decode("ascii")
    try:
        return normalise(text), port
    except ValueError:
        return str(ipaddress.IPv4Address(text)), port
