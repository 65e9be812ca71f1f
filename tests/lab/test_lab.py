"""The lab is what it says it is: two NATs, a narrow uplink, a relay; and it goes without a trace."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from tests.lab import network
from tests.lab.lab import HOME_WEB, ROOT, WEB_NAME, Lab
from tests.lab.network import DIRECT6, HOME, PUBLIC, ROUTER_WAN, VPS, Network
from tests.lab.programs import now
from tests.system.harness import Process, wait_until

pytestmark = [pytest.mark.system, pytest.mark.root]
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1.5).close()"


def reaches(lab: Lab, role: str, address: str, port: int) -> bool:
    """Whether a TCP connection from there can be made."""
    return lab.exec(role, sys.executable, "-c", CONNECT, address, str(port), check=False).returncode == 0


def test_a_visitor_sees_what_is_at_home(lab: Lab) -> None:
    assert lab.curl(f"https://{WEB_NAME}/").stdout == "hello from web\n"
    assert lab.ssh("echo", "here").stdout == "here\n"
    assert lab.relay.connections() == 1


def test_the_vps_cannot_reach_home(lab: Lab) -> None:
    """Neither by any address of home's, nor through the hole that the tunnel made in both NATs."""
    lab.spawn("listener", "home", [sys.executable, "-m", "http.server", "9000"])
    assert reaches(lab, "home", VPS, 443)
    assert reaches(lab, "home", DIRECT6, 443)
    assert not reaches(lab, "vps", HOME, 9000)
    assert not reaches(lab, "vps", ROUTER_WAN, 9000)
    assert not reaches(lab, "vps", lab.net.public, 9000)
    assert not reaches(lab, "vps", "2001:db8:4::2", 9000)
    assert not reaches(lab, "vps", HOME, HOME_WEB)
    mapped = re.search(rf"dst={lab.net.public} sport=443 dport=(\d+).*ASSURED", lab.net.mappings("carrier"))
    assert mapped is not None, lab.net.mappings("carrier")
    assert not reaches(lab, "vps", lab.net.public, int(mapped[1]))
    # At both NATs the tunnel has a mapping, and no address of home's is seen behind either.
    assert f"src={ROUTER_WAN}" in lab.net.mappings("carrier")
    assert HOME not in lab.net.mappings("carrier")
    assert f"src={HOME}" in lab.net.mappings("router")


def test_home_has_a_public_address_that_is_not_its_own(lab: Lab) -> None:
    assert lab.net.public in PUBLIC
    peer = [entry["address"] for entry in lab.status()["connectors"]]
    assert peer == [peer[0]]
    assert HOME not in peer[0]


def test_the_uplink_is_narrow(lab: Lab) -> None:
    """8 MB at 20 Mbit/s take more than 3 s, less what a bucket and queues hold."""
    began = now()
    done = lab.curl(f"https://{WEB_NAME}/bytes/8000000", "-o", "/dev/null", "-w", "%{size_download}")
    assert done.stdout == "8000000"
    assert now() - began > 2.5


def test_nothing_is_left_of_a_lab(tmp_path: Path) -> None:
    with Lab(tmp_path) as second:  # beside another one: nothing is shared
        name = second.net.name
        assert second.code() == 200
        pids = [child.pid for child in second.children]
    assert not [path for path in Path("/run/netns").iterdir() if path.name.startswith(name)]
    assert not list(Path("/etc").glob(f"netns/{name}*"))
    assert not [pid for pid in pids if network.born(pid)]


def test_a_killed_run_is_swept_and_a_living_one_is_not(lab: Lab, tmp_path: Path) -> None:
    program = (
        "import time, subprocess\n"
        "from tests.lab.network import Network, inside\n"
        "network = Network()\n"
        "child = subprocess.Popen(inside(network.namespace('home'), ['sleep', '1000']))\n"
        "print('built', network.name, child.pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    killed = Process("killed", [sys.executable, "-c", program], tmp_path, env={"PYTHONPATH": str(ROOT)})
    built = killed.wait_for(r"built (\S+) (\d+)")
    network.sweep()
    assert Path(f"/run/netns/{built[1]}-home").exists()  # while it lives it is not ours to touch
    killed.kill()
    assert Path(f"/run/netns/{built[1]}-home").exists()
    removed = network.sweep()
    assert f"{built[1]}-home" in removed
    assert not [path for path in Path("/run/netns").iterdir() if path.name.startswith(built[1])]
    assert not list(Path("/etc").glob(f"netns/{built[1]}*"))
    assert not network.born(int(built[2]))
    assert lab.code() == 200


def test_a_network_that_cannot_be_built_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(os.listdir("/run/netns"))
    monkeypatch.setitem(network.ROUTES, "home", ["default via nowhere"])
    with pytest.raises(AssertionError, match="nowhere"):
        Network()
    assert set(os.listdir("/run/netns")) == before


def test_an_idle_tunnel_outlives_the_nats(lab: Lab) -> None:
    """The carrier forgets a silent connection after 12 s; pings keep the tunnel's mapping longer than that."""
    before = lab.resumes()
    left = []
    end = now() + network.FORGETS["carrier"] + 3

    def over() -> bool:
        found = re.search(rf"tcp\s+6 (\d+) ESTABLISHED src={ROUTER_WAN} ", lab.net.mappings("carrier"))
        assert found is not None, lab.net.mappings("carrier")
        left.append(int(found[1]))
        return now() > end

    wait_until(over, seconds=60)
    assert min(left) >= 1
    assert lab.resumes() == before
    assert lab.ssh("echo", "still", "here").stdout == "still here\n"


def test_a_silent_death_without_load(lab: Lab) -> None:
    """Noticed within 10 s, and what comes then is served."""
    before, began = lab.resumes(), now()
    assert lab.relay.freeze() == 2
    lab.wait_resumed(before)
    took = now() - began
    print(f"frozen, without load: back after {took:.2f} s")
    assert took < 10.0 + 5.0  # promised, and room for a busy machine
    assert lab.code() == 200


def test_without_root_there_is_a_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert network.unavailable() == "needs root, for network namespaces"
