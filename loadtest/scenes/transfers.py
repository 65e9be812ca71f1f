"""Large bodies, by curl: every byte is counted at the other end."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadtest.h2load import curl
from loadtest.home import PAGES, Sink
from loadtest.scenario import HOST, Kind, Measurement, RunError, Scenario, Setup, Target

if TYPE_CHECKING:
    from pathlib import Path

SIZE = PAGES["1g"]


@dataclass
class Downloads(Scenario):
    """`count` downloads at once of `page`, each on a connection of its own."""

    name: str
    count: int = 1
    page: str = "1g"
    unit: str = "MB/s"
    quick: bool = False
    setup: Setup = field(default_factory=Setup)

    def run(self, target: Target, seconds: float) -> Measurement:
        """As long as it takes."""
        scheme = "http" if self.setup.kind is Kind.TCP else "https"
        arguments = ["--parallel", "--parallel-immediate", "--parallel-max", str(self.count)] if self.count > 1 else []
        arguments += ["-w", "%{size_download}\\n"]
        for _ in range(self.count):
            arguments += ["-o", "/dev/null", f"{scheme}://{HOST}/{self.page}"]
        start = time.monotonic()
        sizes = curl(target, *arguments, scheme=scheme).split()
        elapsed = time.monotonic() - start
        expect = PAGES[self.page]
        if sizes != [str(expect)] * self.count:
            raise RunError(f"{self.count} bodies of {expect} bytes were expected, and came: {' '.join(sizes)}")
        return Measurement(expect * self.count / elapsed / 1e6, bytes=expect * self.count)


@dataclass
class Upload(Scenario):
    """One upload of 1 GiB to a service at home that keeps nothing and answers how much came."""

    name: str = "1 GiB, one upload"
    unit: str = "MB/s"
    setup: Setup = field(default_factory=lambda: Setup(home=Sink()))

    def run(self, target: Target, seconds: float) -> Measurement:
        """As long as it takes."""
        file: Path = target.folder / "upload"
        with file.open("wb") as output:
            output.truncate(SIZE)  # zeros, and no disk
        start = time.monotonic()
        answer = curl(target, "-H", "Expect:", "-T", str(file), f"https://{HOST}/upload").strip()
        elapsed = time.monotonic() - start
        if answer != str(SIZE):
            raise RunError(f"{SIZE} bytes were sent, and came: {answer[:40]}")
        return Measurement(SIZE / elapsed / 1e6, bytes=SIZE)


SCENARIOS = [
    Downloads("1 GiB, one download"),
    Upload(),
    Downloads("64 MiB, 16 downloads at once", count=16, page="64m"),
    Downloads("1 GiB, raw TCP", setup=Setup(Kind.TCP)),
    Downloads("1 GiB, pass-through", setup=Setup(Kind.PASS)),
]
