"""The bench takes turns, notes trouble, and says what it does not know; the check fails on a collapse alone."""

from __future__ import annotations

import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

from loadtest import bench, check, home, stage
from loadtest.bench import Bench
from loadtest.contenders import CONTENDERS
from loadtest.contenders.base import Contender
from loadtest.figures import Median
from loadtest.processes import Group, peak_bytes
from loadtest.report import Outcome
from loadtest.scenario import Kind, Measurement, RunError, Scenario, Setup, Target
from loadtest.scenes import everything

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = Path(__file__).parents[2] / "docs"
SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


class Idle(Contender):
    """A contender that does nothing, in one process."""

    kinds = MappingProxyType({Kind.WEB: "it is there"})
    parts = ("one",)

    def __init__(self, name: str) -> None:
        self.name = name
        self.started = 0

    def launch(self, group: Group, setup: Setup, service: int) -> tuple[int, tuple[str, ...]]:
        self.started += 1
        group.start("one", SLEEP, ready="up")
        return 1, ()


class Counted(Scenario):
    """Notes who is run; `fail` is called first."""

    def __init__(self, name: str = "counted", **settings: Any) -> None:
        self.name, self.unit, self.order = name, "req/s", list[str]()
        self.bad = settings.pop("bad", "")
        self.__dict__.update(settings)

    def run(self, target: Target, seconds: float) -> Measurement:
        self.order.append(target.contender)
        if target.contender == self.bad:
            raise RunError("it fell over\nin three\nlines")
        return Measurement(10.0, requests=20)


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> dict[str, Idle]:
    found = {name: Idle(name) for name in ("tunnelgw", "b", "c")}
    monkeypatch.setattr(bench, "CONTENDERS", found)
    return found


@pytest.fixture
def bare_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[stage.Stage]:
    monkeypatch.setattr(stage, "start_nginx", lambda group, **_: 1)
    made = stage.Stage(tmp_path)
    yield made
    made.close()


def taken(three: dict[str, Idle], a_stage: stage.Stage, scenario: Scenario, rounds: int) -> tuple[Outcome, list[str]]:
    outcome, said = Outcome([scenario], list(three)), list[str]()
    Bench(outcome, seconds=1.0, rounds=rounds, say=said.append).run(a_stage)
    return outcome, said


def test_turns_are_reversed_and_progress_is_shown(three: dict[str, Idle], bare_stage: stage.Stage) -> None:
    scenario = Counted()
    outcome, said = taken(three, bare_stage, scenario, 2)
    assert scenario.order == ["tunnelgw", "b", "c", "c", "b", "tunnelgw"]
    assert [one.started for one in three.values()] == [1, 1, 1]
    assert len(outcome.runs) == 6
    assert said[0].startswith("[1/6, ")
    assert said[0].endswith("left] counted, round 1 of 2: tunnelgw 10.0 req/s")
    assert said[-1].startswith("[6/6, 0 s left]")
    assert outcome.runs[0].peak["one"] > 1 << 20
    assert outcome.runs[0].requests == 20


def test_a_scenario_can_have_fewer_rounds_and_fresh_contenders(three: dict[str, Idle], bare_stage: stage.Stage) -> None:
    scenario = Counted(rounds=2, fresh=True)
    taken(three, bare_stage, scenario, 5)
    assert len(scenario.order) == 6
    assert [one.started for one in three.values()] == [2, 2, 2]


@dataclass(frozen=True)
class Lone:
    """A wire that cannot lie beside another one."""

    def lay(self, group: Group, port: int, *, dialled_by: str) -> int:
        group.start("wire", SLEEP, ready="up")
        return port


def test_there_is_one_wire_at_a_time(three: dict[str, Idle], bare_stage: stage.Stage) -> None:
    setup = Setup(wire=Lone())
    running = [bare_stage.target(one, setup) for one in three.values()]
    assert [target.died() for target in running[:-1]] == [False, False]
    assert [list(target.group.members) for target in running[:-1]] == [[], []]
    assert list(bare_stage.targets.values()) == running[-1:]
    assert bare_stage.target(three["c"], setup) is running[-1]


def test_long_runs_are_spared_unless_asked_for(three: dict[str, Idle], bare_stage: stage.Stage) -> None:
    outcome, scenario = Outcome([], list(three)), Counted(seconds=10)
    outcome.scenarios = [scenario]
    assert bench.parse([], everything()).spare
    for words in (["--full"], ["--only", "h1"], ["--contender", "b"], ["--rounds", "2"]):
        assert not bench.parse(words, everything()).spare
    Bench(outcome, seconds=1.0, rounds=3, say=list[str]().append, spare=True).run(bare_stage)
    assert scenario.order == ["tunnelgw"]
    assert set(outcome.absent) == {("counted", "b"), ("counted", "c")}


def test_some_run_only_by_name(three: dict[str, Idle]) -> None:
    scenarios = [Counted("soak", long=True), Counted("short")]
    assert [one.name for one in bench.chosen(bench.parse([], scenarios), scenarios)] == ["short"]
    assert [one.name for one in bench.chosen(bench.parse(["--only", "soak"], scenarios), scenarios)] == ["soak"]
    assert len(bench.chosen(bench.parse(["--full"], scenarios), scenarios)) == 2


def test_trouble_costs_one_figure_and_is_explained(three: dict[str, Idle], bare_stage: stage.Stage) -> None:
    outcome, said = taken(three, bare_stage, Counted(bad="b"), 2)
    assert outcome.absent == {("counted", "b"): "it fell over"}
    assert "counted, round 1 of 2: b failed, it fell over" in said[1]
    assert len(outcome.runs) == 4
    assert three["b"].started == 2  # whoever failed begins anew


def test_who_died_is_started_again(three: dict[str, Idle], bare_stage: stage.Stage) -> None:
    target = bare_stage.target(three["b"], Setup())
    assert bare_stage.target(three["b"], Setup()) is target
    target.group.members["one"].kill()
    target.group.members["one"].wait()
    again = bare_stage.target(three["b"], Setup())
    assert again is not target
    assert not again.died()
    bare_stage.keep_only(Setup(workers=2))
    assert bare_stage.targets == {}


def test_parts_can_be_stopped_and_started(three: dict[str, Idle], bare_stage: stage.Stage) -> None:
    target = bare_stage.target(three["b"], Setup())
    (pid,) = target.pids()["one"]
    target.stop()
    assert target.pids() == {}
    assert target.memory() == 0
    assert peak_bytes(pid) == 0
    target.start()
    assert target.pids()["one"] != [pid]
    assert target.memory() > 1 << 20


def test_who_cannot_do_the_job_is_left_out_with_a_reason(three: dict[str, Idle]) -> None:
    three["b"].http2 = False
    visit = Counted("h2", http2=True)
    assert bench.refusal(visit, "b") == "no HTTP/2 to visitors"
    assert bench.refusal(visit, "c") == ""
    assert bench.refusal(Counted(setup=Setup(Kind.UDP)), "c") == "no udp"
    assert bench.refusal(Counted(setup=Setup(workers=2)), "c") == "no number of workers"


def test_a_process_that_does_not_come_up_is_shown_with_its_words(tmp_path: Path) -> None:
    group = Group(tmp_path)
    with pytest.raises(RuntimeError, match="no such luck"):
        group.start("one", [sys.executable, "-c", "raise SystemExit('no such luck')"], ready="up")
    group.stop()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--only", "h9"], "no scenario has 'h9' in its name; there are:\n  h1, 1 connection\n"),
        (["--contender", "nobody"], "invalid choice: 'nobody'"),
        (["--rounds", "-1"], "one round at least"),
        (["--seconds", "0.1"], "half a second at least"),
        (["--seconds", "soon"], "invalid float value"),
    ],
)
def test_errors_of_the_command_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.main(arguments)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_a_needed_program_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "which", lambda name: None if name == "h2load" else name)
    assert bench.main(["--quick"]) == 1
    assert "not on PATH: h2load (" in capsys.readouterr().err
    assert check.main() == 1
    assert "check: h2load" in capsys.readouterr().err


def test_what_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    scenarios = everything()
    assert len({scenario.name for scenario in scenarios}) == len(scenarios)
    quick = bench.parse(["--quick"], scenarios)
    assert (quick.seconds, quick.rounds) == (1.0, 2)
    assert {scenario.name for scenario in bench.chosen(quick, scenarios)} >= {"h1, 32 connections", "h2, 8 x 16"}
    one = bench.parse(["--only", "h1, 32", "--contender", "haproxy"], scenarios)
    monkeypatch.setattr(CONTENDERS["haproxy"], "programs", {"no-such-program": "somewhere"})
    outcome = bench.prepare(one, scenarios)
    assert [scenario.name for scenario in outcome.scenarios] == ["h1, 32 connections"]
    assert outcome.contenders == ["tunnelgw"]
    assert outcome.skipped == {"haproxy": "not on PATH: no-such-program (somewhere)"}


def test_a_collapse_is_below_the_line_or_no_figure_at_all() -> None:
    found = {"a": Median(0.4, 0.2, 0.61), "b": Median(0.55, 0.5, 0.59), "c": None}
    assert check.collapsed(found) == ["b", "c"]
    assert check.table(found).splitlines()[2:] == [
        "| a | 0.40 (0.20 to 0.61) |",
        "| b | 0.55 (0.50 to 0.59) |",
        "| c | no figure |",
    ]
    assert [scenario.name for scenario in check.CHECKED] == [
        "h1, 32 connections", "h2, 8 x 16", "10 KiB, 16 connections", "1 MiB, 16 connections",
    ]  # fmt: skip


def test_a_collapse_is_measured_twice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class NoStage:
        def __init__(self, folder: Path) -> None: ...
        def close(self) -> None: ...

    asked: list[list[str]] = []
    answers = iter([[0.5, 1.5, 1.5, 0.4], [0.7, 0.3], [1.5] * 4])

    def measured(_: object, scenarios: list[Scenario]) -> dict[str, Median | None]:
        asked.append([scenario.name for scenario in scenarios])
        return {name: Median(value, value, value) for name, value in zip(asked[-1], next(answers), strict=True)}

    monkeypatch.setattr(check, "Stage", NoStage)
    monkeypatch.setattr(check, "measured", measured)
    assert check.main() == 1
    assert [len(names) for names in asked] == [4, 2]
    assert "twice below 0.6 of haproxy: 1 MiB, 16 connections" in capsys.readouterr().err
    assert check.main() == 0
    assert "| h1, 32 connections | 1.50 |" in capsys.readouterr().out


def test_the_sink_counts_what_came() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        thread = threading.Thread(target=home.serve, args=(theirs,))
        thread.start()
        body = bytes(3 << 20)
        ours.sendall(b"PUT / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        ours.sendall(b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\nbody")
        ours.shutdown(socket.SHUT_WR)
        with ours.makefile("rb") as file:
            answers = file.read().split(b"\r\n\r\n")
        thread.join(20)
    assert answers[1].startswith(b"%d\n" % len(body))
    assert answers[1].endswith(b"HTTP/1.1 100 Continue")
    assert answers[3] == b"4\n"


def test_the_page_about_performance_names_them_all() -> None:
    text = (DOCS / "performance.md").read_text()
    for name in [*CONTENDERS, *(scenario.name for scenario in everything())]:
        assert f"| {name} |" in text, name
