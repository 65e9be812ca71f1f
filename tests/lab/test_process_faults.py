"""What visitors notice when a process dies, stops, sleeps or runs out of something; and how soon it is over.

One lab and one load serve most of these tests, in this order. What was under way on what died may break, visibly;
whatever is begun while it is away waits, and is served.
"""

from __future__ import annotations

import json
import os
import resource
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.lab import faults
from tests.lab.asked import PAGE, Asked, check_page
from tests.lab.faults import FAULTS, Fault
from tests.lab.lab import WEB_NAME, Lab
from tests.lab.loaded import ROOM, Loaded
from tests.lab.programs import now
from tests.lab.verdict import SESSIONS
from tests.system.clock import AVAILABLE, Clock
from tests.system.harness import DOMAIN, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(240)]
GRACE = 10.0  # what lasts may go on so long in a process that was told to stop
PARK, RESUME = 20.0, 120.0
# Longer than a dead link goes unnoticed, shorter than requests are parked. With 90 it is what docs/reliability.md says.
SLEEP_SECONDS = float(os.environ.get("LAB_SLEEP_SECONDS", "12"))
SERVED_WITHIN = 5.0  # of the start of an edge
NEW = {"h1", "h2", "download", "upload"}  # what opens connections all the time
OF_WEB = {*NEW, "websocket", "ticks"}  # what visits the service that can be down
CUT = {*SESSIONS, "h1", "download", "upload"}  # what a dead connector breaks; small GETs are asked once more
FEW = ("prlimit", "--nofile=256:256")  # descriptors
SLOW = """
[services.slow]
target = 8080
response_seconds = 1
"""
SLOW_URL = f"https://slow.{DOMAIN}"
WEB = f"https://{WEB_NAME}"


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Clock:
    if not AVAILABLE:
        pytest.skip("needs faketime (Debian: faketime)")
    return Clock(tmp_path_factory.mktemp("clock"))


@pytest.fixture(scope="module")
def lab(possible: None, clock: Clock, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("faults"), services=SLOW, clock=clock, state_mb=8) as lab:
        yield lab


@pytest.fixture(scope="module")
def loaded(lab: Lab) -> Loaded:
    return Loaded(lab, lab.load())


# The connector.


def test_a_connector_sleeps(loaded: Loaded) -> None:
    """Its machine stands still, for longer than a dead link goes unnoticed: nothing fails, and streams go on.

    For longer than requests are parked: who comes meanwhile is told, and a POST whose service hung up meanwhile.
    """
    lab = loaded.lab
    loaded.begin()
    what = f"home asleep for {SLEEP_SECONDS:g} s"
    if SLEEP_SECONDS < PARK:
        faults.connector_sleeps(lab, seconds=SLEEP_SECONDS)
        loaded.survived(what, within=SLEEP_SECONDS + ROOM)
        return

    def look() -> None:
        wait_until(lambda: lab.metric("tunnelgw_tunnels", state="up") == 0, what="the edge has noticed")
        _, text, took = Asked(lab, f"{WEB}/", *PAGE).answer()
        check_page(text, 503, away=True)
        assert took >= PARK

    faults.connector_sleeps(lab, seconds=SLEEP_SECONDS, meanwhile=look)
    fault = Fault(faults.connector_sleeps, "away")
    loaded.explained(what, fault, over=now(), kinds=NEW, within=SLEEP_SECONDS + ROOM)


def test_a_connector_stops(loaded: Loaded) -> None:
    """SIGTERM, and a start: transfers end in order, only what lasts is cut after a while."""
    loaded.begin()
    faults.connector_restarts(loaded.lab)
    failures = loaded.explained(
        "connector SIGTERM, restarted", FAULTS["connector_restarts"], over=now(), kinds=SESSIONS, within=GRACE + ROOM
    )
    assert {one["kind"] for one in failures} == set(SESSIONS)


def test_a_connector_dies(loaded: Loaded) -> None:
    """SIGKILL, and a start: what was asked of it and can be asked again is; the rest is told, or visibly cut."""
    lab = loaded.lab
    begun = Asked(lab, f"{WEB}/gated")
    begun.read_until(b"data: open\n\n")
    again = Asked(lab, f"{WEB}/slow?seconds=10")
    once = Asked(lab, f"{WEB}/slow?seconds=10", "-d", "x", *PAGE)
    wait_until(lambda: json.loads(lab.curl(f"{WEB}/slows").stdout) == 2, what="all of them at home")
    loaded.begin()
    faults.connector_dies(lab)
    over = now()
    code, text, _ = again.answer()
    assert (code, text.split()[1], text[-8:]) == (0, "200", "at last\n")
    code, text, _ = once.answer()
    assert code == 0
    check_page(text, 503, away=True)
    code, text, _ = begun.answer()
    assert code in (18, 56, 92), "cut short, and seen as that"
    loaded.explained(
        "connector SIGKILL, 1 s away", FAULTS["connector_dies"], over=over, kinds=CUT, within=1.0 + 2 * ROOM
    )


# The local service.


def test_a_service_is_down(loaded: Loaded) -> None:
    """502, with a page that does not claim that home is away; ssh does not notice. Then all is as before."""
    lab = loaded.lab
    loaded.begin()
    faults.service_down(lab, meanwhile=lambda: check_page(Asked(lab, f"{WEB}/", *PAGE).answer()[1], 502, away=False))
    failures = loaded.explained(
        "service down for a while", FAULTS["service_down"], over=now(), kinds=OF_WEB, within=3 * ROOM
    )
    assert any(one["cause"].startswith("answered 502 ") for one in failures)


def test_a_service_is_slow(loaded: Loaded) -> None:
    """Its visitors wait, or are told after `response_seconds`; those of other services do not notice."""
    lab = loaded.lab
    loaded.begin()
    waited: list[float] = []

    def look() -> None:
        _, text, took = Asked(lab, f"{SLOW_URL}/", *PAGE).answer()
        check_page(text, 504, away=False)
        assert lab.ssh("echo", "here").stdout == "here\n"
        waited.append(took)

    began = now()
    faults.service_slow(lab, seconds=0.5, meanwhile=look)
    loaded.survived("service slow, for others", within=now() - began + ROOM, resumed=False)
    print(f"slow service: 504 after {waited[0]:.2f} s (response_seconds = 1)")


def test_a_service_resets(loaded: Loaded) -> None:
    """Each visitor is told, or sees that an answer was cut; others do not notice."""
    lab = loaded.lab
    loaded.begin()
    check_page(Asked(lab, f"{WEB}/cut?get", *PAGE).answer()[1], 502, away=False)
    check_page(Asked(lab, f"{WEB}/cut?post", "-d", "x", *PAGE).answer()[1], 502, away=False)
    assert json.loads(lab.curl(f"{WEB}/cuts").stdout) == {"get": 2, "post": 1}, "what is safe is asked once more"
    cut = {version: Asked(lab, f"{WEB}/cut?after=100", version) for version in ("--http1.1", "--http2")}
    for asked in cut.values():
        asked.read_until(bytes(100))
        lab.curl(f"{WEB}/release?word=x", "-d", "")
    codes = [asked.answer()[0] for asked in cut.values()]
    assert codes[0] in (18, 56)
    assert codes[1] in (18, 56, 92)
    loaded.survived("service resetting, for others", within=ROOM, resumed=False)
    loaded.begin()
    faults.service_resets(lab, meanwhile=lambda: check_page(Asked(lab, f"{WEB}/", *PAGE).answer()[1], 502, away=False))
    failures = loaded.explained(
        "service resetting all", FAULTS["service_resets"], over=now(), kinds=OF_WEB, within=3 * ROOM
    )
    assert any(one["cause"].startswith("answered 502 ") for one in failures)


# Nothing left.


def test_the_disks_are_full(loaded: Loaded) -> None:
    """Of edge and connector, under their state: all is served, even who comes back; only changes are refused."""
    lab = loaded.lab
    loaded.begin()

    def look() -> None:
        assert lab.metric("tunnelgw_state_failing") == 1
        loaded.survived("disks full", within=ROOM, resumed=False)
        loaded.begin()
        faults.connector_dies(lab, away=0.0)
        loaded.explained(
            "connector SIGKILL, disks full", FAULTS["connector_dies"], over=now(), kinds=CUT, within=1.0 + 2 * ROOM
        )
        loaded.begin()

    faults.disks_full(lab, meanwhile=look)
    lab.exec("vps", *lab.edge_command("invite", "name"))
    loaded.survived("disks have room again", within=ROOM, resumed=False)


@pytest.mark.parametrize("fault", [faults.edge_without_descriptors, faults.connector_without_descriptors])
def test_no_descriptor_is_left(loaded: Loaded, fault: Callable[[Lab], None]) -> None:
    """What is there goes on; what would need another one is told, or closed, until there is one."""
    lab = loaded.lab
    program = {faults.edge_without_descriptors: lab.edge, faults.connector_without_descriptors: lab.connector}[fault]
    seen = len(program.present.text())
    loaded.begin()
    fault(lab)
    assert program is lab.connector or "cannot accept connections" in program.present.text()[seen:]
    loaded.explained(fault.__name__, FAULTS[fault.__name__], over=now(), kinds=NEW, within=2.0 + ROOM)


# The clock.


def test_the_clock_jumps(loaded: Loaded) -> None:
    """By a year, on both sides, and back: nobody notices, and a new link is to be had each time."""
    lab = loaded.lab
    seen = len(lab.connector.present.text())
    loaded.begin()

    def look() -> None:
        lab.connector.present.wait_for("certificate for edge .* was renewed", after=seen, seconds=40)
        loaded.survived("clocks a year on, with a reset", within=4 * ROOM)
        loaded.begin()

    faults.clocks_jump(lab, meanwhile=look)
    loaded.survived("clocks a year back, with a reset", within=4 * ROOM)


# The edge.


def test_the_edge_is_upgraded(loaded: Loaded) -> None:
    """Nothing fails: what lasts goes on in the old process."""
    loaded.begin()
    faults.edge_upgrades(loaded.lab)
    loaded.survived("edge upgraded in place", within=ROOM, resumed=False, retried=True)


def served(lab: Lab, since: float) -> float:
    """Until a visitor that comes anew is served: seconds since then."""
    wait_until(
        lambda: lab.curl(f"{WEB}/", check=False, seconds=20).returncode == 0, seconds=40, what="a visitor is served"
    )
    return now() - since


def test_the_edge_dies(loaded: Loaded) -> None:
    """SIGKILL: its visitors' connections break, and others are served soon after the start."""
    lab = loaded.lab
    old = [child for child in lab.children if child.name == "edge"]
    loaded.begin()
    for process in old:
        process.kill()
    faults.pause(1.0)
    began = now()
    lab.edge.start(before=FEW)
    took = served(lab, began)
    loaded.explained(
        "edge SIGKILL, 1 s away", FAULTS["edge_dies"], over=now(), kinds={*NEW, *SESSIONS}, within=4 * ROOM
    )
    print(f"edge SIGKILL: a new visitor was served {took:.2f} s after the start")
    assert took < SERVED_WITHIN + ROOM


def test_few_descriptors(loaded: Loaded) -> None:
    """An edge that may have 256: an address with 300 idle visitors is asked for room; nobody else, and no link, is."""
    lab = loaded.lab
    if resource.prlimit(lab.edge.present.pid, resource.RLIMIT_NOFILE)[1] != 256:  # else it has been started so
        lab.edge.stop()
        lab.edge.start(before=FEW)
        loaded.load.wait_flowing(now())
    loaded.begin()
    before = lab.metric("tunnelgw_refused_total", reason="made_room")
    source = "203.0.113.3"
    lab.net.ip("visitor", f"address add {source}/25 dev wan")
    python = lab.service.command[0]
    flood = lab.spawn(
        "idle", "visitor", [python, "-m", "tests.lab.idle", WEB_NAME, "443", source, "300"],
        env={"PYTHONPATH": str(faults.__file__).removesuffix("/tests/lab/faults.py")},
    )  # fmt: skip
    flood.wait_for("300 are in", seconds=60)
    made_room = lab.metric("tunnelgw_refused_total", reason="made_room") - before
    assert 300 - 128 <= made_room <= 300, made_room
    wait_until(lambda: lab.relay.reset() >= 2, what="a link to cut")
    loaded.survived(f"edge with 256 descriptors, {made_room:.0f} of 300 idle visitors made room", within=2 * ROOM)
    flood.stop()


def test_the_edge_stops(loaded: Loaded) -> None:
    """SIGTERM, and a start: transfers end in order; who comes meanwhile is refused, since nobody listens."""
    lab = loaded.lab
    loaded.begin()
    assert lab.edge.stop() == 0
    began = now()
    lab.edge.start()
    took = served(lab, began)
    loaded.explained(
        "edge SIGTERM, restarted", FAULTS["edge_restarts"], over=now(), kinds={*NEW, *SESSIONS}, within=GRACE + 4 * ROOM
    )
    print(f"edge SIGTERM: a new visitor was served {took:.2f} s after the start")
    assert took < SERVED_WITHIN + ROOM


def test_nobody_is_refused_with_socket_activation(loaded: Loaded) -> None:
    """The public ports outlive the edge: who comes while there is none waits, and is served."""
    lab = loaded.lab
    lab.edge.kill()
    lab.hold_ports()
    lab.edge.start()
    loaded.load.wait_flowing(now())
    loaded.begin()
    lab.edge.kill()
    waiting = [Asked(lab, f"{WEB}/") for _ in range(5)]
    faults.pause(1.0)
    began = now()
    lab.edge.start()
    codes = Counter(asked.answer()[0] for asked in waiting)
    took = now() - began
    failures = loaded.explained(
        "edge SIGKILL, socket unit, 1 s away", FAULTS["edge_dies"], over=now(), kinds={*NEW, *SESSIONS}, within=4 * ROOM
    )
    assert codes == {0: 5}
    assert not [one for one in failures if one["cause"] == "refused"]
    print(f"edge SIGKILL, socket unit: who came meanwhile was served {took:.2f} s after the start")
    assert took < SERVED_WITHIN + ROOM


def test_everything_is_accounted_for(loaded: Loaded) -> None:
    """All that was ever begun finished or failed with a cause that was looked at; nothing leaks."""
    report = loaded.load.finish()
    print(loaded.load.table(report))
    for kind, facts in report["kinds"].items():
        assert facts["begun"] == facts["finished"] + sum(facts["failed"].values()), (kind, facts)
        assert not [cause for cause in facts["failed"] if cause.startswith("wrong")]
    lab = loaded.lab
    wait_until(lambda: lab.metric("tunnelgw_streams") == 0, seconds=30, what="no stream open")
    assert lab.metric("tunnelgw_parked_requests") == 0
