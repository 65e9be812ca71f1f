"""Requests per second on kept connections, small to 1 MiB, by h2load."""

from __future__ import annotations

from dataclasses import dataclass, field

from loadtest.h2load import h2load, warm_up
from loadtest.home import PAGES
from loadtest.scenario import Measurement, RunError, Scenario, Setup, Target

WHOLE = 0.9  # of the bytes that so many whole answers have: a run ends, and began, with some under way


@dataclass
class Requests(Scenario):
    """`connections` visitors (each with `streams` of HTTP/2; 0: HTTP/1.1) that ask for `page` again and again."""

    name: str
    page: str
    connections: int
    streams: int = 0
    unit: str = "req/s"
    quick: bool = False
    setup: Setup = field(default_factory=Setup)

    @property
    def http2(self) -> bool:  # type: ignore[override]
        """Whether visitors speak HTTP/2."""
        return self.streams > 0

    def run(self, target: Target, seconds: float) -> Measurement:
        """Once h2load."""
        load = h2load(target, f"/{self.page}", seconds, connections=self.connections, streams=self.streams)
        requests = load.requests * (seconds + warm_up(self.connections))
        body = PAGES[self.page]
        if load.bytes < WHOLE * load.requests * body:
            raise RunError(f"bodies were cut: {load.bytes:.0f} bytes/s in {load.requests:.0f} requests/s of {body}")
        value = load.requests if self.unit == "req/s" else load.requests * body / 1e6
        return Measurement(value, requests, requests * body, {"mean ms": load.mean_ms, "longest ms": load.longest_ms})


SCENARIOS = [
    Requests("h1, 1 connection", "small", 1),
    Requests("h1, 32 connections", "small", 32, quick=True),
    Requests("h1, 256 connections", "small", 256),
    Requests("h2, 8 x 16", "small", 8, 16, quick=True),
    Requests("10 KiB, 16 connections", "10k", 16, quick=True),
    Requests("10 KiB, h2, 8 x 16", "10k", 8, 16),
    Requests("1 MiB, 16 connections", "1m", 16, unit="MB/s", quick=True),
    Requests("h1, 256 connections, 2 workers", "small", 256, setup=Setup(workers=2)),
]
