"""`make bench`: tunnelgw beside two chained HAProxy processes, in turn, in one run, as ratios.

    python -m loadtest.bench [--seconds 5] [--rounds 3] [--only SCENARIO]... [--contender NAME]...

Writes loadtest/results/<date>-<commit>.md and .json with machine, versions and commit.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from loadtest.contenders import CONTENDERS
from loadtest.home import start_nginx
from loadtest.processes import Group
from loadtest.scenario import HOST, Setup, Target

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Scenario:
    """One load: `connections` times `streams` (0: HTTP/1.1) on `path`; the unit is requests or bytes per second."""

    name: str
    path: str
    connections: int
    streams: int = 0
    unit: str = "req/s"


SCENARIOS = [
    Scenario("h1, 1 connection", "/small", 1),
    Scenario("h1, 32 connections", "/small", 32),
    Scenario("h1, 256 connections", "/small", 256),
    Scenario("h2, 8 x 16", "/small", 8, 16),
    Scenario("10 KiB, 16 connections", "/10k", 16),
    Scenario("1 MiB, 16 connections", "/1m", 16, unit="MB/s"),
    Scenario("256 MiB, one download", "/256m", 1, unit="MB/s"),
]
SCALE = {"B": 1, "KB": 1024, "MB": 1024**2, "GB": 1024**3}


def load(scenario: Scenario, port: int, seconds: float) -> tuple[float, float]:
    """Run h2load once: (requests/s, bytes/s). Raises on any failed request."""
    command = ["h2load", "-D", str(int(seconds)), "--warm-up-time=1", "-c", str(scenario.connections), "-t", "1",
               "--connect-to", f"127.0.0.1:{port}", f"https://{HOST}{scenario.path}"]  # fmt: skip
    command[1:1] = ["-m", str(scenario.streams)] if scenario.streams else ["--h1"]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds * 4 + 60).stdout
    finished = re.search(r"finished in [\d.]+\w+, ([\d.]+) req/s, ([\d.]+)([KMG]?B)/s", output)
    counts = re.search(r"requests: .* (\d+) failed, (\d+) errored, (\d+) timeout", output)
    status = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", output)
    if finished is None or counts is None or status is None or any(map(int, [*counts.groups(), *status.groups()[1:]])):
        raise RuntimeError(f"{scenario.name}: not every request was answered\n{output}")
    return float(finished[1]), float(finished[2]) * SCALE[finished[3]]


def measure(scenario: Scenario, name: str, target: Target, seconds: float) -> dict[str, float]:
    """One run of one contender: throughput and the CPU of its parts."""
    parts = CONTENDERS[name].parts
    group, before = target.group, {part: target.group.cpu(part) for part in parts}
    start = time.monotonic()
    requests, volume = load(scenario, target.port, seconds)
    elapsed = time.monotonic() - start
    row = {"value": requests if scenario.unit == "req/s" else volume / 1e6, "requests": requests, "bytes": volume}
    for part in parts:
        row[f"cpu_{part}"] = (group.cpu(part) - before[part]) / elapsed
        row[f"memory_{part}"] = group.memory(part)
    return row


def first_line(*command: str) -> str:
    """What a program says first; empty if it is not there."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip().splitlines()[0] if (done.stdout or done.stderr).strip() else ""


def environment(**versions: tuple[str, ...]) -> dict[str, str]:
    """Machine, commit, and what these commands say of a program's version."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    cores = len([line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("processor")])
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": first_line("git", "rev-parse", "--short", "HEAD"),
        "cpu": f"{model[1] if model else platform.machine()}, {cores} cores",
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: first_line(*command) for name, command in versions.items()},
    }


def table(results: dict[str, dict[str, list[dict[str, float]]]], names: list[str]) -> str:
    """The Markdown table: medians, spread and the ratio of the first contender to the second."""
    lines = ["| work | " + " | ".join(names) + " | ratio | CPU µs per request (" + ", ".join(names) + ") |"]
    lines.append("|---" * (len(names) + 3) + "|")
    for scenario in SCENARIOS:
        rows = results.get(scenario.name)
        if not rows:
            continue
        cells, medians, costs = [], [], []
        for name in names:
            values = [run["value"] for run in rows[name]]
            medians.append(statistics.median(values))
            cells.append(f"{medians[-1]:,.0f} ({min(values):,.0f} to {max(values):,.0f}) {scenario.unit}")
            cpu = statistics.median(
                sum(run[f"cpu_{part}"] for part in CONTENDERS[name].parts) / run["requests"] for run in rows[name]
            )
            costs.append(f"{cpu * 1e6:,.0f}")
        ratio = f"{medians[0] / medians[1]:.2f}" if len(medians) > 1 else "-"
        lines.append(f"| {scenario.name} | " + " | ".join(cells) + f" | {ratio} | " + ", ".join(costs) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run the scenarios; exit 1 where a needed program is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", help="part of a scenario's name")
    parser.add_argument("--contender", action="append", choices=sorted(CONTENDERS))
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    for program in ("nginx", "h2load", "openssl", "curl"):
        if shutil.which(program) is None:
            print(f"bench: {program} is not on PATH (Debian: nginx nghttp2-client openssl curl)", file=sys.stderr)
            return 1
    names = []
    for name in options.contender or ["tunnelgw", "haproxy"]:
        why = CONTENDERS[name].missing()
        print(f"{name}: skipped, {why}" if why else f"{name}: included", file=sys.stderr)
        if not why:
            names.append(name)
    scenarios = [s for s in SCENARIOS if not options.only or any(part in s.name for part in options.only)]
    results: dict[str, dict[str, list[dict[str, float]]]] = {s.name: {name: [] for name in names} for s in scenarios}
    with tempfile.TemporaryDirectory(prefix="tunnelgw-bench-") as folder:
        group, targets = Group(Path(folder)), dict[str, Target]()
        try:
            service = start_nginx(group)
            targets.update({name: CONTENDERS[name].start(Path(folder) / name, Setup(), service) for name in names})
            for scenario in scenarios:
                for turn in range(options.rounds):
                    for name in names if turn % 2 == 0 else reversed(names):
                        row = measure(scenario, name, targets[name], options.seconds)
                        results[scenario.name][name].append(row)
                        print(f"{scenario.name}: {name} {row['value']:,.0f} {scenario.unit}", file=sys.stderr)
        finally:
            for target in targets.values():
                target.group.stop()
            group.stop()
    about = environment(haproxy=("haproxy", "-v"), nginx=("nginx", "-v"), h2load=("h2load", "--version"))
    text = "# tunnelgw beside a chain of two HAProxy processes\n\n" + "".join(
        f"- {key}: {value}\n" for key, value in about.items()
    )
    text += (
        f"\nMedian of {options.rounds} runs of {options.seconds} s each, in turn; smallest and largest in brackets.\n\n"
    )
    text += table(results, names) + "\n"
    print(text)
    if not options.no_write:
        RESULTS.mkdir(exist_ok=True)
        stem = RESULTS / f"{about['date']}-{about['commit']}"
        stem.with_suffix(".md").write_text(text)
        stem.with_suffix(".json").write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")
        print(f"written: {stem}.md", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
