"""Several workers as real processes: one listener, hand-over, ports, numbers, crashes and an orderly end."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.edge.front import ADDRESS, run, until
from tests.ports import free_port
from tunnelgw.edge import supervisor as module
from tunnelgw.edge.supervisor import Supervisor
from tunnelgw.errors import LocalError
from tunnelgw.net.accept import listen_on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

SCRIPT = str(Path(__file__).with_name("worker_process.py"))


@asynccontextmanager
async def edge(count: int = 2) -> AsyncIterator[tuple[Supervisor, int]]:
    with listen_on(ADDRESS, 0, defer=False) as https, listen_on(ADDRESS, 0, defer=False) as http:
        supervisor = Supervisor(
            count,
            https=[https],
            http=[http],
            port_bind=ADDRESS,
            command=lambda index, descriptor: (sys.executable, SCRIPT, str(descriptor)),
        )
        await supervisor.start()
        supervisor.accept()
        try:
            yield supervisor, https.getsockname()[1]
        finally:
            await supervisor.stop()
            assert not supervisor.pids()


async def ask(port: int, command: str) -> str:
    reader, writer = await asyncio.open_connection(ADDRESS, port)
    writer.write(command.encode())
    answer = (await reader.read()).decode()
    writer.close()
    return answer


async def both_answer(port: int) -> None:
    """Who is asked by one of them; one that is slow for once is left out."""
    end = asyncio.get_running_loop().time() + 10
    while (found := await ask(port, "gather")) != "[0, 1]":
        assert asyncio.get_running_loop().time() < end, found


def test_sockets_go_to_the_worker_they_are_for() -> None:
    async def main() -> None:
        async with edge() as (supervisor, port):
            for worker in (0, 1):
                reader, writer = await asyncio.open_connection(ADDRESS, port)
                me = "{}:{}".format(*writer.get_extra_info("sockname"))
                writer.write(f"give {worker}".encode())
                assert (await reader.read(5)).decode() == "give?"
                writer.write(b"hello")
                answer = (await reader.read()).decode()
                assert answer == f"worker {worker} for {me} got hello"
                writer.close()
            assert await ask(port, "give 7") == "give?no such worker"
            await both_answer(port)
            assert sorted(each["index"] for each in await supervisor.gather()) == [0, 1]
            assert await supervisor.waiting() == 1 + 2

    run(main)


def test_a_port_is_open_as_long_as_one_worker_holds_it() -> None:
    async def main() -> None:
        async with edge() as (_, port):
            raw = free_port()
            assert await ask(port, f"open {raw}") == "opened"
            assert await ask(port, f"open {raw}") == "opened"
            (await asyncio.open_connection(ADDRESS, raw))[1].close()
            with socket.create_server((ADDRESS, 0)) as taken:
                assert "another program" in await ask(port, f"open {taken.getsockname()[1]}")

    run(main)


def test_a_crashed_worker_comes_back_and_no_connection_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF_SECONDS", (0.05, 0.1))

    async def main() -> None:
        async with edge() as (supervisor, port):
            before = supervisor.pids()
            await ask(port, "crash")
            answers = await asyncio.gather(*(ask(port, "who") for _ in range(50)))
            assert set(answers) <= {"0", "1"}
            await until(lambda: supervisor.restarts == 1 and all(each.ready for each in supervisor._workers))
            assert len(set(supervisor.pids()) - set(before)) == 1
            await both_answer(port)

    run(main)


@pytest.mark.parametrize("step", ["channel_pair", "copies"])
def test_a_moment_without_descriptors_is_not_the_end_of_a_worker(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    monkeypatch.setattr(module, "BACKOFF_SECONDS", (0.05, 0.1))
    tries: list[int] = []
    real = getattr(module, step)

    def out_of_descriptors(*arguments: Any) -> Any:
        tries.append(1)
        if len(tries) < 3:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(*arguments)

    async def main() -> None:
        async with edge() as (supervisor, port):
            monkeypatch.setattr(module, step, out_of_descriptors)
            await ask(port, "crash")
            await until(lambda: len(tries) == 3 and all(each.ready for each in supervisor._workers))
            await both_answer(port)

    run(main)


def test_a_port_that_cannot_be_given_once_more_stays_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two decisions of one worker asked for it; with a descriptor too few for the second."""

    async def main() -> None:
        supervisor = Supervisor(1, https=[], http=[], port_bind=ADDRESS, command=lambda index, descriptor: ())
        worker, sent = supervisor._workers[0], []

        def send(_worker: Any, message: dict[str, Any], descriptors: Sequence[int] = ()) -> bool:
            sent.append(message)
            for descriptor in descriptors:
                os.close(descriptor)
            return True

        def out_of_descriptors(_socks: Any) -> list[int]:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(supervisor, "_send", send)
        first, second = free_port(), free_port()
        supervisor._open(worker, 1, first)
        monkeypatch.setattr(module, "copies", out_of_descriptors)
        supervisor._open(worker, 2, first)
        supervisor._open(worker, 3, second)
        assert [message.get("error", "") for message in sent] == ["", "Too many open files", "Too many open files"]
        assert set(supervisor._ports) == {first}
        socket.create_server((ADDRESS, second)).close()
        supervisor._release(worker, first)
        socket.create_server((ADDRESS, first)).close()

    run(main)


def test_a_worker_that_cannot_start_is_an_error_and_leaves_nothing() -> None:
    async def main() -> None:
        supervisor = Supervisor(
            2,
            https=[],
            http=[],
            port_bind=ADDRESS,
            command=lambda index, descriptor: (
                (sys.executable, "-c", "raise SystemExit(2)") if index else (sys.executable, SCRIPT, str(descriptor))
            ),
        )
        with pytest.raises(LocalError, match="worker 1 ended with 2"):
            await supervisor.start()
        assert not supervisor.pids()

    run(main)


def test_reload_reaches_every_worker() -> None:
    async def main() -> None:
        async with edge() as (supervisor, _):
            supervisor.reload()
            end = asyncio.get_running_loop().time() + 10
            while [each["reloads"] for each in await supervisor.gather()] != [1, 1]:
                assert asyncio.get_running_loop().time() < end

    run(main)


def test_a_reload_while_a_worker_starts_comes_later() -> None:
    """SIGHUP would end a process that has no handler for it yet."""

    async def main() -> None:
        async with edge() as (supervisor, _):
            os.kill(supervisor.pids()[0], signal.SIGKILL)
            await until(lambda: not supervisor._workers[0].ready)
            await until(lambda: len(supervisor.pids()) == 2)  # it runs, and is not ready
            supervisor.reload()
            await until(lambda: supervisor._workers[0].ready)
            end = asyncio.get_running_loop().time() + 10
            while [each["reloads"] for each in await supervisor.gather()] != [1, 1]:
                assert asyncio.get_running_loop().time() < end
            assert supervisor.restarts == 1

    run(main)


def test_workers_leave_when_the_supervisor_vanishes() -> None:
    async def main() -> None:
        async with edge() as (supervisor, _):
            pids = supervisor.pids()
            for worker in supervisor._workers:
                assert worker.channel is not None
                worker.channel.close()
            await until(lambda: not set(pids) & set(supervisor.pids()))
            for pid in pids:
                with pytest.raises(ProcessLookupError):
                    os.kill(pid, 0)

    run(main)
