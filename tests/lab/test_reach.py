"""Home from anywhere, and home or the VPS as an exit: a joined laptop, its proxies, and the programs that use them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.lab import EDGE_NAME, ROOT, Lab
from tests.lab.network import DIRECT, HOME, PUBLIC, VPS
from tests.system.harness import TUNNELGW, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.harness import Process

pytestmark = [pytest.mark.system, pytest.mark.root]

CHROMIUM = shutil.which("chromium")
NC = shutil.which("nc")
ROUTER = "192.168.1.1"
OUTSIDE = "203.0.113.1"
SOCKS, HTTP = "127.0.0.1:1080", "127.0.0.1:3128"
NETWORKS = ("192.168.1.0/24", "127.0.0.1:22")
HOME_LINES = f"networks = {list(NETWORKS)}\nexit = true\n"
NAMES = (
    f"nas.lan={ROUTER}", "metadata.lan=169.254.169.254", "self.lan=127.0.0.1", "elsewhere.lan=100.64.0.1",
    f"outside.example={OUTSIDE}",
)  # fmt: skip
# Whatever leaves the laptop is counted; all but the tunnel's own packets is a leak.
WATCH = f"""
table inet watch {{
    counter tunnel {{ }}
    counter leaked {{ }}
    chain output {{
        type filter hook output priority filter;
        oifname "lo" accept
        ip daddr {VPS} tcp dport 443 counter name tunnel accept
        meta l4proto ipv6-icmp accept
        counter name leaked
    }}
}}
"""


class Laptop:
    """A lab with machines to go to, and a visitor's machine that has joined."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.config = lab.folder / "laptop" / "connector.toml"
        self.config.parent.mkdir()
        self.process: Process | None = None
        script = str(ROOT / "tests" / "lab" / "elsewhere.py")
        self.router = lab.spawn("router", "router", [sys.executable, script, "router", ROUTER, *NAMES])
        self.outside = lab.spawn("outside", "internet", [sys.executable, script, "outside", OUTSIDE, *NAMES])
        for role, server in (("home", ROUTER), ("vps", "198.51.100.1"), ("visitor", OUTSIDE)):
            (Path("/etc/netns") / lab.net.namespace(role) / "resolv.conf").write_text(f"nameserver {server}\n")
        lab.edge.stop()
        lab.connector.stop()
        lab.edge.start()
        lab.connector.start()
        lab.net.exec("visitor", "nft", "-f", "-", stdin=WATCH)
        for process in (self.router, self.outside):
            process.wait_for("ready")

    def join(self) -> None:
        allowed = [word for network in NETWORKS for word in ("--allow-network", network)]
        invitation = self.lab.invite("laptop", "--role", "visitor", *allowed)
        self.lab.tunnelgw(
            "visitor", "join", "-", "--config", str(self.config), "--state-dir", str(self.config.parent / "state"),
            stdin=invitation,
        )  # fmt: skip

    def grant(self, *options: str) -> None:
        self.lab.tunnelgw("vps", "edge", "grant", "laptop", *options, "--config", str(self.lab.edge_config))

    def visit(self, *options: str, wait: bool = True) -> Process:
        self.stop()
        command = [*TUNNELGW, "visit", *options, "--socks", SOCKS, "--http", HTTP, "--config", str(self.config)]
        self.process = self.lab.spawn("laptop", "visitor", command)
        if wait:
            self.process.wait_for(rf"ready http://{HTTP}")
        return self.process

    def stop(self) -> None:
        if self.process is not None and self.process.popen.poll() is None:
            assert self.process.stop() == 0, self.process.text()

    def curl(self, url: str, *options: str, socks: bool = True, check: bool = True):
        way = ("--socks5-hostname", SOCKS) if socks else ("-x", f"http://{HTTP}")
        return self.lab.exec(
            "visitor", "curl", "-sS", "--noproxy", "", "--max-time", "30", *way, *options, url, check=check
        )

    def udp(self, host: str, port: int, text: str, seconds: float = 10.0) -> str:
        """What comes back from there, by a UDP association."""
        script = str(ROOT / "tests" / "lab" / "socksudp.py")
        command = [sys.executable, script, SOCKS, host, str(port), text, str(seconds)]
        return self.lab.exec("visitor", *command).stdout.strip()

    def leaked(self) -> int:
        """Packets that left for anybody but the edge."""
        text = self.lab.net.exec("visitor", "nft", "list", "counter", "inet", "watch", "leaked")
        return int(text.split("packets ")[1].split()[0])


@pytest.fixture(scope="module")
def laptop(possible: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    with Lab(tmp_path_factory.mktemp("reach"), through="direct", home=HOME_LINES) as lab:
        laptop = Laptop(lab)
        laptop.join()
        laptop.visit("--via", "home")
        yield laptop
        laptop.stop()


def test_home_by_both_proxies(laptop: Laptop) -> None:
    before = laptop.leaked()
    for url in (f"http://{ROUTER}/", "http://nas.lan/", "http://NAS.lan/"):
        for socks in (True, False):
            assert laptop.curl(url, socks=socks).stdout == f"router sees {HOME}"
    assert laptop.curl("http://nas.lan/", "-p", socks=False).stdout == f"router sees {HOME}"  # CONNECT
    assert laptop.curl("http://nas.lan/", "--socks4a", SOCKS, socks=False).stdout == f"router sees {HOME}"
    several = laptop.curl("http://nas.lan/", "http://nas.lan/", "http://nas.lan/", socks=False).stdout
    assert several == f"router sees {HOME}" * 3
    assert f"dns nas.lan from {HOME}" in laptop.router.text()
    assert laptop.leaked() == before
    assert "nas.lan" not in laptop.outside.text()


def refused(laptop: Laptop, url: str) -> tuple[int, int]:
    """SOCKS' code and HTTP's status for it; 0 if it was not refused."""
    said = laptop.curl(url, check=False).stderr
    code = int(said.rpartition("(")[2].partition(")")[0]) if "complete SOCKS5 connection" in said else 0
    status = laptop.curl(url, "-o", "/dev/null", "-w", "%{http_code}", socks=False).stdout
    return code, int(status)


def test_what_may_not_be_reached(laptop: Laptop) -> None:
    before = len(laptop.router.text())
    for url in (
        "http://127.0.0.1:8080/", "http://[::1]:8080/", "http://self.lan:8080/", "http://localhost:8080/",
        "http://0.0.0.0:8080/", "http://169.254.169.254/", "http://metadata.lan/", "http://[::ffff:127.0.0.1]:8080/",
        "http://100.64.0.1/", "http://elsewhere.lan/", f"http://{OUTSIDE}/", "http://outside.example/",
        f"http://{VPS}/",
    ):  # fmt: skip
        assert refused(laptop, url) == (2, 403), url
    assert refused(laptop, "http://nobody.lan/") == (4, 502)
    assert refused(laptop, f"http://{ROUTER}:9/") == (5, 502)
    assert "asked for" not in laptop.router.text()[before:]


def test_the_grants_ports_and_a_changed_grant_live(laptop: Laptop) -> None:
    laptop.grant("--allow-network", f"{ROUTER}:81")
    try:
        wait_until(lambda: refused(laptop, f"http://{ROUTER}/") == (2, 403), what="the narrower grant")
        assert refused(laptop, f"http://{ROUTER}:81/") == (5, 502)
    finally:
        laptop.grant(*[word for network in NETWORKS for word in ("--allow-network", network)])
    wait_until(lambda: laptop.curl(f"http://{ROUTER}/", check=False).returncode == 0, what="the wider grant")


@pytest.mark.skipif(NC is None, reason="nc is not installed")
def test_ssh_by_a_proxy_command(laptop: Laptop) -> None:
    """To a loopback port of home's own, which is reached only because the file lists it."""
    config = str(laptop.lab.folder / "sshd" / "ssh_config")
    for command in (f"nc -X 5 -x {SOCKS} %h %p", f"nc -X connect -x {HTTP} %h %p"):
        said = laptop.lab.exec(
            "visitor", "ssh", "-F", config, "-o", f"ProxyCommand={command}", "127.0.0.1", "echo $SSH_CONNECTION; cat",
            stdin="and back\n",
        ).stdout  # fmt: skip
        assert said.startswith("127.0.0.1 ")
        assert said.endswith("and back\n")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("way", [f"--proxy-server=socks5://{SOCKS}", f"--proxy-pac-url=http://{HTTP}/proxy.pac"])
def test_a_page_in_chromium(laptop: Laptop, tmp_path: Path, way: str) -> None:
    done = laptop.lab.exec(
        "visitor", "env", f"HOME={tmp_path}", str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu",
        "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'profile'}", way, "--timeout=30000", "--dump-dom",
        "http://nas.lan/page", seconds=100,
    )  # fmt: skip
    assert f"router sees {HOME}" in done.stdout, done.stderr[-2000:]


def test_datagrams_and_dns(laptop: Laptop) -> None:
    before = laptop.leaked()
    for host in (ROUTER, "nas.lan"):
        assert laptop.udp(host, 7, "hello") == f"router heard hello from {HOME}"
    assert laptop.udp(ROUTER, 53, "dns:outside.example") == OUTSIDE
    assert laptop.udp(ROUTER, 7, "x" * 5000).startswith("router heard xxxx")
    for host in (OUTSIDE, "100.64.0.1", "outside.example", "127.0.0.1", "self.lan"):
        assert laptop.udp(host, 7, "hello", seconds=0.5) == "nothing"
    assert laptop.leaked() == before


def test_exit_at_home_and_nothing_leaks(laptop: Laptop) -> None:
    laptop.grant("--allow-exit", "home", *[word for one in NETWORKS for word in ("--allow-network", one)])
    laptop.visit("--exit", "home")
    before, asked = laptop.leaked(), len(laptop.outside.text())
    for url in (f"http://{OUTSIDE}/", "http://outside.example/"):
        for socks in (True, False):
            assert laptop.curl(url, socks=socks).stdout == f"outside sees {PUBLIC[0]}"
    assert laptop.udp("outside.example", 7, "hi") == f"outside heard hi from {PUBLIC[0]}"
    assert laptop.udp(ROUTER, 7, "hi", seconds=0.5) == "nothing"
    for url in ("http://nas.lan/", f"http://{ROUTER}/", "http://127.0.0.1:22/", "http://100.64.0.1/"):
        assert refused(laptop, url) == (2, 403), url
    assert laptop.leaked() == before
    assert "dns " not in laptop.outside.text()[asked:]  # the laptop's own resolver was never asked
    assert f"dns outside.example from {HOME}" in laptop.router.text()


def test_exit_at_the_edge_only_by_grant(laptop: Laptop) -> None:
    process = laptop.visit("--exit", "edge", wait=False)
    process.wait_for("ready http")
    process.wait_for(r"exit edge is not granted to laptop; on the edge, run: tunnelgw edge grant laptop --allow-exit")
    wait_until(lambda: process.popen.poll() == 1, what="its end")
    laptop.grant("--allow-exit", "edge")
    laptop.visit("--exit", "edge")
    before = laptop.leaked()
    for socks in (True, False):
        said = laptop.curl("http://outside.example/", socks=socks).stdout
        assert said in {f"outside sees {address}" for address in (VPS, *DIRECT)}
    assert laptop.udp("outside.example", 7, "hi").startswith("outside heard hi from 198.51.100.")
    assert laptop.udp("10.0.0.1", 7, "hi", seconds=0.5) == "nothing"
    for url in (
        "http://127.0.0.1:9150/metrics", f"http://{VPS}/", f"http://{DIRECT[0]}/", f"http://{EDGE_NAME}/",
        "http://169.254.169.254/", "http://10.0.0.1/", "http://100.64.0.2/", "http://192.168.1.1/", "http://[::1]/",
    ):  # fmt: skip
        assert refused(laptop, url)[0] == 2, url
    assert laptop.leaked() == before
    laptop.grant("--allow-exit", "home")  # taken back while it runs
    wait_until(lambda: refused(laptop, "http://outside.example/") == (2, 403), what="the grant is gone")


def test_a_revocation_cuts_what_is_open(laptop: Laptop) -> None:
    laptop.grant(*[word for network in NETWORKS for word in ("--allow-network", network)])
    process = laptop.visit("--via", "home")
    download = laptop.lab.spawn(
        "download", "visitor",
        ["curl", "-sS", "--noproxy", "", "--limit-rate", "100k", "--socks5-hostname", SOCKS, "-o", "/dev/null",
         "-w", "got %{size_download}", f"http://{ROUTER}/large"],
    )  # fmt: skip
    laptop.router.wait_for("asked for /large")
    laptop.lab.tunnelgw("vps", "edge", "revoke", "laptop", "--config", str(laptop.lab.edge_config))
    wait_until(lambda: download.popen.poll() is not None, what="the end of the download")
    assert download.popen.returncode != 0
    assert laptop.curl(f"http://{ROUTER}/", check=False).returncode != 0
    process.wait_for("revoked")
    laptop.process = None
    process.kill()
