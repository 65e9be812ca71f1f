"""Datagrams through a UDP port to an echo at home and back: packets per second, and loss.

    python -m loadtest.scenes.udp PORT [--size 100] [--window 64] [--seconds 5]

Each carries its number and so many are under way; one that is not back after 0.5 s is lost. What comes back twice
or changed is an error. Prints one line of JSON. `python -m loadtest.scenes.udp echo PORT` is the echo.
"""

from __future__ import annotations

import argparse
import functools
import json
import select
import socket
import struct
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtest.scenario import ADDRESS, Kind, Measurement, RunError, Scenario, Setup, Target
from loadtest.scenes.children import ROOT, Child
from loadtest.scenes.samples import milliseconds
from tests.ports import free_port

if TYPE_CHECKING:
    from loadtest.processes import Group

LOST = 0.5  # seconds
WINDOW = 64
BUFFER = 4 * 1024 * 1024  # of the kernel, so that it is not what loses
NUMBER = struct.Struct(">Q")
WARMING = (1 << 64) - 1  # the number of those before the first
WARM = 5.0  # seconds in which the first one has to come back


def payload(number: int, size: int) -> bytes:
    """A datagram that no other one equals."""
    return NUMBER.pack(number) + bytes((number + index) & 255 for index in range(8)) + bytes(size - 16)


class Window:
    """Which numbers are under way; everything that is not sent and not here came back or was lost."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.sent = 0
        self.back = 0
        self.lost = 0
        self.late = 0  # of the lost: came back after all
        self.twice = 0
        self.times: list[float] = []
        self._pending: dict[int, float] = {}  # number to when; in the order of sending
        self._given_up: set[int] = set()

    def room(self) -> int:
        """How many may be sent."""
        return self.size - len(self._pending)

    def send(self, now: float) -> int:
        """The number of the next one."""
        self._pending[self.sent] = now
        self.sent += 1
        return self.sent - 1

    def receive(self, number: int, now: float) -> None:
        """It is back."""
        began = self._pending.pop(number, None)
        if began is None:
            self.late += number in self._given_up
            self.twice += number not in self._given_up
            self._given_up.discard(number)
            return
        self.back += 1
        self.times.append(now - began)

    def expire(self, now: float) -> None:
        """Give up what is too old."""
        while self._pending:
            number, began = next(iter(self._pending.items()))
            if now - began < LOST:
                return
            del self._pending[number]
            self._given_up.add(number)
            self.lost += 1


def measure(address: tuple[str, int], *, size: int, window: int, seconds: float) -> dict[str, Any]:
    """Send and receive for so long. OSError or ValueError where something came back changed, or nothing at all."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, BUFFER)
        sock.connect(address)
        warm(sock, size)
        sock.setblocking(False)
        state = Window(window)
        begin, spent = time.monotonic(), time.process_time()
        while (now := time.monotonic()) < begin + seconds:
            state.expire(now)
            for _ in range(state.room()):
                sock.send(payload(state.send(now), size))
            select.select([sock], [], [], 0.05)
            drain(sock, state, size)
        elapsed = time.monotonic() - begin
    if not state.back:
        raise ValueError("nothing came back")
    return {
        "per_second": round(state.back / elapsed, 1),
        "back": state.back,
        "lost_percent": round(100 * state.lost / state.sent, 3),
        "late": state.late,
        "twice": state.twice,
        **milliseconds(state.times),
        "client_cpu": round((time.process_time() - spent) / elapsed, 3),
    }


def warm(sock: socket.socket, size: int) -> None:
    """One there and back, tried again: the first one may open the way."""
    sock.settimeout(LOST)
    end = time.monotonic() + WARM
    while time.monotonic() < end:
        try:
            sock.send(payload(WARMING, size))
            if sock.recv(65536) == payload(WARMING, size):
                return
        except (TimeoutError, ConnectionRefusedError):
            continue
    raise ValueError(f"no answer within {WARM:g} s")


def drain(sock: socket.socket, state: Window, size: int) -> None:
    """Take all that is there."""
    while True:
        try:
            data = sock.recv(65536)
        except BlockingIOError:
            return
        (number,) = NUMBER.unpack_from(data)
        if data != payload(number, size):
            raise ValueError(f"datagram {number} came back changed")
        if number != WARMING:
            state.receive(number, time.monotonic())


@dataclass(frozen=True)
class Echo:
    """A UDP echo at home."""

    def start(self, group: Group) -> int:
        """Start it."""
        port = free_port()
        command = [sys.executable, "-m", "loadtest.scenes.udp", "echo", str(port)]
        group.start("udp-echo", command, ready="ready", cwd=ROOT)
        return port


def echo(port: int) -> None:
    """Send everything back until ended."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, BUFFER)
        sock.bind((ADDRESS, port))
        print("ready", flush=True)
        while True:
            data, peer = sock.recvfrom(65536)
            sock.sendto(data, peer)


@functools.cache
def refused_target() -> str:
    """What tunnelgw's configuration says against a udp target; "" if it takes one."""
    from tunnelgw.config.load import load_connector
    from tunnelgw.config.problems import ConfigError

    with tempfile.TemporaryDirectory(prefix="tunnelgw-bench-") as folder:
        path = Path(folder) / "connector.toml"
        path.write_text(f'state_dir = "{folder}"\n[services.echo]\ntarget = "udp://127.0.0.1:53"\nport = 5353\n')
        try:
            load_connector(path)
        except ConfigError as error:
            return str(error.problems[0]).rpartition(": ")[2]
    return ""


class Datagrams(Scenario):
    """Datagrams per second that came back, at a fixed number under way."""

    unit = "packets/s"

    def __init__(self, size: int) -> None:
        self.size = size
        self.name = f"UDP, {size:,}-byte packets"
        self.setup = Setup(kind=Kind.UDP, home=Echo())

    def refuses(self, contender: str) -> str:
        """This tunnelgw may be one without UDP ports."""
        return refused_target() if contender == "tunnelgw" else ""

    def run(self, target: Target, seconds: float) -> Measurement:
        """One client."""
        with Child("udp", target.port, "--size", self.size, "--seconds", seconds) as child:
            found = child.answer(seconds=seconds)
        if found["twice"]:
            raise RunError(f"{found['twice']} datagrams came twice")
        extra = {"lost %": found["lost_percent"], "p50 ms": found["p50_ms"], "p99 ms": found["p99_ms"],
                 "generator, cores": found["client_cpu"]}  # fmt: skip
        return Measurement(value=found["per_second"], bytes=found["back"] * self.size, extra=extra)


SCENARIOS = [Datagrams(100), Datagrams(1200)]


def main() -> None:
    """The client, or the echo."""
    if sys.argv[1:2] == ["echo"]:
        echo(int(sys.argv[2]))
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--address", default=ADDRESS)
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--window", type=int, default=WINDOW)
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()
    found = measure((given.address, given.port), size=given.size, window=given.window, seconds=given.seconds)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
