"""Readers of single values for `Section.get` and `Section.many`: the type first, then the meaning.

Invariant: a reader returns a value of its type or raises `Bad`; a number is never taken for a truth value.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tunnelgw.config.names import Bad, printable
from tunnelgw.config.problems import kind_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def text(value: object) -> str:
    """A text."""
    if not isinstance(value, str):
        raise Bad(f"must be a text in quotes, not {kind_of(value)}")
    return value


def short_text(value: object) -> str:
    """A text that is not empty, of one line."""
    found = text(value).strip()
    if not found or len(found) > 1024 or not found.isprintable():
        raise Bad("must be one line of text, not empty")
    return found


def number_or_text(value: object) -> int | str:
    """A whole number or a text."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise Bad(f"must be a text or a number, not {kind_of(value)}")
    return value


def boolean(value: object) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise Bad(f"must be true or false, not {kind_of(value)}")
    return value


def whole(low: int, high: int) -> Callable[[object], int]:
    """A whole number within bounds."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Bad(f"must be a whole number from {low} to {high}, not {kind_of(value)}")
        if not low <= value <= high:
            raise Bad(f"{printable(str(value))} is out of bounds; it can be {low} to {high}")
        return value

    return read


def seconds(low: float, high: float) -> Callable[[object], float]:
    """A number of seconds within bounds; fractions are fine."""

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Bad(f"must be a number of seconds without unit, not {kind_of(value)}")
        # Compared before float(): TOML has integers that no float can hold.
        if not low <= value <= high or (isinstance(value, float) and math.isnan(value)):
            raise Bad(f"{printable(str(value))} is out of bounds; it can be {low:g} to {high:g} seconds")
        return float(value)

    return read


def choice(*options: str) -> Callable[[object], str]:
    """One of some words."""

    def read(value: object) -> str:
        word = text(value)
        if word not in options:
            raise Bad(f'"{printable(word)}" is not possible; write {" or ".join(_quoted(options))}')
        return word

    return read


def _quoted(options: tuple[str, ...]) -> list[str]:
    return [f'"{option}"' for option in options]


def path_beside(folder: Path) -> Callable[[object], Path]:
    """A path; a relative one is beside the configuration file."""

    def read(value: object) -> Path:
        found = text(value)
        if not found or "\x00" in found:
            raise Bad("must be a path, not empty")
        if found.startswith("~"):
            raise Bad(f'"{printable(found)}": "~" is not replaced here; write the whole path')
        return folder / found

    return read


def parsed(parse: Callable[[str], object]) -> Callable[[object], str]:
    """A text that `parse` normalises (to a text)."""

    def read(value: object) -> str:
        return str(parse(text(value)))

    return read
