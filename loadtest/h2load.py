"""h2load and curl as load generators: how they are called, and what their output means."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

from loadtest.scenario import ADDRESS, HOST, RunError, Target

# Seconds in which connections are made and nothing is counted: so many, and so many for each connection. One that is
# made only after the whole run is never ended by h2load.
WARM_UP, EACH = 0.3, 0.005
PATIENCE = 20.0  # seconds beyond the run
# h2load's MB are MiB.
UNITS = {"B": 1, "KB": 1024, "MB": 1024**2, "GB": 1024**3}
_FINISHED = re.compile(r"finished in [\d.]+\w+, ([\d.]+) req/s, ([\d.]+)([KMG]?B)/s")
_COUNTS = re.compile(r"requests: .* (\d+) failed, (\d+) errored, (\d+) timeout")
_STATUS = re.compile(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx")
_TIME = re.compile(r"time for request: +([\d.]+)(us|ms|s) +([\d.]+)(us|ms|s) +([\d.]+)(us|ms|s)")
MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


@dataclass(frozen=True)
class Load:
    """What h2load saw: requests and bytes (heads and bodies) per second, the mean and longest time of a request."""

    requests: float
    bytes: float
    mean_ms: float
    longest_ms: float


def parse(output: str) -> Load:
    """Read h2load's report. `RunError` where a request was not answered with 2xx, or the report is not one."""
    finished, counts, status = _FINISHED.search(output), _COUNTS.search(output), _STATUS.search(output)
    if finished is None or counts is None or status is None:
        raise RunError(f"h2load gave no report: {output.strip()[-200:]!r}")
    bad = [*map(int, counts.groups()), *map(int, status.groups()[1:])]
    if any(bad):
        names = ("failed", "errored", "timed out", "3xx", "4xx", "5xx")
        what = ", ".join(f"{count} {name}" for count, name in zip(bad, names, strict=True) if count)
        raise RunError(f"not every request was answered: {what}")
    if int(status[1]) == 0:
        raise RunError("no request was answered")
    times = _TIME.search(output)
    mean, longest = (
        (float(times[5]) * MILLISECONDS[times[6]], float(times[3]) * MILLISECONDS[times[4]]) if times else (0.0, 0.0)
    )
    return Load(float(finished[1]), float(finished[2]) * UNITS[finished[3]], mean, longest)


def warm_up(connections: int) -> float:
    """Seconds before figures are taken."""
    return WARM_UP + EACH * connections


def h2load(target: Target, path: str, seconds: float, *, connections: int, streams: int = 0) -> Load:
    """Load `target` with `connections` (each with `streams` of HTTP/2; 0: HTTP/1.1) for a while, then `seconds`."""
    first = warm_up(connections)
    command = ["h2load", "-t", "1", "-D", f"{seconds * 1000:.0f}ms", f"--warm-up-time={first * 1000:.0f}ms",
               "-c", str(connections), *(["-m", str(streams)] if streams else ["--h1"]),
               "--connect-to", f"{ADDRESS}:{target.port}", f"https://{HOST}{path}"]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=first + seconds + PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise RunError(
            f"h2load waited {error.timeout:.0f} s: a connection came too late, or was never served"
        ) from None
    return parse(done.stdout + done.stderr)


def curl(target: Target, *arguments: str, scheme: str = "https", seconds: float = 120) -> str:
    """Run curl with the target's address and certificate; what it printed. `RunError` if it failed."""
    command = ["curl", "-sS", "--fail", "--http1.1", "--max-time", str(seconds), "--cacert", str(target.certificate),
               "--connect-to", f"{HOST}:{PORTS[scheme]}:{ADDRESS}:{target.port}", *arguments]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 10)
    if done.returncode != 0:
        raise RunError(f"curl: {done.stderr.strip().splitlines()[0] if done.stderr.strip() else done.returncode}")
    return done.stdout


PORTS = {"https": 443, "http": 80}
