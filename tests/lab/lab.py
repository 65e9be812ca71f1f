"""A home, a VPS and a visitor in a network of their own, with the real programs running: what tests and people use.

    with Lab(folder) as lab:
        lab.relay.freeze()
        lab.wait_resumed(since)

The edge's name means the relay or the edge itself at home (`through`), and visitors always go straight to the edge.
Everything ends with the block; what a killed run leaves is swept by the next one (network.py).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.lab import network
from tests.lab.network import DIRECT, PREFIX, RELAYED, VPS, Network, inside
from tests.lab.programs import Load, Program, Relay
from tests.system import planted
from tests.system.harness import DOMAIN, TUNNELGW, Besides, Process, end_all, wait_until
from tests.system.sshd import configure

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
    from types import TracebackType

    from tests.system.clock import Clock

ROOT = Path(__file__).parents[2]
EDGE_NAME = f"edge.{DOMAIN}"
WEB_NAME = f"web.{DOMAIN}"
PAIR_NAME = f"pair.{DOMAIN}"  # served by two connectors, if there are two
SSH_PORT = 2222  # public
HOME_WEB, HOME_SSH, HOME_OTHER = 8080, 22, 8081  # at home, on loopback
KINDS, MORE_KINDS = 7, 9  # of load: see load.py
ADDRESSES = {"relay": RELAYED, "direct": DIRECT}  # of the edge's name, by the way a tunnel takes
_WHERE = {"relay": ("internet", "lo", 32), "direct": ("vps", "wan", 25)}


class Lab:
    """See the module's text. `extra` and `tables` are lines of edge.toml (at its top, and tables), `web` and `services`
    of connector.toml (of the service "web", and tables), `home` lines at its top.

    clock: edge and connectors live by it. state_mb: edge and connector keep their state on file systems of this size; 0
    is an ordinary folder. group: a second connector with a service of its own; both serve `pair.example.com`.
    """

    tunnel_port = 443  # of the edge, where connectors dial

    def __init__(
        self, folder: Path, *, through: str = "relay", uplink: str = network.UPLINK, workers: int = 1,
        extra: str = "", tables: str = "", web: str = "", services: str = "", clock: Clock | None = None,
        state_mb: int = 0, group: bool = False, home: str = "",
    ) -> None:  # fmt: skip
        self.folder = folder
        self.children: list[Process] = []
        self.aside = Besides()
        self.through = through
        self.at = {way: addresses[0] for way, addresses in ADDRESSES.items()}
        self.workers = workers
        self.extra = extra
        self.tables = tables
        self.web = web
        self.services = services
        self.home = home
        self.clock = clock
        self.net = Network(uplink=uplink)
        edge, home = folder / "edge", folder / "home"
        self.edge_config, self.home_config = edge / "edge.toml", home / "connector.toml"
        self.edge_state, self.home_state = edge / "state", home / "state"
        self.edge = Program(self, "edge", "vps", self.edge_command("run"))
        self.connector = Program(self, "home", "home", [*TUNNELGW, "connect", "--config", str(self.home_config)])
        service = [sys.executable, str(ROOT / "tests" / "system" / "service.py")]
        self.service = Program(self, "service", "home", [*service, str(HOME_WEB), "web"])
        self.group = group
        self.other_config, self.other_state = folder / "other" / "connector.toml", folder / "other" / "state"
        self.other = Program(self, "other", "home", [*TUNNELGW, "connect", "--config", str(self.other_config)])
        self.other_service = Program(self, "service", "home", [*service, str(HOME_OTHER), "other"])
        self.relay = Relay(folder / "relay.sock")
        for program in (self.edge, self.connector, self.other):
            program.env = {} if clock is None else clock.env
        self.loads: list[Load] = []
        self.state_mb = state_mb
        self.mounted: list[Path] = []
        self.held: list[socket.socket] = []  # of the edge's public ports
        try:
            self._start(edge, home)
        except BaseException:
            self.close()
            self.unmount()
            raise

    def _start(self, edge: Path, home: Path) -> None:
        for part in (edge, home, self.folder / "other", self.folder / "sshd"):
            part.mkdir()
        for state in (self.edge_state, self.home_state) if self.state_mb else ():
            state.mkdir(mode=0o700)
            network.run(["mount", "-t", "tmpfs", "-o", f"size={self.state_mb}m,mode=0700", PREFIX, str(state)])
            self.mounted.append(state)
        self.name_edge()
        names = (WEB_NAME, EDGE_NAME, PAIR_NAME, f"ssh.{DOMAIN}")
        self.net.hosts("visitor", dict.fromkeys(names, (VPS,)))
        self.net.hosts("vps", dict.fromkeys(names, (VPS,)))
        script = str(ROOT / "tests" / "system" / "relay.py")
        relay = [sys.executable, script, f"0.0.0.0:{self.tunnel_port}", f"{VPS}:{self.tunnel_port}",
                 "--control", str(self.relay.control)]  # fmt: skip
        self.service.start(wait=False)
        relaying = self.spawn("relay", "internet", relay)
        sshd = self.spawn("sshd", "home", configure(self.folder / "sshd", HOME_SSH))
        self._start_edge()
        relaying.wait_for("ready")
        self.service.present.wait_for("ready")
        sshd.wait_for("listening")
        self._start_connector()

    def _start_edge(self) -> None:
        self.tunnelgw("vps", "edge", "init", "--domain", DOMAIN, "--address", f"{EDGE_NAME}:443", "--self-signed",
                      "--config", str(self.edge_config), "--state-dir", str(self.edge_state))  # fmt: skip
        self.write_edge()
        self.edge.start()

    def _start_connector(self) -> None:
        self.write_home()
        allowed = ("--allow-host", f"*.{DOMAIN}", "--allow-port", f"{SSH_PORT}")
        self._join("home", self.home_config, self.home_state, *allowed, "--allow-host", PAIR_NAME)
        self.connector.start()
        if self.group:
            self.other_service.start()
            self.other_config.write_text(self._member(self.other_state, HOME_OTHER))
            self._join("other", self.other_config, self.other_state, "--allow-host", PAIR_NAME)
            self.other.start()
        wait_until(lambda: self.metric("tunnelgw_tunnels", state="up") > self.group, what="a tunnel of each connector")

    def _join(self, name: str, config: Path, state: Path, *allowed: str) -> None:
        invitation = self.invite(name, *allowed)
        self.tunnelgw("home", "join", "-", "--config", str(config), "--state-dir", str(state), stdin=invitation)

    def write_edge(self) -> None:
        """edge.toml as `extra`, `tables` and `workers` say; a running edge reads it on SIGHUP."""
        self.edge_config.write_text(f"""
domain = "{DOMAIN}"
address = "{EDGE_NAME}:443"
state_dir = "{self.edge_state}"
workers = {self.workers}
{self.extra}
[tls]
issuer = "self-signed"
[metrics]
listen = "127.0.0.1:9150"
{self.tables}
""")

    def write_home(self) -> None:
        """connector.toml: web, ssh and `services`; a running connector notices."""
        member = self._member(self.home_state, HOME_WEB) if self.group else f'state_dir = "{self.home_state}"'
        self.home_config.write_text(f"""
{member}
{self.home}
[services.web]
target = "http://127.0.0.1:{HOME_WEB}"
{self.web}
[services.ssh]
target = "tcp://127.0.0.1:{HOME_SSH}"
port = {SSH_PORT}
{self.services}
""")

    def _member(self, state: Path, port: int) -> str:
        """The beginning of connector.toml for one of two that serve one name."""
        return f"""
state_dir = "{state}"
[services.pair]
target = "http://127.0.0.1:{port}"
group = "pair"
{self.web}
"""

    # Programs.

    def hold_ports(self) -> None:
        """Be systemd with the edge's socket unit: its public ports are held here, and given to it at each start."""
        self.held = self.net.listeners("vps", 443, 80)
        # Well above the numbers that they get there.
        self.edge.passed = [fcntl.fcntl(one.fileno(), fcntl.F_DUPFD, 200) for one in self.held]

    def release_ports(self) -> None:
        """Undo `hold_ports`, for the starts to come. Idempotent."""
        for one in self.held:
            one.close()
        for descriptor in self.edge.passed:
            os.close(descriptor)
        self.held, self.edge.passed = [], []

    def spawn(
        self, name: str, role: str, command: list[str], *, env: dict[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Process:  # fmt: skip
        """Start any program in a namespace; it ends with the lab."""
        process = Process(name, inside(self.net.namespace(role), command), self.folder, env=env, pass_fds=pass_fds)
        self.children.append(process)
        return process

    def exec(self, role: str, *command: str, check: bool = True, seconds: float = 60, stdin: str = ""):
        """Run a program in a namespace to its end; the CompletedProcess, in text."""
        done = subprocess.run(
            inside(self.net.namespace(role), list(command)), input=stdin, capture_output=True, text=True,
            timeout=seconds, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, (
            f"{command}: {done.returncode} {done.stdout}{done.stderr}\n{self.logs()}"
        )
        return done

    def tunnelgw(self, role: str, *arguments: str, check: bool = True, stdin: str = "") -> str:
        """A tunnelgw command there; its output."""
        return self.exec(role, *TUNNELGW, *arguments, check=check, stdin=stdin).stdout

    def edge_command(self, *words: str) -> list[str]:
        """The command line of `tunnelgw edge ...` with this edge's configuration."""
        return [*TUNNELGW, "edge", *words, "--config", str(self.edge_config)]

    def invite(self, name: str, *options: str) -> str:
        return self.tunnelgw("vps", "edge", "invite", name, *options, "--config", str(self.edge_config)).strip()

    def status(self) -> dict[str, Any]:
        """`tunnelgw edge status --json`."""
        return json.loads(self.tunnelgw("vps", "edge", "status", "--json", "--config", str(self.edge_config)))

    def home_status(self) -> dict[str, Any]:
        """`tunnelgw status --json`."""
        return json.loads(self.tunnelgw("home", "status", "--json", "--config", str(self.home_config)))

    def curl(self, url: str, *options: str, check: bool = True, seconds: float = 60):
        """curl at the visitor's; certificates are not checked."""
        return self.exec("visitor", "curl", "-sk", "--max-time", f"{seconds}", *options, url, check=check,
                         seconds=seconds + 10)  # fmt: skip

    def code(self, url: str = f"https://{WEB_NAME}/", *options: str, check: bool = True) -> int:
        """The status that a visitor sees; 0 for none, if that is not to be checked."""
        return int(self.curl(url, "-o", "/dev/null", "-w", "%{http_code}", *options, check=check).stdout)

    def ssh(self, *command: str, check: bool = True):
        """Run a command at home, over ssh and the tunnel."""
        options = ["-F", str(self.folder / "sshd" / "ssh_config"), "-p", str(SSH_PORT)]
        return self.exec("visitor", "ssh", *options, f"ssh.{DOMAIN}", *command, check=check)

    def load(self, *options: str) -> Load:
        """Put load on it, and account for everything; returns once each kind got something through.

        "--more": also visitors that keep idle connections, and visitors of `pair.example.com`.
        """
        control = self.folder / f"load-{len(self.loads)}.sock"
        command = [sys.executable, "-m", "tests.lab.load", "--control", str(control),
                   "--ssh-config", str(self.folder / "sshd" / "ssh_config"), *options]  # fmt: skip
        process = self.spawn("load", "visitor", command, env={"PYTHONPATH": str(ROOT)})
        process.wait_for("ready")
        load = Load(process, control)
        self.loads.append(load)
        kinds = MORE_KINDS if "--more" in options else KINDS
        wait_until(lambda: len(load.report()["kinds"]) == kinds, what="every kind of load")
        load.wait_flowing(0.001)
        return load

    # What is known.

    def metrics(self) -> str:
        """What Prometheus would scrape."""
        return self.exec("vps", "curl", "-s", "--max-time", "20", "http://127.0.0.1:9150/metrics").stdout

    def metric(self, name: str, **labels: str) -> float:
        """Sum of one metric's series with these labels."""
        total = 0.0
        for labelled, value in re.findall(rf"^{name}(\{{.*\}})? (\S+)$", self.metrics(), re.MULTILINE):
            if all(f'{key}="{wanted}"' in labelled for key, wanted in labels.items()):
                total += float(value)
        return total

    def resumes(self) -> int:
        """How often tunnels were resumed, as the edge counts."""
        return int(self.metric("tunnelgw_tunnel_resumes_total"))

    def wait_resumed(self, before: int, *, seconds: float = 60.0) -> None:
        """Until more than `before` resumes were counted."""
        wait_until(lambda: self.resumes() > before, seconds=seconds, what="a resumed tunnel", logs=self.logs)

    def logs(self) -> str:
        return "\n".join(f"--- {child.name}\n{child.text()[-3000:]}" for child in self.children)

    # The way of the tunnel.

    def name_edge(self, *addresses: str) -> None:
        """What the edge's name means at home: these addresses, or where `through` leads."""
        self.net.hosts("home", {EDGE_NAME: addresses or (self.at[self.through],)})

    def go(self, through: str) -> None:
        """From the next dial on tunnels go through the "relay", or "direct"."""
        self.through = through
        self.name_edge()

    def move_edge(self) -> None:
        """The edge (or the relay before it) gets another address, and its name points there. Visitors keep theirs."""
        way, old = self.through, self.at[self.through]
        new = ADDRESSES[way][old == ADDRESSES[way][0]]
        role, interface, length = _WHERE[way]
        self.at[way] = new
        self.net.move(role, interface, f"{old}/{length}", f"{new}/{length}")
        self.name_edge()

    # The end.

    def close(self) -> list[str]:
        """End everything; what was wrong."""
        self.aside.end()
        problems = end_all(self.children)
        self.net.close()
        self.release_ports()
        return problems

    def unmount(self) -> None:
        """The last of it, once nobody wants to read its state any more. Idempotent."""
        while self.mounted:
            network.run(["umount", "-l", str(self.mounted.pop())])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        problems = self.close()
        secrets = planted.keys_below([self.edge_state, self.home_state, self.other_state])
        problems += planted.leaks([child.log for child in self.children], secrets)
        self.unmount()
        if error is None and problems:
            raise AssertionError("\n".join(problems))
