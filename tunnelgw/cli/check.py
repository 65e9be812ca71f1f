"""`tunnelgw check FILE`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tunnelgw.config.load import PROBLEM, check

if TYPE_CHECKING:
    from argparse import Namespace


def run(arguments: Namespace) -> int:
    """Every problem and warning on stderr; 2 if there is a problem."""
    problems = check(Path(arguments.file))
    wrong = sum(problem.severity == PROBLEM for problem in problems)
    for problem in problems:
        print(problem if problem.severity == PROBLEM else f"{problem} (warning)", file=sys.stderr)
    if wrong:
        return 2
    print(f"{arguments.file}: no problem found")
    return 0
