"""Commands on the VPS: edge backup, edge restore."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tunnelgw.admin.call import NotRunningError, call
from tunnelgw.cli.common import edge_config, option, say
from tunnelgw.config.paths import EDGE, config_path
from tunnelgw.errors import LocalError

if TYPE_CHECKING:
    from argparse import Namespace

    from tunnelgw.config.model import EdgeConfig

# Copying folders to a slow disk; the running edge does it beside its visitors.
_RESTORE_SECONDS = 120.0


def backup(arguments: Namespace) -> int:
    """One file with everything, while the edge runs or not."""
    from tunnelgw.admin.backup import write_backup
    from tunnelgw.admin.restore import PENDING
    from tunnelgw.admin.setup import open_state

    config = edge_config(arguments.config)
    if (config.state_dir / PENDING).exists():
        if _running(config):
            raise LocalError("a restore is not complete; restart the edge to finish it, then make the backup")
        open_state(config.state_dir).close()
    made = write_backup(config, Path(arguments.file).absolute(), force=arguments.force)
    say(
        f"wrote {made['file']} ({made['bytes']} bytes)",
        "it holds the private keys of this edge: whoever has it can pose as the edge; keep it like a key",
    )
    if arguments.json:
        print(json.dumps(made, indent=2))
    return 0


def restore(arguments: Namespace) -> int:
    """Put a backup into force; the running edge takes it over live."""
    from tunnelgw.admin.backup import read_backup
    from tunnelgw.admin.restore import apply, staged

    source = Path(arguments.file).absolute()
    found = read_backup(source)
    path = config_path(EDGE, arguments.config)
    made = not path.exists()
    if made:
        _write_config(path, found.config)
    try:
        config = edge_config(str(path))
        with staged(config, source) as ready:
            try:
                call(config.state_dir, {"command": "restore", "staged": ready.folder.name}, timeout=_RESTORE_SECONDS)
                running = True
            except NotRunningError:
                apply(config.state_dir, ready.folder.name)
                running = False
    except LocalError:
        if made:
            path.unlink(missing_ok=True)
        raise
    if made:
        say(f"wrote {path}")
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(found.created))
    say(f"wrote {config.state_dir}: the state of {found.domain} of {when}; connectors: {_listed(ready.connectors)}")
    if found.domain != config.domain:
        say(f"note: the backup is of {found.domain}, and {path} says {config.domain}")
    if ready.kept_revoked:
        say(f"revoked since, and still: {_listed(ready.kept_revoked)}")
    if ready.previous is not None:
        say(f"the state before is in {ready.previous}; restore that to undo this, or delete it: it holds keys")
    say("unused invitations of then are cancelled; invite again where one is needed")
    say("the running edge uses it" if running else f"start it: tunnelgw edge run{option(path, EDGE)}")
    if arguments.json:
        print(json.dumps({
            "file": str(source), "state_dir": str(config.state_dir), "domain": found.domain, "created": found.created,
            "connectors": ready.connectors, "kept_revoked": ready.kept_revoked, "running": running,
            "previous": str(ready.previous) if ready.previous else None,
        }, indent=2))  # fmt: skip
    return 0


def _running(config: EdgeConfig) -> bool:
    try:
        call(config.state_dir, {"command": "status"})
    except NotRunningError:
        return False
    return True


def _write_config(path: Path, text: str) -> None:
    """A new machine has no edge.toml yet: the backup's is used as it is."""
    from tunnelgw.config import edit

    edit.create(path, text, role=EDGE)


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"
