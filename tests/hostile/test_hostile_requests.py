"""Every hostile HTTP/1.1 request has its expected answer, and neither service nor other visitor notices anything."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest

from tests.hostile.conftest import run_all
from tests.hostile.requests import CASES, Case
from tests.hostile.visitor import Answer, Ended, Visitor

if TYPE_CHECKING:
    from tests.hostile.conftest import Hostile

pytestmark = pytest.mark.system


def converse(visitor: Visitor, case: Case, canary: bytes) -> None:
    """Read what is expected; then the connection is closed, or answers the next request and nothing else."""
    answer = Answer(0)
    for wanted in case.answers:
        try:
            answer = visitor.answer(case.method)
        except Ended:
            answer = Answer(0)
        assert answer.status in wanted, answer
        assert not answer.cut
    if not answer.status or answer.closes:
        silent(visitor)
        return
    after = visitor.get(canary, case.name.encode())
    assert (after.status, after.body) == (200, b"served GET " + canary)


def silent(visitor: Visitor) -> None:
    """Nothing more is answered. The edge may read and throw away the rest for a while before it closes."""
    visitor.sock.settimeout(0.01)
    try:
        rest = visitor.sock.recv(1)
    except (TimeoutError, ConnectionError, ssl.SSLError):
        rest = b""
    assert not visitor.buffer + rest


def run(hostile: Hostile, case: Case, number: int) -> None:
    recorder = hostile.recorder
    before, heads = len(recorder.requests), recorder.heads
    canary = b"/canary/%d" % number
    with Visitor(hostile.world, case.name) as visitor:
        visitor.send(case.data)
        if not case.leave:
            converse(visitor, case, canary)
        elif b"\r\n\r\n" in case.data:
            recorder.wait_for(lambda: recorder.heads > heads, "the head arrives before the visitor leaves")
    hostile.beside()
    seen = [
        request for request in recorder.requests[before:] if not request.target.startswith((b"/beside/", b"/canary/"))
    ]
    assert len(seen) == (0 if case.leave else case.served), seen
    for request in seen:
        assert request.target.startswith(b"/ok") or request.target == b"*", request
        assert request.values(b"host")[0].lower().rstrip(b".:43").endswith(b"example.com"), request
        if case.check is not None:
            assert case.check(request), request


def test_all(hostile: Hostile) -> None:
    run_all(hostile, CASES, run, least=450)
