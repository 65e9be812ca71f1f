"""Ports for what tests and measurements start: never one that somebody takes between choosing and listening.

They come from below the range out of which kernels serve connections and port 0, in order, each process from a place of
its own: a port is handed out once in a run.
"""

from __future__ import annotations

import itertools
import os
import random
import socket

_FIRST, _END = 10_000, 32_000
# Of pytest-xdist's processes each has its own part; two runs at once, and processes without a number, begin anywhere.
_PARTS = 8


def _from_here() -> itertools.chain[int]:
    run, worker = os.environ.get("PYTEST_XDIST_TESTRUNUID", ""), os.environ.get("PYTEST_XDIST_WORKER", "")
    begin = random.Random(run or None).randrange(_END - _FIRST)
    part = int(worker.removeprefix("gw")) % _PARTS if worker else 0
    start = _FIRST + (begin + part * (_END - _FIRST) // _PARTS) % (_END - _FIRST)
    return itertools.chain(range(start, _END), range(_FIRST, start))


_candidates = itertools.cycle(_from_here())


def free_port() -> int:
    """A TCP port that nothing on this machine is bound to."""
    for port in itertools.islice(_candidates, _END - _FIRST):
        with socket.socket() as sock:
            try:
                sock.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError(f"every port from {_FIRST} to {_END} is taken")


def free_udp_port() -> int:
    """A number that is free for UDP, and for TCP too."""
    for _ in range(100):
        port = free_port()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                sock.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError("no port is free for UDP")


def free_range(size: int) -> int:
    """The first of so many ports that are free for UDP and TCP, or nearly surely so."""
    while True:
        first = free_udp_port()
        socks = []
        try:
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                for port in range(first, first + size):
                    socks.append(sock := socket.socket(socket.AF_INET, kind))
                    sock.bind(("127.0.0.1", port))
        except OSError:
            continue
        else:
            for _ in range(size - 1):  # nobody else gets one of them
                next(_candidates)
            return first
        finally:
            for sock in socks:
                sock.close()
