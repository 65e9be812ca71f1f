"""`python -m tunnelgw.admin.worker CONFIG DESCRIPTOR`: one worker of an edge; only its supervisor starts it."""

from __future__ import annotations

import sys
from pathlib import Path

from tunnelgw.admin.edge import run_worker
from tunnelgw.errors import TunnelgwError
from tunnelgw.obs import log

if __name__ == "__main__":
    log.setup()
    try:
        run_worker(Path(sys.argv[1]), int(sys.argv[2]))
    except TunnelgwError as error:
        sys.exit(f"tunnelgw: {error.text}")
