"""Which line of a TOML file a key is on: tomllib gives values, people need places.

A single pass over text that tomllib has already accepted, so it decides nothing about validity: it only follows
tables, arrays of tables, dotted keys, inline tables and strings closely enough to know where each key begins.
Invariant: it terminates and never raises on any text; on text that is not valid TOML the lines may be wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

Key = tuple[str | int, ...]

_SPACE = " \t\r\n"
_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}


def locate(text: str) -> dict[Key, int]:
    """Line (from 1) of every key path; elements of arrays are numbered: ("services", "wiki", "host", 1)."""
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


def line_of(lines: Mapping[Key, int], key: Key) -> int:
    """The line of a key, or of the nearest table above it; 1 if there is none."""
    while key:
        if key in lines:
            return lines[key]
        key = key[:-1]
    return 1


class _Scanner:
    """Inputs: the text; output: `lines`. Every method moves `at` forward or to the end."""

    __slots__ = ("text", "at", "line", "counted", "lines", "arrays")

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.line = 1
        self.counted = 0  # newlines before this offset are in `line`
        self.lines: dict[Key, int] = {}
        self.arrays: dict[Key, int] = {}  # last index of each array of tables

    def document(self) -> None:
        """Everything: headers and pairs until the end."""
        table: Key = ()
        while self.skip(_SPACE):
            before = self.at
            if self.text[self.at] == "[":
                table = self.header()
            else:
                self.pair(table)
            if self.at == before:
                self.at += 1

    def skip(self, blank: str) -> bool:
        """Past blanks and comments; False at the end of the text."""
        text = self.text
        while self.at < len(text):
            char = text[self.at]
            if char == "#":
                end = text.find("\n", self.at)
                self.at = len(text) if end < 0 else end
            elif char in blank:
                self.at += 1
            else:
                return True
        return False

    def here(self) -> int:
        """The line of `at`."""
        self.line += self.text.count("\n", self.counted, self.at)
        self.counted = self.at
        return self.line

    def note(self, key: Key, line: int) -> None:
        """The first place of a key is kept, and its tables get a place if they have none."""
        for end in range(1, len(key) + 1):
            self.lines.setdefault(key[:end], line)

    def header(self) -> Key:
        """`[table]` or `[[array]]`; the full path with indexes of arrays."""
        line = self.here()
        many = self.text.startswith("[[", self.at)
        self.at += 2 if many else 1
        parts = self.key("]")
        end = self.text.find("\n", self.at)
        rest = self.text.find("]", self.at)
        self.at = rest + (2 if many else 1) if rest >= 0 else (len(self.text) if end < 0 else end)
        path: Key = ()
        for part in parts[:-1]:
            path = (*path, part)
            if path in self.arrays:
                path = (*path, self.arrays[path])
        path = path + parts[-1:]
        if many:
            self.arrays[path] = index = self.arrays.get(path, -1) + 1
            path = (*path, index)
        elif path in self.arrays:
            path = (*path, self.arrays[path])
        self.note(path, line)
        self.lines[path] = line
        return path

    def key(self, stop: str) -> tuple[str, ...]:
        """A dotted key, up to but without `stop`, `=` or a line end."""
        parts: list[str] = []
        while self.skip(" \t"):
            char = self.text[self.at]
            if char in ("\n", "\r", "=") or char in stop:
                break
            if char == ".":
                self.at += 1
            elif char in "\"'":
                parts.append(self.string())
            else:
                start = self.at
                while self.at < len(self.text) and self.text[self.at] not in " \t\r\n.=#\"'" + stop:
                    self.at += 1
                if self.at == start:
                    self.at += 1
                parts.append(self.text[start : self.at])
        return tuple(parts)

    def pair(self, table: Key, stop: str = "") -> None:
        """`key = value` within a table or an inline table."""
        line = self.here()
        parts = self.key(stop)
        if not parts:
            return
        path: Key = table + parts
        self.note(path, line)
        if self.skip(" \t") and self.text[self.at] == "=":
            self.at += 1
            if self.skip(" \t"):
                self.value(path)

    def value(self, path: Key) -> None:
        """Any value; the inside of arrays and inline tables is followed."""
        char = self.text[self.at]
        if char in "\"'":
            self.string()
        elif char == "[":
            self.array(path)
        elif char == "{":
            self.inline(path)
        else:
            while self.at < len(self.text) and self.text[self.at] not in ",]}#\n":
                self.at += 1

    def array(self, path: Key) -> None:
        """`[a, b]`, also over several lines."""
        self.at += 1
        index = 0
        while self.skip(_SPACE):
            before = self.at
            char = self.text[self.at]
            if char == "]":
                self.at += 1
                return
            if char == ",":
                self.at += 1
                continue
            item: Key = (*path, index)
            index += 1
            self.note(item, self.here())
            self.value(item)
            if self.at == before:
                self.at += 1

    def inline(self, path: Key) -> None:
        """`{ a = 1, b.c = 2 }`."""
        self.at += 1
        while self.skip(_SPACE):
            before = self.at
            char = self.text[self.at]
            if char == "}":
                self.at += 1
                return
            if char == ",":
                self.at += 1
                continue
            self.pair(path, "},")
            if self.at == before:
                self.at += 1

    def string(self) -> str:
        """A string of any of the four forms; its text (escapes only as far as keys need them)."""
        quote = self.text[self.at]
        if self.text.startswith(quote * 3, self.at):
            return self.long_string(quote * 3)
        out: list[str] = []
        self.at += 1
        while self.at < len(self.text):
            char = self.text[self.at]
            self.at += 1
            if char == quote or char == "\n":
                break
            if char == "\\" and quote == '"' and self.at < len(self.text):
                char = self.text[self.at]
                self.at += 1
                char = self.unicode(char) if char in "uU" else _ESCAPES.get(char, char)
            out.append(char)
        return "".join(out)

    def unicode(self, form: str) -> str:
        """The character of \\uXXXX or \\UXXXXXXXX."""
        digits = self.text[self.at : self.at + (4 if form == "u" else 8)]
        self.at += len(digits)
        try:
            return chr(int(digits, 16))
        except (ValueError, OverflowError):
            return ""

    def long_string(self, quotes: str) -> str:
        """Past a multi-line string, which may end with one or two more quotes; it is never a key."""
        self.at += 3
        while self.at < len(self.text):
            if self.text[self.at] == "\\" and quotes[0] == '"':
                self.at += 2
            elif self.text.startswith(quotes, self.at):
                self.at += 3
                for _ in range(2):
                    if self.text.startswith(quotes[0], self.at):
                        self.at += 1
                return ""
            else:
                self.at += 1
        return ""
