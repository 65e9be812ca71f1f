"""`python -m tunnelgw` is `tunnelgw`."""

from __future__ import annotations

import sys

from tunnelgw.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
