"""`transparent = true`: an sshd at home logs visitors' own addresses, and nothing else at home changes."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.lab import HOME_SSH, HOME_WEB, SSH_PORT, Lab
from tests.lab.laptop import NETWORKS, Laptop
from tests.lab.network import HOME, VPS
from tests.lab.tunnels import LAN, missing
from tests.system.harness import wait_until
from tests.system.sshd import SSHD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.harness import Process

pytestmark = [pytest.mark.system, pytest.mark.root]
PORT, HOME_PORT, WEB_PORT = 2223, 2022, 8443
VISITOR, VISITOR6 = "203.0.113.2", "2001:db8:5::2"
VPS6 = "2001:db8:1::2"
SERVICES = f"""
[services.seen]
target = "tcp://localhost:{HOME_PORT}"
port = {PORT}
transparent = true
[services.four]
target = "tcp://127.0.0.1:{HOME_PORT}"
port = {WEB_PORT}
transparent = true
"""
ONLY = ("setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all")
NONE = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-all")
# Says the port that it comes from, and what the other side says first.
BANNER = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10) as sock:
    print(sock.getsockname()[1], sock.recv(7).decode())
"""


@pytest.fixture(scope="module")
def home(possible: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lab, Process]]:
    """A lab, and the sshd in it that is reached transparently."""
    with Lab(tmp_path_factory.mktemp("transparent")) as lab:
        config = lab.folder / "sshd" / "seen_config"
        text = (lab.folder / "sshd" / "sshd_config").read_text()
        both = f"ListenAddress 127.0.0.1:{HOME_PORT}\nListenAddress [::1]:{HOME_PORT}\nLogLevel VERBOSE"
        config.write_text(text.replace(f"ListenAddress 127.0.0.1:{HOME_SSH}", both))
        sshd = lab.spawn("seen", "home", [str(SSHD), "-D", "-e", "-f", str(config)])
        sshd.wait_for("listening on ::1")
        ports = [word for port in (SSH_PORT, PORT, WEB_PORT) for word in ("--allow-port", f"{port}")]
        lab.tunnelgw("vps", "edge", "grant", "home", *ports, "--config", str(lab.edge_config))
        yield lab, sshd


@pytest.fixture(autouse=True)
def served(home: tuple[Lab, Process]) -> Iterator[None]:
    """Every test begins with a connector that runs as root, and nothing of the last one at home."""
    lab, _ = home
    lab.services = SERVICES
    lab.write_home()
    if lab.connector.runs:
        lab.connector.stop()
    lab.connector.start()
    wait_open(lab)
    yield
    if lab.connector.runs:
        lab.connector.stop()
    assert traces(lab) == ("", "", "0")


def wait_open(lab: Lab) -> None:
    def is_open() -> bool:
        addresses = {entry["address"]: entry["state"] for entry in lab.status()["addresses"]}
        return addresses.get(f"tcp://edge.example.com:{PORT}") == "up"

    wait_until(is_open, what="the port")


def routing(lab: Lab) -> list[str]:
    """All rules and routes at home, without what is ours."""
    lines = []
    for family in ("-4", "-6"):
        lines += lab.exec("home", "ip", family, "rule").stdout.splitlines()
        lines += lab.exec("home", "ip", family, "route", "show", "table", "all").stdout.splitlines()
    return [line.strip() for line in lines if "29799" not in line]


def traces(lab: Lab) -> tuple[str, str, str]:
    """What is ours at home: rules, routes, the kernel's switch."""
    rules = "".join(lab.exec("home", "ip", family, "rule", "show", "pref", "746").stdout for family in ("-4", "-6"))
    routes = "".join(
        lab.exec("home", "ip", family, "route", "show", "table", "29799", check=False).stdout for family in ("-4", "-6")
    )
    return rules, routes, lab.exec("home", "cat", "/proc/sys/net/ipv4/tcp_fwmark_accept").stdout.strip()


def banner(lab: Lab, address: str, port: int = PORT) -> tuple[int, str]:
    done = lab.exec("visitor", sys.executable, "-c", BANNER, address, str(port), check=False)
    words = done.stdout.split()
    return (int(words[0]), words[1]) if len(words) == 2 else (0, "")


@pytest.mark.parametrize(("edge", "visitor"), [(VPS, VISITOR), (VPS6, VISITOR6)])
def test_sshd_logs_the_visitors_address_and_port(home: tuple[Lab, Process], edge: str, visitor: str) -> None:
    lab, sshd = home
    port, said = banner(lab, edge)
    assert said == "SSH-2.0"
    sshd.wait_for(rf"Connection from {visitor} port {port} on ")
    options = ["-F", str(lab.folder / "sshd" / "ssh_config"), "-p", str(PORT)]
    done = lab.exec("visitor", "ssh", *options, edge, "echo $SSH_CONNECTION; head -c 3000000 /dev/zero | wc -c")
    connection, count = done.stdout.splitlines()
    assert connection.split()[0] == visitor
    assert count == "3000000"
    sshd.wait_for(rf"Accepted publickey for \S+ from {visitor} port ")


def test_nothing_else_changes(home: tuple[Lab, Process]) -> None:
    """Routes of other packets, programs on loopback and in the home network, and other services are as before."""
    lab, sshd = home
    assert lab.connector.stop() == 0
    before = routing(lab)
    listener = lab.spawn("listener", "home", [sys.executable, "-m", "http.server", "9000", "--bind", HOME])
    answers = ["curl", "-sf", "-o", "/dev/null", f"http://{HOME}:9000/"]
    wait_until(lambda: lab.exec("router", *answers, check=False).returncode == 0, what="a program in the home network")
    lab.connector.start()
    wait_open(lab)
    assert routing(lab) == before
    assert traces(lab)[2] == "1"
    assert banner(lab, VPS)[1] == "SSH-2.0"
    for role, url in (("router", f"http://{HOME}:9000/"), ("home", f"http://127.0.0.1:{HOME_WEB}/")):
        lab.exec(role, "curl", "-sf", "--max-time", "5", "-o", "/dev/null", url)
    assert lab.ssh("echo", "plain").stdout == "plain\n"  # the service that is not transparent, over the same tunnel
    plain = lab.exec("home", "ip", "route", "get", VISITOR).stdout
    assert "via 192.168.1.1" in plain
    assert "via 192.168.1.1" in lab.exec("home", "ip", "route", "get", VISITOR, "mark", "1").stdout
    assert lab.exec("home", "ip", "route", "get", VISITOR, "mark", "0x7467").stdout.startswith("local")
    done = lab.exec("home", sys.executable, "-c", BANNER, "127.0.0.1", str(HOME_PORT))
    sshd.wait_for(rf"Connection from 127.0.0.1 port {done.stdout.split()[0]} on ")
    listener.stop()


def test_a_target_of_one_family_refuses_the_other(home: tuple[Lab, Process]) -> None:
    """Never from the connector's own address, which programs trust."""
    lab, sshd = home
    assert banner(lab, VPS, WEB_PORT)[1] == "SSH-2.0"
    before = len(sshd.text())
    assert banner(lab, VPS6, WEB_PORT)[1] == ""
    lab.connector.present.wait_for("a visitor with IPv6 cannot be shown to it: write localhost")
    assert "Connection from" not in sshd.text()[before:]


def test_what_a_killed_connector_leaves_is_removed(home: tuple[Lab, Process]) -> None:
    lab, _ = home
    for services in (SERVICES, ""):
        lab.connector.kill()
        assert "fwmark 0x7467" in traces(lab)[0]
        lab.services = services
        lab.write_home()
        lab.connector.start()
        if services:
            wait_open(lab)
            assert banner(lab, VPS)[1] == "SSH-2.0"
        else:
            assert traces(lab) == ("", "", "0"), "by a connector that has no use for it"
            lab.connector.present.wait_for("removed the routing of a connector that was killed")


def test_at_every_orderly_end(home: tuple[Lab, Process]) -> None:
    """SIGTERM and SIGINT; and what was set before stays set."""
    lab, _ = home
    assert lab.connector.stop() == 0
    assert traces(lab) == ("", "", "0")
    lab.connector.start()
    lab.connector.signal(signal.SIGINT)
    assert lab.connector.present.popen.wait(20) == 0
    assert traces(lab) == ("", "", "0")
    switch = "/proc/sys/net/ipv4/tcp_fwmark_accept"
    lab.exec("home", "sh", "-c", f"echo 1 > {switch}")
    lab.connector.start()
    assert lab.connector.stop() == 0
    assert traces(lab) == ("", "", "1")
    lab.exec("home", "sh", "-c", f"echo 0 > {switch}")


def test_one_capability_is_enough_and_needed(home: tuple[Lab, Process]) -> None:
    lab, sshd = home
    lab.connector.stop()
    refused = lab.connector.start(wait=False, before=NONE)
    assert refused.popen.wait(20) == 1
    why = next(line for line in refused.text().splitlines() if "transparent" in line)
    assert "services.seen.transparent: Operation not permitted" in why
    assert "CAP_NET_ADMIN" in why
    assert traces(lab) == ("", "", "0")
    doctor = ["doctor", "--config", str(lab.home_config)]
    program = [sys.executable, "-m", "tunnelgw"]
    assert (
        "FAIL  transparent: this user has not CAP_NET" in lab.exec("home", *NONE, *program, *doctor, check=False).stdout
    )
    assert "ok    transparent: allowed" in lab.exec("home", *program, *doctor, check=False).stdout
    lab.connector.start(before=ONLY)
    wait_open(lab)
    port, said = banner(lab, VPS)
    assert said == "SSH-2.0"
    sshd.wait_for(rf"Connection from {VISITOR} port {port} on ")
    assert "ok    transparent: answers with mark" in lab.exec("home", *program, *doctor, check=False).stdout
    lab.exec("home", "ip", "rule", "del", "pref", "746")
    assert "FAIL  transparent: the routing" in lab.exec("home", *program, *doctor, check=False).stdout
    assert lab.connector.stop() == 0


def test_a_reload_begins_it_and_streams_keep_it(home: tuple[Lab, Process]) -> None:
    lab, _ = home
    lab.connector.stop()
    lab.services = ""
    lab.write_home()
    lab.connector.start()
    assert traces(lab) == ("", "", "0")
    lab.services = SERVICES
    lab.write_home()
    wait_open(lab)
    assert banner(lab, VPS)[1] == "SSH-2.0"
    options = ["-F", str(lab.folder / "sshd" / "ssh_config"), "-p", str(PORT)]
    session = lab.spawn(
        "session", "visitor", ["ssh", *options, VPS, "echo begun; sleep 3; head -c 100000 /dev/zero | wc -c"]
    )
    session.wait_for("begun")
    lab.services = SERVICES.replace("transparent = true", "")
    lab.write_home()
    lab.connector.present.wait_for("service seen changed")
    session.wait_for("100000")
    port, _ = banner(lab, VPS)
    assert port
    assert "fwmark" in traces(lab)[0], "until the end: streams may need it"


def test_beside_a_visitors_interface(home: tuple[Lab, Process]) -> None:
    """One connector has both, and each goes on when the other ends, also after a kill."""
    if missing():
        pytest.skip(missing())
    lab, sshd = home
    laptop = Laptop(lab)
    wait_open(lab)

    def is_seen() -> None:
        port, said = banner(lab, VPS)
        assert said == "SSH-2.0"
        sshd.wait_for(rf"Connection from {VISITOR} port {port} on ")

    visit = laptop.visit("--via", "home")
    assert laptop.ping(LAN)
    is_seen()
    assert laptop.ping(LAN)
    lab.services = SERVICES.replace("transparent = true", "")
    laptop.offer(NETWORKS)
    wait_open(lab)
    assert traces(lab) == ("", "", "0")
    wait_until(lambda: laptop.ping(LAN), seconds=30, what="packets without a transparent service")
    lab.services = SERVICES
    laptop.offer(NETWORKS)
    wait_open(lab)
    wait_until(lambda: laptop.ping(LAN), seconds=30, what="packets beside it again")
    is_seen()
    assert visit.stop() == 0
    lab.connector.kill()
    laptop.wait_gone("tgw-home", "home")
    assert "tunnelgw_home" in laptop.exec("home", "nft", "list", "tables")
    lab.connector.start()
    wait_open(lab)
    laptop.wait_as_before("home")
    is_seen()


def test_a_second_connector_is_told(home: tuple[Lab, Process]) -> None:
    lab, _ = home
    folder = lab.folder / "second"
    folder.mkdir(exist_ok=True)
    config = folder / "connector.toml"
    config.write_text(f'state_dir = "{folder}/state"\n{SERVICES}')
    invitation = lab.invite("second")
    lab.tunnelgw("home", "join", "-", "--config", str(config), "--state-dir", f"{folder}/state", stdin=invitation)
    done = lab.exec("home", sys.executable, "-m", "tunnelgw", "connect", "--config", str(config), check=False)
    assert done.returncode == 1
    assert "another connector of this machine uses it" in done.stderr
    assert not (Path(folder) / "state" / "transparent").exists()
    assert banner(lab, VPS)[1] == "SSH-2.0"
