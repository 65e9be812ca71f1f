"""What the store holds about connectors and invitations: documents, and how they become JSON and back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

CONNECTOR = "connector"
VISITOR = "visitor"
ROLES = (CONNECTOR, VISITOR)


@dataclass(frozen=True, slots=True)
class Allow:
    """The --allow options of a grant. None: not named, so the default (or what was granted before) holds.

    hosts: patterns. ports: inclusive ranges. services, networks, exits: for visitors.
    """

    hosts: tuple[str, ...] | None = None
    ports: tuple[tuple[int, int], ...] | None = None
    services: tuple[str, ...] | None = None
    networks: tuple[str, ...] | None = None
    exits: tuple[str, ...] | None = None

    def updated(self, newer: Allow) -> Allow:
        """This, with what `newer` names in its place."""
        named = {name: getattr(newer, name) for name in self.__slots__ if getattr(newer, name) is not None}
        return replace(self, **named)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Allow:
        """Lists become tuples again."""
        values = {name: None if found.get(name) is None else tuple(found[name]) for name in cls.__slots__}
        if values["ports"] is not None:
            values["ports"] = tuple((int(first), int(last)) for first, last in values["ports"])
        return cls(**values)


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
    allow: Allow
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
            allow=Allow.from_json(found["allow"]),
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
    allow: Allow
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
        return cls(**{**found, "allow": Allow.from_json(found["allow"])}, revision=revision)


@dataclass(frozen=True, slots=True)
class Accepted:
    """What a new connector is told: its record, its certificate and the authority to trust (PEM)."""

    connector: Connector
    certificate: str
    authority: str
