"""Real processes for system tests: an edge, connectors, local services; started on free ports, always stopped again.

Nothing here sleeps to synchronise: processes say `ready`, ports answer, commands return.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.ports import free_port
from tests.system import planted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

TUNNELGW = [sys.executable, "-m", "tunnelgw"]
DOMAIN = "example.com"
SERVICE = Path(__file__).with_name("service.py")


def wait_until(condition, *, seconds: float = 15.0, what: str = "condition", logs: Callable[[], str] = str) -> None:
    """Poll until `condition()` is true; AssertionError with `what`, and with what `logs()` says then, otherwise."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds:g} s: {what}\n{logs()}")


def port_answers(port: int, host: str = "127.0.0.1") -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def limited(descriptors: int) -> list[str]:
    """The beginning of a command line that may open so many files; 0: as many as we may."""
    return ["prlimit", f"--nofile={descriptors}:{descriptors}"] if descriptors else []


class Process:
    """A child whose output is kept in a file and can be waited for line by line."""

    def __init__(
        self,
        name: str,
        command: list[str],
        folder: Path,
        *,
        env: dict[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.log = folder / f"{name}-{time.monotonic_ns()}.log"
        planted.every_log.add(self.log)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("TUNNELGW_")}
        environment.update(env or {})
        with self.log.open("wb") as output:
            self.popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=folder,
                pass_fds=pass_fds,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.popen.pid

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, pattern: str, *, seconds: float = 20.0, after: int = 0) -> re.Match[str]:
        """The first match of `pattern` in the output from offset `after` on."""
        end = time.monotonic() + seconds
        while True:
            gone = self.popen.poll() is not None  # before its last words are read
            found = re.search(pattern, self.text()[after:])
            if found:
                return found
            if gone:
                raise AssertionError(f"{self.name} ended with {self.popen.returncode}:\n{self.text()[-4000:]}")
            if time.monotonic() > end:
                raise AssertionError(f"{self.name} never said {pattern!r}:\n{self.text()[-4000:]}")
            time.sleep(0.02)

    def descriptors(self) -> int:
        """Open files."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def memory(self) -> int:
        """Resident bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def stop(self, *, seconds: float = 20.0) -> int:
        """SIGTERM, wait, return the exit code; SIGKILL and fail if it does not end."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            raise AssertionError(f"{self.name} did not end on SIGTERM:\n{self.text()[-4000:]}") from None

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()


def end_all(children: list[Process]) -> list[str]:
    """End what still runs, the latest first; what was wrong with it."""
    for child in reversed(children):
        with contextlib.suppress(ProcessLookupError):
            child.popen.send_signal(signal.SIGCONT)
            child.popen.terminate()
    problems = []
    for child in reversed(children):
        try:
            child.popen.wait(15)
        except subprocess.TimeoutExpired:
            child.popen.kill()
            child.popen.wait()
            problems.append(f"{child.name} did not end on SIGTERM")
        if "Traceback" in child.text() and child.name in ("edge", "home", "other"):
            problems.append(f"{child.name} wrote a traceback:\n{child.text()[-6000:]}")
    return problems


class Besides:
    """Programs that a test asks beside; none of them outlives it, whatever becomes of it."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen] = []

    def __call__(self, command: Sequence[str], **options: Any) -> subprocess.Popen:
        """As `subprocess.Popen`."""
        self._started.append(subprocess.Popen(command, **options))
        return self._started[-1]

    def end(self) -> None:
        """Kill what still runs, and close the pipes."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


def run(
    *arguments: str, stdin: str = "", check: bool = True, seconds: float = 60, env=None
) -> subprocess.CompletedProcess[str]:
    """Run one tunnelgw command to its end."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TUNNELGW_")}
    environment.update(env or {})
    done = subprocess.run(
        [*TUNNELGW, *arguments], input=stdin, capture_output=True, text=True, timeout=seconds, check=False,
        env=environment,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert not planted.SHAPES.search(done.stderr.encode()), "a secret on standard error"
    if check and done.returncode != 0:
        raise AssertionError(
            f"tunnelgw {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return done


class Connector:
    """A home: its own configuration, identity and process."""

    def __init__(self, world: World, name: str, services: str, *, env: dict[str, str] | None = None) -> None:
        self.env = env
        self.world = world
        self.name = name
        self.folder = world.folder / name
        self.folder.mkdir()
        self.config = self.folder / "connector.toml"
        self.state = self.folder / "state"
        self.services = services
        self.process: Process | None = None
        world.homes.append(self)
        self.write(services)

    def write(self, services: str) -> None:
        """Replace the services; a running connector notices by itself."""
        self.services = services
        temporary = self.config.with_suffix(".new")
        temporary.write_text(f'state_dir = "{self.state}"\n\n{services}\n')
        temporary.replace(self.config)

    def join(self, *options: str, allow: tuple[str, ...] = ()) -> None:
        invitation = self.world.edge_command("invite", self.name, *allow).stdout.strip()
        assert invitation.startswith("tgw1_"), invitation
        run("join", invitation, "--config", str(self.config), "--state-dir", str(self.state), *options, env=self.env)

    def start(self, *, wait: bool = True, env: dict[str, str] | None = None, descriptors: int = 0) -> Process:
        command = [*limited(descriptors), *TUNNELGW, "connect", "--config", str(self.config)]
        process = Process(self.name, command, self.folder, env=env or self.env)
        self.process = process
        self.world.children.append(process)
        if wait:
            process.wait_for("ready")
        return process

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run(*arguments, "--config", str(self.config), check=check, env=self.env)


worlds: set[World] = set()  # in use now: a report of a test that failed shows their logs


class World:
    """One edge, any number of connectors and local services, in one folder."""

    def __init__(
        self,
        folder: Path,
        *,
        extra: str = "",
        workers: int = 1,
        tables: str = "",
        issuer: str = "self-signed",
        ports: tuple[int, int] = (0, 0),
        env: dict[str, str] | None = None,
    ) -> None:
        """`env`: of the edge and of commands to it (another version of the program)."""
        self.env = env
        self.folder = folder
        self.port = ports[0] or free_port()
        self.http_port = ports[1] or free_port()
        self.metrics_port = free_port()
        self.config = folder / "edge.toml"
        self.state = folder / "edge-state"
        self.children: list[Process] = []
        self.connectors: dict[str, Connector] = {}
        self.aside = Besides()
        self.homes: list[Connector] = []  # also those that a test made without `connector`
        self.secrets: set[bytes] = set()  # that no log may hold; a test adds what it plants
        self.edge: Process | None = None
        self.extra = extra
        self.workers = workers
        self.tables = tables
        self.issuer = issuer
        run("edge", "init", "--domain", DOMAIN, "--address", f"127.0.0.1:{self.port}", "--self-signed",
            "--config", str(self.config), "--state-dir", str(self.state), env=env)  # fmt: skip
        self.write_config()

    def write_config(self) -> None:
        self.config.write_text(f"""
domain = "{DOMAIN}"
address = "127.0.0.1:{self.port}"
listen = ["127.0.0.1:{self.port}"]
listen_http = ["127.0.0.1:{self.http_port}"]
state_dir = "{self.state}"
workers = {self.workers}
{self.extra}
[tls]
issuer = "{self.issuer}"
[metrics]
listen = "127.0.0.1:{self.metrics_port}"
{self.tables}
""")

    def start_edge(self, *, env: dict[str, str] | None = None, descriptors: int = 0) -> Process:
        command = [*limited(descriptors), *TUNNELGW, "edge", "run", "--config", str(self.config)]
        self.edge = Process("edge", command, self.folder, env=env or self.env)
        self.children.append(self.edge)
        self.edge.wait_for("ready")
        return self.edge

    def edge_command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = run("edge", *arguments, "--config", str(self.config), check=check, env=self.env)
        if arguments[0] == "invite" and done.returncode == 0:
            self.secrets.add(planted.secret_of_invitation(done.stdout.strip()))
        return done

    def status(self) -> dict:
        return json.loads(self.edge_command("status", "--json").stdout)

    def connector(
        self,
        name: str,
        services: str,
        *,
        allow: tuple[str, ...] = (),
        start: bool = True,
        env: dict[str, str] | None = None,
    ) -> Connector:
        connector = self.connectors[name] = Connector(self, name, services, env=env)
        connector.join(allow=allow)
        if start:
            connector.start()
        return connector

    def curl(
        self, url: str, *options: str, check: bool = True, seconds: float = 60, port: int = 0
    ) -> subprocess.CompletedProcess[bytes]:
        """curl with every name at this edge, or at `port`; certificates are not checked (another test does)."""
        host = re.match(r"https?://([^/:]+)", url)
        assert host is not None
        port = port or (self.http_port if url.startswith("http:") else self.port)
        url = re.sub(r"^(https?://[^/:]+)", rf"\1:{port}", url)
        done = subprocess.run(
            ["curl", "-sk", "--max-time", str(seconds), "--resolve", f"{host[1]}:{port}:127.0.0.1", *options, url],
            capture_output=True, timeout=seconds + 10, check=False,
        )  # fmt: skip
        if check and done.returncode != 0:
            raise AssertionError(f"curl {url}: {done.returncode} {done.stderr!r}\n{self.logs()}")
        return done

    def code(self, url: str, *options: str) -> int:
        """The status that curl sees."""
        return int(self.curl(url, "-o", "/dev/null", "-w", "%{http_code}", *options).stdout)

    def tls(self, name: str, *, alpn: list[str] | None = None) -> ssl.SSLSocket:
        """A TLS connection to the edge with this server name; nothing verified."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if alpn:
            context.set_alpn_protocols(alpn)
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        return context.wrap_socket(sock, server_hostname=name)

    def metrics(self, path: str = "/metrics") -> str:
        """What Prometheus would scrape."""
        url = f"http://127.0.0.1:{self.metrics_port}{path}"
        done = subprocess.run(["curl", "-s", "--max-time", "20", url], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stderr}\n{self.logs()}"
        return done.stdout

    def s_client(self, name: str, *options: str, stdin: bytes = b"", port: int = 0) -> subprocess.CompletedProcess[str]:
        """`openssl s_client` with this server name ("" for none), ended by the end of `stdin` or by the edge."""
        wanted = ["-servername", name] if name else ["-noservername"]
        return subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{port or self.port}", *wanted, *options],
            input=stdin.decode("latin-1"), capture_output=True, encoding="latin-1", timeout=30, check=False,
        )  # fmt: skip

    def authority(self, name: str) -> bytes:
        """The last certificate that the edge shows for this name: of the authority that signed the first."""
        shown = self.s_client(name, "-showcerts").stdout
        found = re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", shown, re.DOTALL)
        assert len(found) >= 2, shown
        return f"{found[-1]}\n".encode()

    def logs(self) -> str:
        return "\n".join(f"--- {child.name}\n{child.text()[-3000:]}" for child in self.children)

    def service(self, name: str, where: int | Path = 0) -> int:
        """A local service (service.py) on this port or Unix socket; returns the port."""
        port = where or free_port()
        process = self.add(f"service-{name}", [sys.executable, str(SERVICE), str(port), name])
        process.wait_for("ready")
        return port if isinstance(port, int) else 0

    def add(self, name: str, command: list[str], *, port: int = 0, env=None) -> Process:
        """Any other process; returns once `port` answers."""
        process = Process(name, command, self.folder, env=env)
        self.children.append(process)
        if port:
            wait_until(lambda: port_answers(port) or process.popen.poll() is not None, what=f"{name} listens")
            assert process.popen.poll() is None, process.text()
        return process

    def __enter__(self) -> Self:
        worlds.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        worlds.discard(self)
        self.aside.end()
        problems = end_all(self.children)
        secrets = self.secrets | planted.keys_below([self.state, *(home.state for home in self.homes)])
        problems += planted.leaks([child.log for child in self.children], secrets)
        if error is not None:
            error.add_note(self.logs())
        elif problems:
            raise AssertionError("\n".join(problems))


__all__ = ["DOMAIN", "TUNNELGW", "Connector", "Process", "World", "run", "wait_until"]
