"""UDP ports of a home behind two NATs: DNS and HTTP/3 over links that are cut, and a game on a line that is full."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.lab.lab import ROOT, SSH_PORT, WEB_NAME, Lab
from tests.lab.network import VPS
from tests.system.harness import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
DIG, DNSMASQ = (shutil.which(name, path=PATH) for name in ("dig", "dnsmasq"))
HTTP3 = [sys.executable, str(ROOT / "tests" / "system" / "http3.py")]
DNS, QUIC, GAME, BULK = 5353, 8443, 27015, 27016  # public ports; at home the same, on loopback
SERVICES = f"""
[services.dns]
target = "udp://127.0.0.1:{DNS}"
port = {DNS}
[services.dns-tcp]
target = "tcp://127.0.0.1:{DNS}"
port = {DNS}
[services.quic]
target = "udp://127.0.0.1:{QUIC}"
port = {QUIC}
[services.game]
target = "udp://127.0.0.1:{GAME}"
port = "{GAME}-{BULK}"
"""
LONG = [f"{number:03}" + "x" * 240 for number in range(12)]  # strings of a TXT answer: 3 KB, more than UDP carries
SIZE = 1_000_000
SECONDS = 11.0  # of a game
pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("udp"), services=SERVICES) as lab:
        ports = [word for port in (SSH_PORT, DNS, QUIC, f"{GAME}-{BULK}") for word in ("--allow-port", str(port))]
        lab.tunnelgw("vps", "edge", "grant", "home", *ports, "--config", str(lab.edge_config))
        wait_until(lambda: len(lab.status()["addresses"]) >= 6, what=f"every address {lab.status()['addresses']}")
        yield lab


def cuts(lab: Lab) -> Iterator[str]:
    """Before anything happened, and after each thing that the relay can do to a link."""
    yield "at first"
    for name, cut in (("reset", lab.relay.reset), ("freeze", lab.relay.freeze)):
        before = lab.resumes()
        cut()
        lab.wait_resumed(before)
        yield f"after a {name}"


def dig(lab: Lab, *words: str) -> str:
    """What dig says at the visitor's; a lost question is asked again, as resolvers do."""
    command = (f"@{VPS}", "-p", f"{DNS}", "+tries=5", "+time=3", *words)
    return lab.exec("visitor", str(DIG), *command).stdout.strip()


@pytest.mark.skipif(not (DIG and DNSMASQ), reason="needs dig and dnsmasq")
def test_dns_at_home(lab: Lab) -> None:
    server = lab.spawn(
        "dnsmasq", "home",
        [str(DNSMASQ), "--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--user=root",
         "--listen-address=127.0.0.1", "--bind-interfaces", f"--port={DNS}", "--pid-file", "--log-facility=-",
         "--address=/nas.lan/192.168.1.7", f"--txt-record=long.lan,{','.join(LONG)}"],
    )  # fmt: skip
    server.wait_for("started")
    for when in cuts(lab):
        assert dig(lab, "+short", "+notcp", "+ignore", "nas.lan") == "192.168.1.7", when
        assert dig(lab, "+short", "+tcp", "nas.lan") == "192.168.1.7", when
        cut_short = dig(lab, "+ignore", "+notcp", "+bufsize=1232", "long.lan", "TXT")
        assert " tc" in cut_short.partition("flags:")[2].partition(";")[0], f"{when}: {cut_short}"
        assert LONG[-1] not in cut_short
        whole = dig(lab, "+notcp", "+bufsize=1232", "long.lan", "TXT")
        assert "Truncated, retrying in TCP mode" in whole, when
        assert all(text in whole for text in LONG), when
    assert lab.metric("tunnelgw_tunnel_reconnects_total") == 0


def certificate(folder: Path) -> tuple[str, str]:
    """A key and a certificate of a program at home."""
    key, found = str(folder / "h3.key"), str(folder / "h3.crt")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "7",
         "-subj", "/CN=h3.example.com", "-addext", "subjectAltName=DNS:h3.example.com", "-keyout", key, "-out", found],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, found


def test_http3_of_a_program_at_home(lab: Lab, tmp_path: Path) -> None:
    key, own = certificate(tmp_path)
    lab.spawn("http3", "home", [*HTTP3, "serve", f"{QUIC}", own, key]).wait_for("ready")
    for when in cuts(lab):
        done = lab.exec("visitor", *HTTP3, "get", f"{QUIC}", own, f"{SIZE}", "1", VPS, seconds=90)
        assert "1 of 1" in done.stdout, when
    going_on = lab.spawn("visit", "visitor", [*HTTP3, "get", f"{QUIC}", own, f"{3 * SIZE}", "4", VPS])
    for number, cut in enumerate((lab.relay.reset, lab.relay.freeze), 1):
        going_on.wait_for(f"{number} of 4", seconds=60)
        cut()
    going_on.wait_for("4 of 4", seconds=90)
    assert going_on.popen.wait(20) == 0, going_on.text()
    assert lab.metric("tunnelgw_tunnel_reconnects_total") == 0


def test_a_game_beside_bulk_and_a_download_on_a_full_line(lab: Lab) -> None:
    """Home's uplink takes 4 Mbit/s; another flow alone wants 9.6, and a download whatever there is."""
    game = [sys.executable, "-m", "tests.lab.game"]
    env = {"PYTHONPATH": str(ROOT)}
    lab.spawn("game", "home", [*game, "home", f"{GAME}", f"{BULK}"], env=env).wait_for("ready")
    lab.net.narrow("4mbit")
    taken = lab.folder / "download"
    url = f"https://{WEB_NAME}/numbered/{64 << 20}"
    download = lab.spawn("download", "visitor", ["curl", "-sk", "-o", str(taken), url])
    try:
        wait_until(lambda: taken.exists() and taken.stat().st_size > 0, what="the download began")
        before = taken.stat().st_size
        player = lab.spawn("player", "visitor", [*game, "play", VPS, f"{GAME}", f"{BULK}", f"{SECONDS}"], env=env)
        found = json.loads(player.wait_for(r"\{.*\}", seconds=60)[0])
        downloaded = taken.stat().st_size - before
    finally:
        download.popen.kill()
        lab.net.narrow("20mbit")
    median = statistics.median(found["delays"] or [99.0])
    lost = 1 - len(found["delays"]) / found["sent"]
    dropped = lab.home_status()["edges"][0]["tunnels"][0]["datagrams_dropped"]
    shown = f"{median:.3f} s, {lost:.1%} lost, {found['bulk']} and {downloaded} bytes beside it, {dropped} dropped"
    assert found["in_order"]
    assert found["bulk_in_order"]
    assert lost < 0.4, shown  # without turns it would be most of them; a machine may stand still for a second or two
    assert median < 1.0, shown
    line = 4_000_000 / 8 * SECONDS
    assert min(found["bulk"], downloaded) > line / 8, shown
    assert dropped > 500, shown
