"""Datagrams of a private stream, sealed end to end: the edge relays them and can neither read nor forge one.

Each is 8 bytes of counter and AES-256-GCM's output. The two keys, one a direction, are random for each flow and were
said inside the private stream's TLS, so a counter that begins at 0 never repeats under a key. What arrives twice, or
later than the `WINDOW` newest, is dropped (RFC 6479's rule).

Invariant: nothing but None comes out for a datagram that was not sealed by the other side, or was seen before.
"""

from __future__ import annotations

import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

WINDOW = 1024
KEY_BYTES = 32
COST = 8 + 16  # of a datagram: counter and tag
_COUNTER = 8
_PREFIX = bytes(4)  # of the nonce; a key has one direction of one flow


def new_key() -> str:
    """A key as `WantUdp` carries it."""
    return secrets.token_hex(KEY_BYTES)


class Sealer:
    """One direction, sending."""

    __slots__ = ("_aead", "_next")

    def __init__(self, key: str) -> None:
        self._aead = AESGCM(bytes.fromhex(key))
        self._next = 0

    def seal(self, data: bytes) -> bytes:
        """The datagram for the wire."""
        counter = self._next.to_bytes(_COUNTER, "big")
        self._next += 1
        return counter + self._aead.encrypt(_PREFIX + counter, data, None)


class Opener:
    """One direction, receiving."""

    __slots__ = ("_aead", "_newest", "_seen")

    def __init__(self, key: str) -> None:
        self._aead = AESGCM(bytes.fromhex(key))
        self._newest = -1
        self._seen = 0  # bit n: the datagram n before the newest was seen

    def open(self, sealed: bytes) -> bytes | None:
        """What was sealed; None: it is not the other side's, or came before."""
        if len(sealed) < COST:
            return None
        counter = int.from_bytes(sealed[:_COUNTER], "big")
        age = self._newest - counter
        if age >= WINDOW or (age >= 0 and self._seen >> age & 1):
            return None
        try:
            data = self._aead.decrypt(_PREFIX + sealed[:_COUNTER], sealed[_COUNTER:], None)
        except InvalidTag:
            return None
        if age < 0:  # only now: a forged counter must not move the window
            self._seen = (self._seen << min(-age, WINDOW) | 1) & (1 << WINDOW) - 1
            self._newest = counter
        else:
            self._seen |= 1 << age
        return data
