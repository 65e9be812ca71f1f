"""What all tests share: Hypothesis without per-example deadlines and reproducibly in CI, and the search for secrets.

Whatever the run writes is looked through for planted secrets: logs of processes, what commands answered, and what tests
or their children wrote to standard output and error.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

from tests.system import harness, planted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xdist.remote import Producer

LAB = "tests/lab/"

# A busy machine must not fail a property: pytest-timeout bounds the whole test instead.
settings.register_profile("default", deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session", autouse=True)
def nothing_leaked() -> Iterator[None]:
    """An error of the session names the log or the output: each world was searched for its own secrets as it closed."""
    communicate = subprocess.Popen.communicate

    def heard(process: subprocess.Popen[Any], *arguments: Any, **options: Any) -> tuple[Any, Any]:
        out, errors = communicate(process, *arguments, **options)
        if planted.ours(process.args):
            where = f"a command in {os.environ.get('PYTEST_CURRENT_TEST')}"  # arguments may be secrets themselves
            planted.look(f"standard output of {where}", out, shapes=False)  # an invitation is an answer
            planted.look(f"standard error of {where}", errors, shapes=True)
        return out, errors

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "communicate", heard)
        yield
    assert planted.leaks(planted.every_log, [planted.MARK.encode()]) == []
    assert planted.found == []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """A test that failed shows what its processes wrote until then; a fixture ends them only after this."""
    report: pytest.TestReport = yield  # type: ignore[misc,assignment]
    if report.failed:
        report.sections += [("logs of its processes", world.logs()) for world in harness.worlds]
    return report  # type: ignore[return-value]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """What a test wrote, and children that share its standard output and error: with its log, as pytest shows it."""
    for title, content in report.sections:
        planted.look(f"{report.nodeid}: {title}", content, shapes="stdout" not in title)


class Scheduling(LoadFileScheduling):
    """By file, in the order of collection; tests of the laboratory one after the other."""

    def _split_scope(self, nodeid: str) -> str:
        return LAB if nodeid.startswith(LAB) else str(super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    config.option.loadscopereorder = False
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LAB))
