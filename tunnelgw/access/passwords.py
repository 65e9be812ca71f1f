"""Password files: `name:hash` lines as `htpasswd -B` writes them, and who a request says it is.

Only bcrypt is taken: it is slow by design, its cost is in the hash, and every `htpasswd` writes it. Nothing here
computes a hash; that takes up to a second and belongs in a thread.

Invariant: a line that came through `check_user` can be verified, at a cost that is bounded.
"""

from __future__ import annotations

import base64
import binascii
import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tunnelgw.http.head import Fields

USERS_MAX = 256  # of one service; they travel to the edge in the service's offer, 33 KB at most
NAME_MAX = 64
COST_LEAST, COST_MOST = 4, 14  # bcrypt's own least; 14 is about a second on a small VPS
_BCRYPT = re.compile(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{53}")
_HOW = "make the line with: htpasswd -nB NAME"
# RFC 7617: the credentials of one request; longer ones are nobody's.
_CREDENTIALS_MAX = 1024


def check_user(line: str) -> None:
    """`ValueError` with what is wrong, and without the line itself, unless it is `name:bcrypt hash`."""
    name, colon, hashed = line.partition(":")
    if not colon or not name or not hashed:
        raise ValueError(f"is not name:hash; {_HOW}")
    if len(name) > NAME_MAX or not name.isprintable():
        raise ValueError(f"has a name that is longer than {NAME_MAX} characters, or not printable")
    found = _BCRYPT.fullmatch(hashed)
    if found is None:
        raise ValueError(f"has {_kind(hashed)} where only bcrypt is safe enough and supported; {_HOW}")
    if not COST_LEAST <= int(found[1]) <= COST_MOST:
        raise ValueError(f"has bcrypt's cost at {int(found[1])}; between {COST_LEAST} and {COST_MOST} is served")


def _kind(hashed: str) -> str:
    if hashed.startswith("$argon2"):
        return "an argon2 hash"
    if hashed.startswith(("$apr1$", "$1$", "{SHA}")):
        return "an MD5 or SHA-1 hash"
    return "another kind of hash" if hashed.startswith("$") else "a plain password or an old hash"


class Users(NamedTuple):
    """A password file: hashes by name, the dearest of them to compute, and its cost."""

    hashes: dict[bytes, bytes]
    dearest: bytes
    cost: int


def cost_of(hashed: bytes) -> int:
    """bcrypt's cost in a checked hash: each step is twice the work."""
    return int(hashed[4:6])


@lru_cache(maxsize=256)
def users_of(lines: tuple[str, ...]) -> Users:
    """The users of checked lines, of which there is at least one, as routes carry them; built once."""
    hashes = {name.encode(): hashed.encode() for name, _, hashed in (line.partition(":") for line in lines)}
    dearest = max(hashes.values(), key=cost_of)
    return Users(hashes, dearest, cost_of(dearest))


def credentials(fields: Fields) -> tuple[bytes, bytes, bytes] | None:
    """Authorization's value, name and password of HTTP Basic; None where there is none, or more than one."""
    values = [value for name, value in fields if name == b"authorization"]
    if len(values) != 1 or len(values[0]) > _CREDENTIALS_MAX:
        return None
    scheme, _, text = values[0].partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        name, colon, password = base64.b64decode(text.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return None
    return (values[0], name, password) if colon else None
