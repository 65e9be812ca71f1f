"""The two sides of an upgrade: whatever the new process does, the old one goes on until it is told `serving`."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.edge.front import ADDRESS, run, until
from tunnelgw.admin import upgrade as module
from tunnelgw.admin.control import ControlServer
from tunnelgw.admin.listeners import Listeners, open_listeners
from tunnelgw.admin.takeover import Takeover
from tunnelgw.admin.upgrade import SOCKET_NAME, Handover, Talk
from tunnelgw.config.load import load_edge
from tunnelgw.errors import LocalError
from tunnelgw.net import activation
from tunnelgw.net.accept import listen_on
from tunnelgw.net.handover import channel_pair
from tunnelgw.net.tasks import spawn

if TYPE_CHECKING:
    from pathlib import Path


class Crew:
    """Notes what it is told; a port is opened while an upgrade is under way."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.parked = 0
        self.open = {1: listen_on(ADDRESS, 0, defer=False)}
        self.over = asyncio.Event()

    class config:  # noqa: N801 - an attribute with one value
        park_seconds = 0.1

    async def waiting(self) -> int:
        return self.parked

    async def pause(self) -> None:
        self.told.append("pause")

    def accept(self) -> None:
        self.told.append("accept")

    def leave(self) -> None:
        self.told.append("leave")

    async def drained(self) -> None:
        await self.over.wait()

    def inherit(self, ports: dict[int, socket.socket]) -> None:
        assert not ports

    def ports(self) -> dict[int, socket.socket]:
        return dict(self.open)


class Stage:
    """A `Handover` with a crew, and the conversation of a new process with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.crew = Crew()
        self.events: list[str] = []
        self.listeners = Listeners([listen_on(ADDRESS, 0, defer=False)], [listen_on(ADDRESS, 0, defer=False)])
        self.handover = Handover(
            self.crew,  # type: ignore[arg-type]
            state_dir=folder,
            listeners=self.listeners,
            control=ControlServer(folder, self._nothing),
            metrics=None,
            before=None,
            left=lambda: self.events.append("left"),
            ended=lambda: self.events.append("ended"),
        )

    async def _nothing(self, request: dict[str, Any]) -> dict[str, Any]:
        return request

    async def come(self) -> tuple[Talk, Listeners]:
        """A new process connects, and has heard everything up to `begin`."""
        await self.handover.offer("")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(str(self.folder / SOCKET_NAME))
        talk, given = Talk(sock), Listeners()
        await talk.hear("begin", seconds=5, into=given)
        return talk, given

    async def close(self) -> None:
        await self.handover.stop()
        self.listeners.close()
        for sock in self.crew.open.values():
            sock.close()


def test_everything_that_listens_goes_over_and_the_old_side_leaves(tmp_path: Path) -> None:
    async def main() -> None:
        stage = Stage(tmp_path)
        talk, given = await stage.come()
        assert not (tmp_path / SOCKET_NAME).exists()
        with pytest.raises(LocalError, match="another upgrade is under way"):
            await stage.handover.offer("")
        same = [(one.getsockname(), two.getsockname()) for one, two in zip(
            (*stage.listeners.https, *stage.listeners.http, stage.crew.open[1]),
            (*given.https, *given.http, given.ports[1]), strict=True,
        )]  # fmt: skip
        assert all(one == two for one, two in same)
        late = stage.crew.open[2] = listen_on(ADDRESS, 0, defer=False)
        talk.say("prepared")
        new = Listeners()
        await talk.hear("go", seconds=5, into=new)
        assert [sock.getsockname() for sock in new.ports.values()] == [late.getsockname()]
        assert stage.crew.told == ["pause"]
        assert not stage.handover.left
        talk.say("serving")
        await talk.hear("yours", seconds=5)
        await until(lambda: stage.crew.told == ["pause", "leave"])
        assert stage.events == ["left"]
        with pytest.raises(LocalError, match="was replaced by a newer process"):
            await stage.handover.offer("")
        talk.say("stop")
        await until(lambda: stage.events == ["left", "ended"])
        talk.close()
        given.close()
        new.close()
        await stage.close()

    run(main)


def test_the_old_side_ends_when_nothing_is_in_progress_even_if_the_new_one_died(tmp_path: Path) -> None:
    async def main() -> None:
        stage = Stage(tmp_path)
        talk, given = await stage.come()
        talk.say("prepared")
        await talk.hear("go", seconds=5)
        talk.say("serving")
        await talk.hear("yours", seconds=5)
        talk.close()
        await until(lambda: stage.crew.told == ["pause", "leave"])
        assert stage.events == ["left"]
        stage.crew.over.set()
        await until(lambda: stage.events == ["left", "ended"])
        given.close()
        await stage.close()

    run(main)


@pytest.mark.parametrize("how", ["killed", "says why", "silent", "nonsense"])
@pytest.mark.parametrize("when", ["before it is ready", "after go"])
def test_until_it_serves_the_old_side_takes_everything_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, how: str, when: str
) -> None:
    limit = 0.3 if how == "silent" else 10.0  # who says something has time for it
    monkeypatch.setattr(module, "START_SECONDS", 10.0 if when == "after go" else limit)
    monkeypatch.setattr(module, "GO_SECONDS", limit)

    async def main() -> None:
        stage = Stage(tmp_path)
        talk, given = await stage.come()
        if when == "after go":
            talk.say("prepared")
            await talk.hear("go", seconds=5)
        if how == "killed":
            talk.close()
        elif how == "says why":
            talk.say("failed", why="metrics: taken")
        elif how == "nonsense":
            talk.say("what?")
        await until(lambda: not stage.handover.under_way)
        assert stage.crew.told == (["pause", "accept"] if when == "after go" else [])
        assert not stage.handover.left
        assert "does not take over" in caplog.text
        assert {"killed": "it ended", "says why": "metrics: taken", "silent": "within 0.3 seconds"}.get(
            how, "'what?'"
        ) in caplog.text
        talk.close()
        given.close()
        again, given = await stage.come()  # the next one has its chance
        again.close()
        given.close()
        await until(lambda: not stage.handover.under_way)
        await stage.close()

    run(main)


def test_who_is_too_late_to_serve_cannot_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GO_SECONDS", 0.3)

    async def main() -> None:
        stage = Stage(tmp_path)
        talk, given = await stage.come()
        talk.say("prepared")
        await talk.hear("go", seconds=5)
        await until(lambda: "accept" in stage.crew.told)
        talk.say("serving")
        assert not talk.open
        assert not stage.handover.left
        given.close()
        await stage.close()

    run(main)


def test_who_said_in_time_that_it_serves_is_believed_however_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old process, or the machine, stood still in between: it must not accept beside the new one."""
    monkeypatch.setattr(module, "GO_SECONDS", 0.3)

    async def main() -> None:
        stage = Stage(tmp_path)
        talk, given = await stage.come()
        talk.say("prepared")
        await talk.hear("go", seconds=5)
        talk.say("serving")
        assert talk.open
        time.sleep(0.5)  # noqa: ASYNC251 - nothing of this process moves
        await until(lambda: stage.crew.told == ["pause", "leave"])
        assert stage.handover.left
        talk.close()
        given.close()
        await stage.close()

    run(main)


class NewProcess:
    """A `Takeover` in the middle of it: `other` is the end of the process before."""

    def __init__(self, folder: Path) -> None:
        ours, theirs = channel_pair()
        self.crew = Crew()
        self.takeover = Takeover(folder, stopping=asyncio.Event())
        self.takeover._talk = Talk(ours)
        self.other = Talk(theirs)

    def close(self) -> None:
        assert self.takeover._talk is not None
        self.takeover._talk.close()
        self.other.close()
        for sock in self.crew.open.values():
            sock.close()


@pytest.mark.parametrize("then", ["yours", "dies"])
def test_the_new_process_serves_once_it_could_say_so(tmp_path: Path, then: str) -> None:
    async def main() -> None:
        new = NewProcess(tmp_path)
        taking = spawn(new.takeover.take_over(new.crew), name="take over")  # type: ignore[arg-type]
        await new.other.hear("prepared", seconds=5)
        assert not new.crew.told
        new.other.say("go")
        await new.other.hear("serving", seconds=5)
        assert new.crew.told == ["accept"]
        assert not taking.done()
        if then == "yours":
            new.other.say("yours")
        else:
            new.other.close()
        await asyncio.wait_for(taking, 5)
        assert new.takeover.done
        new.close()

    run(main)


def test_the_new_process_does_not_accept_after_the_old_one_took_back(tmp_path: Path) -> None:
    async def main() -> None:
        new = NewProcess(tmp_path)
        taking = spawn(new.takeover.take_over(new.crew), name="take over")  # type: ignore[arg-type]
        await new.other.hear("prepared", seconds=5)
        new.other.say("go")
        assert not new.other.said("serving")  # the new process stood still all the time
        with pytest.raises(LocalError, match="did not wait"):
            await asyncio.wait_for(taking, 5)
        assert not new.crew.told
        assert not new.takeover.done
        new.close()

    run(main)


def test_who_asks_and_does_not_come_is_forgotten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OFFER_SECONDS", 0.1)

    async def main() -> None:
        stage = Stage(tmp_path)
        await stage.handover.offer("")
        assert (tmp_path / SOCKET_NAME).stat().st_mode & 0o777 == 0o600
        await until(lambda: not stage.handover.under_way)
        assert "did not come" in caplog.text
        assert not (tmp_path / SOCKET_NAME).exists()
        await stage.close()

    run(main)


def test_parked_requests_are_waited_for_but_not_for_ever(tmp_path: Path) -> None:
    async def main() -> None:
        stage = Stage(tmp_path)
        stage.crew.parked = 1
        talk, given = await stage.come()
        began = asyncio.get_running_loop().time()
        talk.say("prepared")
        await talk.hear("go", seconds=10)
        waited = asyncio.get_running_loop().time() - began
        assert waited >= 2 * Crew.config.park_seconds - 0.002, "the loop's clock counts milliseconds"
        talk.close()
        given.close()
        await stage.close()

    run(main)


def test_the_first_process_of_a_container_is_not_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end would be everybody's."""

    async def main() -> None:
        stage = Stage(tmp_path)
        monkeypatch.setattr(os, "getpid", lambda: 1)
        stage.handover.upgrade()
        assert "the first process of a container" in caplog.text
        await stage.close()

    run(main)


def test_listeners_are_taken_by_port_and_what_nobody_asked_for_is_closed(tmp_path: Path) -> None:
    file = tmp_path / "edge.toml"
    given = Listeners([listen_on(ADDRESS, 0, defer=True)], [listen_on(ADDRESS, 0, defer=False)])
    given.metrics = listen_on(ADDRESS, 0, defer=False)
    https, http, numbers = given.https[0], given.http[0], given.metrics
    text = (
        f'domain = "example.com"\nstate_dir = "{tmp_path}"\nlisten = ["{ADDRESS}:{https.getsockname()[1]}"]\n'
        f'listen_http = ["{ADDRESS}:%d"]\n[tls]\nissuer = "self-signed"\n[metrics]\nlisten = "{ADDRESS}:%d"\n'
    )
    file.write_text(text % (http.getsockname()[1], numbers.getsockname()[1]))
    found = open_listeners(load_edge(file), given)
    assert (found.https, found.http, found.metrics) == ([https], [http], numbers)
    with socket.create_server((ADDRESS, 0)) as free:
        other = free.getsockname()[1]
    file.write_text(text % (other, numbers.getsockname()[1]))
    moved = open_listeners(load_edge(file), found)
    assert moved.https == [https]
    assert moved.http[0].getsockname()[1] == other
    assert http.fileno() < 0
    with socket.create_server((ADDRESS, 0)) as taken:
        file.write_text(text % (other, taken.getsockname()[1]))
        with pytest.raises(LocalError, match="metrics: cannot listen"):
            open_listeners(load_edge(file), moved)
    assert https.fileno() < 0  # nothing stays open


def test_a_port_that_nobody_brought_is_opened_beside_those_that_came(tmp_path: Path) -> None:
    file = tmp_path / "edge.toml"
    with socket.create_server((ADDRESS, 0)) as free, socket.create_server((ADDRESS, 0)) as other:
        https, http = free.getsockname()[1], other.getsockname()[1]
    before = Listeners([listen_on(ADDRESS, 0, defer=True)], [listen_on(ADDRESS, 0, defer=False)])
    came = [before.https[0].getsockname()[1], before.http[0].getsockname()[1]]
    file.write_text(
        f'domain = "example.com"\nstate_dir = "{tmp_path}"\nlisten = ["{ADDRESS}:{came[0]}", "{ADDRESS}:{https}"]\n'
        f'listen_http = ["{ADDRESS}:{http}", "{ADDRESS}:{came[1]}"]\n[tls]\nissuer = "self-signed"\n'
    )
    found = open_listeners(load_edge(file), before)
    try:
        assert {sock.getsockname()[1] for sock in found.https} == {came[0], https}
        assert {sock.getsockname()[1] for sock in found.http} == {came[1], http}
        for port in (*came, https, http):
            socket.create_connection((ADDRESS, port), timeout=10).close()
    finally:
        found.close()


def test_each_port_is_taken_from_whoever_has_it_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd's socket of a port goes before that of the process before; the others are still taken over."""
    file = tmp_path / "edge.toml"
    passed, own = listen_on(ADDRESS, 0, defer=True), listen_on(ADDRESS, 0, defer=True)
    port = passed.getsockname()[1]
    same = socket.socket(fileno=os.dup(passed.fileno()))
    monkeypatch.setattr(activation, "inherited", lambda: [passed])
    file.write_text(
        f'domain = "example.com"\nstate_dir = "{tmp_path}"\nlisten_http = []\n'
        f'listen = ["{ADDRESS}:{port}", "{ADDRESS}:{own.getsockname()[1]}"]\n[tls]\nissuer = "self-signed"\n'
    )
    found = open_listeners(load_edge(file), Listeners([same, own]))
    assert found.https == [passed, own]
    assert same.fileno() < 0
    found.close()
