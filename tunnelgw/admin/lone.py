"""`python -m tunnelgw.admin.lone CONFIG`: a connector for what commands share; `tunnelgw.admin.lease` starts it."""

from __future__ import annotations

import logging
import sys

from tunnelgw.admin.run import run_alone
from tunnelgw.config.load import load_connector
from tunnelgw.errors import TunnelgwError
from tunnelgw.obs import log

if __name__ == "__main__":
    log.setup()
    logging.getLogger().setLevel(logging.WARNING)  # it is read only when something is wrong
    try:
        run_alone(load_connector(sys.argv[1]))
    except TunnelgwError as error:
        print(f"tunnelgw: {error.text}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
