"""What visitors see when something dies, as figures, also of a peer under the same faults (needs root).

    python -m loadtest.faults [NAME]... [--peer frp] [--rounds 3] [--no-write]

The lab of the tests (tests/lab) with its load and its checker: two NATs, a narrow uplink, visitors with small requests
on HTTP/1.1 and HTTP/2, downloads, uploads, a WebSocket and an ssh session. In each round every contender has a lab of
its own, one after the other, with the same faults in the same order. NATs keep their mappings for 300 s here, as those
of carriers do.

Writes loadtest/results/<date>-<commit>-faults.md and .json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest import frp
from loadtest.report import RESULTS, environment
from tests.lab import faults, network
from tests.lab.lab import Lab
from tests.lab.programs import now

REMEMBERS = 300  # seconds: a NAT's mapping without traffic; the lab's own are far below what carriers use
CALM_SECONDS = 10.0  # under load before each fault, so that no peer's backoff counts that belongs to the fault before
PATIENCE = 240.0  # seconds until all that a fault touched has ended one way or the other
WAITS = ("h1", "h2", "websocket", "ticks", "ssh")  # what is small enough to come at once if nothing is wrong
ENDURING = {"download": ("download",), "upload": ("upload",), "WebSocket": ("websocket", "ticks"), "ssh": ("ssh",)}


@dataclass(frozen=True)
class Case:
    """A fault, in words for everybody; `alone`: a peer has nothing like it."""

    fault: Callable[[Any], None]
    text: str
    alone: bool = False

    @property
    def name(self) -> str:
        return self.fault.__name__


CASES = [
    Case(faults.link_reset, "the link is reset"),
    Case(faults.link_frozen, "the link freezes in silence"),
    Case(faults.carrier_forgets, "the carrier's NAT forgets the link"),
    Case(faults.address_changes, "home's public address changes"),
    Case(faults.router_reboots, "the router at home reboots (10 s)"),
    Case(faults.connector_restarts, "the connector is restarted (SIGTERM)"),
    Case(faults.connector_dies, "the connector is killed, and started 1 s later"),
    Case(faults.edge_restarts, "the edge is restarted (SIGTERM)"),
    Case(faults.edge_dies, "the edge is killed, and started 1 s later"),
    Case(faults.edge_upgrades, "the edge is upgraded in place", alone=True),
]
CONTENDERS: dict[str, Callable[[Path], Lab]] = {"tunnelgw": Lab, "frp": frp.FrpLab}


@dataclass
class Row:
    """What one fault did. Seconds count from its beginning."""

    failed: int  # small requests, and whatever else was begun anew after the fault had begun
    cut: dict[str, int]  # of what was in progress: failures of ENDURING
    longest: float  # wait of a small request, message or line, whether it then failed or not
    recovered: float  # until each kind of WAITS got something through that was begun after its end; or infinite
    retried: int  # HTTP/2 requests that the server said it had not looked at
    causes: dict[str, int]


def judged(report: dict[str, Any], *, began: float, recovered: float) -> Row:
    """The row of a fault that began then, from the report of the checker once all was over."""
    failed, cut, causes = 0, dict.fromkeys(ENDURING, 0), Counter[str]()
    for failure in report["failures"]:
        causes[f"{failure['kind']}: {failure['cause']}"] += 1
        name = next((name for name, kinds in ENDURING.items() if failure["kind"] in kinds), "")
        if name and failure["since"] <= began:
            cut[name] += 1
        else:
            failed += 1
    kinds = report["kinds"]
    return Row(
        failed=failed,
        cut=cut,
        longest=max(kinds[kind]["longest"] for kind in WAITS),
        recovered=recovered,
        retried=sum(facts["retried"] for facts in kinds.values()),
        causes=dict(causes),
    )


def measure(case: Case, lab: Lab) -> Row:
    """Make it happen under load, and wait until nothing is under way any more that was begun before it was over."""
    load = lab.load()
    faults.pause(CALM_SECONDS)
    began = load.mark()
    case.fault(lab)
    over, works = now(), math.inf
    while now() < over + PATIENCE:
        kinds = load.report()["kinds"]
        if works == math.inf and all(kinds[kind]["fresh"] > over for kind in WAITS):
            works = now()
        if all(facts["fresh"] > over and facts["oldest"] > over for facts in kinds.values()):
            break
        faults.pause(0.05)
    report = load.report()
    load.finish(seconds=PATIENCE)
    load.process.stop()
    return judged(report, began=began, recovered=works - began)


def round_of(name: str, cases: list[Case], say: Callable[[str], None]) -> dict[str, Row]:
    """All faults on a fresh lab of one contender."""
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory(prefix=f"{network.PREFIX}-") as folder, CONTENDERS[name](Path(folder)) as lab:
        for role in network.FORGETS:
            lab.net.exec(role, "sysctl", "-qw", f"net.netfilter.nf_conntrack_tcp_timeout_established={REMEMBERS}")
        for case in cases:
            if not case.alone or name == "tunnelgw":
                row = rows[case.name] = measure(case, lab)
                say(f"{name}: {case.name}: {row}")
    return rows


def spread(values: list[float], *, digits: int = 0) -> str:
    """The only value, or the smallest and largest."""
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"


def survival(rows: list[Row]) -> str:
    """What was cut in any round."""
    cut = [name for name in ENDURING if any(row.cut[name] for row in rows)]
    return "nothing" if not cut else "all four" if len(cut) == len(ENDURING) else ", ".join(cut)


def cells(rows: list[Row]) -> list[str]:
    """A contender's part of a line."""
    if not rows:
        return ["-"] * 4
    seconds = (spread([getattr(row, name) for row in rows], digits=1) for name in ("longest", "recovered"))
    return [spread([row.failed for row in rows]), survival(rows), *seconds]


def table(results: dict[str, list[dict[str, Row]]], cases: list[Case]) -> str:
    """Markdown: a line for each fault, four columns for each contender."""
    head = ["fault"]
    for name in results:
        head += [f"{name}: failed", "cut", "wait", "again after"]
    lines = [head, ["---"] * len(head)]
    for case in cases:
        line = [case.text]
        for rounds in results.values():
            line += cells([found[case.name] for found in rounds if case.name in found])
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(results: dict[str, list[dict[str, Row]]], cases: list[Case], *, rounds: int, keep: bool) -> None:
    """Print, and keep in `results/` with machine, versions and commit."""
    about = environment(**({"frp": ("frps", "--version")} if "frp" in results else {}))
    text = "# Faults\n\n" + "".join(f"- {key}: {value}\n" for key, value in about.items())
    text += (
        f"\n{rounds} rounds; smallest and largest where they differ. What the columns mean: docs/reliability.md.\n\n"
    )
    text += table(results, cases) + "\n"
    print(text)
    if keep:
        stem = RESULTS / f"{about['date']}-{about['commit']}-faults"
        rows = {
            name: [{key: vars(row) for key, row in found.items()} for found in all_] for name, all_ in results.items()
        }
        stem.with_suffix(".md").write_text(text)
        stem.with_suffix(".json").write_text(json.dumps({"about": about, "results": rows}, indent=1) + "\n")
        print(f"written: {stem}.md", file=sys.stderr)


def main() -> int:
    """Run; exit 1 where something is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*", choices=[[], *(case.name for case in CASES)], help="default: all")
    parser.add_argument(
        "--peer", action="append", choices=[name for name in CONTENDERS if name != "tunnelgw"], default=[]
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    why = network.unavailable() or (frp.missing() if "frp" in options.peer else "")
    if why:
        print(f"faults: {why}", file=sys.stderr)
        return 1
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    if not options.peer:
        say(
            "faults: tunnelgw alone; --peer frp for the same faults on frp"
            + (f" ({frp.missing()})" if frp.missing() else "")
        )
    cases = [case for case in CASES if not options.name or case.name in options.name]
    results: dict[str, list[dict[str, Row]]] = {name: [] for name in ("tunnelgw", *options.peer)}
    for _ in range(options.rounds):
        for name, found in results.items():
            found.append(round_of(name, cases, say))
    write(results, cases, rounds=options.rounds, keep=not options.no_write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
