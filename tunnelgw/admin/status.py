"""What `status` reports (`shapes.py`) as text for people.

Invariant: `--json` prints the dict as it is; the text shows the same facts, one line for each thing.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tunnelgw.obs.log import clean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tunnelgw.admin.shapes import ConnectorStatus, EdgeStatus, PublicAddress, RefusedService, ServiceState


def edge_text(status: EdgeStatus) -> str:
    """The lines of `tunnelgw edge status`."""
    running = "running" if status["running"] else "not running; start it with: tunnelgw edge run"
    lines = [f"edge {status['address']} for {status['domain']}: {running}"]
    if status["authority"]["text"]:
        lines.append(f"the authority for tunnels is being replaced: {status['authority']['text']}")
    lines.append("")
    lines += _addresses(status["addresses"])
    problems = {entry["certificate_problem"]: entry["address"] for entry in status["addresses"]}
    lines += [f"no certificate for {address}: {why}" for why, address in sorted(problems.items()) if why]
    lines += _table(
        ("CONNECTOR", "ROLE", "STATE", "SINCE", "TUNNELS", "RTT", "CERTIFICATE UNTIL"),
        [
            (
                entry["name"],
                entry["role"],
                entry["state"],
                when(entry["since"]),
                str(entry["tunnels"]),
                _milliseconds(entry["rtt"]),
                when(entry["certificate_expiry"]),
            )
            for entry in status["connectors"]
        ],
        empty="no connector has joined; invite one with: tunnelgw edge invite NAME",
    )
    lines += _private(status)
    lines += _refused(status)
    lines += _table(
        ("UNUSED INVITATION", "ROLE", "EXPIRES"),
        [(entry["name"], entry["role"], when(entry["expires"])) for entry in status["invitations"]],
        empty="no unused invitation",
    )
    return "\n".join(lines).rstrip()


def _private(status: EdgeStatus) -> list[str]:
    """Private services and visiting machines, where there are any."""
    services = [(one["service"], one["connector"], one["state"]) for one in status["private_services"]]
    lines = _table(("PRIVATE SERVICE", "CONNECTOR", "STATE"), services, empty="")
    visitors = [
        (
            one["name"],
            one["state"],
            when(one["since"]),
            str(one["tunnels"]),
            str(one["streams"]),
            "; ".join(f"{kind} {', '.join(items)}" for kind, items in one["grant"].items()) or "nothing",
            when(one["certificate_expiry"]),
        )
        for one in status["visitors"]
    ]
    head = ("VISITOR", "STATE", "SINCE", "TUNNELS", "STREAMS", "MAY REACH", "CERTIFICATE UNTIL")
    return [*(lines if services else ()), *(_table(head, visitors, empty="") if visitors else ())]


def _refused(status: EdgeStatus) -> list[str]:
    """What connectors offer and do not get, where there is any."""
    rows = [
        (one["service"], one["connector"], "partly" if one["partly"] else "refused", _problem(one))
        for one in status.get("refused_services", ())  # an edge of before an upgrade does not say
    ]
    return _table(("NOT SERVED", "CONNECTOR", "STATE", "WHY"), rows, empty="") if rows else []


def _addresses(addresses: Sequence[PublicAddress]) -> list[str]:
    """The table of public addresses; what groups are about only where there is any."""
    head = ("ADDRESS", "SERVICE", "CONNECTOR", "STATE", "SINCE", "CERTIFICATE UNTIL")
    rows = [
        (
            entry["address"],
            entry["service"],
            entry["connector"],
            entry["state"],
            when(entry["since"]),
            "at home" if entry["tls"] == "home" else when(entry["certificate_expiry"]),
        )
        for entry in addresses
    ]
    if not any(entry["group"] or entry["health"] for entry in addresses):
        return _table(head, rows, empty="no public address")
    more = [(entry["group"], str(entry["priority"]) if entry["group"] else "", entry["health"]) for entry in addresses]
    wide = [(*row, *columns) for row, columns in zip(rows, more, strict=True)]
    return _table((*head, "GROUP", "PRIORITY", "HEALTH"), wide, empty="no public address")


def certificates_text(listed: Sequence[Mapping[str, Any]]) -> str:
    """The lines of `tunnelgw edge certificate list`."""
    rows = [(item["name"], when(item["expires"]), when(item["renewal"]), item["problem"]) for item in listed]
    head = ("CERTIFICATE", "EXPIRES", "RENEWAL", "PROBLEM")
    return "\n".join(_table(head, rows, empty="no certificate was ordered yet")).rstrip()


def connector_text(status: ConnectorStatus) -> str:
    """The lines of `tunnelgw status`."""
    lines = _visitor_lines(status) if _only_visits(status) else _connector_lines(status)
    return "\n".join([*lines, *_keys(status)]).rstrip()


def _connector_lines(status: ConnectorStatus) -> list[str]:
    lines = ["connector: running" if status["running"] else "connector: not running; start it with: tunnelgw connect"]
    lines.append("")
    lines += _table(
        ("EDGE", "AS", "STATE", "TUNNELS", "RTT", "CERTIFICATE UNTIL", "PROBLEM"),
        [
            (
                edge["address"],
                edge["name"],
                edge["state"],
                str(sum(tunnel["state"] == "up" for tunnel in edge["tunnels"])),
                _milliseconds(max((tunnel["rtt_seconds"] for tunnel in edge["tunnels"]), default=0.0)),
                when(edge["certificate_expires"]),
                edge["error"],
            )
            for edge in status["edges"]
        ],
        empty="no edge joined; use an invitation with: tunnelgw join INVITATION",
    )
    checked = any(entry.get("health") for entry in status["services"])
    lines += _table(
        ("SERVICE", "TARGET", *(["HEALTH"] if checked else []), "STATE", "PUBLIC ADDRESS"),
        [
            (
                entry["name"],
                entry["target"],
                *([entry.get("health", "")] if checked else []),
                entry["state"] + _temporary(entry),
                " ".join(entry.get("addresses", ())) or _unaddressed(entry),
            )
            for entry in status["services"]
        ],
        empty="no service; publish one with: tunnelgw expose NAME TARGET",
    )
    partly = [f"{entry['name']} is served in part: {_problem(entry)}" for entry in status["services"] if _partly(entry)]
    lines += [*partly, ""] if partly else []
    at_home = [entry for entry in status["services"] if entry.get("tls") == "home"]
    if at_home:
        lines += _table(
            ("KEYS ONLY AT HOME", "CERTIFICATE UNTIL", "PROBLEM"),
            [
                (entry["name"], when(entry.get("certificate_expires", 0.0)), entry.get("certificate_error", ""))
                for entry in at_home
            ],
            empty="",
        )
        account = status.get("acme_account", "")
        if account:
            lines += [f"ACME account, for a CAA record with accounturi: {account}", ""]
    return lines


def _only_visits(status: ConnectorStatus) -> bool:
    """Whether this machine has joined as a visitor and as nothing else, so that there is no connector to speak of."""
    joined = status["running"] or status["services"] or any(edge["name"] for edge in status["edges"])
    return bool(status.get("visits")) and not joined


def _visitor_lines(status: ConnectorStatus) -> list[str]:
    """What a machine that only visits wants to know."""
    lines = ["reach a private service with: tunnelgw visit NAME", ""]
    lines += _table(
        ("EDGE", "VISITOR", "CERTIFICATE UNTIL"),
        [(visit["address"], visit["name"], when(visit["certificate_expires"])) for visit in status.get("visits", [])],
        empty="",
    )
    return lines


def _unaddressed(entry: ServiceState) -> str:
    """What stands for a public address where there is none."""
    if entry.get("private") and entry["state"] == "accepted":
        return f"private: tunnelgw visit {entry['name']}"
    return _problem(entry)


def _keys(status: ConnectorStatus) -> list[str]:
    """Fingerprints of both ends of private streams, for who compares them; nothing where there are no such streams."""
    visits = status.get("visits", [])
    homes = [edge for edge in status["edges"] if edge.get("known_keys") or edge.get("known_keys_error")]
    if any(entry.get("private") for entry in status["services"]):
        homes = status["edges"]
    rows: list[Sequence[str]] = []
    for entry in (*homes, *visits):
        rows.append((entry["address"], f"{entry['name']} (this machine)", entry.get("fingerprint", "")))
        rows += [(entry["address"], name, key) for name, key in sorted(entry.get("known_keys", {}).items())]
        if problem := entry.get("known_keys_error"):
            rows.append((entry["address"], "-", problem))
    return _table(("EDGE", "KEY OF", "FINGERPRINT"), rows, empty="") if rows else []


def when(timestamp: float) -> str:
    """A Unix time as `2026-01-31 12:00 UTC`; "-" for none."""
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M UTC") if timestamp else "-"


def span(seconds: float) -> str:
    """`2 h`, `1 h 30 min`, `45 s`: the two largest units."""
    left, parts = round(seconds), []
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def _temporary(service: ServiceState) -> str:
    if not service.get("temporary"):
        return ""
    left = service.get("seconds_left")
    return ", temporary" if left is None else f", temporary: {span(left)} left"


def _partly(service: ServiceState) -> bool:
    return service["state"] == "partly"


def _problem(service: ServiceState | RefusedService) -> str:
    hint = service.get("hint")
    return (service.get("message") or "-") + (f"; on the edge, run: {hint}" if hint else "")


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds else "-"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> list[str]:
    """Aligned columns and an empty line; `empty` where there are no rows. Cells may hold what a connector said."""
    body = [[clean(cell) or "-" for cell in row] for row in rows]
    if not body:
        return [empty, ""]
    widths = [max(len(row[column]) for row in (head, *body)) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *body)]
    return [*(line.rstrip() for line in lines), ""]
