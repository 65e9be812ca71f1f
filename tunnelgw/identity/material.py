"""A certificate with its key, as kept in the store: plain text and dates, readable without cryptography."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True)
class Material:
    """certificate: PEM chain, leaf first. key: PEM (PKCS 8), a secret. not_before, not_after: Unix seconds.

    serial: hexadecimal, upper case, as `ssl.getpeercert` writes it. pin: SHA-256 of the SubjectPublicKeyInfo, hex.
    issuer: the pin of the authority that signed it; empty for an authority.
    """

    certificate: str
    key: str = field(repr=False)
    not_before: int
    not_after: int
    serial: str
    pin: str
    issuer: str = ""

    @property
    def renew_at(self) -> float:
        """When a third of its life is left."""
        return self.not_after - (self.not_after - self.not_before) / 3

    def due(self, now: float) -> bool:
        """True in the last third of its life, or before it begins (a clock that was wrong when it was made)."""
        return now > self.renew_at or now < self.not_before

    def encode(self) -> bytes:
        """For the store."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, value: bytes) -> Material:
        """From the store."""
        return cls(**json.loads(value))


def digest(authorities: str) -> str:
    """What two sides compare to know whether they trust the same authorities: of their PEM, without white space."""
    return hashlib.sha256("".join(authorities.split()).encode()).hexdigest()
