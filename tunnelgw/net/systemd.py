"""Tell systemd how the service is doing (sd_notify, a datagram to $NOTIFY_SOCKET). Without systemd: nothing happens.

Source: sd_notify(3). Invariant: never raises and never blocks; a service must not fail because its manager went away.
"""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)


def notify(state: str) -> bool:
    """Send assignments such as "READY=1\\nSTATUS=serving"; True if somebody was there to take them."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    path = "\0" + address[1:] if address[0] == "@" else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode(), path)
        except OSError as error:
            log.debug("systemd was not notified: %s", error)
            return False
    return True


def ready(status: str) -> bool:
    """The service serves; `status` is what `systemctl status` shows."""
    return notify(f"READY=1\nSTATUS={_line(status)}")


def status(text: str) -> bool:
    """What `systemctl status` shows."""
    return notify(f"STATUS={_line(text)}")


def stopping() -> bool:
    """The service begins to stop."""
    return notify("STOPPING=1\nSTATUS=stopping")


def replaced_by(pid: int) -> bool:
    """Another process is the service from now on, in this one's control group; systemd believes it of the old one."""
    return pid > 0 and notify(f"MAINPID={pid}")


def _line(text: str) -> str:
    return text.replace("\n", " ")
