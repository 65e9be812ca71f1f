"""Whatever happens to the link, no visitor notices: nothing fails, nothing is missing, all goes on.

One lab and one load serve all of these tests. Each makes one fault happen, waits until every kind of load got something
through that was begun after it, and looks at what became of everything in between.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.lab import faults
from tests.lab.lab import Lab
from tests.lab.loaded import NOTICED_BUSY, ROOM, Loaded
from tests.lab.network import DIRECT6, VPS, inside
from tests.lab.programs import now
from tests.system.harness import DOMAIN, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.slow]
SLOW = """
[services.slow]
target = 8080
response_seconds = 8
"""


@pytest.fixture(scope="module")
def lab(possible: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("faults"), services=SLOW) as lab:
        yield lab


@pytest.fixture(scope="module")
def loaded(lab: Lab) -> Loaded:
    return Loaded(lab, lab.load())


def test_mtu_black_hole(loaded: Loaded) -> None:
    """Large packets vanish, nobody is told, and it stays that way: the tunnel works nevertheless.

    The first fault of this connector: after any silence it sends small packets, and would not notice.
    """
    lab = loaded.lab
    loaded.begin()
    lab.net.shrink(faults.MTU)
    loaded.survived("MTU black hole", within=NOTICED_BUSY + ROOM)
    lab.net.grow()
    loaded.begin()
    lab.net.shrink(faults.MTU)
    loaded.survived("MTU black hole, known", within=ROOM, resumed=False)
    lab.net.grow()


def test_reset(loaded: Loaded) -> None:
    for _ in range(2):
        loaded.begin()
        assert loaded.lab.relay.reset() >= 2
        loaded.survived("reset", within=ROOM)


def test_frozen_in_silence(loaded: Loaded) -> None:
    loaded.begin()
    assert loaded.lab.relay.freeze() == 2
    loaded.survived("frozen", within=NOTICED_BUSY + ROOM)


@pytest.mark.parametrize("side", ["near", "far"], ids=["home", "edge"])
def test_half_close_by_a_middlebox(loaded: Loaded, side: str) -> None:
    loaded.begin()
    assert loaded.lab.relay.half_close(side) == 1
    loaded.survived(f"half-close to {side}", within=ROOM)


def test_byte_by_byte(loaded: Loaded) -> None:
    """Slow, but no loss of the link."""
    loaded.begin()
    before = loaded.lab.relay.singles()
    faults.bytewise(loaded.lab, seconds=2.0)
    loaded.survived("single bytes", within=2.0 + ROOM, resumed=False)
    assert loaded.lab.relay.singles() - before > 10_000


def test_losses(loaded: Loaded) -> None:
    """A second in which nothing passes is no death: three are, and a busy machine may add to it."""
    loaded.begin()
    faults.link_stalls(loaded.lab, seconds=1.0)
    loaded.survived("stalled 1 s", within=1.0 + ROOM, resumed=False)


def test_the_edge_moves(loaded: Loaded) -> None:
    """Its address changes behind its name, for connectors: at the next dial the name is resolved anew. Twice: from the
    relay's address to the edge's own, and to another one of those."""
    lab = loaded.lab
    loaded.begin()
    lab.go("direct")
    lab.relay.reset()
    loaded.survived("moved, with a reset", within=ROOM)
    loaded.begin()
    faults.edge_moves(lab)
    loaded.survived("moved, in silence", within=NOTICED_BUSY + ROOM)
    assert lab.relay.connections() == 0


@pytest.mark.parametrize("fault", [faults.carrier_forgets, faults.router_forgets, faults.address_changes])
def test_nat(loaded: Loaded, fault) -> None:
    loaded.begin()
    fault(loaded.lab)
    loaded.survived(fault.__name__, within=NOTICED_BUSY + ROOM)


def test_a_router_reboots(loaded: Loaded) -> None:
    """Ten seconds without any way: what was asked meanwhile is answered, and no limit for silence runs on.

    The slow service may take 8 s to answer: it is asked just before, and answers after more than ten.
    """
    lab = loaded.lab
    loaded.begin()
    seen, began = len(lab.edge.present.text()), now()
    command = ["curl", "-sk", "--resolve", f"slow.{DOMAIN}:443:{VPS}", "-w", " %{http_code} %{time_total}",
               f"https://slow.{DOMAIN}/slow?seconds=3"]  # fmt: skip
    asked = lab.aside(inside(lab.net.namespace("visitor"), command), stdout=subprocess.PIPE, text=True)
    wait_until(lambda: lab.curl(f"https://web.{DOMAIN}/slows").stdout.strip() == "1", what="it is at home")
    lab.net.power_off("router")
    lab.edge.present.wait_for("link lost", after=seen)
    noticed = now() - began
    faults.pause(10.0 - noticed)
    lab.net.power_on("router")
    loaded.survived("router rebooted", within=10.0 + NOTICED_BUSY + 4.0 + ROOM)
    answer, _ = asked.communicate(timeout=60)
    body, code, took = answer.rsplit(" ", 2)
    assert (body, code) == ("at last\n", "200")
    assert float(took) > 9.0
    print(f"the edge noticed after {noticed:.2f} s")
    assert noticed < NOTICED_BUSY + ROOM


def test_ipv6_breaks(loaded: Loaded) -> None:
    """The link is on IPv6; nothing passes there any more, and no dial waits for it."""
    lab = loaded.lab
    loaded.begin()
    lab.name_edge(DIRECT6, lab.at["direct"])
    lab.net.forget("carrier")
    loaded.survived("to IPv6", within=NOTICED_BUSY + ROOM)
    assert peer(lab).startswith("2001:db8:")
    loaded.begin()
    lab.net.drop("carrier", "forward", "meta nfproto ipv6")
    loaded.survived("IPv6 broken", within=NOTICED_BUSY + ROOM)
    assert peer(lab).startswith(lab.net.public)
    lab.net.heal("carrier")


def peer(lab: Lab) -> str:
    """From where the tunnel comes, as the edge sees it."""
    return lab.status()["connectors"][0]["address"]


def test_everything_was_answered(loaded: Loaded) -> None:
    """All that was ever begun finished; nothing leaks."""
    report = loaded.load.finish()
    print(loaded.load.table())
    for kind, facts in report["kinds"].items():
        assert facts["begun"] == facts["finished"] > 0, (kind, facts)
    wait_until(lambda: loaded.lab.metric("tunnelgw_streams") == 0, seconds=30, what="no stream open")
    assert loaded.lab.metric("tunnelgw_parked_requests") == 0
    assert loaded.lab.metric("tunnelgw_tunnel_reconnects_total") == 0
