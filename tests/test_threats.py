"""The table of threats in hostile/README.md: every test that it names exists, every number of the tables is in it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.hostile import requests, requests2, responses

TESTS = Path(__file__).parent
ROW = re.compile(r"^\| (\d*) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


def rows() -> list[tuple[str, str, str]]:
    """Number (or none), threat and tests of each line."""
    text = re.sub(r"^\| no\. .*$", "", (TESTS / "hostile" / "README.md").read_text(), flags=re.MULTILINE)
    return [(number, threat, tests) for number, threat, _, tests in ROW.findall(text)]


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_line_is_held_by_tests_that_exist() -> None:
    found = rows()
    assert len(found) > 100
    for number, threat, tests in found:
        named = re.findall(r"`([^`]+)`", tests)
        assert named, (number, threat)
        for name in named:
            path, _, function = name.partition("::")
            assert (TESTS / path).is_file(), name
            assert not function or function in functions(TESTS / path), name


def test_numbers_and_names_are_each_one_line() -> None:
    numbers = [int(number) for number, _, _ in rows() if number]
    assert len(numbers) == len(set(numbers))
    threats = [threat for _, threat, _ in rows()]
    assert len(set(threats)) == len(threats)


def test_every_case_of_the_tables_has_its_line() -> None:
    known = {number for number, _, _ in rows()}
    lines = [[one.line for one in requests.CASES], [one.line for one in requests2.CASES]]
    lines.append([one.line for one in responses.REPLIES])
    for table in lines:
        used = set(table)
        assert len(used) >= 5
        assert used <= known, sorted(used - known)
