"""The checker finds what is wrong: a checker that finds nothing proves nothing."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from tests.lab import kept
from tests.lab.clients import UnprocessedError
from tests.lab.load import Load
from tests.lab.messages import Messages
from tests.lab.programs import now
from tests.lab.tally import AnsweredError, Tally, WrongError, cause_of
from tests.system.harness import wait_until

if TYPE_CHECKING:
    from tests.lab.lab import Lab

pytestmark = [pytest.mark.system, pytest.mark.root]


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (WrongError("2 instead of 1"), "wrong: 2 instead of 1"),
        (AnsweredError(502, "502 Bad Gateway: the service at home\nmore"), "answered 502 502 Bad Gateway: the service"),
        (asyncio.IncompleteReadError(b"", 4), "closed before an answer"),
        (asyncio.IncompleteReadError(b"head", 4), "cut short"),
        (ConnectionResetError(104, "reset"), "reset"),
        (TimeoutError(), "no answer in time"),
    ],
)
def test_causes(error: Exception, cause: str) -> None:
    assert cause_of(error).startswith(cause)


@pytest.mark.parametrize("heard", [["echo 1"], ["echo 0", "echo 0"], ["echo 0", "echo 2"], ["other 0"], ["echo 0"] * 4])
def test_messages_that_are_missing_doubled_or_out_of_order(heard: list[str]) -> None:
    messages = Messages(Tally("x"), "echo")
    for _ in range(3):
        messages.next()
    with pytest.raises(WrongError):
        for text in heard:
            messages.heard(text)


def test_nothing_that_was_begun_is_forgotten() -> None:
    tally = Tally("x")
    with tally.operation():
        pass
    with tally.operation():
        raise ConnectionResetError
    tally.begin()
    report = tally.report()
    assert (report["begun"], report["finished"], report["under_way"]) == (3, 1, 1)
    assert report["failed"] == {"reset": 1}


class Idle:
    """A visitor's connection: after its first answer it ends as `how` says, or its second request does."""

    def __init__(self, load: Load, how: Exception | str) -> None:
        self.load = load
        self.how = how
        self.usable = True
        self.broken: Exception | None = None
        self.asked = 0
        self.since = now()

    async def get(self, path: str) -> bytes:
        self.asked += 1
        if self.how == "goes on" and self.asked == 3:
            self.load.finishing.set()
        if self.asked == 2 and isinstance(self.how, Exception):
            raise self.how
        if self.how in ("closed", "cut"):
            self.usable = False
            self.broken = ConnectionResetError() if self.how == "cut" else None
        return json.dumps({"path": "other" if self.how == "wrong" else path}).encode()

    def close(self) -> None:
        self.usable = False


@pytest.mark.parametrize(
    ("how", "failed", "retried"),
    [
        ("goes on", [], 0),
        ("closed", [], 0),  # in order
        ("cut", ["reset"], 0),
        ("wrong", ["wrong"], 0),
        (UnprocessedError("GOAWAY"), [], 1),
        (asyncio.IncompleteReadError(b"", 4), ["closed before an answer"], 0),
    ],
)
def test_an_idle_connection_is_answered_or_closed_in_order(
    monkeypatch: pytest.MonkeyPatch, how: Exception | str, failed: list[str], retried: int
) -> None:
    monkeypatch.setattr(kept, "AGAIN", 0.0)
    load = Load("")
    made: list[Idle] = []

    async def connect() -> Idle:
        made.append(Idle(load, "goes on" if made else how))
        return made[-1]

    asyncio.run(asyncio.wait_for(kept.visit(load, connect, kept.LOOK), 20))  # type: ignore[arg-type]
    tally = load.tally("kept")
    assert [one["cause"].split(":")[0] for one in tally.failures] == failed
    assert tally.retried == retried
    assert tally.under_way == set()
    assert made[-1].asked == 3


def test_a_service_that_dies_is_noticed_by_every_kind(lab: Lab) -> None:
    """And accounted for: what it cut short, and what was answered instead of it; then all goes on."""
    load = lab.load()
    lab.service.kill()

    def failed(kind: str) -> bool:
        return bool(load.report()["kinds"][kind]["failed"])

    for kind in ("h1", "h2", "download", "upload", "websocket"):
        wait_until(lambda kind=kind: failed(kind), seconds=30, what=f"a failure of {kind}")
    lab.service.start()
    load.wait_flowing(now())
    report = load.finish()
    for kind, facts in report["kinds"].items():
        assert facts["begun"] == facts["finished"] + sum(facts["failed"].values()), (kind, facts)
        assert facts["under_way"] == 0
    causes = {kind: set(facts["failed"]) for kind, facts in report["kinds"].items()}
    assert causes["ssh"] == set()
    assert any("502" in cause and "refused" in cause for cause in causes["h1"]), causes
    assert any("502" in cause and "refused" in cause for cause in causes["h2"]), causes
    assert not any("wrong" in cause for found in causes.values() for cause in found), causes
    assert len(report["failures"]) == sum(sum(facts["failed"].values()) for facts in report["kinds"].values())
