"""What is wrong with a file: every problem at once, each with its place and what to do.

`Section` reads one table: every `get` marks its key as known, `finish` reports the others. A wrong value is reported
and replaced by the default, so that reading goes on to the next problem. Invariant: no value is used unread, and a
`Report` with a problem never becomes a configuration.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from tunnelgw.config.lines import line_of
from tunnelgw.config.names import Bad, printable
from tunnelgw.errors import LocalError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from tunnelgw.config.lines import Key

T = TypeVar("T")

PROBLEM = "problem"
WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    file: as the operator named it. line: from 1; 0 for the file as a whole. field: dotted; empty for the file.
    text: what is wrong and what to do. severity: PROBLEM (the file cannot be used) or WARNING.
    """

    file: str
    line: int
    field: str
    text: str
    severity: str = PROBLEM

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.line else f"{self.file}: "
        return place + (f"{self.field}: " if self.field else "") + self.text


class ConfigError(LocalError):
    """A configuration that cannot be used; the text is one line for each problem. Exit code 2."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)), exit_code=2)
        self.problems = problems


class Report:
    """Collects the problems of one file."""

    __slots__ = ("file", "lines", "problems")

    def __init__(self, file: Path, lines: Mapping[Key, int]) -> None:
        self.file = str(file)
        self.lines = lines
        self.problems: list[Problem] = []

    def add(self, key: Key, text: str, *, severity: str = PROBLEM) -> None:
        """Something is wrong with the value at `key`."""
        line = line_of(self.lines, key) if self.lines else 0
        self.problems.append(Problem(self.file, line, dotted(key), text, severity))

    def line(self, key: Key) -> int:
        """The line of a key, for messages about another one."""
        return line_of(self.lines, key)

    @property
    def usable(self) -> bool:
        """True if there are at most warnings."""
        return all(problem.severity != PROBLEM for problem in self.problems)

    def ordered(self) -> list[Problem]:
        """In the order of the file."""
        return sorted(self.problems, key=lambda problem: problem.line)


def dotted(key: Key) -> str:
    """`services.wiki.host[1]`, with quotes where a key needs them."""
    out = ""
    for part in key:
        if isinstance(part, int):
            out += f"[{part}]"
        else:
            shown = part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else '"' + printable(part) + '"'
            out += f".{shown}" if out else shown
    return out


class Section:
    """One table of the file. `get` reads a value, `finish` reports what nobody read."""

    __slots__ = ("report", "data", "key", "known")

    def __init__(self, report: Report, data: Mapping[str, object], key: Key = ()) -> None:
        self.report = report
        self.data = data
        self.key = key
        self.known: set[str] = set()

    def has(self, name: str) -> bool:
        """True if the file has this key."""
        return name in self.data

    def get(self, name: str, read: Callable[[object], T], default: T) -> T:
        """The value as `read` makes it; the default if there is none or `read` raises Bad (reported)."""
        self.known.add(name)
        if name not in self.data:
            return default
        try:
            return read(self.data[name])
        except Bad as error:
            self.bad(name, str(error))
            return default

    def many(self, name: str, read: Callable[[object], T], *, single: bool = False) -> tuple[T, ...]:
        """A list, each element read alone; one value instead of a list where `single`. Equal elements are reported."""
        self.known.add(name)
        value = self.data.get(name, [])
        if not isinstance(value, list):
            if not single:
                self.bad(name, f"must be a list, not {kind_of(value)}; write {name} = [...]")
                return ()
            return self._read_all(name, [((*self.key, name), value)], read)
        return self._read_all(name, [((*self.key, name, index), item) for index, item in enumerate(value)], read)

    def _read_all(self, name: str, items: list[tuple[Key, object]], read: Callable[[object], T]) -> tuple[T, ...]:
        values: list[T] = []
        for key, item in items:
            try:
                value = read(item)
            except Bad as error:
                self.report.add(key, str(error))
                continue
            if value in values:
                self.report.add(key, f"is in {name} twice; remove one")
            else:
                values.append(value)
        return tuple(values)

    def table(self, name: str) -> Section:
        """A table below this one; an empty one if there is none."""
        self.known.add(name)
        value = self.data.get(name, {})
        if not isinstance(value, dict):
            self.bad(name, f"must be a table, not {kind_of(value)}; write [{dotted((*self.key, name))}]")
            value = {}
        return Section(self.report, value, (*self.key, name))

    def bad(self, name: str, text: str, *, severity: str = PROBLEM) -> None:
        """Something is wrong with a key of this table (an empty name: with the table)."""
        self.report.add((*self.key, name) if name else self.key, text, severity=severity)

    def finish(self, *, elsewhere: Collection[str] = (), where: str = "") -> None:
        """Report keys that nobody read; `elsewhere` are keys that belong into the file `where`."""
        for name in self.data:
            if name in self.known:
                continue
            near = difflib.get_close_matches(name.lower(), sorted(self.known), n=1, cutoff=0.6)
            if name in elsewhere:
                hint = f"it belongs into {where}"
            elif near:
                hint = f'did you mean "{near[0]}"?'
            else:
                hint = f"known are {', '.join(sorted(self.known))}"
            self.bad(name, f"unknown key; {hint}")


def kind_of(value: object) -> str:
    """The TOML word for the type of a value."""
    if isinstance(value, bool):
        return "true or false"
    names = {str: "a text", int: "a number", float: "a number", list: "a list", dict: "a table"}
    return names.get(type(value), "a date or time")
