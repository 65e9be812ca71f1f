"""requirements.lock is what pyproject.toml asks for: one version of everything, with hashes, from no place."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WANTED = [
    *PROJECT["project"]["dependencies"],
    *PROJECT["dependency-groups"]["dev"],
    *PROJECT["build-system"]["requires"],
]


def locked() -> list[tuple[Requirement, list[str]]]:
    """Every entry and its hashes."""
    found = []
    for entry in re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", LOCK, flags=re.MULTILINE).strip()):
        first, *rest = [line.strip(" \\") for line in entry.splitlines()]
        found.append((Requirement(first), rest))
    return found


@pytest.mark.parametrize("wanted", WANTED)
def test_what_is_wanted_is_locked(wanted: str) -> None:
    requirement = Requirement(wanted)
    name = requirement.name.lower()
    for version in ("3.11", "3.12", "3.13"):
        where = {"python_version": version, "python_full_version": f"{version}.0"}
        pins = [pin for pin, _ in locked() if pin.name == name and (pin.marker is None or pin.marker.evaluate(where))]
        assert len(pins) == 1, f"{name} on {version}: run make lock"
        (pin,) = pins[0].specifier
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), f"{pins[0]} does not fit {wanted}: run make lock"


def test_every_file_has_a_hash_and_no_place() -> None:
    for pin, hashes in locked():
        assert hashes, pin
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in hashes), pin
        assert pin.url is None
    assert not re.search(r"://|--(extra-)?index|--find-links|--trusted", LOCK)
