"""Latency at a fixed rate, open loop: every request has its time, whatever became of those before it.

    python -m loadtest.scenes.latency PORT --rate 1000 [--seconds 10] [--channels 64] [--path /small] [--body HEX]

Requests are sent at their planned times on a pool of connections. One for which no connection is free waits, and that
wait counts: latency runs from the planned time, so that a stall of the other side is seen by all whom it would have
kept waiting (coordinated omission). `sender_ms` is how late the generator itself was: times below that are its own.

Prints one line of JSON. Any wrong, lost or late (10 s) answer ends it with an error.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import json
import os
import select
import socket
import ssl
import time
from typing import Any

from loadtest.scenario import HOST, Measurement, Scenario, Setup, Target
from loadtest.scenes.answers import WrongAnswerError, complete, request
from loadtest.scenes.samples import Schedule, milliseconds, percentile

SMALL = bytes(13)  # the body of /small
PATIENCE = 10.0  # seconds after which an answer counts as lost
_NONBLOCK = 0o4000


def visitor(ca: str = "") -> ssl.SSLContext:
    """TLS of a visitor on HTTP/1.1, who checks the certificate if an authority is named."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["http/1.1"])
    if ca:
        context.load_verify_locations(ca)
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class Ticker:
    """A descriptor that is readable `rate` times a second: epoll's own timeouts are whole milliseconds."""

    def __init__(self, rate: float) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = self._libc.timerfd_create(time.CLOCK_MONOTONIC, _NONBLOCK)
        if self.descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        seconds, rest = divmod(int(1e9 / rate), 10**9)
        interval = (ctypes.c_long * 4)(seconds, rest, seconds, rest)
        if self._libc.timerfd_settime(self.descriptor, 0, interval, None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def clear(self) -> None:
        """It was seen."""
        try:
            os.read(self.descriptor, 8)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.descriptor)


class Channel:
    """A connection with at most one request under way, which was planned for `planned`."""

    def __init__(self, address: tuple[str, int], host: str, context: ssl.SSLContext) -> None:
        raw = socket.create_connection(address, timeout=PATIENCE)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = context.wrap_socket(raw, server_hostname=host)
        self.sock.setblocking(False)
        self.planned = 0.0
        self.data = bytearray()

    def send(self, question: bytes, planned: float) -> None:
        """Ask; the connection is idle, so its kernel takes a small request at once."""
        self.planned = planned
        self.data.clear()
        if self.sock.send(question) != len(question):
            raise WrongAnswerError("a request was not taken at once")

    def receive(self, body: bytes) -> bool:
        """Read what is there; True once the answer is complete."""
        while True:
            try:
                data = self.sock.recv(65536)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
            if not data:
                raise WrongAnswerError("the connection ended")
            if not self.planned:
                raise WrongAnswerError(f"nobody asked for {data[:100]!r}")
            self.data += data
            if complete(self.data, body):
                return True


class OpenLoop:
    """`run()` sends `rate` requests a second for `seconds`; figures of all of them."""

    def __init__(
        self, address: tuple[str, int], *, rate: float, seconds: float, channels: int = 64, host: str = HOST,
        path: str = "/small", body: bytes = SMALL, ca: str = "",
    ) -> None:  # fmt: skip
        context = visitor(ca)
        self.rate, self.seconds = rate, seconds
        self.question, self.body = request(host, path), body
        self.channels = [self._warm(Channel(address, host, context)) for _ in range(channels)]
        self.free = collections.deque(self.channels)
        self.waiting: collections.deque[float] = collections.deque()  # planned times without a connection
        self.times: list[float] = []
        self.late: list[float] = []
        self.most_waiting = 0

    def run(self) -> dict[str, Any]:
        """Everything is answered, or WrongAnswerError."""
        begin, spent = time.monotonic(), time.process_time()
        poll, ticker = select.epoll(), Ticker(self.rate)  # armed after `begin`: at each tick a request is due
        poll.register(ticker.descriptor, select.EPOLLIN)
        by_descriptor = {channel.sock.fileno(): channel for channel in self.channels}
        for descriptor in by_descriptor:
            poll.register(descriptor, select.EPOLLIN)
        schedule = Schedule(rate=self.rate, begin=begin)
        until = begin + self.seconds
        while (now := time.monotonic()) < until or len(self.free) < len(self.channels) or self.waiting:
            if now > until + PATIENCE:
                raise WrongAnswerError(f"{len(self.channels) - len(self.free)} requests were not answered")
            for descriptor, _ in poll.poll(0.1):
                if descriptor == ticker.descriptor:
                    ticker.clear()
                else:
                    self._receive(by_descriptor[descriptor])
            self._send(schedule.due(time.monotonic(), until=until))
        elapsed = time.monotonic() - begin
        busy = (time.process_time() - spent) / elapsed
        poll.close()
        ticker.close()
        for channel in self.channels:
            channel.sock.close()
        return self._figures(elapsed, busy)

    def _warm(self, channel: Channel) -> Channel:
        """Ask once, at once: the first request of a connection is another scene's business."""
        channel.send(self.question, time.monotonic())
        while not channel.receive(self.body):
            if not select.select([channel.sock], [], [], PATIENCE)[0]:
                raise WrongAnswerError("the first request was not answered")
        channel.planned = 0.0
        return channel

    def _receive(self, channel: Channel) -> None:
        if channel.receive(self.body):
            self.times.append(time.monotonic() - channel.planned)
            channel.planned = 0.0
            self.free.append(channel)

    def _send(self, due: list[float]) -> None:
        prompt = len(self.waiting)  # what comes after these is sent now, or waits for a connection
        self.waiting.extend(due)
        while self.waiting and self.free:
            planned = self.waiting.popleft()
            self.free.popleft().send(self.question, planned)
            if prompt > 0:
                prompt -= 1
            else:
                self.late.append(time.monotonic() - planned)
        self.most_waiting = max(self.most_waiting, len(self.waiting))

    def _figures(self, elapsed: float, busy: float) -> dict[str, Any]:
        return {
            "planned_rate": self.rate,
            "rate": round(len(self.times) / max(self.seconds, elapsed), 1),
            "requests": len(self.times),
            **milliseconds(self.times),
            "sender_ms": round(percentile(self.late, 0.99) * 1000, 3) if self.late else 0.0,
            "most_waiting": self.most_waiting,
            "client_cpu": round(busy, 3),
        }


class Latency(Scenario):
    """Small requests at the same absolute rate for every contender."""

    unit = "ms"
    higher_is_better = False
    setup = Setup()

    def __init__(self, rate: int) -> None:
        self.name = f"latency at {rate:,} requests/s, p99"
        self.rate = rate

    def run(self, target: Target, seconds: float) -> Measurement:
        """The rate that was reached is among the figures, and how late the generator itself was."""
        from loadtest.scenes.children import latency  # which starts this module as a program

        found = latency(target, rate=self.rate, seconds=seconds)
        extra = {"p50 ms": found["p50_ms"], "p99.9 ms": found["p99.9_ms"], "reached req/s": found["rate"],
                 "generator late by ms": found["sender_ms"], "generator, cores": found["client_cpu"]}  # fmt: skip
        return Measurement(value=found["p99_ms"], requests=found["requests"], extra=extra)


# About a tenth and a half of what a chain of two HAProxy processes answers on two shared cores (docs/performance.md).
SCENARIOS = [Latency(1000), Latency(5000)]


def main() -> None:
    """One run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--host", default=HOST)
    parser.add_argument("--path", default="/small")
    parser.add_argument("--body", type=bytes.fromhex, default=SMALL, help="in hexadecimal digits")
    parser.add_argument("--ca", default="")
    given = vars(parser.parse_args())
    address = (given.pop("address"), given.pop("port"))
    print(json.dumps(OpenLoop(address, **given).run()), flush=True)


if __name__ == "__main__":
    main()
