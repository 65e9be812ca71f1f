"""Load on a lab, accounting for everything: `python -m tests.lab.load --control SOCKET --ssh-config FILE`.

Runs at the visitor's. Each kind goes on until `finish`: small requests on HTTP/1.1 (GET and POST) and on HTTP/2, whose
number must come back; a download and an upload after the other, whose hashes must be equal; a WebSocket and an ssh
session with numbered messages, of which none may be missing, doubled or out of order. With `--more` also visitors that
keep a connection idle (kept.py), and GETs of a name that two connectors serve. What breaks is begun again and counted
as failed. Commands of the control socket (see tests/system/control.py):

    report    {"kinds": {kind: {begun, finished, under_way, retried, failed: {cause: how many}, longest, fresh, oldest,
              bytes}}, "failures": [{kind, cause, method, number, began, since, ended}]}: longest is the longest wait
              since `mark` in seconds, fresh is when the latest one began that got through, oldest when the first of
              those that are under way did (or infinite), since when its connection began (monotonic)
    mark      measure waits anew; the time
    finish    begin nothing new, wait for what is under way; the report

`retried` are requests that any browser sends again: of a server that said that it had not looked at them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import itertools
import json
import signal
import time
from typing import TYPE_CHECKING, Any

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from tests.lab import kept
from tests.lab.clients import H1, H2, PATIENCE, UnprocessedError, trusting
from tests.lab.messages import Messages
from tests.lab.tally import AnsweredError, Tally, WrongError
from tests.system import control
from tests.system.service import numbered
from tunnelgw.net.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

WEB, PAIR, SSH, PORT, SSH_PORT = "web.example.com", "pair.example.com", "ssh.example.com", 443, 2222
SMALL = 2  # workers on each version of HTTP
PAUSE = 0.05  # between small requests of a worker, and between messages
AGAIN = 0.2  # after a failure
DOWNLOAD = 2_500_000
UPLOAD = 1_000_000
UPLOAD_RATE = 1_000_000  # bytes a second: so that one is under way most of the time
REMOTE = 'echo ready; while read -r line; do echo "line $line"; done; echo over'


def digest_of(size: int) -> str:
    digest = hashlib.sha256()
    for block in numbered(size):
        digest.update(block)
    return digest.hexdigest()


class Load:
    """All kinds; `finishing` is set once nothing new is to begin."""

    def __init__(self, ssh_config: str, *, more: bool = False) -> None:
        self.ssh_config = ssh_config
        self.more = more
        self.finishing = asyncio.Event()
        self.done = asyncio.Event()
        self.tallies: dict[str, Tally] = {}
        self.numbers = itertools.count(1)

    def tally(self, kind: str) -> Tally:
        return self.tallies.setdefault(kind, Tally(kind))

    async def pause(self, seconds: float) -> None:
        """Or until nothing new is to begin."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.finishing.wait()

    async def run(self) -> None:
        works: list[Callable[[], Coroutine[Any, Any, None]]] = [
            *[self.small_h1] * SMALL, self.small_h2, self.download, self.upload, self.websocket, self.ssh,
        ]  # fmt: skip
        if self.more:
            works += [self.small_pair, *kept.visitors(self, WEB, PORT)]
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work())
        self.done.set()

    async def small_pair(self) -> None:
        """Of two connectors; what is safe, for nothing else can be asked of the other one."""
        await self.small_h1("group", PAIR, methods=("GET",))

    async def small_h1(self, kind: str = "h1", host: str = WEB, methods: tuple[str, ...] = ("POST", "GET")) -> None:
        tally, connection = self.tally(kind), None
        while not self.finishing.is_set():
            count = next(self.numbers)
            number, method = str(count).encode(), methods[count % len(methods)]
            before = len(tally.failures)
            if connection is not None and not connection.usable:
                connection.close()
                connection = None
            with tally.operation(0.0 if connection is None else connection.since, method):
                if connection is None:
                    connection = await H1.connect(host, PORT)
                if method == "GET":
                    got = json.loads(await connection.get(f"/headers/{count}"))["path"].encode()
                    wanted = b"/headers/" + number
                else:
                    await connection.ask("POST", "/upload", length=len(number))
                    connection.writer.write(number)
                    got = json.loads(b"".join([part async for part in connection.answer()]))["sha256"].encode()
                    wanted = hashlib.sha256(number).hexdigest().encode()
                if got != wanted:
                    raise WrongError(f"{got!r} instead of {wanted!r}")
            failed = len(tally.failures) > before
            if connection is not None and failed:
                connection.close()
                connection = None
            await self.pause(AGAIN if failed else PAUSE)

    async def small_h2(self) -> None:
        """Several requests at once on one connection; another one once the server wants no more on it."""
        tally, connection = self.tally("h2"), None
        while not self.finishing.is_set():
            before = len(tally.failures)
            if connection is None or not connection.usable:
                with tally.operation():
                    connection = await H2.connect(WEB, PORT)
            if connection is not None:
                await asyncio.gather(*(self.get_h2(tally, connection) for _ in range(SMALL)))
            await self.pause(AGAIN if len(tally.failures) > before else PAUSE)

    async def get_h2(self, tally: Tally, connection: H2) -> None:
        path = f"/headers/{next(self.numbers)}"
        another = None
        with tally.operation(connection.since, "GET"):
            while True:
                try:
                    got = json.loads(await connection.get(path))["path"]
                    break
                except UnprocessedError:
                    tally.retried += 1
                    another = connection = await H2.connect(WEB, PORT)
            if got != path:
                raise WrongError(f"{got!r} instead of {path!r}")
        if another is not None:
            another.close()

    async def download(self) -> None:
        tally, wanted = self.tally("download"), digest_of(DOWNLOAD)
        while not self.finishing.is_set():
            connection, before = None, len(tally.failures)
            with tally.operation(method="GET") as operation:
                connection = await H1.connect(WEB, PORT)
                await connection.ask("GET", f"/numbered/{DOWNLOAD}")
                digest = hashlib.sha256()
                async for part in connection.answer():
                    digest.update(part)
                    tally.moved(operation, len(part))
                if digest.hexdigest() != wanted:
                    raise WrongError("another hash")
            if connection is not None:
                connection.close()
            if len(tally.failures) > before:
                await self.pause(AGAIN)

    async def upload(self) -> None:
        tally, wanted = self.tally("upload"), {"bytes": UPLOAD, "sha256": digest_of(UPLOAD)}
        while not self.finishing.is_set():
            connection, before = None, len(tally.failures)
            with tally.operation(method="POST") as operation:
                connection = await H1.connect(WEB, PORT)
                await connection.ask("POST", "/upload", length=UPLOAD)
                for block in numbered(UPLOAD):
                    connection.writer.write(block)
                    async with asyncio.timeout(PATIENCE):
                        await connection.writer.drain()
                    tally.moved(operation, len(block))
                    await asyncio.sleep(len(block) / UPLOAD_RATE)
                got = json.loads(b"".join([part async for part in connection.answer()]))
                if got != wanted:
                    raise WrongError(f"{got} instead of {wanted}")
            if connection is not None:
                connection.close()
            if len(tally.failures) > before:
                await self.pause(AGAIN)

    async def websocket(self) -> None:
        tally, ticks = self.tally("websocket"), self.tally("ticks")
        while not self.finishing.is_set():
            opening = tally.begin()
            try:
                async with asyncio.timeout(PATIENCE):
                    made = await connect(
                        f"wss://{WEB}:{PORT}/ticking", ssl=trusting("http/1.1"), ping_interval=None, open_timeout=None
                    )
            except (OSError, EOFError, InvalidHandshake, ConnectionClosed) as error:
                status = error.response.status_code if isinstance(error, InvalidStatus) else 0
                tally.fail(opening, AnsweredError(status, "to a WebSocket") if status else error)
                await self.pause(AGAIN)
                continue
            tally.finish(opening)
            messages = Messages(tally, "echo")
            told = Messages(ticks, "tick", ahead=True)
            async with made:
                sending = spawn(self.say(messages, made.send), name="messages")
                try:
                    while not messages.over:
                        async with asyncio.timeout(PATIENCE):
                            text = await made.recv()
                        (told if text.startswith("tick") else messages).heard(text)
                    await made.close()
                except (ConnectionClosed, OSError, WrongError) as error:
                    messages.fail(error)
                    told.fail(error)
                finally:
                    sending.cancel()
                    await asyncio.wait([sending])
                    told.drop()
            await self.pause(AGAIN)

    async def ssh(self) -> None:
        tally = self.tally("ssh")
        while not self.finishing.is_set():
            opening = tally.begin()
            session = await asyncio.create_subprocess_exec(
                "ssh", "-F", self.ssh_config, "-p", str(SSH_PORT), SSH, REMOTE,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert session.stdin is not None
            assert session.stdout is not None
            messages = Messages(tally, "line")
            sending = None
            try:
                if await self.line(session.stdout) != "ready":
                    raise WrongError("no greeting")
                tally.finish(opening)
                opening = None
                sending = spawn(self.say(messages, self.writer(session.stdin)), name="lines")
                while not messages.over:
                    messages.heard(await self.line(session.stdout))
                session.stdin.close()
                if await self.line(session.stdout) != "over" or await session.wait() != 0:
                    raise WrongError("another end")
            except (OSError, EOFError, WrongError) as error:
                if opening is not None:
                    tally.fail(opening, error)
                messages.fail(error)
            finally:
                if sending is not None:
                    sending.cancel()
                    await asyncio.wait([sending])
                if session.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        session.kill()
                    await session.wait()
            await self.pause(AGAIN)

    @staticmethod
    async def line(stdout: asyncio.StreamReader) -> str:
        async with asyncio.timeout(PATIENCE):
            text = await stdout.readline()
        if not text.endswith(b"\n"):
            raise ConnectionResetError("the session ended")
        return text.decode().rstrip("\n")

    @staticmethod
    def writer(stdin: asyncio.StreamWriter) -> Callable[[str], Coroutine[Any, Any, None]]:
        async def write(text: str) -> None:
            stdin.write(f"{text}\n".encode())
            await stdin.drain()

        return write

    async def say(self, messages: Messages, send: Callable[[str], Coroutine[Any, Any, None]]) -> None:
        """Number after number, until nothing new is to begin or the connection is over (who reads says why)."""
        with contextlib.suppress(OSError, ConnectionClosed):
            while not messages.last:
                messages.last = self.finishing.is_set()
                await send(messages.next())
                await self.pause(PAUSE)

    # The control socket.

    def report(self) -> dict[str, Any]:
        return {
            "kinds": {kind: tally.report() for kind, tally in self.tallies.items()},
            "failures": [failure for tally in self.tallies.values() for failure in tally.failures],
        }

    def mark(self) -> float:
        for tally in self.tallies.values():
            tally.mark()
        return time.monotonic()

    async def finish(self) -> dict[str, Any]:
        self.finishing.set()
        await self.done.wait()
        return self.report()


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--control", required=True)
    parser.add_argument("--ssh-config", required=True)
    parser.add_argument("--more", action="store_true")
    options = parser.parse_args()
    load = Load(options.ssh_config, more=options.more)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = await control.serve(options.control, {"report": load.report, "mark": load.mark, "finish": load.finish})
    running = spawn(load.run(), name="load")
    stopping = spawn(stop.wait(), name="end")
    print("ready", flush=True)
    await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
    if not stop.is_set():
        await running  # it raises, if the checker itself is at fault; else it has finished
        await stopping
    running.cancel()
    await asyncio.wait([running])
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
