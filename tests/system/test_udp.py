"""UDP ports and ranges through the whole way, with real programs: DNS servers, HTTP/3; and when parts of it die."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.ports import free_port, free_range, free_udp_port
from tests.system.control import ask
from tests.system.harness import Connector, World, port_answers, run, wait_until
from tests.system.targets import RawTarget
from tests.system.udp import Asking, Echo
from tests.system.upgrading import Upgrading, echo

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]
HERE = Path(__file__).parent
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
DIG, DNSMASQ, UNBOUND = (shutil.which(name, path=PATH) for name in ("dig", "dnsmasq", "unbound"))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, extra='port_bind = "127.0.0.1"') as world:
        world.start_edge()
        yield world


def udp(name: str, target: int, port: int | str, more: str = "") -> str:
    return f'[services.{name}]\ntarget = "udp://127.0.0.1:{target}"\nport = "{port}"\n{more}\n'


def allow(*ports: int | str) -> tuple[str, ...]:
    return tuple(word for port in ports for word in ("--allow-port", str(port)))


def relayed(world: World, services: str, *ports: int) -> Path:
    """A connector whose link can be cut; the relay's control socket."""
    relay, control = free_port(), world.folder / "relay.sock"
    command = [sys.executable, str(HERE / "relay.py"), str(relay), str(world.port), "--control", str(control)]
    world.add("relay", command, port=relay)
    home = Connector(world, "home", services)
    home.join("--edge", f"127.0.0.1:{relay}", allow=allow(*ports))
    home.start()
    return control


def refused(world: World, reason: str) -> float:
    found = re.search(rf'^tunnelgw_refused_total\{{reason="{reason}"\}} (\S+)$', world.metrics(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_a_port_opens_and_closes_with_its_service(world: World) -> None:
    port = free_udp_port()
    with Echo() as target, Asking(port) as visitor:
        home = world.connector("home", udp("game", target.port, port), allow=allow(port))
        for number in range(50):
            data = b"%d " % number + os.urandom(random.randrange(1400))
            assert visitor.insist(data).endswith(data)
        assert len(visitor.insist(bytes(65507))) == 65507
        [address] = world.status()["addresses"]
        assert (address["address"], address["service"]) == (f"udp://127.0.0.1:{port}", "game")
        metrics = world.metrics()
        assert f'tunnelgw_bytes_total{{direction="in",route="udp:{port}"}}' in metrics
        assert 'tunnelgw_connections{listener="udp"} 1.0' in metrics
        assert f"udp://127.0.0.1:{port}" in home.command("status").stdout
        other = free_udp_port()
        world.edge_command("grant", "home", *allow(port, other))
        home.write(udp("game", target.port, other))
        with Asking(other) as second:
            assert second.insist(b"moved")
        with pytest.raises(ConnectionRefusedError):  # it is closed: the kernel says so
            for _ in range(100):
                visitor.sock.send(b"x")
        home.write("")
        assert world.edge is not None
        world.edge.wait_for(f"udp port {other} is closed")
        assert world.status()["addresses"] == []
        shown = home.command("expose", "game", f"udp://127.0.0.1:{target.port}", "--port", str(other))
        assert f"udp://127.0.0.1:{other}" in shown.stdout
        with Asking(other) as third:
            assert third.insist(b"exposed")


@pytest.mark.skipif(not (DIG and DNSMASQ), reason="needs dig and dnsmasq")
def test_dns_over_udp_and_tcp_on_one_number_from_two_homes(world: World) -> None:
    server, port = free_udp_port(), free_udp_port()
    words = [f"--txt-record=long{number}.lan,{'x' * 250}" for number in range(3)]
    world.add(
        "dnsmasq",
        [str(DNSMASQ), "--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--user=root",
         "--listen-address=127.0.0.1", "--bind-interfaces", f"--port={server}", "--pid-file",
         "--address=/nas.lan/192.168.1.7", *words],
        port=server,
    )  # fmt: skip
    world.connector("left", udp("dns", server, port), allow=allow(port))
    tcp = f'[services.dns-tcp]\ntarget = "tcp://127.0.0.1:{server}"\nport = {port}\n'
    world.connector("right", tcp, allow=allow(port))

    def dig(*words: str) -> str:
        command = [str(DIG), "@127.0.0.1", "-p", str(port), "+short", "+tries=3", "+time=3", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()

    assert dig("nas.lan", "+notcp") == "192.168.1.7"
    assert dig("nas.lan", "+tcp") == "192.168.1.7"
    for number in range(20):
        assert dig(f"x{number}.nas.lan", "+ignore") == "192.168.1.7", "a flow for each question"
    addresses = {(entry["address"], entry["connector"]) for entry in world.status()["addresses"]}
    assert addresses == {(f"udp://127.0.0.1:{port}", "left"), (f"tcp://127.0.0.1:{port}", "right")}


@pytest.mark.skipif(not (DIG and UNBOUND), reason="needs dig and unbound")
def test_a_dns_server_sees_the_visitor(world: World) -> None:
    server, port = free_udp_port(), free_udp_port()
    config = world.folder / "unbound.conf"
    config.write_text(f"""
server:
    chroot: ""
    username: ""
    directory: "{world.folder}"
    pidfile: ""
    use-syslog: no
    log-queries: yes
    interface: 127.0.0.1@{server}
    proxy-protocol-port: {server}
    access-control: 127.0.0.0/8 allow
    local-data: "nas.lan. A 192.168.1.7"
remote-control:
    control-enable: no
""")
    unbound = world.add("unbound", [str(UNBOUND), "-d", "-c", str(config)])
    unbound.wait_for("start of service")
    world.connector("home", udp("dns", server, port, 'proxy_protocol = "v2"'), allow=allow(port))
    for source in ("127.0.0.5", "127.0.0.6"):
        command = [str(DIG), "-b", source, "@127.0.0.1", "-p", str(port), "+short", "+notcp", "nas.lan"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        assert done.stdout.strip() == "192.168.1.7"
        unbound.wait_for(rf"{re.escape(source)} nas\.lan\. A IN")


def test_http3_with_a_certificate_of_home(world: World) -> None:
    port, target = free_udp_port(), free_udp_port()
    key, certificate = world.folder / "h3.key", world.folder / "h3.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "7", "-subj", "/CN=h3.example.com", "-addext", "subjectAltName=DNS:h3.example.com",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    http3 = [sys.executable, str(HERE / "http3.py")]
    world.add("http3", [*http3, "serve", str(target), str(certificate), str(key)]).wait_for("ready")
    control = relayed(world, udp("quic", target, port), port)
    size = 3_000_000
    visit = world.add("visit", [*http3, "get", str(port), str(certificate), str(size), "4", "127.0.0.1"])
    visit.wait_for("1 of 4")
    ask(control, "reset")  # in the middle: the connection goes on
    visit.wait_for("4 of 4", seconds=60)
    assert visit.popen.wait(20) == 0, visit.text()


@pytest.mark.parametrize("fault", ["reset", "freeze"])
def test_flows_go_on_after_a_cut_link(world: World, fault: str) -> None:
    port = free_udp_port()
    with Echo() as target, Asking(port) as visitor:
        control = relayed(world, udp("game", target.port, port), port)
        _, source, _ = visitor.insist(b"before").split()
        for number in range(3):
            ask(control, fault)
            answer = visitor.insist(b"after %d" % number, seconds=40)
            assert answer.split()[1] == source, "the target sees the same address and port"
        assert 'tunnelgw_tunnel_reconnects_total{connector="home"} 0.0' in world.metrics()


def test_connector_and_edge_restart(world: World) -> None:
    port = free_udp_port()
    with Echo() as target, Asking(port) as visitor:
        home = world.connector("home", udp("game", target.port, port), allow=allow(port))
        assert home.process is not None
        source = visitor.insist(b"before").split()[1]
        assert visitor.insist(b"proven").split()[1] == source
        assert world.edge is not None
        world.edge.kill()
        world.start_edge()
        assert visitor.insist(b"the edge is back").split()[1] == source, "home kept the flow"
        home.process.stop()
        home.start()
        assert visitor.insist(b"home is back")
        home.process.kill()
        home.start()
        assert visitor.insist(b"and after a kill")


def test_an_upgrade_loses_no_datagram(tmp_path: Path) -> None:
    port = free_udp_port()
    with Upgrading(tmp_path) as world, Echo() as target, Asking(port) as visitor:
        world.start_edge()
        world.connector("home", udp("game", target.port, port), allow=allow(port))
        source = visitor.insist(b"before").split()[1]
        for how in ("signal", "command"):
            world.upgrade(how)
            answer = visitor.ask(b"the first one after it", seconds=20)
            assert answer.split()[1:2] == [source], world.logs()


def test_several_workers_and_one_that_dies(tmp_path: Path) -> None:
    ports = [free_udp_port() for _ in range(2)]
    while ports[0] % 2 == ports[1] % 2:
        ports[1] = free_udp_port()
    with World(tmp_path, workers=2, extra='port_bind = "127.0.0.1"') as world, Echo() as target:
        world.start_edge()
        services = "".join(udp(f"game{number}", target.port, port) for number, port in enumerate(ports))
        world.connector("home", services, allow=allow(*ports))
        for port in ports:
            with Asking(port) as visitor:
                source = visitor.insist(b"first").split()[1]
                assert {visitor.insist(b"%d" % number).split()[1] for number in range(20)} == {source}, "one worker's"
        assert world.edge is not None
        found = subprocess.run(["pgrep", "-P", str(world.edge.pid)], capture_output=True, text=True, check=True)
        with Asking(ports[0]) as one, Asking(ports[1]) as two:
            for pid in found.stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            assert one.insist(b"again", seconds=40)
            assert two.insist(b"again", seconds=40)


def test_a_group_and_a_member_that_dies(world: World) -> None:
    port = free_udp_port()
    with Echo(name="left") as left, Echo(name="right") as right, Asking(port) as visitor:
        for name, target in (("left", left), ("right", right)):
            more = f'group = "pair"\npriority = {int(name == "right")}'
            world.connector(name, udp("game", target.port, port, more), allow=allow(port))
        assert visitor.insist(b"first").startswith(b"left ")
        assert visitor.insist(b"second").startswith(b"left ")
        process = world.connectors["left"].process
        assert process is not None
        process.kill()
        wait_until(lambda: visitor.ask(b"to whom", seconds=0.3).startswith(b"right "), what="the other member answers")
        world.connectors["left"].start()
        with Asking(port) as another:
            wait_until(lambda: another.ask(b"new", seconds=0.3).startswith(b"left "), what="new flows go back")
        left.stop()  # the target alone: refused, so others have it
        with Asking(port) as third:
            wait_until(lambda: third.ask(b"x", seconds=0.3).startswith(b"right "), what="a target that refuses")


def test_a_flood_from_many_addresses_beside_a_flow_that_works(world: World) -> None:
    port = free_udp_port()
    with Echo() as target, Asking(port) as visitor:
        web = world.service("web")
        services = udp("game", target.port, port) + f'[services.web]\ntarget = "http://127.0.0.1:{web}"\n'
        allowed = (*allow(port), "--allow-host", "web.example.com")
        world.connector("home", services, allow=allowed)
        source = visitor.insist(b"before").split()[1]
        assert visitor.insist(b"proven").split()[1] == source
        assert world.edge is not None
        before = world.edge.memory()
        flood = world.add("flood", [sys.executable, str(HERE / "udpflood.py"), str(port)])
        flood.wait_for("20000 sent", seconds=60)
        for number in range(30):  # more comes than can be read: the kernel drops some of everybody's, so ask again
            assert visitor.insist(b"%d" % number).split()[1] == source, "the flow is the same"
        assert world.code("https://web.example.com/") == 200
        flood.kill()
        assert refused(world, "flow_limit") > 1000
        found = re.search(r'tunnelgw_connections\{listener="udp"\} (\S+)', world.metrics())
        assert found is not None
        assert float(found[1]) <= 4096 + 2
        assert world.edge.memory() - before < 64 << 20
        assert visitor.insist(b"after").split()[1] == source


def test_allow_from(world: World) -> None:
    port = free_udp_port()
    with Echo() as target, Asking(port) as visitor:
        home = world.connector("home", udp("game", target.port, port, 'allow_from = ["127.0.0.9"]'), allow=allow(port))
        assert visitor.ask(b"x", seconds=0.5) == b""
        wait_until(lambda: refused(world, "address_refused") > 0, what="it is refused")
        home.write(udp("game", target.port, port, 'allow_from = ["127.0.0.0/8"]'))
        assert visitor.insist(b"y")


def test_a_range_of_udp_ports_maps_one_to_one(world: World) -> None:
    first = free_range(202)
    targets = first + 101
    last = first + 100
    with Echo(targets + 100) as end, Echo(targets + 7), Asking(first + 7) as seventh, Asking(last) as at_end:
        home = world.connector("home", udp("game", targets, f"{first}-{last}"), allow=allow(f"{first}-{last}"))
        assert seventh.insist(b"a").split()[0] == b"%d" % (targets + 7)
        assert at_end.insist(b"b").split()[0] == b"%d" % end.port
        [address] = world.status()["addresses"]
        assert address["address"] == f"udp://127.0.0.1:{first}-{last}"
        assert f"udp://127.0.0.1:{first}-{last}" in home.command("status").stdout
        home.write(udp("game", targets, f"{first}-{first + 10}"))
        assert world.edge is not None
        world.edge.wait_for(f"udp port {last} is closed")
        assert seventh.insist(b"still open")


def test_a_range_of_tcp_ports_and_what_is_refused_of_it(world: World) -> None:
    first = free_range(20)
    with RawTarget(echo, port=first + 19) as target:  # 127.0.0.1 has it: another program on the edge's machine
        taken = target.port
        base = target.port - 19
        text = '[services.{}]\ntarget = "tcp://127.0.0.1:{}"\nport = "{}-{}"\n'
        one = world.connector(
            "one", text.format("mid", 4000, base + 5, base + 8), allow=allow(f"{base + 5}-{base + 8}")
        )
        two = world.connector("two", text.format("all", 5000, base, taken), allow=allow(f"{base}-{base + 9}"))
        assert two.process is not None
        lacking = two.process.wait_for("refused it .claim_not_granted.: (.*)")[1]
        assert lacking.startswith(f"port {base + 10}-{taken} of the range {base}-{taken} is not granted"), lacking
        wanted = f"tunnelgw edge grant two --allow-port {base}-{base + 9} --allow-port {base}-{taken}"
        assert wanted in lacking
        world.edge_command(*wanted.split()[2:])
        held = two.process.wait_for("refused a part of it .claim_held.: (.*)")[1]
        assert held.startswith(f"port {base + 5}-{base + 8} is held by one/mid"), held
        assert f"; port {taken}: another program on the edge's machine uses it" in held, held
        assert one.process is not None
        one.process.wait_for(f"connector two claimed port {base + 5}-{base + 8}, which is ours")
        assert world.edge is not None
        world.edge.wait_for(f"service all refused .*port {base + 5}-{base + 8} is held by one/mid")
        wait_until(lambda: port_answers(base) and port_answers(base + 18), what="the others are open")
        addresses = {entry["address"] for entry in world.status()["addresses"] if entry["connector"] == "two"}
        assert addresses == {f"tcp://127.0.0.1:{base}-{base + 4}", f"tcp://127.0.0.1:{base + 9}-{taken - 1}"}
        [refused] = world.status()["refused_services"]
        assert (refused["service"], refused["connector"], refused["partly"]) == ("all", "two", True)
        shown = two.command("status").stdout
        assert re.search(rf"(?m)^all .* partly +tcp://127.0.0.1:{base}-{base + 4} ", shown), shown
        assert f"all is served in part: port {base + 5}-{base + 8} is held by one/mid" in shown
        assert (
            f"service two/all: refused in part by the edge: port {base + 5}"
            in run("doctor", "--config", str(world.config), check=False).stdout
        )
        one.write("")  # while the other program goes on
        wait_until(lambda: port_answers(base + 6), what="what came free is given to who waits for it")
    world.edge.wait_for(f"port {taken} is open", seconds=30)
    wait_until(lambda: world.status()["refused_services"] == [], what="nothing is refused any more")


def test_more_ports_than_a_connector_may_have(world: World) -> None:
    home = world.connector("home", udp("many", 1000, "8000-9023"), allow=allow("1-65535"), start=False)
    home.write(udp("many", 1000, "8000-9023") + udp("more", 1000, 9024))
    process = home.start()
    process.wait_for("service more: the edge .* refused it .*more than 1024 ports")


def test_a_held_udp_port_is_refused_in_both_logs(world: World) -> None:
    port = free_udp_port()
    with Echo() as target:
        first = world.connector("first", udp("game", target.port, port), allow=allow(port))
        second = world.connector("second", udp("game", target.port, port), allow=allow(port))
        assert first.process is not None
        assert second.process is not None
        second.process.wait_for(f"udp port {port} is held by first/game")
        first.process.wait_for(f"connector second claimed udp port {port}, which is ours")
