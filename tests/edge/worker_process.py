"""A worker for tests: answers each connection with its index, takes tunnels, opens ports, and crashes when told to."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys

from tunnelgw.edge.workers import Worker
from tunnelgw.errors import Refused
from tunnelgw.net.accept import Acceptor, Reserve
from tunnelgw.net.ledger import counted
from tunnelgw.net.loop import loop_factory


async def main() -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    reloads = 0
    held: list[socket.socket] = []
    acceptors: list[Acceptor] = []

    def tunnel(descriptor: int, peer: tuple[str, int]) -> None:
        with socket.socket(fileno=descriptor) as sock:
            sock.setblocking(True)
            sock.sendall(f"worker {worker.index} for {peer[0]}:{peer[1]} got {sock.recv(100).decode()}".encode())

    def each(do) -> None:
        for acceptor in acceptors:
            do(acceptor)

    worker = Worker(
        loop,
        socket.socket(fileno=int(sys.argv[1])),
        snapshot=lambda: {"index": worker.index, "pid": os.getpid(), "reloads": reloads},
        waiting=lambda: worker.index + 1,
        tunnel=tunnel,
        accept=lambda: each(Acceptor.start),
        pause=lambda: each(Acceptor.close),
        leave=stop.set,
        orphaned=stop.set,
    )

    def hangup() -> None:
        nonlocal reloads
        reloads += 1

    async def serve(sock: socket.socket, address: tuple[str, int]) -> None:
        command = (await loop.sock_recv(sock, 100)).decode().split()
        answer = str(worker.index)
        if command[0] == "crash":
            os._exit(3)
        elif command[0] == "give":
            await loop.sock_sendall(sock, b"give?")
            moved = counted(sock, None, key=None, peer=address, listener="https", handshake=False)
            if worker.hand_over(int(command[1]), moved):
                return
            sock = moved
            answer = "no such worker"
        elif command[0] == "open":
            try:
                held.append(await worker.open_port(int(command[1])))
                answer = "opened"
            except Refused as refusal:
                answer = refusal.text
        elif command[0] == "close":
            held.pop().close()
            worker.close_port(int(command[1]))
            answer = "closed"
        elif command[0] == "gather":
            answer = repr(sorted(each["index"] for each in await worker.gather()))
        await loop.sock_sendall(sock, answer.encode())
        sock.close()

    tasks = set()

    def accepted(sock: socket.socket, address: tuple[str, int]) -> None:
        sock.setblocking(False)
        task = loop.create_task(serve(sock, address))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGHUP, hangup)
    https, http = await worker.start()
    reserve = Reserve()
    acceptors += [Acceptor(loop, sock, accepted=accepted, refused=print, reserve=reserve) for sock in (*https, *http)]
    worker.ready()
    await stop.wait()
    for acceptor in acceptors:
        acceptor.close()
    worker.close()


with asyncio.Runner(loop_factory=loop_factory(require_uvloop=True)) as runner:
    runner.run(main())
