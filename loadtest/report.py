"""What is written of a benchmark: Markdown for people, JSON for everything else."""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import ssl
import subprocess
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest import figures
from loadtest.contenders.base import which
from loadtest.figures import OURS
from tunnelgw import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loadtest.figures import Median
    from loadtest.scenario import Scenario
    from loadtest.stage import Run

RESULTS = Path(__file__).parent / "results"
MEDIAN = "p50 ms"  # a further figure that has a line of its own among the ratios
CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")
PROCESSES = """Of a contender as a whole and, in brackets, of each of its processes, in this order: {}.
The load generator and the nginx at home are not counted."""
VERSIONS = {
    "haproxy": ("haproxy", "-v"),
    "nginx": ("nginx", "-v"),
    "stunnel": ("stunnel", "-version"),
    "openssh": ("ssh", "-V"),
    "frp": ("frps", "--version"),
    "rathole": ("rathole", "--version"),
    "chisel": ("chisel", "--version"),
    "h2load": ("h2load", "--version"),
    "curl": ("curl", "--version"),
}


@dataclass
class Outcome:
    """All that a benchmark found."""

    scenarios: Sequence[Scenario]
    contenders: Sequence[str]
    runs: list[Run] = field(default_factory=list)
    absent: dict[tuple[str, str], str] = field(default_factory=dict)  # (scenario, contender): why there is no figure
    skipped: dict[str, str] = field(default_factory=dict)  # a contender or scenario that did not run at all: why

    def of(self, scenario: str, contender: str) -> list[Run]:
        """The runs of one contender in one scenario."""
        return figures.of(self.runs, scenario, contender)

    def done(self) -> list[Scenario]:
        """The scenarios in which anybody has a figure."""
        names = {run.scenario for run in self.runs}
        return [scenario for scenario in self.scenarios if scenario.name in names]


def first_line(*command: str) -> str:
    """What a program says of its version, or says at all, in 80 characters; empty if it is not there."""
    if (program := which(command[0])) is None:
        return ""
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False)
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    for pattern in (r"(?i)version.*\d\.\d", r"\d\.\d", r""):
        for line in lines:
            if re.search(pattern, line):
                return line[:80]
    return ""


def environment(**versions: tuple[str, ...]) -> dict[str, str]:
    """Machine, commit, and what these commands say of a program's version."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    changed = "" if not first_line("git", "status", "--porcelain", "--untracked-files=no") else ", with local changes"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": first_line("git", "rev-parse", "--short", "HEAD") + changed,
        "cpu": f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores",
        "kernel": f"{platform.release()}, congestion control {CONGESTION.read_text().strip()}",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB",
        "tunnelgw": __version__,
        "python": f"{platform.python_version()}, {ssl.OPENSSL_VERSION}, uvloop {metadata.version('uvloop')}",
        **{name: said for name, command in versions.items() if (said := first_line(*command))},
    }


def number(value: float) -> str:
    """Three digits that mean something, thousands apart."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def rows(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *lines])


def shown(ratio: Median) -> str:
    """A ratio with its worst and best; alone where there is one run, or all agree."""
    return f"{ratio.middle:.2f}" + (f" ({ratio.least:.2f} to {ratio.most:.2f})" if ratio.spread else "")


def ratios(outcome: Outcome) -> str:
    """How many times better ours is than each of the others; a figure below 1 is a loss."""
    others = [name for name in outcome.contenders if name != OURS]
    lines = []
    for scenario in outcome.done():
        ours = outcome.of(scenario.name, OURS)
        theirs = [outcome.of(scenario.name, name) for name in others]
        higher = scenario.higher_is_better
        lines.append([scenario.name, *(_ratio(ours, runs, higher_is_better=higher) for runs in theirs)])
        if median := figures.further(ours, MEDIAN):
            cells = (_ratio(median, figures.further(runs, MEDIAN), higher_is_better=False) for runs in theirs)
            lines.append([f"… {MEDIAN.split()[0]}", *cells])
    return rows(["tunnelgw to", *others], lines)


def _ratio(ours: Sequence[Run], theirs: Sequence[Run], *, higher_is_better: bool) -> str:
    found = figures.ratio(ours, theirs, higher_is_better=higher_is_better)
    return shown(found) if found else "-"


def values(outcome: Outcome) -> str:
    """Medians, with spread, of what was measured, and further figures below them."""
    lines = []
    for scenario in outcome.done():
        better = "" if scenario.higher_is_better else ", less is better"
        cells = [f"{scenario.name} ({scenario.unit}{better})"]
        for name in outcome.contenders:
            found = figures.Median.of(run.value for run in outcome.of(scenario.name, name))
            cells.append(number(found.middle) + (f" ±{found.spread:.0%}" if found.spread else "") if found else "-")
        lines.append(cells)
        lines += _further(outcome, scenario.name)
    return rows(["work", *outcome.contenders], lines)


def _further(outcome: Outcome, scenario: str) -> list[list[str]]:
    by_name = {name: outcome.of(scenario, name) for name in outcome.contenders}
    labels = dict.fromkeys(label for runs in by_name.values() for run in runs for label in run.extra)
    lines = []
    for label in labels:
        middles = [
            figures.Median.of(run.extra[label] for run in runs if label in run.extra) for runs in by_name.values()
        ]
        lines.append([f"… {label}", *(number(found.middle) if found else "-" for found in middles)])
    return lines


def costs(outcome: Outcome) -> str:
    """CPU time of all parts of a contender for a unit of work, and peak memory; each part's in brackets."""
    lines = []
    for scenario in outcome.done():
        peaks = [figures.peaks(outcome.of(scenario.name, name)) for name in outcome.contenders]
        memory = [_with_parts([size / 2**20 for size in found.values()]) for found in peaks]
        found = [figures.cost(outcome.of(scenario.name, name)) for name in outcome.contenders]
        if units := [cost.unit for cost in found if cost]:
            cells = [_with_parts(cost.parts.values()) if cost else "-" for cost in found]
            lines.append([f"{scenario.name} ({units[0]})", *cells])
        if any(peaks):
            lines.append(["… memory (MiB)" if units else f"{scenario.name}, memory (MiB)", *memory])
    return rows(["CPU time", *outcome.contenders], lines)


def _with_parts(values: Iterable[float]) -> str:
    each = list(values)
    return f"{number(sum(each))} ({', '.join(map(number, each))})" if each else "-"


def parts(outcome: Outcome) -> str:
    """Which processes the bracketed figures belong to, in their order."""
    seen: dict[str, str] = {}
    for run in outcome.runs:
        names = ", ".join(run.cpu)
        if len(names) > len(seen.get(run.contender, "")):
            seen[run.contender] = names
    return "; ".join(f"{name}: {seen[name]}" for name in outcome.contenders if name in seen)


def absences(outcome: Outcome) -> list[str]:
    """Why there is a "-": one line for each reason."""
    lines = [f"- {name}: not measured, {why}" for name, why in outcome.skipped.items()]
    by_reason: dict[tuple[str, str], list[str]] = {}
    for (scenario, contender), why in outcome.absent.items():
        by_reason.setdefault((contender, why), []).append(scenario)
    lines += [f"- {contender}: {why} ({'; '.join(names)})" for (contender, why), names in by_reason.items()]
    return lines


def markdown(outcome: Outcome, about: dict[str, str], how: str, setups: Sequence[str]) -> str:
    """The whole page."""
    sections = [
        "# tunnelgw beside others",
        "\n".join(f"- {key}: {value}" for key, value in about.items()),
        how,
        "## Ratios",
        "How many times better tunnelgw is: the median of all rounds, the worst and the best. Below 1 it is worse.",
        ratios(outcome),
        "## Figures",
        "Medians; ± is half of what lies between the smallest and the largest.",
        values(outcome),
        "## CPU time and memory",
        PROCESSES.format(parts(outcome)),
        costs(outcome),
        "## How each was set up",
        "\n".join(f"- {line}" for line in setups),
    ]
    if missing := absences(outcome):
        sections += ["## What has no figure, or fewer runs than the others, and why", "\n".join(missing)]
    return "\n\n".join(sections) + "\n"


def write(outcome: Outcome, about: dict[str, str], text: str, *, folder: Path = RESULTS) -> Path:
    """<date>-<commit>.md and .json, with a number behind it where there are such already; returns the first."""
    folder.mkdir(exist_ok=True)
    name = f"{about['date']}-{about['commit'].split(',')[0]}"
    names = (folder / (name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    stem = next(one for one in names if not one.with_suffix(".md").exists())
    page = stem.with_suffix(".md")
    page.write_text(text)
    content = {
        "about": about,
        "scenarios": {
            scenario.name: {"unit": scenario.unit, "higher_is_better": scenario.higher_is_better}
            for scenario in outcome.done()
        },
        "runs": [run.plain() for run in outcome.runs],
        "absent": [
            {"scenario": scenario, "contender": name, "why": why} for (scenario, name), why in outcome.absent.items()
        ],
        "skipped": outcome.skipped,
    }
    stem.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    return page
