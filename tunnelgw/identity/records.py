"""What the store holds about connectors and invitations: documents, and how they become JSON and back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from tunnelgw.access.grants import Grant

CONNECTOR = "connector"
VISITOR = "visitor"
ROLES = (CONNECTOR, VISITOR)
# How long before its signature a certificate begins: clocks at home are often a little behind, and a day hides that.
BACKDATED_SECONDS = 86400


def granted(old: Grant, newer: Grant) -> Grant:
    """`old`, with what `newer` names in its place; an empty field names nothing."""
    named = {item.name: getattr(newer, item.name) for item in fields(Grant) if getattr(newer, item.name)}
    return replace(old, **named)


def grant_from_json(found: dict[str, Any]) -> Grant:
    """Lists become tuples again."""
    values = {item.name: tuple(found.get(item.name, ())) for item in fields(Grant)}
    return Grant(**{**values, "ports": tuple((int(first), int(last)) for first, last in values["ports"])})


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that a connector may still show. serial: as `ssl.getpeercert` has it. not_after: Unix seconds."""

    serial: str
    not_after: int


@dataclass(frozen=True, slots=True)
class Connector:
    """A connector (or a joined visitor's machine) as the edge knows it.

    issued: newest first. joined: Unix seconds of the last join. revision: of the record, for compare-and-set.
    """

    name: str
    role: str
    grant: Grant
    issued: tuple[Issued, ...]
    joined: float
    revoked: bool = False
    revision: int = field(default=0, compare=False)

    @property
    def expires(self) -> int:
        """When its newest certificate ends; 0 for none."""
        return self.issued[0].not_after if self.issued else 0

    def encode(self) -> bytes:
        """For the store."""
        found = asdict(self)
        del found["revision"]
        return json.dumps(found).encode()

    @classmethod
    def decode(cls, value: bytes, revision: int) -> Connector:
        """From the store."""
        found = json.loads(value)
        return cls(
            name=found["name"],
            role=found["role"],
            grant=grant_from_json(found["grant"]),
            issued=tuple(Issued(**item) for item in found["issued"]),
            joined=found["joined"],
            revoked=found["revoked"],
            revision=revision,
        )


@dataclass(frozen=True, slots=True)
class Pending:
    """An invitation that was not used yet, as the edge keeps it. hashed: of its secret, never shown."""

    id: str
    name: str
    role: str
    grant: Grant
    expires: float
    created: float
    hashed: str = field(repr=False)
    revision: int = field(default=0, compare=False)

    def encode(self) -> bytes:
        """For the store."""
        found = asdict(self)
        del found["revision"]
        return json.dumps(found).encode()

    @classmethod
    def decode(cls, value: bytes, revision: int) -> Pending:
        """From the store."""
        found = json.loads(value)
        return cls(**{**found, "grant": grant_from_json(found["grant"])}, revision=revision)


@dataclass(frozen=True, slots=True)
class Accepted:
    """What a new connector is told: its record, its certificate and the authority to trust (PEM)."""

    connector: Connector
    certificate: str
    authority: str
