"""Restores a backup again and again, each time in a child that is killed one step further; a process of its own.

    python -m tests.admin.killed EDGE.TOML NEW.BACKUP OLD.BACKUP

Prints for each step whether the state afterwards was the old or the new one; ends at the first child that was not
killed. One process for all of them, since starting Python takes ten times as long as a restore.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.admin.edge_state import contents
from tunnelgw.admin import restore
from tunnelgw.config.load import load_edge
from tunnelgw.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable

CALLS = ("rename", "mkdir", "unlink", "rmdir", "link")  # what changes names; what is in files is SQLite's


def counting(steps: int) -> None:
    """From now on this process kills itself instead of taking step number `steps`."""
    left = steps

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return real(*arguments, **options)

        return call

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    SqliteStore.replace_all = counted(SqliteStore.replace_all)  # type: ignore[method-assign]


def run(config_file: str, source: str, steps: int = -1) -> int:
    """A restore in a child; its wait status."""
    child = os.fork()
    if not child:
        config = load_edge(config_file)
        if steps >= 0:
            counting(steps)
        with restore.staged(config, Path(source)) as staged:
            restore.apply(config.state_dir, staged.folder.name)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def main(config_file: str, new_file: str, old_file: str) -> None:
    config = load_edge(config_file)
    assert run(config_file, new_file) == 0
    new = contents(config)
    assert run(config_file, old_file) == 0
    old = contents(config)
    for steps in range(1000):
        status = run(config_file, new_file, steps)
        restore.finish(config.state_dir)
        found = contents(config)
        print("new" if found == new else "old" if found == old else "mixed", flush=True)
        if status == 0:
            return
        assert status == signal.SIGKILL
        if found == new:
            assert run(config_file, old_file) == 0
    raise AssertionError("a restore does not take a thousand steps")


if __name__ == "__main__":
    main(*sys.argv[1:])
