"""What is measured. Every module here has a list SCENARIOS of `loadtest.scenario.Scenario`; this collects them."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadtest.scenario import Scenario

# Whoever reads the tables wants requests first; modules that are not named here follow by name.
FIRST = ("requests", "transfers")


def everything() -> list[Scenario]:
    """All scenarios in the order of the tables."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    names.sort(key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    found: list[Scenario] = []
    for name in names:
        found += getattr(importlib.import_module(f"{__name__}.{name}"), "SCENARIOS", [])
    return found
