"""Services by name for programs that know nothing of tunnelgw: Minecraft on a shared port, MQTT and ssh inside TLS."""

from __future__ import annotations

import re
import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from tests.lab.lab import ROOT, SSH_PORT, Lab
from tests.lab.network import VPS
from tests.system.harness import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.system, pytest.mark.root]
SHARED = 25565
NAMES = ("mc.example.com", "creative.example.com", "lost.example.com", "mqtt.example.com", "shell.example.com")
MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/bin")
SERVICES = f"""
[services.survival]
target = "tcp://127.0.0.1:25001"
host = "mc.example.com"
port = {SHARED}
protocol = "minecraft"
[services.creative]
target = "tcp://127.0.0.1:25002"
host = "creative.example.com"
port = {SHARED}
protocol = "minecraft"
[services.mqtt]
target = "tcp://127.0.0.1:1883"
host = "mqtt.example.com"
[services.shell]
target = "tcp://127.0.0.1:22"
host = "shell.example.com"
"""


@pytest.fixture(scope="module")
def lab(possible: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("names"), services=SERVICES) as lab:
        lab.net.hosts("visitor", dict.fromkeys(NAMES, (VPS,)))
        for name, port in (("survival", 25001), ("creative", 25002)):
            command = [sys.executable, "-m", "tests.system.minecraft_server", str(port), name]
            lab.spawn(name, "home", command, env={"PYTHONPATH": str(ROOT)}).wait_for("ready")
        lab.tunnelgw("vps", "edge", "grant", "home", "--allow-port", f"{SSH_PORT}", "--allow-port", f"{SHARED}",
                     "--config", str(lab.edge_config))  # fmt: skip
        shared = f"minecraft://mc.example.com:{SHARED}"
        wait_until(lambda: shared in {entry["address"] for entry in lab.status()["addresses"]}, what="the shared port")
        yield lab


def play(lab: Lab, host: str, *what: str) -> list[str]:
    command = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "tests.system.minecraft_client", host, str(SHARED)]
    done = lab.exec("visitor", *command, *what, check=False)
    return [*done.stdout.splitlines(), *done.stderr.splitlines()[-1:]]


def test_two_worlds_on_one_port(lab: Lab) -> None:
    assert play(lab, "mc.example.com") == ["survival as mc.example.com plain", "pong"]
    assert play(lab, "creative.example.com") == ["creative as creative.example.com plain", "pong"]
    assert play(lab, "mc.example.com", "forge") == ["survival as mc.example.com forge", "pong"]
    assert play(lab, "creative.example.com", "login") == ["creative as creative.example.com plain, Steve"]
    label = f"tcp:{SHARED}/mc.example.com"
    assert lab.metric("tunnelgw_bytes_total", route=label) > 0


def test_a_world_that_nobody_serves(lab: Lab) -> None:
    assert play(lab, "lost.example.com") == ["nothing is published under this address", "the server left"]
    assert play(lab, "lost.example.com", "login") == ["nothing is published under this address"]


def authority(lab: Lab, name: str) -> str:
    """A file with the certificate that signed what the edge shows for this name."""
    shown = lab.exec(
        "visitor", "openssl", "s_client", "-connect", f"{VPS}:443", "-servername", name, "-showcerts"
    ).stdout
    found = re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n", shown, re.DOTALL)
    path = lab.folder / f"{name}.pem"
    path.write_text(found[-1])
    return str(path)


@pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
def test_mqtt_inside_tls_on_443(lab: Lab) -> None:
    """With and without ALPN; what is published there is heard here."""
    config = lab.folder / "mosquitto.conf"
    config.write_text("listener 1883 127.0.0.1\nallow_anonymous true\nuser root\n")
    broker = lab.spawn("mosquitto", "home", [str(MOSQUITTO), "-c", str(config)])
    broker.wait_for("running")
    to = ["-h", "mqtt.example.com", "-p", "443", "--cafile", authority(lab, "mqtt.example.com"), "-t", "home/door"]
    for alpn in ([], ["--tls-alpn", "mqtt"]):
        lab.exec("visitor", "mosquitto_pub", *to, *alpn, "-r", "-q", "1", "-m", f"open {len(alpn)}")
        heard = lab.exec("visitor", "mosquitto_sub", *to, *alpn, "-C", "1", "-W", "20")
        assert heard.stdout == f"open {len(alpn)}\n"


def test_alpn_is_answered_where_somebody_could_insist(lab: Lab) -> None:
    for offered, picked in (("mqtt", "ALPN protocol: mqtt"), ("imap,x-other", "ALPN protocol: imap"),
                            ("x-other", "No ALPN negotiated"), ("h2", "No ALPN negotiated")):  # fmt: skip
        shown = lab.exec("visitor", "openssl", "s_client", "-connect", f"{VPS}:443", "-servername", "mqtt.example.com",
                         "-alpn", offered)  # fmt: skip
        assert picked in shown.stdout, offered


def test_ssh_inside_tls_on_443(lab: Lab) -> None:
    openssl = f"openssl s_client -quiet -connect {VPS}:443 -servername shell.example.com"
    options = ["-F", str(lab.folder / "sshd" / "ssh_config"), "-o", f"ProxyCommand={openssl}"]
    assert lab.exec("visitor", "ssh", *options, "shell.example.com", "echo", "inside").stdout == "inside\n"
