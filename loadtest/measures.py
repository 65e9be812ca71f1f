"""The product's own promises, measured: memory, slow readers, endless uploads, a full uplink, a far away home.

    python -m loadtest.measures [NAME]...        (default: all; `uplink` needs root)

Each prints its figure beside what is promised; the exit status is 1 if one is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import shutil
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import ngh2
import uvloop

from loadtest.contenders import tunnelgw
from loadtest.home import start_nginx
from loadtest.processes import Group, wait_port
from loadtest.scenario import HOST
from tests.ports import free_port

MIB = 1024 * 1024
ROOT = Path(__file__).parent.parent
Figure = tuple[str, float, str, bool]


@contextmanager
def gateway(*, service: Callable[[Group], int] = start_nginx, delay: float = 0.0) -> Iterator[tuple[Group, int]]:
    """An edge and a connector with their service; with `delay` (seconds, round trip) the link goes through a relay."""
    with tempfile.TemporaryDirectory(prefix="tunnelgw-measure-") as folder:
        group = Group(Path(folder))
        try:
            port = tunnelgw.start(group, service(group), delay=delay)
            yield group, port
        finally:
            group.stop()


def curl(port: int, path: str, *options: str, seconds: float = 600) -> str:
    """One transfer by curl; what it printed."""
    done = subprocess.run(
        ["curl", "-sk", "--max-time", str(seconds), "--resolve", f"{HOST}:{port}:127.0.0.1", *options, f"https://{HOST}:{port}{path}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout


def idle() -> list[Figure]:
    """Resident memory with nothing to do, after a first request."""
    with gateway() as (group, _):
        time.sleep(6)
        edge, connector = group.memory("edge") / MIB, group.memory("connector") / MIB
    return [
        ("idle edge, MiB", edge, "at most 65", edge <= 65),
        ("idle connector, MiB", connector, "at most 40", connector <= 40),
    ]


class Visitor(asyncio.Protocol):
    """Opens a connection, sends one request, reads the response, and stays."""

    alpn = "http/1.1"

    def __init__(self, done: Callable[[bool], None]) -> None:
        self.done = done
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.ask()

    def ask(self) -> None:
        """Send what is to be answered."""
        self.transport.write(b"GET /small HTTP/1.1\r\nHost: %b\r\n\r\n" % HOST.encode())

    def data_received(self, data: bytes) -> None:
        if data.endswith(bytes(13)):
            self.done(True)

    def connection_lost(self, exc: Exception | None) -> None:
        self.done(False)


class VisitorH2(Visitor):
    """The same on HTTP/2."""

    alpn = "h2"

    def ask(self) -> None:
        self.http2 = ngh2.Connection(ngh2.Role.CLIENT)
        self.http2.initiate_connection()
        authority = HOST.encode()
        fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", authority), (b":path", b"/small")]
        self.http2.send_request(fields, end_stream=True)
        self.transport.write(self.http2.data_to_send())

    def data_received(self, data: bytes) -> None:
        self.http2.receive_data(data)
        for event in self.http2.events():
            if isinstance(event, ngh2.DataReceived):
                self.done(True)
        out = self.http2.data_to_send()
        if out:
            self.transport.write(out)


SOURCES = 250  # addresses of the visitors: one alone may not have everything that is left


async def visit(port: int, count: int, visitor: type[Visitor], *, look: Callable[[], None]) -> int:
    """Open `count` connections, 64 at a time, one request each; look while all are idle; how many worked and stayed."""
    loop = asyncio.get_running_loop()
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([visitor.alpn])
    gate, served, transports = asyncio.Semaphore(64), [0], []

    async def one(number: int) -> None:
        async with gate:
            answered: asyncio.Future[bool] = loop.create_future()
            transport, _ = await loop.create_connection(
                lambda: visitor(lambda ok: answered.done() or answered.set_result(ok)),
                "127.0.0.1", port, ssl=context, server_hostname=HOST,
                local_addr=(f"127.100.0.{1 + number % SOURCES}", 0),
            )  # fmt: skip
            answer = await answered
            served[0] += answer
            transports.append(transport)

    await asyncio.gather(*(one(number) for number in range(count)))
    await asyncio.sleep(8)  # streams are kept for 4 s
    look()
    await asyncio.sleep(1)  # whoever hung up meanwhile is seen now
    left = sum(transport.is_closing() for transport in transports)
    for transport in transports:
        transport.abort()
    return served[0] - left


def open_files() -> None:
    """As many as the machine lets us."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _note(group: Group, after: list[int]) -> None:
    after[0] = group.memory("edge")


def visitors(count: int = 10_000) -> list[Figure]:
    """Memory of idle visitor connections after one request each."""
    open_files()
    figures = []
    kind: type[Visitor]
    for kind, limit in ((Visitor, 32), (VisitorH2, 56)):
        with gateway() as (group, port):
            time.sleep(5)
            before, after = group.memory("edge"), [0]
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                served = runner.run(visit(port, count, kind, look=partial(_note, group, after)))
        each = (after[0] - before) / count / 1024
        name = "h2" if kind is VisitorH2 else "h1"
        figures.append((f"{count} idle {name} visitors, KiB each", each, f"at most {limit}", each <= limit))
        figures.append((f"{name} visitors served", served, f"all {count}", served == count))
    return figures


def slow_reader() -> list[Figure]:
    """Growth of edge and connector while somebody reads a large download at 10 KB/s."""
    with gateway() as (group, port):
        curl(port, "/1m", "-o", "/dev/null")
        time.sleep(5)
        before = group.memory("edge") + group.memory("connector")
        reader = subprocess.Popen(
            ["curl", "-sk", "--limit-rate", "10K", "--resolve", f"{HOST}:{port}:127.0.0.1", "-o", "/dev/null",
             f"https://{HOST}:{port}/1g"],
        )  # fmt: skip
        most = 0
        for _ in range(60):
            time.sleep(0.5)
            most = max(most, group.memory("edge") + group.memory("connector"))
        working = reader.poll() is None
        reader.terminate()
        reader.wait()
    grown = (most - before) / MIB
    return [("1 GB read at 10 KB/s, growth in MiB", grown, "at most 20", grown <= 20 and working)]


def upload(size: int = 10 * 1000**3) -> list[Figure]:
    """A generated upload that nobody stores: memory stays flat."""
    with gateway(service=_start_sink) as (group, port):
        curl(port, "/", "-T", "/etc/hosts")
        before = group.memory("edge") + group.memory("connector")
        source = subprocess.Popen(["head", "-c", str(size), "/dev/zero"], stdout=subprocess.PIPE)
        start, most = time.monotonic(), 0
        sender = subprocess.Popen(
            ["curl", "-sk", "--resolve", f"{HOST}:{port}:127.0.0.1", "-T", "-", f"https://{HOST}:{port}/"],
            stdin=source.stdout, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        while sender.poll() is None:
            most = max(most, group.memory("edge") + group.memory("connector"))
            time.sleep(0.5)
        speed = size / (time.monotonic() - start) / 1e6
        answer = sender.communicate()[0].strip()
        source.wait()
    grown = (most - before) / MIB
    return [
        ("10 GB upload, growth in MiB", grown, "flat (at most 20)", grown <= 20),
        ("10 GB upload, MB/s", speed, "complete", answer == str(size)),
    ]


def far() -> list[Figure]:
    """One download with 100 ms of round trip on the link."""
    with gateway(delay=0.1) as (_, port):
        speed = float(curl(port, "/1g", "-o", "/dev/null", "-w", "%{speed_download}", seconds=120)) / 1e6
    return [("one download at 100 ms round trip, MB/s", speed, "at least 40", speed >= 40)]


def uplink() -> list[Figure]:
    """A 20 Mbit/s uplink filled by four downloads, and one small request at a time beside them."""
    if os.geteuid() != 0:
        print("uplink: skipped, it needs root for network namespaces", file=sys.stderr)
        return []
    names = ("tgw-bench-home", "tgw-bench-vps")
    commands = [
        f"ip netns add {names[0]}", f"ip netns add {names[1]}",
        f"ip link add tgwh netns {names[0]} type veth peer name tgwv netns {names[1]}",
        f"ip -n {names[0]} addr add 10.99.0.1/24 dev tgwh", f"ip -n {names[1]} addr add 10.99.0.2/24 dev tgwv",
        *(f"ip -n {name} link set {device} up" for name, device in ((names[0], "tgwh"), (names[1], "tgwv"))),
        *(f"ip -n {name} link set lo up" for name in names),
        f"tc -n {names[0]} qdisc add dev tgwh root tbf rate 20mbit burst 16kb latency 100ms",
    ]  # fmt: skip
    try:
        for command in commands:
            subprocess.run(command.split(), check=True)
        return _beside_full_uplink(*names)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _beside_full_uplink(home: str, vps: str) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="tunnelgw-measure-") as folder:
        group = Group(Path(folder))
        inside = [["ip", "netns", "exec", vps], ["ip", "netns", "exec", home]]
        try:
            port = tunnelgw.start(group, 0, namespaces=inside, address="10.99.0.2")
            resolve = ["--resolve", f"{HOST}:{port}:10.99.0.2"]
            downloads = [
                subprocess.Popen([*inside[0], "curl", "-sk", *resolve, "-o", "/dev/null", f"https://{HOST}:{port}/1g"])
                for _ in range(4)
            ]
            time.sleep(3)
            times = []
            for _ in range(100):
                done = subprocess.run(
                    [*inside[0], "curl", "-sk", *resolve, "-o", "/dev/null", "-w", "%{time_pretransfer} %{time_total}",
                     f"https://{HOST}:{port}/small"], capture_output=True, text=True, check=True,
                )  # fmt: skip
                before, total = map(float, done.stdout.split())
                times.append((total - before) * 1000)
            full = all(download.poll() is None for download in downloads)
            for download in downloads:
                download.terminate()
                download.wait()
        finally:
            group.stop()
    times.sort()
    p50, p99 = statistics.median(times), times[98]
    return [
        ("small request beside a full 20 Mbit/s uplink, p50 in ms", p50, "at most 150", p50 <= 150 and full),
        ("the same, p99 in ms", p99, "at most 400", p99 <= 400 and full),
    ]


def _start_sink(group: Group) -> int:
    """A service that counts a request's body and answers with the number."""
    port = free_port()
    group.start("sink", [sys.executable, "-m", "loadtest.measures", "--sink", str(port)], cwd=ROOT)
    wait_port(port)
    return port


class _Sink(asyncio.Protocol):
    """Reads a chunked or counted body without keeping it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.head, self.body = b"", None

    def data_received(self, data: bytes) -> None:
        from tunnelgw.http.body import ChunkedBody, LengthBody

        if self.body is None:
            self.head += data
            end = self.head.find(b"\r\n\r\n")
            if end < 0:
                return
            data = self.head[end + 4 :]
            fields = dict(line.split(b": ", 1) for line in self.head[:end].lower().split(b"\r\n")[1:])
            length = fields.get(b"content-length")
            self.body = ChunkedBody() if length is None else LengthBody(int(length))
            self.size = 0
        payload, _ = self.body.feed(data, 0) if data else (b"", 0)
        self.size += len(payload)
        if self.body.done:
            text = b"%d\n" % self.size
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))
            self.head, self.body = b"", None


async def _sink(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Sink, "127.0.0.1", port)
    await server.serve_forever()


MEASURES: dict[str, Callable[[], list[Figure]]] = {
    "idle": idle, "visitors": visitors, "slow-reader": slow_reader, "upload": upload, "far": far, "uplink": uplink,
}  # fmt: skip


def main() -> int:
    """Print the figures."""
    if sys.argv[1:2] == ["--sink"]:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_sink(int(sys.argv[2])))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if shutil.which("nginx") is None or shutil.which("curl") is None:
        print("measures: nginx and curl are needed", file=sys.stderr)
        return 1
    missed = 0
    parser = argparse.ArgumentParser(prog="loadtest.measures", description="What is promised, and whether it is so.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(MEASURES)} (all of them)")
    names = parser.parse_args().names
    if unknown := set(names) - MEASURES.keys():
        parser.error(f"{', '.join(sorted(unknown))}: not one of {', '.join(MEASURES)}")
    for name in names or MEASURES:
        for text, value, promise, held in MEASURES[name]():
            missed += not held
            print(f"{'ok  ' if held else 'MISS'} {text}: {value:,.1f} ({promise})", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
