"""The PAC file, as a browser understands it: run by Chromium, one page for every case."""

from __future__ import annotations

import ipaddress
import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelgw.visitor.pac import HOME_NAMES, pac_file

if TYPE_CHECKING:
    from pathlib import Path

CHROMIUM = shutil.which("chromium")
PROXY = "127.0.0.1:3128"
NETWORKS = ("192.168.1.0/24", "10.16.0.0/12", "172.16.5.9:22", ":80", "0.0.0.0/32", "fd12:3456::/64", "2001:db8::7/128")

THROUGH = [
    "192.168.1.0", "192.168.1.255", "10.16.0.1", "10.31.255.255", "172.16.5.9", "fd12:3456::1", "[fd12:3456::1]",
    "FD12:3456:0:0:ffff:ffff:ffff:ffff", "2001:db8::7", "2001:db8:0:0:0:0:0:7", "nas", "NAS", "nas.lan",
    "a.b.home.arpa", "nas.lan.", "printer.local", "wiki.fritz.box", "fritz.box",
]  # fmt: skip
PAST = [
    "192.168.0.255", "192.168.2.0", "10.15.255.255", "10.32.0.0", "172.16.5.8", "fd12:3456:0:1::", "2001:db8::8", "::1",
    "[::1]", "127.0.0.1", "127.255.255.254", "localhost", "www.localhost", "example.com", "lan.example.com",
    "www.example.org.", "evil-fritz.box", "192.168.1.1.example.com", "::ffff:192.168.1.1",
]  # fmt: skip
LOOPBACK = {"::1", "[::1]", "127.0.0.1", "127.255.255.254", "localhost", "www.localhost"}


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_what_goes_through_and_what_does_not(tmp_path: Path) -> None:
    some = pac_file(PROXY, NETWORKS, names=(*HOME_NAMES, "fritz.box")).decode()
    everything = pac_file(PROXY, (), everything=True).decode()
    hosts = json.dumps([*THROUGH, *PAST])
    page = tmp_path / "page.html"
    ask = f"{hosts}.map(h => FindProxyForURL('http://' + h + '/', h))"
    page.write_text(
        f"<pre id=a></pre><script>{some}\ndocument.getElementById('a').textContent = JSON.stringify({ask});</script>"
        f"<pre id=b></pre><script>{everything}\ndocument.getElementById('b').textContent = JSON.stringify({ask});"
        "</script>"
    )
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
        "--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=False,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    found = [json.loads(text) for text in re.findall(r"<pre id=\"?.\"?>(.*?)</pre>", done.stdout)]
    assert len(found) == 2, done.stderr[-2000:]
    answers = dict(zip([*THROUGH, *PAST], found[0], strict=True))
    assert {host for host, answer in answers.items() if answer == f"PROXY {PROXY}"} == set(THROUGH)
    assert {host for host, answer in answers.items() if answer == "DIRECT"} == set(PAST)
    answers = dict(zip([*THROUGH, *PAST], found[1], strict=True))
    assert {host for host, answer in answers.items() if answer == "DIRECT"} == LOOPBACK
    assert {answer for host, answer in answers.items() if host not in LOOPBACK} == {f"PROXY {PROXY}"}


def test_no_name_is_ever_looked_up() -> None:
    script = pac_file(PROXY, NETWORKS)
    for asking in (b"isInNet", b"dnsResolve", b"isResolvable", b"myIpAddress", b"DIRECT;", b"; DIRECT"):
        assert asking not in script


@pytest.mark.parametrize("name", ['"', "a\nb", "a;b", "</script>", "a b", "", "é"])
def test_nothing_strange_gets_into_the_script(name: str) -> None:
    with pytest.raises(ValueError, match=r"[a-z]"):
        pac_file(PROXY, (), names=(name,))
    with pytest.raises(ValueError, match=r"[a-z]"):
        pac_file(f"{name}:3128", ())
    with pytest.raises(ValueError, match=r"[a-z]"):
        pac_file(PROXY, (name,))


@given(st.lists(st.ip_addresses().map(ipaddress.ip_network), max_size=4))
def test_every_network_is_written(networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> None:
    script = pac_file("[::1]:3128", map(str, networks)).decode()
    assert '"PROXY [::1]:3128"' in script
    assert script.isascii()
    assert script.count("], 32]") == sum(
        network.version == 4 or network.network_address.ipv4_mapped is not None for network in networks
    )
