"""Without load: who notices what, and when; and how soon a connector that comes back serves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab import faults
from tests.lab.asked import PAGE, Asked, check_page
from tests.lab.lab import WEB_NAME
from tests.lab.loaded import NOTICED_IDLE, ROOM
from tests.lab.programs import now
from tests.system.harness import wait_until

if TYPE_CHECKING:
    from tests.lab.lab import Lab

pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.slow]
# Seconds. What a busy machine may add is less than one round trip more, and in time before the edge notices the twin's
# silence, which has something under way.
ROUND_TRIP, BUSY = 1.2, 1.1
ATTEMPTS = 3  # and it may stand still for longer than that, once
WEB = f"https://{WEB_NAME}"


def test_an_idle_link_dies(lab: Lab) -> None:
    """In silence: both sides notice within ten seconds, and the tunnel resumes."""
    seen, before, began = len(lab.edge.present.text()), lab.resumes(), now()
    assert lab.relay.freeze() == 2
    lab.edge.present.wait_for("link lost|resumed", after=seen, seconds=NOTICED_IDLE + ROOM)
    noticed = now() - began
    lab.wait_resumed(before)
    print(f"idle link frozen: noticed after {noticed:.2f} s, resumed after {now() - began:.2f} s")
    assert noticed < NOTICED_IDLE + ROOM


def test_the_same_identity_takes_over(lab: Lab) -> None:
    """Power is lost at home: the edge hears nothing. The connector that comes back replaces its twin at once.

    Round trips from its TCP connection on (whose handshake is the relay's own, and takes none): half a one for the
    ClientHello, a half for the edge's part of TLS 1.3, a half for the end of the handshake together with the hello: the
    twin is replaced. Half a one for the welcome and the request that was under way, a half for its answer.
    """
    for attempt in range(ATTEMPTS):
        replaced, answered, noticed = take_over(lab)
        print(
            f"takeover of a silently dead twin, round trip {ROUND_TRIP:g} s: replaced {replaced:.2f} s after the TCP "
            f"connection of its successor, a request that was under way answered after {answered:.2f} s"
        )
        in_time = replaced < 1.5 * ROUND_TRIP + BUSY and answered - replaced < ROUND_TRIP + BUSY
        if in_time and not noticed:
            return
        assert attempt < ATTEMPTS - 1, (replaced, answered, noticed)


def take_over(lab: Lab) -> tuple[float, float, bool]:
    """Seconds until the twin is replaced, and the request answered; whether the edge had noticed the twin's end."""
    seen = len(lab.edge.present.text())
    public = {entry["address"] for entry in lab.status()["addresses"]}
    assert lab.relay.freeze() == 2  # from here on nothing of the old one gets out, its end neither
    lab.connector.kill()
    lab.relay.delay(ROUND_TRIP / 2)
    try:
        lab.connector.start(wait=False)
        wait_until(lambda: lab.relay.connections() == 1, what="it dials")
        began = now()
        asked = Asked(lab, f"{WEB}/")  # of the twin, in vain
        lab.edge.present.wait_for("connector home: connected", after=seen)
        replaced = now() - began
        code, text, _ = asked.answer()
        answered = now() - began
    finally:
        lab.relay.delay(0.0)
    assert (code, text.split()[1]) == (0, "200"), text
    text = lab.edge.present.text()[seen:]
    lab.connector.present.wait_for("ready")
    assert {entry["address"] for entry in lab.status()["addresses"]} == public
    assert "port 2222 is closed" not in text
    assert lab.ssh("echo back").stdout == "back\n"
    return replaced, answered, "another instance took over" not in text


def test_home_is_away_for_long(lab: Lab) -> None:
    """Parked up to `park_seconds`; at once 503 once it is away for longer than `resume_seconds`; then it is back."""
    lab.extra = "park_seconds = 2\nresume_seconds = 12"
    lab.write_edge()
    seen = len(lab.edge.present.text())
    lab.edge.signal(1)
    lab.edge.present.wait_for("reload: .*seconds", after=seen)
    parked = lab.metric("tunnelgw_parked_requests_total")
    killed = now()
    lab.connector.kill()
    wait_until(lambda: lab.metric("tunnelgw_tunnels", state="up") == 0, what="the edge has noticed")
    _, text, took = Asked(lab, f"{WEB}/", *PAGE).answer()
    check_page(text, 503, away=True)
    assert took >= 2.0
    assert lab.metric("tunnelgw_parked_requests_total") == parked + 1
    wait_until(lambda: lab.metric("tunnelgw_tunnels", state="away") == 1, seconds=40, what="it is given up")
    assert now() - killed >= 12.0
    _, text, at_once = Asked(lab, f"{WEB}/", *PAGE).answer()
    check_page(text, 503, away=True)
    assert lab.metric("tunnelgw_parked_requests_total") == parked + 1, "nobody waits"
    lab.connector.start()
    assert lab.code(f"{WEB}/") == 200
    print(f"home away: 503 after {took:.2f} s, and after {at_once:.2f} s once it is away for long")
    # Longer than `resume_seconds` after the start of the edge: a successor is still waited for.
    again = Asked(lab, f"{WEB}/slow?seconds=3")
    wait_until(lambda: lab.metric("tunnelgw_streams") >= 1, what="it is under way")
    faults.connector_dies(lab, away=0.0)
    code, text, _ = again.answer()
    assert (code, text.split()[1]) == (0, "200"), text
