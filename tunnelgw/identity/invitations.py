"""The one-time string that lets a connector join: `tgw1_` and base64url without padding.

    32 bytes  pin: SHA-256 of the authority's SubjectPublicKeyInfo
     8 bytes  id
    18 bytes  secret
     8 bytes  expiry, Unix seconds, big endian
    1 to 300  address: host:port, UTF-8
     4 bytes  CRC-32 of all before, so that a cut or mistyped string is named as such (it protects nothing)

The edge keeps a hash of the secret only. Invariant: the secret is in no `repr`, log or error.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import struct
from dataclasses import dataclass

from tunnelgw.config.names import Bad, endpoint
from tunnelgw.config.secret import Secret
from tunnelgw.errors import LocalError

PREFIX = "tgw1_"
_HEAD = struct.Struct(">32s8s18sQ")
_CRC = struct.Struct(">I")
_MAX_ADDRESS = 300
_MAX_TEXT = len(PREFIX) + (_HEAD.size + _MAX_ADDRESS + _CRC.size) * 4 // 3 + 2


@dataclass(frozen=True, slots=True)
class Invitation:
    """address: host:port of the edge. pin: hex. id: hex. secret: base64url text. expires: Unix seconds."""

    address: str
    pin: str
    id: str
    secret: Secret
    expires: int

    def encode(self) -> str:
        """The string to hand over; a secret."""
        secret = base64.urlsafe_b64decode(self.secret.reveal())
        body = _HEAD.pack(bytes.fromhex(self.pin), bytes.fromhex(self.id), secret, self.expires) + self.address.encode()
        return PREFIX + base64.urlsafe_b64encode(body + _CRC.pack(binascii.crc32(body))).decode().rstrip("=")


def make(*, address: str, pin: str, expires: int) -> Invitation:
    """A new invitation with a random id and secret."""
    secret = base64.urlsafe_b64encode(secrets.token_bytes(18)).decode()
    return Invitation(address=address, pin=pin, id=secrets.token_hex(8), secret=Secret(secret), expires=expires)


def decode(text: str) -> Invitation:
    """Read an invitation. LocalError (exit 2) that says what is wrong with it, without repeating it."""
    text = text.strip()
    if not text:
        raise _unusable("is empty")
    if not text.startswith(PREFIX):
        found = re.match(r"tgw(\d{1,4})_", text)
        if found:
            raise _unusable(f"is of format {found[1]}, made by another version of tunnelgw; update this one")
        raise _unusable(f'does not start with "{PREFIX}"; give the whole line that "tunnelgw edge invite" printed')
    encoded = text.removeprefix(PREFIX)
    if not re.fullmatch(r"[A-Za-z0-9_-]*", encoded):
        raise _unusable("has characters that do not belong there (a line break, a space, quotes?)")
    if len(text) > _MAX_TEXT:
        raise _unusable("is too long; give one invitation only")
    try:
        raw = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    except binascii.Error:
        raise _unusable("is cut short; copy all of it") from None
    body, crc = raw[: -_CRC.size], raw[-_CRC.size :]
    if len(body) <= _HEAD.size or _CRC.pack(binascii.crc32(body)) != crc:
        raise _unusable("is cut short or mistyped; copy all of it")
    if base64.urlsafe_b64encode(raw).decode().rstrip("=") != encoded:
        raise _unusable("is mistyped at its end; copy all of it")
    pin, identity, secret, expires = _HEAD.unpack_from(body)
    try:
        address = str(endpoint(body[_HEAD.size :].decode()))
    except (UnicodeDecodeError, Bad):
        raise _unusable("names an address that cannot be read") from None
    secret_text = base64.urlsafe_b64encode(secret).decode()
    return Invitation(address=address, pin=pin.hex(), id=identity.hex(), secret=Secret(secret_text), expires=expires)


def _unusable(why: str) -> LocalError:
    return LocalError(f"the invitation {why}", exit_code=2)


def hash_secret(secret: str) -> str:
    """What the edge keeps: 144 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def matches(secret: str, hashed: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(hash_secret(secret), hashed)
