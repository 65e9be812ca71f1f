"""What a matcher can find at the beginning of a connection, for protocols that say a host name before anything else.

A matcher is pure: it is given the bytes that were peeked at so far, always from the first one on, and answers with one
of the findings below, with None where more bytes are needed, or raises `RemoteError`. It never takes a byte; where a
protocol makes the visitor wait for an answer before it says the name, the finding (`Asked`) says what to take and what
to answer, and the next matcher starts at the byte after it.
What must never break: a name that comes out is a valid host name in its one spelling, or "".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunnelgw.routing.hostname import normalise

if TYPE_CHECKING:
    from tunnelgw.obs.reasons import Reason

Tell = Callable[["Reason"], bytes]  # a reason in the visitor's own protocol; b"" where it has no words for it


@dataclass(frozen=True, slots=True)
class Named:
    """The visitor wants this host.

    host: "" where the name it said is none. tell: says why it is not served. tls: a ClientHello begins at the first
    byte, so TLS may end at the edge; inside: as `tell`, within that TLS.
    """

    host: str
    tell: Tell
    tls: bool = False
    inside: Tell | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """The visitor waits for `answer` to its first `size` bytes, and says more after it, which `then` looks at."""

    size: int
    answer: bytes
    then: Matcher


@dataclass(frozen=True, slots=True)
class Turned:
    """The visitor is well-formed and cannot be served: say `answer` and close."""

    answer: bytes
    reason: Reason


@dataclass(frozen=True, slots=True)
class Nameless:
    """The protocol has no name here: only where one service has the port alone it is known who is meant."""


Found = Named | Asked | Turned | Nameless


@dataclass(frozen=True, slots=True)
class Matcher:
    """read: as described above. needs: how many bytes in all are worth another look, after `read` answered None."""

    read: Callable[[bytes], Found | None]
    needs: Callable[[bytes], int]


def one_more(data: bytes) -> int:
    """`Matcher.needs` where nothing better is known."""
    return len(data) + 1


def name_or_none(text: str) -> str:
    """The one spelling of a host name that a visitor sent, or ""."""
    try:
        return normalise(text)
    except ValueError:
        return ""
