"""Generators in processes of their own: started with their arguments, they print one line of JSON at the end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from loadtest.scenario import HOST, RunError, Target

ROOT = Path(__file__).resolve().parents[2]
GRACE = 60.0  # beyond what it was asked to take


class Child:
    """One generator; used as a context it is gone at the end, whatever happens."""

    def __init__(self, module: str, *arguments: object) -> None:
        self.module = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"loadtest.scenes.{module}", *map(str, arguments)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    @property
    def running(self) -> bool:
        """It has not ended yet."""
        return self._process.poll() is None

    def answer(self, *, seconds: float) -> dict[str, Any]:
        """What it printed; RunError with its last words if it failed or takes much longer than `seconds`."""
        try:
            output, error = self._process.communicate(timeout=seconds + GRACE)
        except subprocess.TimeoutExpired:
            raise RunError(f"{self.module}: no end after {seconds + GRACE:g} s") from None
        if self._process.returncode:
            lines = error.decode(errors="replace").strip().splitlines()
            raise RunError(f"{self.module}: {lines[-1] if lines else self._process.returncode}")
        found: dict[str, Any] = json.loads(output)
        return found


def together(children: Sequence[Child], *, seconds: float) -> list[dict[str, Any]]:
    """The answers of several that run at once; all are gone afterwards."""
    end = time.monotonic() + seconds
    try:
        return [child.answer(seconds=max(0.0, end - time.monotonic())) for child in children]
    finally:
        for child in children:
            child.__exit__(None, None, None)


def visits(target: Target, module: str, *arguments: object, seconds: float) -> Child:
    """A generator that visits the target for so long."""
    return Child(module, target.port, "--host", HOST, "--ca", target.certificate, "--seconds", seconds, *arguments)


def latency(target: Target, *, rate: float, seconds: float, channels: int = 64, **options: object) -> dict[str, Any]:
    """Latency of small requests at this rate (scenes/latency.py)."""
    given = [word for name, value in options.items() for word in (f"--{name}", value)]
    with visits(target, "latency", "--rate", rate, "--channels", channels, *given, seconds=seconds) as child:
        return child.answer(seconds=seconds)
