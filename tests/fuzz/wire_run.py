"""Run a target under Atheris: `python -m tests.fuzz.wire_run TARGET [libFuzzer's options] [CORPUS...]`.

TARGET: a module of this folder with `one(data)`, such as wire_session or http_request. Needs the group `fuzz`.
"""

from __future__ import annotations

import importlib
import sys

import atheris


def main() -> None:
    """Instrument what is tested, not the target itself."""
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=["tunnelgw"]):
        target = importlib.import_module(f"tests.fuzz.{name}")
    atheris.Setup(sys.argv, target.one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
