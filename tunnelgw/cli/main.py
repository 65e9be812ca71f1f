"""The command line: parses, imports the one module that the command needs, and turns every error into one line.

Invariant: no traceback reaches a user (TUNNELGW_DEBUG=1 shows it); exit status 2 for usage and configuration, 1 for
anything else that went wrong. `tunnelgw --help` imports argparse and nothing heavier.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING

from tunnelgw.cli.parser import build_parser
from tunnelgw.errors import TunnelgwError

if TYPE_CHECKING:
    from collections.abc import Sequence

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    try:
        arguments = build_parser().parse_args(argv)
        module, _, function = arguments.run.partition(":")
        status: int = getattr(importlib.import_module(module), function)(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output left (`tunnelgw status | head`): nothing to say, and nobody to say it to. The
        # interpreter flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("TUNNELGW_DEBUG") == "1":
            raise
        return _report(error)
    return status


def _report(error: Exception) -> int:
    """One line per problem on stderr; the exit status."""
    from tunnelgw.obs.log import clean

    if isinstance(error, TunnelgwError):
        lines = [str(problem) for problem in getattr(error, "problems", ())] or [error.text]
        status = getattr(error, "exit_code", 1)
    elif isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename is not None else ""
        hint = "; run this as root or as the owner" if isinstance(error, PermissionError) else ""
        lines, status = [f"{place}{error.strerror or error}{hint}"], 1
    else:
        hint = "this is a bug; run it again with TUNNELGW_DEBUG=1 and report what it shows"
        lines, status = [f"unexpected {type(error).__name__}: {error}; {hint}"], 1
    for line in lines:
        print(f"tunnelgw: {clean(line)}", file=sys.stderr)
    return status
