"""Which member of a group serves a stream: health, priority, affinity, load; and who may share a place at all."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelgw.errors import Refused
from tunnelgw.obs.counters import RouteCounters
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.members import (
    ABSENT,
    DOUBTFUL,
    FAILURES_MOST,
    NOT_ANSWERED,
    NOT_DIALLED,
    OUT_SECONDS,
    READY,
    UNANSWERED_MOST,
    Members,
)
from tunnelgw.routing.table import Route, RouteTable

COUNTERS = RouteCounters("test")


@dataclass
class Roster:
    """What a test says of connectors: ready and idle unless it says otherwise."""

    standings: dict[str, int] = field(default_factory=dict)
    loads: Counter[str] = field(default_factory=Counter)
    out: list[tuple[str, Reason]] = field(default_factory=list)

    def standing(self, connector: str, service: str, now: float) -> int:
        assert service == "web"
        return self.standings.get(connector, READY)

    def load(self, connector: str) -> int:
        return self.loads[connector]

    def left_out(self, route: Route, reason: Reason) -> None:
        self.out.append((route.connector, reason))


def own(connector: str, **more: Any) -> Route:
    values: dict[str, Any] = {"kind": "http", "host": "h.x", "service": "web", "group": "g", **more}
    return Route(connector=connector, counters=COUNTERS, **values)


def members(*routes: Route) -> tuple[Members, Roster]:
    roster = Roster()
    made = Members(roster)
    made.replace(routes)
    return made, roster


def name(route: Route | None) -> str:
    return "" if route is None else route.connector


def test_the_least_loaded_of_equals_serves() -> None:
    group, roster = members(own("a"), own("b"), own("c"))
    roster.loads.update(a=5, b=2, c=7)
    assert name(group.choose(0.0)) == "b"
    for _ in range(300):
        roster.loads[name(group.choose(0.0))] += 1
    assert max(roster.loads.values()) - min(roster.loads.values()) <= 1


def test_equals_that_are_equally_idle_take_turns() -> None:
    group, _ = members(own("a"), own("b"), own("c"))
    served = Counter(name(group.choose(0.0)) for _ in range(30))
    assert served == {"a": 10, "b": 10, "c": 10}


def test_a_lower_number_is_preferred_whatever_its_load_and_gets_it_back() -> None:
    group, roster = members(own("spare", priority=5), own("main", priority=-1), own("other", priority=5))
    roster.loads["main"] = 1000
    assert [route.connector for route in group.routes] == ["main", "other", "spare"]
    assert name(group.choose(0.0)) == "main"
    roster.standings["main"] = ABSENT
    assert {name(group.choose(0.0)) for _ in range(4)} == {"spare", "other"}
    roster.standings["main"] = READY
    assert name(group.choose(0.0)) == "main"


def test_who_is_doubtful_serves_only_where_nobody_better_is_up() -> None:
    group, roster = members(own("a"), own("b", priority=9))
    roster.standings["a"] = DOUBTFUL
    assert name(group.choose(0.0)) == "b"
    roster.standings["b"] = ABSENT
    assert name(group.choose(0.0)) == "a"
    roster.standings["a"] = ABSENT
    assert group.choose(0.0) is None


def test_instead_of_one_that_failed_comes_only_who_surely_can() -> None:
    a, b, c = own("a"), own("b", priority=1), own("c", priority=2)
    group, roster = members(a, b, c)
    assert group.instead_of(a, 0.0) is b
    roster.standings["b"] = DOUBTFUL
    assert group.instead_of(a, 0.0) is c
    roster.standings["c"] = ABSENT
    assert group.instead_of(a, 0.0) is None


def test_an_address_keeps_its_member_whoever_else_comes_and_goes() -> None:
    routes = [own(connector, affinity="address") for connector in "abcd"]
    group, roster = members(*routes)
    addresses = [f"192.0.2.{number}" for number in range(200)]
    before = {address: name(group.choose(0.0, address=address)) for address in addresses}
    assert set(before.values()) == set("abcd")
    assert max(Counter(before.values()).values()) < 100
    roster.standings["b"] = ABSENT
    after = {address: name(group.choose(0.0, address=address)) for address in addresses}
    moved = {address for address in addresses if before[address] != after[address]}
    assert moved == {address for address in addresses if before[address] == "b"}
    assert len({after[address] for address in moved}) == 3, "they are shared out among all that are left"
    roster.standings["b"] = READY
    assert {address: name(group.choose(0.0, address=address)) for address in addresses} == before


def test_one_household_of_ipv6_is_one_visitor() -> None:
    group, _ = members(*(own(connector, affinity="address") for connector in "abcd"))
    found = {name(group.choose(0.0, address=f"2001:db8:1:2::{number:x}")) for number in range(50)}
    assert len(found) == 1


def test_a_token_is_followed_while_its_member_can_serve() -> None:
    a, b = own("a", affinity="cookie", token="1" * 32), own("b", affinity="cookie", token="2" * 32, priority=3)
    group, roster = members(a, b)
    assert group.choose(0.0) is a
    assert group.choose(0.0, tokens=["2" * 32]) is b, "before any priority"
    assert group.choose(0.0, tokens=["3" * 32, "2" * 32]) is b
    assert group.choose(0.0, tokens=["3" * 32, ""]) is a
    roster.standings["b"] = DOUBTFUL
    assert group.choose(0.0, tokens=["2" * 32]) is a


def test_nobody_without_a_token_is_followed() -> None:
    group, _ = members(own("a"), own("b"))
    assert {name(group.choose(0.0, tokens=[""])) for _ in range(4)} == {"a", "b"}


def test_failures_in_a_row_leave_a_member_out_for_a_while() -> None:
    a, b = own("a"), own("b", priority=1)
    group, roster = members(a, b)
    for number in range(FAILURES_MOST):
        assert group.choose(0.0) is a, number
        group.failed(a, Reason.TARGET_REFUSED, 0.0)
    assert group.choose(0.0) is b
    assert group.failing("a", 0.0)
    assert roster.out == [("a", Reason.TARGET_REFUSED)]
    assert group.choose(OUT_SECONDS) is a, "tried again"
    group.failed(a, Reason.TARGET_TIMEOUT, OUT_SECONDS)
    assert group.choose(OUT_SECONDS) is b, "and out again at once"
    roster.standings["b"] = ABSENT
    assert group.choose(OUT_SECONDS) is a, "with nobody better it serves all the same"
    group.served("a")
    roster.standings["b"] = READY
    assert group.choose(OUT_SECONDS) is a
    assert len(roster.out) == 2


@pytest.mark.parametrize("reason", sorted(NOT_ANSWERED, key=lambda reason: reason.code))
def test_one_that_takes_requests_and_never_answers_is_left_out_later(reason: Reason) -> None:
    """One request may be to blame for that itself; a row of them is not."""
    a, b = own("a"), own("b", priority=1)
    group, roster = members(a, b)
    for number in range(UNANSWERED_MOST):
        assert group.choose(0.0) is a, number
        group.failed(a, reason, 0.0)
    assert group.choose(0.0) is b
    assert roster.out == [("a", reason)]
    assert group.choose(OUT_SECONDS) is a
    group.failed(a, Reason.TARGET_REFUSED, OUT_SECONDS)
    assert group.choose(OUT_SECONDS) is b


def test_an_answer_in_between_forgives() -> None:
    a = own("a")
    group, roster = members(a, own("b"))
    for _ in range(10):
        for reason in (Reason.TARGET_RESET, Reason.TARGET_REFUSED):
            group.failed(a, reason, 0.0)
        group.served("a")
    assert not roster.out


@pytest.mark.parametrize("reason", sorted(set(Reason) - NOT_DIALLED - NOT_ANSWERED, key=lambda reason: reason.code))
def test_what_is_not_the_targets_fault_leaves_nobody_out(reason: Reason) -> None:
    a = own("a")
    group, roster = members(a, own("b"))
    for _ in range(10):
        group.failed(a, reason, 0.0)
    assert not roster.out


def test_what_was_learnt_goes_with_its_member() -> None:
    a, b = own("a"), own("b", priority=1)
    group, _ = members(a, b)
    for _ in range(FAILURES_MOST):
        group.failed(a, Reason.TARGET_REFUSED, 0.0)
    group.replace([b])
    group.failed(a, Reason.TARGET_REFUSED, 0.0)  # a stream of before
    group.replace([a, b])
    assert group.choose(0.0) is a


@given(
    st.lists(st.sampled_from([READY, DOUBTFUL, ABSENT]), min_size=1, max_size=6),
    st.lists(st.integers(-2, 2), min_size=6, max_size=6),
    st.lists(st.integers(0, 9), min_size=6, max_size=6),
    st.sampled_from(["", "cookie", "address"]),
)
def test_any_choice_is_among_the_best(
    standings: list[int], priorities: list[int], loads: list[int], affinity: str
) -> None:
    names = "abcdef"[: len(standings)]
    routes = [own(n, priority=p, affinity=affinity) for n, p in zip(names, priorities, strict=False)]
    group, roster = members(*routes)
    roster.standings = dict(zip(names, standings, strict=True))
    roster.loads = Counter(dict(zip(names, loads, strict=False)))
    chosen = group.choose(0.0, address="192.0.2.1", tokens=["f" * 32])
    best = min(standings)
    if best == ABSENT:
        assert chosen is None
        return
    assert chosen is not None
    able = [route for route in routes if roster.standings[route.connector] == best]
    assert chosen in able
    assert chosen.priority == min(route.priority for route in able)
    if affinity != "address":
        equals = [route.connector for route in able if route.priority == chosen.priority]
        assert roster.loads[chosen.connector] == min(roster.loads[n] for n in equals)


# The table.


def table(*routes: Route) -> RouteTable:
    made = RouteTable(roster=Roster())
    for connector in dict.fromkeys(route.connector for route in routes):
        made.replace(connector, [route for route in routes if route.connector == connector])
    return made


def test_one_route_for_all_members_and_members_leave_alone() -> None:
    a, b = own("a", since=1.0), own("b", since=2.0)
    routes = table(a, b)
    found = routes.find_http("h.x", b"/")
    assert found is not None
    assert found.members is not None
    assert found.members.routes == (a, b)
    assert routes.holders("h.x") == ("a", "b")
    assert routes.visible() == [found]
    assert routes.routes() == [a, b]
    routes.replace("a", [])
    later = routes.find_http("h.x", b"/")
    assert later is not None
    assert later.members is found.members, "who waits for the group still does"
    assert found.members.routes == (b,)
    routes.replace("b", [])
    assert routes.find_http("h.x", b"/") is None
    assert found.members.routes == ()


def test_ports_are_shared_alike() -> None:
    routes = table(own("a", kind="tcp", host="", port=22), own("b", kind="tcp", host="", port=22))
    found = routes.find_port(22)
    assert found is not None
    assert found.members is not None
    assert [route.connector for route in found.members.routes] == ["a", "b"]
    routes.replace("b", [])
    routes.replace("a", [])
    assert routes.find_port(22) is None
    assert routes.ports() == []


@pytest.mark.parametrize(
    "more",
    [
        {"group": ""},
        {"group": "other"},
        {"service": "other"},
        {"kind": "h2c"},
        {"kind": "home"},
        {"strip_path": True},
        {"plain_http": True},
        {"response_seconds": 1.0},
        {"allow_from": ("192.0.2.0/24",)},
        {"users": ("me:x",)},
        {"affinity": "cookie"},
        {"path": "/elsewhere"},
    ],
)
def test_no_route_is_shared_with_one_that_says_otherwise(more: dict[str, Any]) -> None:
    for first, second in ((own("a"), own("b", **more)), (own("a", **more), own("b"))):
        routes = table(first)
        with pytest.raises(Refused) as caught:
            routes.replace("b", [second])
        assert caught.value.reason is Reason.CLAIM_HELD
        assert routes.routes() == [first]


def test_routes_without_a_group_are_never_shared() -> None:
    routes = table(own("a", group=""))
    with pytest.raises(Refused):
        routes.replace("b", [own("b", group="")])


def test_paths_beside_a_shared_one() -> None:
    routes = table(own("a"), own("a", path="/a", group=""), own("b"), own("b", path="/b", group=""))
    for path, connectors in ((b"/", ["a", "b"]), (b"/a/x", ["a"]), (b"/b", ["b"])):
        found = routes.find_http("h.x", path)
        assert found is not None
        served = found.members.routes if found.members is not None else (found,)
        assert [route.connector for route in served] == connectors
    with pytest.raises(Refused):
        routes.replace("c", [own("c"), own("c", path="/a", group="")])
    routes.replace("a", [])
    assert routes.find_http("h.x", b"/a/x") is routes.find_http("h.x", b"/"), "the rest of the host is the others'"


def test_a_route_without_a_group_is_the_connectors_own() -> None:
    only = own("a", group="")
    assert table(only).find_http("h.x", b"/") is only


def test_a_place_that_is_shared_no_longer_has_no_members() -> None:
    """Who waits for the group waits for nobody, and a group that is there again begins anew."""
    routes = table(own("a"))
    before = routes.find_http("h.x", b"/")
    assert before is not None
    assert before.members is not None
    alone = own("a", group="")
    routes.replace("a", [alone])
    assert routes.find_http("h.x", b"/") is alone
    assert before.members.routes == ()
    routes.replace("a", [own("a")])
    again = routes.find_http("h.x", b"/")
    assert again is not None
    assert again.members is not None
    assert again.members is not before.members
