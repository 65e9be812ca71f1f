"""Listening sockets that systemd opened for us (socket activation, sd_listen_fds(3)).

Invariant: the variables are read once and removed, so no child process takes the descriptors for its own; a socket
that nobody asked for is closed, since a listening socket that is never accepted from makes visitors hang.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

log = logging.getLogger(__name__)

FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
# systemd passes what its socket unit lists; more than this is a broken environment.
_MAX_DESCRIPTORS = 64


def inherited() -> list[socket.socket]:
    """The TCP sockets that were passed to this process, non-blocking and close-on-exec; empty without systemd."""
    process = os.environ.pop("LISTEN_PID", "")
    count = os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if process != str(os.getpid()) or not count.isascii() or not count.isdigit():
        return []
    found = []
    for descriptor in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + min(int(count), _MAX_DESCRIPTORS)):
        os.set_inheritable(descriptor, False)
        sock = socket.socket(fileno=descriptor)
        if sock.type != socket.SOCK_STREAM or sock.family not in (socket.AF_INET, socket.AF_INET6):
            log.warning("descriptor %d from systemd is not a TCP socket: closed", descriptor)
            sock.close()
            continue
        sock.setblocking(False)
        found.append(sock)
    return found


def take(sockets: list[socket.socket], ports: Iterable[int]) -> list[socket.socket]:
    """Remove from `sockets`, and return, those on one of `ports`: who has them need not bind these ports."""
    wanted = set(ports)
    taken = [sock for sock in sockets if sock.getsockname()[1] in wanted]
    sockets[:] = [sock for sock in sockets if sock not in taken]
    return taken


def close_unused(sockets: list[socket.socket]) -> None:
    """Close what no configured address took, and say so."""
    for sock in sockets:
        log.warning("systemd listens on port %d, which is not in the configuration: closed", sock.getsockname()[1])
        sock.close()
    sockets.clear()
