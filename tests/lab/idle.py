"""Visitors that come, say nothing, and stay: `python -m tests.lab.idle HOST PORT SOURCE COUNT`.

Each makes its TLS handshake from the address SOURCE. Prints how many got through it, then stays until SIGTERM.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys

from tests.lab.clients import trusting

SECONDS = 20.0  # for a handshake


def main() -> None:
    host, port, source, count = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    context, kept = trusting("http/1.1"), []
    for _ in range(count):
        with contextlib.suppress(OSError):
            sock = socket.create_connection((host, port), timeout=SECONDS, source_address=(source, 0))
            kept.append(context.wrap_socket(sock, server_hostname=host))
    print(f"{len(kept)} are in", flush=True)
    signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main()
