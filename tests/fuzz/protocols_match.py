"""Matchers of protocols that say a name first: the same answer for every prefix long enough, however it is cut.

The first byte chooses the protocol; a matcher that asks for more after an answer goes on with the rest of the input.
"""

from __future__ import annotations

from tests.fuzz.wire_session import brief
from tunnelgw.errors import RemoteError
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.hostname import normalise
from tunnelgw.routing.matching import Asked, Found, Matcher, Named, Turned
from tunnelgw.routing.protocols import PROTOCOLS

LONGEST = 4096  # of an answer


def read(matcher: Matcher, data: bytes) -> Found | str | None:
    try:
        return matcher.read(data)
    except RemoteError as error:
        brief(error)
        return "refused"


def same(one: Found | str | None, other: Found | str | None) -> bool:
    if isinstance(one, Named) and isinstance(other, Named):
        return (one.host, one.tls) == (other.host, other.tls)
    return one == other


def walk(matcher: Matcher, data: bytes) -> None:
    found = read(matcher, data)
    half = read(matcher, data[: len(data) // 2])
    if isinstance(found, Named):
        assert same(found, read(matcher, data + b"tail")), "what follows does not matter"
        assert found.host == "" or normalise(found.host) == found.host
        for reason in (Reason.NO_ROUTE, Reason.CONNECTOR_AWAY):
            assert len(found.tell(reason)) < LONGEST
    elif isinstance(found, Turned):
        assert 0 < len(found.answer) < LONGEST
    elif isinstance(found, Asked):
        assert found.size == len(data), "nobody says more before the answer"
        assert found.answer
    elif found is None:
        assert matcher.needs(data) > len(data), "a partial beginning never wakes anybody for nothing"
        assert half is None, "what was decided stays decided"
    elif found == "refused":
        assert read(matcher, data + b"tail") == "refused", "what was refused stays refused"
    if half is not None and not isinstance(half, Asked | Turned):
        assert same(half, found)
    for cut in range(1, len(data)):
        asked = read(matcher, data[:cut])
        if isinstance(asked, Asked):
            walk(asked.then, data[cut:])
            return


def one(data: bytes) -> None:
    """One input."""
    if len(data) > 1:
        names = sorted(PROTOCOLS)
        walk(PROTOCOLS[names[data[0] % len(names)]].matcher, data[1:])
