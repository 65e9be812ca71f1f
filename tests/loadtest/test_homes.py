"""Many homes in one process are real ones: served, and back after their edge's restart."""

from __future__ import annotations

import shutil

import pytest

from loadtest.home import start_nginx
from loadtest.processes import Group
from loadtest.scenario import ADDRESS
from loadtest.scenes.connectors import DOMAIN, Crowd, restarted
from loadtest.scenes.homes import service_name
from loadtest.scenes.latency import OpenLoop

pytestmark = [pytest.mark.system, pytest.mark.slow]
HOMES, SERVICES = 5, 3


@pytest.mark.skipif(shutil.which("nginx") is None or shutil.which("h2load") is None, reason="nginx and h2load")
def test_every_home_of_a_process_serves_and_comes_back(tmp_path):
    group = Group(tmp_path)

    def ask_all(crowd: Crowd) -> None:
        for home in range(HOMES):
            for service in range(SERVICES):
                host = f"{service_name(home, service)}.{DOMAIN}"
                found = OpenLoop(
                    (ADDRESS, crowd.port), rate=50, seconds=0.1, channels=1, host=host, ca=str(tmp_path / "cert.pem")
                ).run()
                assert found["requests"] == 5

    try:
        crowd = Crowd.settle(group, start_nginx(group), count=HOMES, services=SERVICES)
        crowd.first()
        crowd.more(1, HOMES - 1)
        assert crowd.up() == crowd.wanted() == HOMES - 1
        ask_all(crowd)
        ready, back, _ = restarted(crowd)
        assert 0 < ready <= back
        ask_all(crowd)
    finally:
        group.stop()
