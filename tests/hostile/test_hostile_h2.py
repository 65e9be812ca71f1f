"""Every hostile HTTP/2 request has its expected outcome, and neither service nor other visitor notices anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.hostile.conftest import run_all
from tests.hostile.frames import Visitor2
from tests.hostile.requests2 import CASES, Case2

if TYPE_CHECKING:
    from tests.hostile.conftest import Hostile

pytestmark = pytest.mark.system


def run(hostile: Hostile, case: Case2, number: int) -> None:
    recorder = hostile.recorder
    before = len(recorder.requests)
    with Visitor2(hostile.world) as visitor:
        visitor.send(case.data)
        kind, value = visitor.outcome(1)
        assert kind in case.wanted or (kind == "status" and value in case.wanted), (kind, value)
        if kind in ("status", "reset") and visitor.goaway is None:
            canary = b"/canary/%d" % number
            assert visitor.get(canary, 7) == (200, b"served GET " + canary)
    hostile.beside()
    seen = [one for one in recorder.requests[before:] if not one.target.startswith((b"/beside/", b"/canary/"))]
    assert len(seen) == case.served or (case.early and not seen), seen
    for request in seen:
        assert request.target.startswith(b"/ok"), request
        assert case.check is None or case.check(request), request


def test_all(hostile: Hostile) -> None:
    run_all(hostile, CASES, run, least=250)
