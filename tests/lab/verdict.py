"""Which fault explains a failure: as few as can be, for what nobody explains is a fault of the product.

`RULES` says of each word of `Fault.breaks` what it covers. A failure is one of tally.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.lab.faults import LATE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tests.lab.faults import Fault

SESSIONS = ("websocket", "ticks", "ssh")  # their messages go with their connection
TRANSFERS = ("download", "upload")  # their answer, or their body, is under way for long
REQUESTS = ("h1", "h2", "kept", *TRANSFERS)  # of the service "web"
LATEST = 10.0  # after the end of a fault: what it broke has been noticed by then
GRACE = 1.0  # a fault happens a moment after we say so, and its end is seen a moment later
PARK_SECONDS = 20.0  # `park_seconds` is that by default
NOTICED = 10.0  # until a link is dead: up to then requests are sent on it


@dataclass(frozen=True, slots=True)
class Event:
    """A fault that happened; times are monotonic."""

    fault: Fault
    began: float
    over: float

    @property
    def first(self) -> float:
        return self.began - GRACE

    @property
    def last(self) -> float:
        return self.over + GRACE

    def lasts(self, moment: float) -> bool:
        return self.first <= moment <= self.last


def under_way(failure: dict[str, Any], event: Event) -> bool:
    """Whether it had begun as the fault happened: a message's connection, for that is what is cut."""
    return failure["since" if failure["kind"] in SESSIONS else "began"] <= event.began + GRACE


def told(failure: dict[str, Any], status: int) -> bool:
    return failure["cause"].startswith(f"answered {status}")


def opened(failure: dict[str, Any], event: Event) -> bool:
    """A connection that was to be opened while it lasted, and was not."""
    return event.lasts(failure["since"])


def nothing(_failure: dict[str, Any], _event: Event) -> bool:
    return False


def sessions(failure: dict[str, Any], event: Event) -> bool:
    return failure["kind"] in SESSIONS and under_way(failure, event)


def streams(failure: dict[str, Any], event: Event) -> bool:
    """GETs without an answer are asked once more, so they do not notice; a POST may have been done, and is told."""
    once = failure["kind"] == "h1" and failure["method"] == "POST" and told(failure, 503)
    return (failure["kind"] in (*SESSIONS, *TRANSFERS) or once) and under_way(failure, event)


def edge(failure: dict[str, Any], event: Event) -> bool:
    """Nobody is there who could tell."""
    return failure["since"] <= event.last and not failure["cause"].startswith("answered")


def away(failure: dict[str, Any], event: Event) -> bool:
    """Told after `park_seconds`; or a POST on a kept connection, on whose stream the service hung up meanwhile."""
    waited = failure["ended"] - failure["began"] >= PARK_SECONDS - GRACE and event.lasts(failure["began"])
    if waited and (told(failure, 503) or (failure["kind"] == "ssh" and opened(failure, event))):
        return True
    kept = failure["kind"] == "h1" and failure["method"] == "POST" and failure["since"] < failure["began"]
    return kept and told(failure, 502) and event.first <= failure["began"] <= event.began + NOTICED


def service(failure: dict[str, Any], event: Event) -> bool:
    """Transfers and WebSockets are cut; what was not answered yet is told."""
    if failure["kind"] in ("websocket", "ticks"):
        return failure["since"] <= event.last
    kind = failure["kind"] in TRANSFERS or (failure["kind"] in REQUESTS and told(failure, 502))
    return kind and failure["began"] <= event.last


def late(failure: dict[str, Any], event: Event) -> bool:
    waited = failure["ended"] - failure["began"] >= LATE_SECONDS - GRACE
    return failure["kind"] != "ssh" and told(failure, 504) and waited and failure["began"] <= event.last


def connections(failure: dict[str, Any], event: Event) -> bool:
    return opened(failure, event) and not failure["cause"].startswith("answered")


def targets(failure: dict[str, Any], event: Event) -> bool:
    if failure["kind"] == "ssh":
        return opened(failure, event)
    return failure["kind"] != "group" and told(failure, 502) and event.lasts(failure["began"])


RULES: dict[str, Callable[[dict[str, Any], Event], bool]] = {
    "": nothing, "old": nothing, "sessions": sessions, "streams": streams, "edge": edge, "away": away,
    "service": service, "late": late, "connections": connections, "targets": targets,
}  # fmt: skip


def alone(failure: dict[str, Any], events: Iterable[Event]) -> bool:
    """Whether the other connector may have been away: only one that surely is there is asked instead."""
    return any(one.fault.link and one.first <= failure["ended"] <= one.last + NOTICED for one in events)


def rule(event: Event, events: Iterable[Event]) -> Callable[[dict[str, Any], Event], bool]:
    """What this fault breaks. A connector that stops without a link cannot let anything end: it dials no more."""
    found = RULES[event.fault.breaks]
    if found is sessions and any(
        one is not event and one.fault.link and one.began <= event.last and event.began <= one.last + NOTICED
        for one in events
    ):
        return streams
    return found


def twice(failure: dict[str, Any], events: Iterable[Event]) -> str:
    """The second death of a connector that a GET lived to see: it is asked once more, not twice."""
    if failure["method"] != "GET" or not told(failure, 503):
        return ""
    deaths = [one for one in events if one.fault.breaks == "streams"]
    seen = [one.fault.name for one in deaths if failure["began"] <= one.last and one.first <= failure["ended"]]
    return seen[1] if len(seen) > 1 else ""


def explanation(failure: dict[str, Any], events: Sequence[Event]) -> str:
    """The fault that explains this failure; empty if none does."""
    if failure["cause"].startswith("wrong"):
        return ""
    if failure["kind"] == "group" and alone(failure, events):
        failure = {**failure, "kind": "kept"}  # as any GET of one connector
    upgraded = 0.0
    for event in events:
        fault = event.fault
        carried = (
            failure["since"] < upgraded and failure["began"] <= event.last and fault.link and fault.breaks != "old"
        )
        if event.first <= failure["ended"] <= event.last + LATEST and (carried or rule(event, events)(failure, event)):
            return fault.name
        if fault.breaks == "old":
            upgraded = event.last
    return twice(failure, events)
