"""A lab for a module's tests, or a line that says why there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab import network
from tests.lab.lab import Lab
from tests.lab.tunnels import Tunnels, missing
from tests.system.sshd import SSHD

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session", autouse=True)
def possible() -> None:
    """Every test here needs namespaces."""
    missing = network.unavailable() or ("" if SSHD else "needs sshd")
    if missing:
        pytest.skip(f"the lab {missing}")


@pytest.fixture
def tunnels(tmp_path: Path) -> Iterator[Tunnels]:
    if missing():
        pytest.skip(missing())
    with Tunnels(tmp_path) as tunnels:
        yield tunnels


@pytest.fixture(scope="module")
def lab(possible: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One lab for the tests of a module: each leaves it as it found it, or better."""
    with Lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab
