"""Real processes whose clock is moved: certificates and the authority itself are replaced while visitors are served."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Self

import pytest

from tests.system.clock import AVAILABLE, Clock
from tests.system.harness import Connector, World, run, wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="needs faketime (Debian: faketime)")

URL = "https://web.example.com/"


class Visits:
    """One visitor who comes again and again until the end: `failures` stays empty."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.served = 0
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            done = self.world.curl(URL, check=False)
            if done.stdout == b"hello from web\n":
                self.served += 1
            else:
                self.failures.append(f"{done.returncode} {done.stdout!r}")
            self._stop.wait(0.3)

    def more(self, count: int) -> None:
        """So many more were served."""
        before = self.served
        wait_until(lambda: self.served >= before + count, seconds=60, what=f"visitors are served: {self.failures}")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)


def expiry(world: World, name: str) -> float:
    return float(next(item["certificate_expiry"] for item in world.status()["connectors"] if item["name"] == name))


def step(world: World) -> str:
    return str(world.status()["authority"]["step"])


@pytest.mark.slow
@pytest.mark.timeout(300)  # many processes start; a busy machine takes its time
def test_the_authority_is_replaced_without_a_break(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    with World(tmp_path, workers=2) as world:
        edge = world.start_edge(env=clock.env)
        home = world.connector("home", f"[services.web]\ntarget = {world.service('web')}", start=False)
        away, late = Connector(world, "away", ""), Connector(world, "late", "")
        for one in (away, late):
            one.join()
        connector = home.start(env=clock.env)
        with Visits(world) as visits:
            said = world.edge_command("rotate-ca", "--overlap", "30d").stderr
            assert "it signs from" in said
            assert "being changed already" in world.edge_command("rotate-ca", check=False).stderr
            connector.wait_for("changes its authority")
            assert step(world) == "learning"
            away.start(env=clock.env).wait_for("changes its authority")
            assert away.process is not None
            away.process.stop()
            invitation = world.edge_command("invite", "other").stdout.strip()

            clock.move(31)
            edge.wait_for("the new one signs")
            connector.wait_for("the certificate for edge .* was renewed", seconds=40)
            assert step(world) == "retiring"
            assert home.process is connector
            connector.stop()  # with the new certificate from here on
            home.start(env=clock.env)
            # Away for a step, back in the overlap: it learned the new authority before.
            away.start(env=clock.env)
            wait_until(lambda: state(world, "away") == "up", what="it is back")
            away.process.stop()
            late.start(env=clock.env, wait=False).wait_for("changed its authority while.*edge invite")
            refused = run(
                "join", invitation, "--config", str(tmp_path / "o.toml"), "--state-dir", str(tmp_path / "o"),
                check=False, env=clock.env,
            )  # fmt: skip
            assert "expired" in refused.stderr or "changed its authority" in refused.stderr

            clock.move(31)
            edge.wait_for("is trusted no more")
            assert step(world) == ""
            assert home.process is not None
            home.process.wait_for("changes its authority")
        assert not visits.failures, visits.failures
        assert visits.served > 10


def state(world: World, name: str) -> str:
    return str(next(item["state"] for item in world.status()["connectors"] if item["name"] == name))


@pytest.mark.slow
@pytest.mark.timeout(300)  # many processes start; a busy machine takes its time
def test_certificates_are_renewed_while_they_serve(tmp_path: Path) -> None:
    """The connector's by its two thirds, the edge's own too; both are used by the next dial, with no restart."""
    clock = Clock(tmp_path)
    with World(tmp_path) as world:
        world.start_edge(env=clock.env)
        home = world.connector("home", f"[services.web]\ntarget = {world.service('web')}", start=False)
        connector = home.start(env=clock.env)
        with Visits(world) as visits:
            own = (world.state / "tunnel" / "edge.crt").read_bytes()
            first = expiry(world, "home")
            for _ in range(3):
                renewed = len(connector.text())
                clock.move(85)
                connector.wait_for("certificate for edge .* was renewed", after=renewed, seconds=90)
            assert expiry(world, "home") > first + 250 * 86400
            wait_until(lambda: (world.state / "tunnel" / "edge.crt").read_bytes() != own, what="the edge's own is new")
        assert not visits.failures, visits.failures
        connector.stop()
        home.start(env=clock.env)
        assert world.curl(URL).stdout == b"hello from web\n"


@pytest.mark.slow
@pytest.mark.timeout(300)  # many processes start; a busy machine takes its time
def test_a_clock_that_jumps_locks_nobody_out(tmp_path: Path) -> None:
    """A day back (an empty battery), right again, and a year on; then an edge that begins before what it has saved."""
    clock = Clock(tmp_path)
    with World(tmp_path) as world:
        edge = world.start_edge(env=clock.env)
        home = world.connector("home", f"[services.web]\ntarget = {world.service('web')}", start=False)
        processes = [edge, home.start(env=clock.env)]
        for days in (-1, 1, 365):
            with Visits(world) as visits:
                clock.move(days)
                visits.more(8)  # in which each process notices
                processes[-1].stop()
                processes.append(home.start(env=clock.env))  # begins at that time, and dials
                wait_until(lambda: state(world, "home") == "up", seconds=60, what=f"it is back, {days} days on")
                visits.more(4)
                edge.wait_for(rf'"time": "({"|".join(clock.dates())})T')  # it lives by that time too
            assert not visits.failures, visits.failures
        clock.move(-366)
        edge.stop()
        processes.append(world.start_edge(env=clock.env))
        wait_until(lambda: state(world, "home") == "up", seconds=60, what="it is back at an edge of the past")
        assert world.curl(URL).stdout == b"hello from web\n"
        for process in processes:
            assert "Traceback" not in process.text()
