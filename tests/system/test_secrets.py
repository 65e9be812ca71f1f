"""No secret leaves: not in logs, arguments, environments, metrics, status or answers, and on no way that fails.

Everything that is secret here holds one marker, or is known to the world (invitations, keys); the processes write debug
lines. While it runs, the arguments and environments of every process of ours are looked at again and again.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

import bcrypt
import pytest

from tests.ports import free_port
from tests.system import planted
from tests.system.harness import TUNNELGW, Connector, World, run, wait_until
from tests.system.targets import RawTarget, read_all, read_head

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.system
DEBUG = {"TUNNELGW_DEBUG": "1"}
MARK = planted.MARK
BASIC = base64.b64encode(f"me:{MARK}-password".encode()).decode()


class Watcher:
    """Looks at arguments and environments of every process of ours while it is entered."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.seen: set[str] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._end.wait(0.1):
            for process in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    self._look(process)

    def _look(self, process: Path) -> None:
        arguments = (process / "cmdline").read_bytes()
        # `join INVITATION` is what a person may type; "-" is for whoever shares the machine.
        if (
            not arguments.startswith(sys.executable.encode())
            or b"tunnelgw" not in arguments
            or b"\0join\0" in arguments
        ):
            return
        name = arguments.replace(b"\0", b" ").decode(errors="replace")
        module = re.search(r" -P?m (\S+)", name)
        self.seen.add(module[1] if module else "")
        for what in ("cmdline", "environ"):
            content = (process / what).read_bytes()
            if MARK.encode() in content or planted.SHAPES.search(content):
                self.found.append(f"{what} of {name[:100]}")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._end.set()
        self._thread.join()


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    with Watcher() as watching:
        yield watching


def hostile(sock: socket.socket) -> None:
    """A service whose answers hold secrets, right and wrong ones."""
    secret = f"Set-Cookie: session={MARK}-set-cookie\r\nAuthorization: Bearer {MARK}-answer\r\n".encode()
    while head := read_head(sock):
        path = head.split(b" ")[1]
        if path.startswith(b"/good"):
            sock.sendall(b"HTTP/1.1 200 OK\r\n" + secret + b"Content-Length: 2\r\n\r\nok")
            continue
        if path.startswith(b"/two"):
            sock.sendall(b"HTTP/1.1 200 OK\r\n" + secret + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok")
        elif path.startswith(b"/field"):
            sock.sendall(b"HTTP/1.1 200 OK\r\nSet-Cookie : session=" + MARK.encode() + b"\r\n\r\n")
        elif path.startswith(b"/line"):
            sock.sendall(b"HTTP/1.1 2x0 " + MARK.encode() + b"\r\n" + secret + b"\r\n")
        elif path.startswith(b"/chunk"):
            sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + MARK.encode() + b"\r\n")
        return


def raw(world: World, data: bytes, *, tls: bool = True) -> bytes:
    """What a visitor gets for these bytes."""
    with contextlib.ExitStack() as stack:
        if tls:
            sock: socket.socket = stack.enter_context(world.tls("bad.example.com"))
        else:
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", world.http_port), timeout=30))
        with contextlib.suppress(OSError):
            sock.sendall(data)
            return read_all(sock)
    return b""


def wrong_requests() -> list[bytes]:
    """Heads and bodies that are refused at different places, with secrets after their first lines, which are logged."""
    host = b"Host: bad.example.com\r\n"
    secrets = f"Cookie: a={MARK}-cookie\r\nAuthorization: Basic {BASIC}\r\nX-Token: {MARK}-token\r\n".encode()
    return [
        b"GET / HTTP/1.1\r\n" + secrets + b"\r\n",
        b"GET / HTTP/1.1\n" + host + secrets + b"\n",
        b"GET / HTTP/1.1\r" + host + secrets + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + host + secrets + b"Cookie " + MARK.encode() + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + host + secrets + b"Content-Length: " + MARK.encode() + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + host + secrets + b"Transfer-Encoding: " + MARK.encode() + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + host + secrets + b"X: " + MARK.encode() * 20_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + host + b"Authorization: Basic\x00" + BASIC.encode() + b"\r\n\r\n",
        b"GET / nonsense\r\n" + host + secrets + b"\r\n",
        b"nonsense / HTTP/1.1\r\n" + host + secrets + b"\r\n",
        b"POST / HTTP/1.1\r\n" + host + secrets + b"Transfer-Encoding: chunked\r\n\r\n" + MARK.encode() + b"\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + MARK.encode() * 20,
    ]


def test_nothing_secret_is_written(tmp_path: Path, watcher: Watcher) -> None:
    limits = "[limits]\nrequest_head_seconds = 3"
    with (
        World(tmp_path, extra='access_log = "json"\npark_seconds = 1', tables=limits) as world,
        RawTarget(hostile) as target,
    ):
        edge = world.start_edge(env=DEBUG)
        services = f"""
            [services.bad]
            target = {target.port}
            [services.down]
            target = {free_port()}
            [services.web]
            target = {world.service("web")}
            [services.closed]
            target = {world.service("closed")}
            basic_auth_file = "{tmp_path / "passwords"}"
        """
        hashed = bcrypt.hashpw(f"{MARK}-password".encode(), bcrypt.gensalt(4))
        (tmp_path / "passwords").write_bytes(b"me:" + hashed + b"\n")
        (tmp_path / "passwords").chmod(0o600)
        home = Connector(world, "home", services)
        invitation = world.edge_command("invite", "home").stdout.strip()
        options = ["--config", str(home.config), "--state-dir", str(home.state)]
        middle = len(invitation) // 2
        cut = invitation[:middle] + ("A" if invitation[middle] != "A" else "B") + invitation[middle + 1 :]
        for wrong in (cut, invitation[:-4], MARK):
            assert run("join", "-", *options, stdin=wrong, check=False).returncode != 0
        run("join", "-", *options, stdin=invitation)
        assert run("join", "-", *options, stdin=invitation, check=False).returncode == 1, "used"
        process = home.start(env=DEBUG)
        fields = ["-H", f"Cookie: a={MARK}-cookie", "-u", f"me:{MARK}-password", "-H", f"Proxy-Authorization: {MARK}"]
        for version in ("--http1.1", "--http2"):
            bad = [f"bad.example.com/{path}" for path in ("good", "two", "field", "line", "chunk")]
            for url in (
                *bad,
                "down.example.com/",
                "closed.example.com/",
                "web.example.com/headers",
                "none.example.com/",
            ):
                world.curl(f"https://{url}", version, *fields, "-o", "/dev/null", check=False)
        assert world.code("https://closed.example.com/", *fields) == 200
        assert world.code("https://closed.example.com/", "-u", f"me:{MARK}-guess") == 401
        for data in wrong_requests():
            raw(world, data)
        raw(world, wrong_requests()[0], tls=False)
        home.command("expose", "more", "80", "--host", "not.granted.example.org", check=False)
        world.edge_command("backup", str(tmp_path / "edge.backup"))
        world.edge_command("restore", str(tmp_path / "edge.backup"))
        shown = world.metrics() + world.edge_command("status", "--json").stdout + world.edge_command("status").stdout
        shown += home.command("status", "--json").stdout + home.command("doctor", check=False).stdout
        keys = planted.keys_below([world.state, home.state])
        assert len(keys) >= 4, "both authorities, the edge, the connector"
        process.signal(signal.SIGKILL)
        world.edge_command("revoke", "home")
        world.secrets |= {MARK.encode(), BASIC.encode(), hashed}
        for secret in world.secrets | keys:
            assert secret.decode() not in shown
        assert edge.stop() == 0
        assert '"level": "debug"' in edge.text() + process.text()
    assert watcher.found == []
    assert {"tunnelgw", "tunnelgw.identity.child"} <= watcher.seen


def test_secrets_of_an_issuer(tmp_path: Path, watcher: Watcher) -> None:
    """The key of an account made beforehand, and the key for DNS updates, with servers that do not answer."""
    hmac = base64.urlsafe_b64encode(f"{MARK}-hmac".encode()).decode().rstrip("=")
    tsig = base64.b64encode(f"{MARK}-tsig-0123456789".encode()).decode()
    for name, content in (("eab", hmac), ("tsig", tsig)):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o600)
    with World(tmp_path) as world:
        text = world.config.read_text().replace('issuer = "self-signed"', 'issuer = "acme"')
        world.config.write_text(f"""{text}
            [acme]
            directory = "https://127.0.0.1:{free_port()}/dir"
            eab_kid = "account"
            eab_hmac_file = "{tmp_path / "eab"}"
            [acme.dns]
            server = "127.0.0.1:{free_port()}"
            key_name = "tunnelgw"
            key_file = "{tmp_path / "tsig"}"
        """)
        edge = world.start_edge(env=DEBUG)
        world.connector("home", f"[services.web]\ntarget = {world.service('web')}")
        edge.wait_for("no certificate for|cannot be reached|issuer", seconds=30)
        world.secrets |= {hmac.encode(), tsig.encode(), MARK.encode()}
        shown = world.metrics() + world.edge_command("status", "--json").stdout
        assert not [secret for secret in world.secrets if secret.decode() in shown]
    assert watcher.found == []


def test_processes_with_keys_leave_no_core_and_private_files(tmp_path: Path) -> None:
    with World(tmp_path, workers=2) as world:
        edge = world.start_edge()
        home = world.connector("home", "")
        assert home.process is not None
        children = Path(f"/proc/{edge.pid}/task/{edge.pid}/children").read_text().split()
        assert len(children) == 2
        for pid in (edge.pid, home.process.pid, *map(int, children)):
            assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)
            status = Path(f"/proc/{pid}/status").read_text()
            assert "Umask:\t0077" in status
            if os.geteuid() == 0:
                # What belongs to root is what a process that is not dumpable looks like from outside.
                assert Path(f"/proc/{pid}/mem").stat().st_uid == 0
        for number in (signal.SIGQUIT, signal.SIGSEGV):
            process = home.start() if home.process.popen.poll() is not None else home.process
            process.signal(number)
            wait_until(lambda process=process: process.popen.poll() is not None, what="it ended")
        assert not list(tmp_path.rglob("core*"))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_as_an_ordinary_user(tmp_path: Path) -> None:
    """No rights are needed, also where the path of the state is too long for a socket; its user cannot look into it."""
    folder = tmp_path / ("deep-" * 20)
    folder.mkdir()
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.geteuid() and path != Path(tempfile.gettempdir()):
            path.chmod(path.stat().st_mode | 0o055)
        else:
            break
    with World(folder) as world:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 65534, 65534)
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--no-new-privs"]
        edge = world.add("edge", [*command, *TUNNELGW, "edge", "run", "--config", str(world.config)])
        edge.wait_for("ready")
        world.edge_command("invite", "home")
        assert {path.stat().st_uid for path in world.state.iterdir()} == {65534}
        assert Path(f"/proc/{edge.pid}/mem").stat().st_uid == 0
        looked = subprocess.run(
            [*command, "cat", f"/proc/{edge.pid}/environ"], capture_output=True, check=False, timeout=20
        )
        assert looked.returncode != 0
        assert b"ermission denied" in looked.stderr
