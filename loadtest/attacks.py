"""What an attack does to everybody else: floods and slowhttptest against an edge, with a visitor beside them.

    python -m loadtest.attacks [NAME]... [--seconds 15] [--connections 4000] [--no-write]

Each attack runs against one edge and connector of its own. The attacker is one or 256 addresses, the visitor beside it
has an address of its own and asks for 13 bytes every 20 ms on a connection that it keeps, and every 100 ms on a new
one. Prints a table: their times, what the edge refused by reason, its memory, and whether a connector lost its tunnel;
and writes it to loadtest/results/<date>-<commit>-attacks.md and .json with machine, versions and commit.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from loadtest.home import make_certificate, start_nginx
from loadtest.processes import Group
from loadtest.report import RESULTS, environment
from loadtest.scenario import HOST
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Attack:
    """One attack: a flood of `attackers.py`, or options of slowhttptest.

    per_address: `connections_per_address`. plain: on the port for plain HTTP. descriptors: of the edge; 0: no bound.
    settle: seconds until it is in full force.
    """

    name: str
    flood: str = ""
    sources: int = 1
    width: int = 1024
    slow: tuple[str, ...] = ()
    path: str = "/small"
    per_address: int = 1024
    plain: bool = False
    descriptors: int = 0
    settle: float = 2.0


# As many as an edge on 512 MB lets in (5,461 connections), plus those that are kept.
_SMALL = 5461 + 128
_FAST = ("-r", "1000", "-p", "5")
_HEADERS = ("-H", "-i", "5", "-x", "24", *_FAST)
_BODY = ("-B", "-i", "5", "-s", "8192", "-x", "10", *_FAST)
_READ = ("-X", "-w", "512", "-y", "1024", "-n", "5", "-z", "32", *_FAST)
ATTACKS = [
    Attack("nothing"),
    Attack("slow-headers", slow=_HEADERS),
    Attack("slow-headers-raised", slow=_HEADERS, per_address=20000),
    Attack("slow-body", slow=_BODY),
    Attack("slow-body-raised", slow=_BODY, per_address=20000),
    Attack("slow-read", slow=_READ, path="/10m"),
    Attack("slow-read-raised", slow=_READ, path="/10m", per_address=20000),
    *(
        Attack(f"{kind}-{sources}", flood=kind, sources=sources, width=1024 if sources == 1 else 4096)
        for kind in ("connect", "silent", "stalled", "halfway", "handshakes", "tunnels")
        for sources in (1, 256)
    ),
    # Those that hold what they have, and more of it than there are places.
    Attack("idle-256", flood="idle", sources=256, width=6000, descriptors=_SMALL, settle=20),
    Attack("asking-256", flood="asking", sources=256, width=6000, descriptors=_SMALL, settle=20),
    Attack("plain-idle-256", flood="silent", sources=256, width=8000, plain=True, descriptors=_SMALL, settle=5),
    Attack("idle-256-1024-files", flood="idle", sources=256, width=1200, descriptors=1024, settle=8),
    Attack("plain-idle-256-1024-files", flood="silent", sources=256, width=2000, plain=True, descriptors=1024),
]


@dataclass
class Place:
    """An edge, a connector and nginx at home, under attack."""

    group: Group
    port: int
    plain: int
    metrics: int

    def numbers(self) -> dict[str, float]:
        """All series of the edge now."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=20) as answer:
            text = answer.read().decode()
        return {key: float(value) for key, value in re.findall(r"^(tunnelgw_\S+?) (\S+)$", text, re.MULTILINE)}


def start(group: Group, attack: Attack) -> Place:
    """Invite, join, run."""
    folder = make_certificate(group.folder)
    # The kernel's memory for TCP is the whole machine's, and home is on this one too: nginx may not take it all.
    service = start_nginx(group, listen="sndbuf=64k")
    with (folder / "pages" / "10m").open("wb") as file:
        file.truncate(10 * 1024 * 1024)
    port, plain, metrics = free_port(), free_port(), free_port()
    tunnelgw = [sys.executable, "-m", "tunnelgw"]
    (folder / "edge.toml").write_text(f"""
domain = "example.com"
address = "127.0.0.1:{port}"
listen = ["127.0.0.1:{port}"]
listen_http = ["127.0.0.1:{plain}"]
state_dir = "{folder}/edge"
[tls]
issuer = "files"
certificates = [{{ cert = "{folder}/cert.pem", key = "{folder}/key.pem" }}]
[limits]
connections_per_address = {attack.per_address}
[metrics]
listen = "127.0.0.1:{metrics}"
""")
    (folder / "connector.toml").write_text(f"""
state_dir = "{folder}/connector"
[services.bench]
target = "http://127.0.0.1:{service}"
plain_http = true
""")
    edge, home = ["--config", str(folder / "edge.toml")], ["--config", str(folder / "connector.toml")]
    from tunnelgw.admin.setup import create_state

    create_state(folder / "edge")
    files = attack.descriptors
    few = ["prlimit", f"--nofile={files}:{files}"] if files else []
    group.start("edge", [*few, *tunnelgw, "edge", "run", *edge])
    group.wait_for("edge", "ready")
    invite = subprocess.run([*tunnelgw, "edge", "invite", "home", *edge], check=True, capture_output=True)
    subprocess.run([*tunnelgw, "join", "-", *home], input=invite.stdout, check=True, capture_output=True)
    group.start("connector", [*tunnelgw, "connect", *home])
    group.wait_for("connector", "ready")
    return Place(group, port, plain, metrics)


def begin(attack: Attack, place: Place, *, seconds: float, connections: int) -> subprocess.Popen[bytes] | None:
    """Start the attacker."""
    if attack.flood:
        command = [
            sys.executable,
            "-m",
            "loadtest.attackers",
            attack.flood,
            str(place.plain if attack.plain else place.port),
        ]
        command += ["--sources", str(attack.sources), "--width", str(attack.width)]
        command += ["--seconds", str(attack.settle + seconds + 2)]
    elif attack.slow:
        # It looks its target's name up: a hosts file of its own, in a mount namespace. It sends no SNI: plain HTTP.
        hosts = place.group.folder / "hosts"
        hosts.write_text(f"127.0.0.1 localhost {HOST}\n")
        url = f"http://{HOST}:{place.plain}{attack.path}"
        words = [
            "slowhttptest",
            *attack.slow,
            "-c",
            str(connections),
            "-l",
            str(int(attack.settle + seconds) + 2),
            "-u",
            url,
        ]
        script = f'mount --bind {hosts} /etc/hosts && exec "$@"'
        command = ["unshare", "-m", "sh", "-c", script, "sh", *words]
    else:
        return None
    return place.group.start("attacker", command, cwd=ROOT)


def measure(attack: Attack, *, seconds: float, connections: int) -> dict[str, object]:
    """One attack against a place of its own."""
    with tempfile.TemporaryDirectory() as folder:
        group = Group(Path(folder))
        try:
            place = start(group, attack)
            attacker = begin(attack, place, seconds=seconds, connections=connections)
            time.sleep(attack.settle)  # into the attack: its beginning is no steady state
            command = [sys.executable, "-m", "loadtest.attackers", "bystander", str(place.port)]
            busy = group.cpu("edge")
            done = subprocess.run(
                [*command, "--seconds", str(seconds)], cwd=ROOT, capture_output=True, check=True, timeout=seconds + 60
            )
            row: dict[str, object] = json.loads(done.stdout)
            row["cpu_edge"] = round((group.cpu("edge") - busy) / seconds, 2)
            row["memory_mb"] = round(group.memory("edge") / 2**20)
            numbers = place.numbers()
            row["connections"] = int(sum(v for k, v in numbers.items() if k.startswith("tunnelgw_connections{")))
            row["reconnects"] = int(numbers.get('tunnelgw_tunnel_reconnects_total{connector="home"}', -1))
            row["resumes"] = int(numbers.get('tunnelgw_tunnel_resumes_total{connector="home"}', -1))
            row["refused"] = {
                key[key.index('"') + 1 : -2]: int(value)
                for key, value in numbers.items()
                if key.startswith("tunnelgw_refused_total{") and value
            }
            if attacker is not None and attack.flood:
                attacker.wait(60)
                row["attacker"] = json.loads((group.folder / "attacker.log").read_text().splitlines()[-1])
            for name in ("edge", "connector"):
                text = (group.folder / f"{name}.log").read_text(errors="replace")
                if "Traceback" in text:
                    raise RuntimeError(f"{name} wrote a traceback:\n{text[-3000:]}")
            return row
        finally:
            group.stop()


def line(attack: Attack, row: dict[str, object]) -> str:
    """A row of the table."""
    kept, fresh = row["kept"], row["fresh"]
    assert isinstance(kept, dict)
    assert isinstance(fresh, dict)
    cells = [
        attack.name,
        *(f"{one['p50_ms']} / {one['p99_ms']} / {sum(one['failures'].values())}" for one in (kept, fresh)),
        f"{row['cpu_edge']}", f"{row['memory_mb']} MB", f"{row['connections']}",
        f"{row['reconnects']}+{row['resumes']}", ", ".join(f"{k} {v}" for k, v in dict(row["refused"]).items()),  # type: ignore[call-overload]
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Run the attacks that were named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(attack.name for attack in ATTACKS))
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--connections", type=int, default=4000)
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument("--json", action="store_true", help="every number, one line for each attack")
    given = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    unknown = set(given.names) - {attack.name for attack in ATTACKS}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    can_slow = shutil.which("slowhttptest") is not None and os.geteuid() == 0
    table = [
        "| attack | kept: p50 / p99 ms / failed | fresh: the same | CPU | memory | open | reconnects | refused |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print(*table, sep="\n")
    results: dict[str, dict[str, object]] = {}
    for attack in ATTACKS:
        if given.names and attack.name not in given.names:
            continue
        if attack.slow and not can_slow:
            print(f"| {attack.name} | needs slowhttptest and root (its own hosts file) |")
            continue
        row = measure(attack, seconds=given.seconds, connections=given.connections)
        results[attack.name] = row
        table.append(line(attack, row))
        print(table[-1], flush=True)
        if given.json:
            print(json.dumps({"attack": attack.name, **row}), file=sys.stderr, flush=True)
    if results and not given.no_write:
        write(table, results, seconds=given.seconds, connections=given.connections)
    return 0


def write(table: list[str], results: dict[str, dict[str, object]], *, seconds: float, connections: int) -> None:
    """Keep what was measured, with where and when."""
    about = {
        **environment(nginx=("nginx", "-v")),
        "slowhttptest": slowhttptest(),
        "seconds": str(seconds),
        "connections": str(connections),
    }
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / f"{about['date']}-{about['commit']}-attacks"
    text = "# tunnelgw under attack\n\n" + "".join(f"- {key}: {value}\n" for key, value in about.items())
    stem.with_suffix(".md").write_text(text + "\n" + "\n".join(table) + "\n")
    stem.with_suffix(".json").write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")
    print(f"written: {stem}.md", file=sys.stderr)


def slowhttptest() -> str:
    """Its version; "" where it is not installed."""
    if shutil.which("slowhttptest") is None:
        return ""
    done = subprocess.run(["slowhttptest", "-h"], capture_output=True, text=True, check=False)
    found = re.search(r"version ([\d.]+)", done.stdout + done.stderr)
    return found[1] if found else "unknown version"


if __name__ == "__main__":
    raise SystemExit(main())
