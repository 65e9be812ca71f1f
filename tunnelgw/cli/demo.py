"""`tunnelgw demo`: an edge, a connector and a sample service on loopback, in a temporary folder.

The edge and the connector are the real commands in processes of their own, so what is shown is what runs. Invariant:
however the demo ends, its processes and its folder are gone.
"""

from __future__ import annotations

import html
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from tunnelgw.errors import LocalError

if TYPE_CHECKING:
    from argparse import Namespace
    from types import FrameType

START_SECONDS = 30.0
STOP_SECONDS = 15.0
_SERVICE = "hello"


def run(arguments: Namespace) -> int:
    """Run until Ctrl-C (or SIGTERM); 0 if everything worked until then."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    with ExitStack() as stack:
        try:
            _run(stack, arguments.port)
        except KeyboardInterrupt:
            print("\nstopping; nothing is left behind")
            # A second Ctrl-C must not interrupt the cleaning up.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(stack: ExitStack, wanted: int) -> None:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tunnelgw-demo-")))
    port = _free_port(wanted)
    if port != wanted:
        print(f"port {wanted} is taken; using {port}")
    service = stack.enter_context(_sample_service())
    print("starting the edge ...", flush=True)
    edge_file, connector_file = folder / "edge.toml", folder / "connector.toml"
    _write_edge(edge_file, folder / "edge", port)
    edge = stack.enter_context(_Child("edge", "edge", "run", "--config", str(edge_file)))
    edge.first_line()
    invitation = _command("edge", "invite", "home", "--config", str(edge_file))
    print("joining the connector ...", flush=True)
    joined = ("--config", str(connector_file), "--state-dir", str(folder / "connector"))
    _command("join", "-", *joined, stdin=invitation)
    _command("expose", _SERVICE, str(service.server_port), "--config", str(connector_file))
    connector = stack.enter_context(_Child("connector", "connect", "--config", str(connector_file)))
    _say(connector.first_line(), port)
    for line in edge.lines():
        print(line, end="", flush=True)
    raise LocalError(f"the edge of the demo ended by itself: {edge.last_words()}")


def _say(ready: str, port: int) -> None:
    """The URL, and a command that works whether or not the resolver knows *.localhost."""
    url = next((word for word in ready.split() if word.startswith("https://")), f"https://{_SERVICE}.localhost:{port}/")
    host = url.removeprefix("https://").partition("/")[0].rpartition(":")[0]
    print(
        f"\n  {url}\n\n"
        "The browser warns, because the demo's certificate is its own. On the command line:\n\n"
        f"  curl -k --resolve {host}:{port}:127.0.0.1 {url}\n\n"
        "Requests appear below. Ctrl-C ends the demo and removes everything.\n",
        flush=True,
    )


def _write_edge(path: Path, state_dir: Path, port: int) -> None:
    from tunnelgw.admin.setup import create_state
    from tunnelgw.config.edit import create, initial_edge
    from tunnelgw.config.paths import EDGE

    place = f"127.0.0.1:{port}"
    text = initial_edge(path, domain="localhost", address=place, state_dir=str(state_dir), listen=place)
    # Keys of the top come before the first table.
    create(path, f'access_log = "text"\nlisten_http = []\nport_bind = "127.0.0.1"\n{text}', role=EDGE)
    create_state(state_dir)


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except (OSError, OverflowError):
                continue
            return int(sock.getsockname()[1])
    raise LocalError("no port can be had on 127.0.0.1")


def _program(*arguments: str) -> list[str]:
    return [sys.executable, "-Pm", "tunnelgw", *arguments]


def _command(*arguments: str, stdin: str = "") -> str:
    """Run one command to its end; its stdout. LocalError with its own words."""
    # A session of its own: Ctrl-C is for us, and we stop the rest in order.
    done = subprocess.run(
        _program(*arguments),
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=START_SECONDS,
        start_new_session=True,
    )
    if done.returncode:
        raise LocalError(f"demo: tunnelgw {arguments[0]}: {done.stderr.strip() or 'failed'}")
    return done.stdout.strip()


class _Child:
    """A long-running command: stdout by lines, the end of its stderr kept for when it fails."""

    def __init__(self, name: str, *arguments: str) -> None:
        self._name = name
        self._errors: deque[str] = deque(maxlen=5)
        self._process = subprocess.Popen(
            _program(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._drain = threading.Thread(target=self._read_errors, daemon=True)
        self._drain.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()

    def first_line(self) -> str:
        """The line that says it is ready. LocalError if it does not come in time."""
        late = threading.Timer(START_SECONDS, self._process.terminate)
        late.start()
        line = self._stdout().readline().strip()
        late.cancel()
        if not line.startswith("ready"):
            raise LocalError(f"the {self._name} of the demo did not start: {self.last_words()}")
        return line

    def lines(self) -> IO[str]:
        """What it prints, until it ends."""
        return self._stdout()

    def last_words(self) -> str:
        """The last line of its log."""
        self._drain.join(1.0)
        return self._errors[-1] if self._errors else "it said nothing"

    def _stdout(self) -> IO[str]:
        assert self._process.stdout is not None
        return self._process.stdout

    def _read_errors(self) -> None:
        if self._process.stderr is not None:
            with suppress(ValueError, OSError):
                for line in self._process.stderr:
                    self._errors.append(line.strip())


def _sample_service() -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Sample)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


class _Sample(BaseHTTPRequestHandler):
    """A page that shows what reached the service at home."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        fields = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>"
            for name, value in self.headers.items()
        )
        page = (
            "<!doctype html><meta charset=utf-8><title>Hello from home</title>"
            "<style>body{font:16px/1.5 sans-serif;max-width:44em;margin:3em auto;padding:0 1em}"
            "td{padding:.1em 1em .1em 0;vertical-align:top;word-break:break-all}</style>"
            "<h1>Hello from home</h1><p>This came through the tunnel. The service saw:</p>"
            f"<p><code>{html.escape(self.requestline)}</code></p><table>{fields}</table>\n"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page)

    do_HEAD = do_GET  # noqa: N815 - the base class wants it so

    def log_message(self, *_arguments: object) -> None:
        """Silent: the edge's access log is shown."""
