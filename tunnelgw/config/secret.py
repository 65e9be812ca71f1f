"""Secrets that operators give: never shown, read from files that only the owner should be able to read.

Invariant: no `repr`, `str`, format or log of a value here contains the secret; only `reveal()` gives it.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, NoReturn

from tunnelgw.errors import LocalError

if TYPE_CHECKING:
    from pathlib import Path

# No secret that we read is longer (an invitation is about 300 characters): a wrong path must not be swallowed whole.
MAX_BYTES = 65536


class Secret:
    """Text that must not be shown. Equality is constant in time; it cannot be pickled."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The secret itself; hand it on, never keep or print it."""
        return self._value

    def __repr__(self) -> str:
        return "Secret('***')"

    def __str__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret cannot be pickled")


def exposure(path: Path) -> str:
    """A warning if others than the owner may read the file, else an empty string."""
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        return f"{path} holds a secret and others may read it (mode {mode:04o}); run: chmod 600 {path}"
    return ""


def read_secret(path: Path) -> Secret:
    """The secret in a file, surrounding white space removed. LocalError if unreadable, empty, too long or not text."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise LocalError(f"cannot read the secret in {path}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise LocalError(f"{path} is too long for a secret; is this the right file?")
    try:
        value = data.decode().strip()
    except UnicodeDecodeError:
        raise LocalError(f"{path} is not text; is this the right file?") from None
    if not value:
        raise LocalError(f"{path} is empty; put the secret into it")
    return Secret(value)
