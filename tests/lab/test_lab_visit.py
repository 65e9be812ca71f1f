"""Private services through two NATs: into a home behind both, and out of it, while its link is cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab.lab import HOME_SSH, HOME_WEB, Lab
from tests.system.harness import TUNNELGW

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.system, pytest.mark.root]
SERVICES = f"""
[services.back]
target = "tcp://127.0.0.1:{HOME_SSH}"
private = true
[services.diary]
target = "http://127.0.0.1:{HOME_WEB}"
private = true
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("lab-visit"), services=SERVICES) as lab:
        yield lab


def join(lab: Lab, role: str, name: str, *services: str) -> Path:
    """A visiting machine in this namespace; its configuration."""
    folder = lab.folder / name
    folder.mkdir()
    options = [word for service in services for word in ("--allow-service", service)]
    invitation = lab.invite(name, "--role", "visitor", *options)
    config = folder / "connector.toml"
    lab.tunnelgw(role, "join", "-", "--config", str(config), "--state-dir", str(folder / "state"), stdin=invitation)
    return config


def test_ssh_and_http_into_a_home_behind_two_nats(place: Lab) -> None:
    lab = place
    config = join(lab, "visitor", "laptop", "back", "diary")
    command = f"ProxyCommand={' '.join(TUNNELGW)} visit back --stdio --config {config}"
    done = lab.exec(
        "visitor", "ssh", "-F", str(lab.folder / "sshd" / "ssh_config"), "-o", command, "machine", "echo here"
    )
    assert done.stdout == "here\n"
    visiting = lab.spawn(
        "laptop", "visitor", [*TUNNELGW, "visit", "diary", "--listen", "3000", "--config", str(config)]
    )
    visiting.wait_for("ready 127.0.0.1:3000 -> home/diary")
    assert lab.exec("visitor", "curl", "-s", "http://127.0.0.1:3000/").stdout == "hello from web\n"
    got = ["-o", str(lab.folder / "got"), "-w", "%{size_download}\n", "http://127.0.0.1:3000/bytes/8000000"]
    download = lab.spawn("download", "visitor", ["curl", "-s", "--max-time", "120", *got])
    before = lab.resumes()
    lab.relay.reset()
    lab.wait_resumed(before)
    download.wait_for("8000000", seconds=90)


def test_prometheus_at_home_scrapes_the_edge(place: Lab) -> None:
    config = join(place, "home", "prometheus", "edge-metrics")
    command = [*TUNNELGW, "visit", "edge-metrics", "--listen", "9150", "--config", str(config)]
    place.spawn("prometheus", "home", command).wait_for("ready 127.0.0.1:9150 -> edge/edge-metrics")
    text = place.exec("home", "curl", "-s", "http://127.0.0.1:9150/metrics").stdout
    assert 'tunnelgw_tunnels{connector="home",state="up"} 1.0' in text
