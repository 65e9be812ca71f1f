"""Connections whose bytes pass through: what the edge learns of a group's members from them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gateway.fakes import FakeOpener, FakeTransport, make_route
from tests.routing.test_members import Roster
from tunnelgw.edge.passthrough import Live, TlsPassage
from tunnelgw.gateway.opener import Visitor
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.members import FAILURES_MOST, UNANSWERED_MOST, Members


class Passages:
    """TLS that ended at the edge, on its way to a service of one member."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Loop:
            def time(self) -> float:
                return 0.0

        monkeypatch.setattr("asyncio.get_running_loop", Loop)
        self.roster = Roster()
        self.opener = FakeOpener()
        members = Members(self.roster)
        own = make_route(kind="tcp", group="g", connector="a")
        members.replace([own])
        self.route = make_route(kind="tcp", group="g", members=members)
        self.refused: list[Reason] = []
        self.live = Live(self.refused.append)

    def begin(self) -> tuple[Any, FakeTransport]:
        opener: Any = self.opener
        visitor = Visitor("192.0.2.7", 1)
        passage = TlsPassage(opener, self.live, self.route, visitor, refused=self.refused.append)
        transport = FakeTransport(passage)
        transport.set_protocol = lambda protocol: None  # type: ignore[method-assign]
        passage.connection_made(transport)
        stream = self.opener.last
        return stream, transport


@pytest.fixture
def passages(monkeypatch: pytest.MonkeyPatch) -> Passages:
    return Passages(monkeypatch)


def test_a_target_that_cannot_be_dialled_is_left_out(passages: Passages) -> None:
    for _ in range(FAILURES_MOST):
        assert not passages.roster.out
        stream, transport = passages.begin()
        stream.fail(Reason.TARGET_REFUSED)
        assert transport.aborted
    assert passages.roster.out == [("a", Reason.TARGET_REFUSED)]
    assert passages.refused == [Reason.TARGET_REFUSED] * FAILURES_MOST


def test_a_target_that_hangs_up_may_mean_it_so(passages: Passages) -> None:
    for _ in range(UNANSWERED_MOST + 1):
        stream, _ = passages.begin()
        stream.fail(Reason.TARGET_RESET)
    assert not passages.roster.out
