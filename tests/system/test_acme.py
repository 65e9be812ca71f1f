"""Certificates from a real ACME server: ordered, shown, renewed, revoked; failing, and coming back."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.ports import free_port
from tests.system.harness import World, wait_until
from tests.system.pebble import Pebble, has_certificate, needs_pebble, shown
from tests.system.targets import read_all

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.system, needs_pebble]

NAMESERVER = Path(__file__).with_name("nameserver.py")
HOOK = """#!{python}
import json, sys, urllib.request
action, name, value = sys.argv[1:]
path = {{"present": "set-txt", "cleanup": "clear-txt"}}[action]
body = json.dumps({{"host": name + ".", "value": value}}).encode()
urllib.request.urlopen("http://127.0.0.1:{port}/" + path, body, timeout=10).close()
print("this goes nowhere")
with open({log!r}, "a") as log:
    log.write(action + " " + name + "\\n")
"""


def begin(world: World, pebble: Pebble, *names: str, options: str = "", start: bool = True) -> None:
    """Configure, start the edge and (unless it waits to be started) one home with a service of each name."""
    configure(world, pebble, options)
    world.start_edge()
    port = world.service("web")
    world.connector("home", "\n".join(f"[services.{name}]\ntarget = {port}" for name in names), start=start)


def configure(world: World, pebble: Pebble, options: str) -> None:
    world.tables = pebble.tables + options
    world.write_config()


def private_files(world: World) -> list[str]:
    """Whatever under the ACME folder others could read."""
    return [
        str(path)
        for path in (world.state / "acme").rglob("*")
        if stat.S_IMODE(path.stat().st_mode) & 0o077 and not path.is_symlink()
    ]


def children(pid: int) -> list[str]:
    """Command lines of the processes below this one."""
    found = []
    with contextlib.suppress(OSError):  # it has ended meanwhile
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                with contextlib.suppress(OSError):
                    found.append(Path(f"/proc/{child}/cmdline").read_text())
                found += children(int(child))
    return found


def processes(argument: str) -> list[int]:
    """Processes with this argument, whoever started them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if argument.encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


# One server and one edge, whose life goes on from test to test.


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Pebble]]:
    with World(tmp_path_factory.mktemp("acme"), issuer="acme") as world:
        pebble = Pebble(world)
        pebble.start()
        begin(world, pebble, "web", options='challenge = "http-01"\n')
        yield world, pebble


def test_a_new_service_gets_its_certificate_by_http_01(site: tuple[World, Pebble]) -> None:
    world, pebble = site
    wait_until(lambda: has_certificate(world, pebble, "web.example.com"), seconds=60, what="the certificate")
    assert shown(world, pebble, "web.example.com")["subjectAltName"] == (("DNS", "web.example.com"),)
    assert world.curl("https://web.example.com/").stdout == b"hello from web\n"
    assert private_files(world) == []
    assert not list((world.state / "acme" / "challenges").iterdir())
    assert world.edge is not None
    wait_until(lambda: children(world.edge.pid) == [], what="the children are gone")
    mapped = Path(f"/proc/{world.edge.pid}/maps").read_text()
    assert "cryptography" not in mapped, "an idle edge carries nothing of what makes keys"
    address = world.status()["addresses"][0]
    assert address["certificate_problem"] == ""
    assert address["certificate_expiry"] > 0
    assert 'tunnelgw_certificate_order_failures{host="web.example.com"} 0.0' in world.metrics()


def test_only_running_challenges_are_answered(site: tuple[World, Pebble]) -> None:
    world, _ = site
    for token in ("nothing", "..%2f..%2faccount.json", "../../account.json", "a" * 300):
        url = f"http://web.example.com/.well-known/acme-challenge/{token}"
        assert world.code(url, "--path-as-is") in (301, 400), token
    done = world.s_client("web.example.com", "-alpn", "acme-tls/1")
    assert "no application protocol" in done.stderr


def test_nothing_is_ordered_for_names_that_only_visitors_ask_for(site: tuple[World, Pebble]) -> None:
    world, _ = site
    for name in ("unknown.example.com", "web.example.org", "edge.example.com"):
        assert "unrecognized name" in world.s_client(name).stderr
    listed = json.loads(world.edge_command("certificate", "list", "--json").stdout)["certificates"]
    assert [item["name"] for item in listed] == ["web.example.com"]
    done = world.edge_command("certificate", "renew", "unknown.example.com", check=False)
    assert done.returncode == 1
    assert "no service is published under" in done.stderr


def test_renewed_while_serving(site: tuple[World, Pebble]) -> None:
    world, pebble = site
    before = shown(world, pebble, "web.example.com")
    account = next((world.state / "acme").glob("*/account.json")).read_bytes()
    with world.tls("web.example.com") as visitor:
        world.edge_command("certificate", "renew", "web.example.com")
        assert shown(world, pebble, "web.example.com")["serialNumber"] != before["serialNumber"]
        visitor.sendall(b"GET / HTTP/1.1\r\nHost: web.example.com\r\nConnection: close\r\n\r\n")
        assert read_all(visitor).endswith(b"hello from web\n")  # on the connection from before
    assert next((world.state / "acme").glob("*/account.json")).read_bytes() == account, "the same account"


def test_revoked_and_replaced_with_another_key(site: tuple[World, Pebble]) -> None:
    world, pebble = site
    before = shown(world, pebble, "web.example.com")
    old = next((world.state / "acme").glob("*/hosts/web.example.com.pem")).read_text().partition("-----BEGIN PRIV")[2]
    done = world.edge_command("certificate", "revoke", "web.example.com", "--reason", "key-compromise", "--json")
    assert "revoked" in json.loads(done.stdout)["messages"][0]
    assert pebble.status(before) == "Revoked"
    wait_until(lambda: has_certificate(world, pebble, "web.example.com"), what="another certificate")
    after = shown(world, pebble, "web.example.com")
    assert after["serialNumber"] != before["serialNumber"]
    assert pebble.status(after) == "Valid"
    new = next((world.state / "acme").glob("*/hosts/web.example.com.pem")).read_text().partition("-----BEGIN PRIV")[2]
    assert new
    assert new != old


def test_a_server_that_is_gone_takes_nothing_away(site: tuple[World, Pebble]) -> None:
    world, pebble = site
    before = shown(world, pebble, "web.example.com")
    root = pebble.root()
    pebble.stop()
    done = world.edge_command("certificate", "renew", "web.example.com", check=False)
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert "next try" in done.stderr
    again = world.tls("web.example.com")
    again.close()
    assert world.code("https://web.example.com/") == 200, "the old one is served"
    problem = world.status()["addresses"][0]["certificate_problem"]
    assert "cannot be reached" in problem
    assert "cannot be reached" in world.edge_command("status").stdout
    assert 'tunnelgw_certificate_order_failures{host="web.example.com"} 1.0' in world.metrics()
    pebble.again()  # it has lost its accounts: ours is made again, with the same key
    assert pebble.root() != root
    world.edge_command("certificate", "renew", "web.example.com")
    assert shown(world, pebble, "web.example.com")["serialNumber"] != before["serialNumber"]
    assert world.status()["addresses"][0]["certificate_problem"] == ""


def test_one_name_that_fails_fails_alone(site: tuple[World, Pebble]) -> None:
    world, pebble = site
    pebble.tell_dns("add-a", {"host": "lost.example.com", "addresses": ["127.0.0.2"]})  # somebody else's address
    home = world.connectors["home"]
    home.write(f"{home.services}\n[services.lost]\ntarget = 1\n[services.more]\ntarget = 1\n")
    wait_until(lambda: has_certificate(world, pebble, "more.example.com"), what="the other one's certificate")
    assert world.edge is not None
    said = world.edge.wait_for(r"no certificate for lost\.example\.com: .*next try at")[0]
    assert "http-01 for lost.example.com" in said
    assert not has_certificate(world, pebble, "lost.example.com")
    assert world.edge.wait_for(r"visitors of lost\.example\.com are turned away.*next try")
    listed = json.loads(world.edge_command("certificate", "list", "--json").stdout)["certificates"]
    assert {item["name"]: item["failures"] for item in listed} == {
        "lost.example.com": 1, "more.example.com": 0, "web.example.com": 0,
    }  # fmt: skip
    pebble.tell_dns("clear-a", {"host": "lost.example.com"})
    world.edge_command("certificate", "renew", "lost.example.com")
    assert has_certificate(world, pebble, "lost.example.com")


# Other ways to prove a name, and other shapes of an edge.


def test_tls_alpn_01_reaches_every_worker(tmp_path: Path) -> None:
    with World(tmp_path, issuer="acme", workers=2) as world:
        pebble = Pebble(world, environment={"PEBBLE_WFE_NONCEREJECT": "50"})
        pebble.start()
        begin(world, pebble, "one", "two", "three", options='challenge = "tls-alpn-01"\n')
        for name in ("one", "two", "three"):
            wait_until(lambda name=name: has_certificate(world, pebble, f"{name}.example.com"), seconds=40, what=name)
        serials = {shown(world, pebble, "one.example.com")["serialNumber"] for _ in range(8)}
        orders = json.loads(next((world.state / "acme").glob("*/orders.json")).read_text())
        assert len(serials) == 1
        assert len(orders) == 3, "one order for each host, whichever worker it was"


def test_tls_alpn_01_for_a_host_that_is_on_a_shared_port_alone(tmp_path: Path) -> None:
    """The issuer asks on 443, where nobody serves that name."""
    with World(tmp_path, issuer="acme", extra='port_bind = "127.0.0.1"') as world:
        pebble = Pebble(world)
        pebble.start()
        configure(world, pebble, 'challenge = "tls-alpn-01"\n')
        world.start_edge()
        port = free_port()
        names = f'host = ["db.example.com"]\nport = {port}\nprotocol = "postgres"'
        world.connector(
            "home", f'[services.db]\ntarget = "tcp://127.0.0.1:9"\n{names}', allow=("--allow-port", f"{port}")
        )

        def expiry() -> float:
            return {entry["address"]: entry["certificate_expiry"] for entry in world.status()["addresses"]}[
                f"postgres://db.example.com:{port}"
            ]

        wait_until(lambda: expiry() > 0, seconds=40, what="its certificate")
        done = world.s_client("db.example.com", "-starttls", "postgres", port=port)
        assert "issuer=CN = Pebble" in done.stdout or "issuer=CN=Pebble" in done.stdout


def test_a_wildcard_by_a_hook(tmp_path: Path) -> None:
    with World(tmp_path, issuer="acme") as world:
        pebble = Pebble(world)
        pebble.start()
        hook, log = tmp_path / "hook", tmp_path / "hook.log"
        hook.write_text(HOOK.format(python=sys.executable, port=pebble.stub_port, log=str(log)))
        hook.chmod(0o700)
        settings = f'hook = "{hook}", check = "127.0.0.1:{pebble.dns_port}", wait_seconds = 30'
        begin(world, pebble, "a", "b", options=f"wildcard = true\ndns = {{ {settings} }}\n")
        wait_until(lambda: has_certificate(world, pebble, "b.example.com"), seconds=60, what="the certificate")
        names = shown(world, pebble, "a.example.com")["subjectAltName"]
        assert sorted(names) == [("DNS", "*.example.com"), ("DNS", "example.com")]
        serials = {shown(world, pebble, f"{name}.example.com")["serialNumber"] for name in "ab"}
        assert len(serials) == 1
        name = "_acme-challenge.example.com"
        assert log.read_text().splitlines() == [f"present {name}"] * 2 + [f"cleanup {name}"] * 2


def test_updates_signed_by_tsig(tmp_path: Path) -> None:
    secret = base64.b64encode(os.urandom(32)).decode()
    with World(tmp_path, issuer="acme") as world:
        world.secrets.add(secret.encode())
        port = free_port()
        server = world.add("nameserver", [sys.executable, str(NAMESERVER), str(port), "tunnelgw.", secret], port=port)
        pebble = Pebble(world, dns=f"127.0.0.1:{port}")
        pebble.start()
        key = tmp_path / "tsig.key"
        key.write_text(base64.b64encode(b"another key").decode())
        key.chmod(0o600)
        settings = f'server = "127.0.0.1:{port}", key_name = "tunnelgw", key_file = "{key}"'
        begin(world, pebble, "a", options=f"dns = {{ {settings} }}\n")
        assert world.edge is not None
        world.edge.wait_for("no certificate for a.example.com.*does not accept the key tunnelgw")
        key.write_text(secret)
        world.edge_command("certificate", "renew", "a.example.com")
        assert shown(world, pebble, "a.example.com")["subjectAltName"] == (("DNS", "a.example.com"),)
        assert "refused" in server.text()
        wait_until(lambda: server.text().count("deleted") == 1, what="the record is gone")
        assert server.text().count("added") == 1


def test_several_edges_under_one_name(tmp_path: Path) -> None:
    """Each orders its own certificate of one name, both at once; dns-01 does not care which of them is asked."""
    secret = base64.b64encode(os.urandom(32)).decode()
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    with World(folders[0], issuer="acme") as one, World(folders[1], issuer="acme") as two:
        one.secrets.add(secret.encode())
        two.secrets.add(secret.encode())
        port = free_port()
        server = one.add("nameserver", [sys.executable, str(NAMESERVER), str(port), "tunnelgw.", secret], port=port)
        pebble = Pebble(one, dns=f"127.0.0.1:{port}")
        pebble.start()
        key = tmp_path / "tsig.key"
        key.write_text(secret)
        key.chmod(0o600)
        settings = f'server = "127.0.0.1:{port}", key_name = "tunnelgw", key_file = "{key}"'
        for world in (one, two):
            begin(world, pebble, "a", options=f"dns = {{ {settings} }}\n", start=False)
        server.signal(signal.SIGSTOP)  # until both are at it
        for world in (one, two):
            world.connectors["home"].start()
        for world in (one, two):
            assert world.edge is not None
            pid = world.edge.pid
            wait_until(lambda pid=pid: any("identity.acme" in line for line in children(pid)), what="it orders")
        server.signal(signal.SIGCONT)
        for world in (one, two):
            wait_until(lambda world=world: has_certificate(world, pebble, "a.example.com"), seconds=60)
        assert len({shown(world, pebble, "a.example.com")["serialNumber"] for world in (one, two)}) == 2
        wait_until(lambda: server.text().count("deleted") == 2, what="each took its own record back")
        assert server.text().count("added") == 2


def test_an_account_that_was_made_beforehand(tmp_path: Path) -> None:
    secret = base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")
    with World(tmp_path, issuer="self-signed") as world:
        world.secrets.add(secret.encode())
        pebble = Pebble(world, externalAccountBindingRequired=True, externalAccountMACKeys={"kid-1": secret})
        pebble.start()
        begin(world, pebble, "a", options='challenge = "http-01"\n')
        assert world.edge is not None
        assert world.code("https://a.example.com/") == 200
        world.issuer = "acme"  # taken over while it runs
        configure(world, pebble, 'challenge = "http-01"\n')
        world.edge.wait_for("set eab_kid and eab_hmac_file")
        key = tmp_path / "eab.key"
        key.write_text(secret)
        key.chmod(0o600)
        configure(world, pebble, f'challenge = "http-01"\neab_kid = "kid-1"\neab_hmac_file = "{key}"\n')
        world.edge.signal(signal.SIGHUP)
        world.edge.wait_for("acme.eab_kid changed")
        world.edge_command("certificate", "renew", "a.example.com")
        assert has_certificate(world, pebble, "a.example.com")


def test_an_edge_killed_in_mid_order(tmp_path: Path) -> None:
    """The child goes with it, nothing is left half, and the next edge orders after a short pause."""
    with World(tmp_path, issuer="acme") as world:
        pebble = Pebble(world)
        pebble.start()
        hook, real, log = (tmp_path / name for name in ("hook", "real", "hook.log"))
        real.write_text(HOOK.format(python=sys.executable, port=pebble.stub_port, log=str(tmp_path / "real.log")))
        hook.write_text(f"""#!/bin/sh
echo "$1" >>{log}
[ "$1" = cleanup ] || [ -e {tmp_path}/open ] || exec tail -f {log}
exec {sys.executable} {real} "$@"
""")
        hook.chmod(0o700)
        begin(world, pebble, "a", options=f'dns = {{ hook = "{hook}" }}\n')
        wait_until(log.exists, what="the hook runs")
        edge = world.edge
        assert edge is not None
        found = [line for line in children(edge.pid) if "tunnelgw.identity.acme" in line]
        assert len(found) == 1
        edge.kill()
        (tmp_path / "open").touch()
        wait_until(lambda: "cleanup" in log.read_text(), what="the record is taken back")
        assert not list((world.state / "acme").glob("*/hosts/*.pem"))
        world.start_edge()
        wait_until(lambda: has_certificate(world, pebble, "a.example.com"), seconds=60, what="a certificate")


def test_an_edge_that_stops_in_mid_order(tmp_path: Path) -> None:
    """It ends cleanly, its child with it; that was no failure, and the next edge begins at once."""
    with World(tmp_path, issuer="acme") as world:
        pebble = Pebble(world)
        pebble.start()
        hook, log = tmp_path / "hook", tmp_path / "hook.log"
        hook.write_text(f'#!/bin/sh\necho "$1" >>{log}\n[ "$1" = cleanup ] || tail -f {log}\n')
        hook.chmod(0o700)
        begin(world, pebble, "a", options=f'dns = {{ hook = "{hook}" }}\n')
        wait_until(log.exists, what="the hook runs")
        assert world.edge is not None
        assert world.edge.stop() == 0
        record = json.loads(next((world.state / "acme").glob("*/hosts/a.example.com.json")).read_text())
        assert record["failures"] == 0
        assert "Traceback" not in world.edge.text()
        wait_until(lambda: not processes(str(log)), what="what the hook started is gone as well")
        configure(world, pebble, 'challenge = "http-01"\n')
        world.start_edge()
        wait_until(lambda: has_certificate(world, pebble, "a.example.com"), seconds=40, what="a certificate")
