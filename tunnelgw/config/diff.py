"""What a reload changes: compared as values, so that an edited comment changes nothing.

Invariant: applying `added`, `removed` and `changed` to the old services gives the new ones; a key that differs is
named exactly once, in `changed` of its file.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunnelgw.config.model import ConnectorConfig, EdgeConfig, ServiceConfig

# Read once at the start: sockets and processes are made once, the store and the control socket are open.
EDGE_RESTART = frozenset(
    {
        "domain",
        "listen",
        "listen_http",
        "port_bind",
        "state_dir",
        "workers",
        "proxy_protocol",
        "metrics.listen",
        "admin.listen",
    }
)
CONNECTOR_RESTART = frozenset({"state_dir"})
_SECTIONS = frozenset({"tls", "acme", "limits", "metrics", "admin"})
# Not keys of the file.
_INTERNAL = frozenset({"path", "listen_is_default", "listen_http_is_default"})


@dataclass(frozen=True, slots=True)
class EdgeDiff:
    """changed: dotted keys that differ. restart: those of them that a running edge does not take over."""

    changed: tuple[str, ...]
    restart: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ConnectorDiff:
    """Services by name: `added`, `removed`, and `changed` (same name, other content); `keys` and `restart` as above."""

    added: tuple[ServiceConfig, ...]
    removed: tuple[ServiceConfig, ...]
    changed: tuple[ServiceConfig, ...]
    keys: tuple[str, ...]
    restart: tuple[str, ...]

    @property
    def services_changed(self) -> bool:
        """True if the edge has to hear about it."""
        return bool(self.added or self.removed or self.changed)


def diff_edge(old: EdgeConfig, new: EdgeConfig) -> EdgeDiff:
    """What differs between two configurations of an edge."""
    changed: list[str] = []
    for item in fields(old):
        before, after = getattr(old, item.name), getattr(new, item.name)
        if item.name in _INTERNAL or before == after:
            continue
        if item.name in _SECTIONS:
            inner = [part.name for part in fields(before) if getattr(before, part.name) != getattr(after, part.name)]
            changed += [f"{item.name}.{name}" for name in inner]
        else:
            changed.append(item.name)
    return EdgeDiff(tuple(changed), tuple(name for name in changed if name in EDGE_RESTART))


def diff_connector(old: ConnectorConfig, new: ConnectorConfig) -> ConnectorDiff:
    """What differs between two configurations of a connector."""
    before = {service.name: service for service in old.services}
    after = {service.name: service for service in new.services}
    names = [item.name for item in fields(old) if item.name not in _INTERNAL and item.name != "services"]
    keys = tuple(name for name in names if getattr(old, name) != getattr(new, name))
    return ConnectorDiff(
        added=tuple(service for name, service in after.items() if name not in before),
        removed=tuple(service for name, service in before.items() if name not in after),
        changed=tuple(service for name, service in after.items() if name in before and before[name] != service),
        keys=keys,
        restart=tuple(name for name in keys if name in CONNECTOR_RESTART),
    )


def restart_warning(keys: tuple[str, ...]) -> str:
    """One line for the log; empty if nothing needs a restart."""
    if not keys:
        return ""
    return f"{', '.join(keys)}: changed in the file, but only a restart takes {'it' if len(keys) == 1 else 'them'} over"
