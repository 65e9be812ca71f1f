"""One edge, one connector and one recording service for all hostile cases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.hostile.recorder import Recorder, serve
from tests.hostile.visitor import Visitor
from tests.system.harness import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SERVICES = """
[services.web]
target = {port}
response_seconds = 5
[services.wiki]
target = {port}
host = "web.example.com"
path = "/wiki"
[services.other]
target = {port}
[services.wild]
target = {port}
host = "*.wild.example.com"
"""


class Hostile:
    """The world of all cases, with a visitor beside them who must never notice anything."""

    def __init__(self, world: World, recorder: Recorder) -> None:
        self.world = world
        self.recorder = recorder
        self._beside = Visitor(world)
        self._count = 0
        self.beside()  # at once: who never asked has five seconds, who did has two minutes

    def close(self) -> None:
        self._beside.sock.close()

    def beside(self) -> None:
        """The other visitor's next request is answered, and with its own answer."""
        self._count += 1
        target = b"/beside/%d" % self._count
        answer = self._beside.get(target)
        assert (answer.status, answer.body) == (200, b"served GET " + target)
        assert not self.recorder.problems, self.recorder.problems


def run_all(hostile: Hostile, cases: Sequence[Any], run: Callable[[Hostile, Any, int], None], *, least: int) -> None:
    """Every case of a table in one test: a case takes milliseconds. The figure is the documentation's."""
    failed = []
    for number, case in enumerate(cases):
        try:
            run(hostile, case, number)
        except (AssertionError, OSError, ValueError) as error:
            failed.append(f"{case.id}\n    {error!r}")
    assert not hostile.recorder.problems, hostile.recorder.problems
    assert not failed, f"{len(failed)} of {len(cases)} failed:\n" + "\n".join(failed)
    assert len(cases) >= least


@pytest.fixture(scope="package")
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="package")
def hostile(tmp_path_factory: pytest.TempPathFactory, recorder: Recorder) -> Iterator[Hostile]:
    tables = "[limits]\nrequest_head_seconds = 5\nidle_seconds = 120\n"
    with World(tmp_path_factory.mktemp("hostile"), tables=tables) as world, serve(recorder) as target:
        world.start_edge()
        world.connector("home", SERVICES.format(port=target.port), allow=("--allow-host", "*.example.com",
                        "--allow-host", "*.wild.example.com"))  # fmt: skip
        hostile = Hostile(world, recorder)
        try:
            yield hostile
            hostile.beside()
        finally:
            hostile.close()
        assert not recorder.problems, recorder.problems
