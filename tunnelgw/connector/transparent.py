"""`transparent = true`: targets on this machine see the visitor's own address as that of the connection.

What that needs of the machine is set up when the first service wants it and stays until the connector ends: streams
that are open need it too. A note in `state_dir` says so from before the first change until after the last one is
undone; whoever finds one at its start cleans up after a connector that was killed.

Invariants: `tcp_fwmark_accept` is as it was found once the connector has ended, or once the next one has begun; two
connectors of one machine (network namespace) never undo each other's.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import socket
from typing import TYPE_CHECKING

from tunnelgw.errors import LocalError
from tunnelgw.net import marked
from tunnelgw.net.route import is_own

if TYPE_CHECKING:
    from pathlib import Path

    from tunnelgw.config.model import ConnectorConfig

log = logging.getLogger(__name__)

NOTE = "transparent"  # in state_dir; holds what tcp_fwmark_accept was
# In the abstract namespace: it belongs to the network namespace, as routes do, and is gone with the process.
_ONE = "\0tunnelgw transparent"
_THIS_NETWORK, _RESERVED = ipaddress.ip_network("0.0.0.0/8"), ipaddress.ip_network("240.0.0.0/4")
_ADVICE = "run the connector as root or with CAP_NET_ADMIN (see docs/transparent.md), or use proxy_protocol"


class Transparency:
    """Inputs: `begin` with the first configuration, `keep` with each further one, `close` at the end."""

    def __init__(self, state_dir: Path) -> None:
        self._note = state_dir / NOTE
        self._one: socket.socket | None = None

    def begin(self, config: ConnectorConfig) -> None:
        """Clean up after a connector that was killed, then as `keep`."""
        self.clean()
        self.keep(config)

    def clean(self) -> None:
        """Undo what a connector left that was killed. What cannot be undone is in the log, and is in nobody's way."""
        if not self._note.exists() or not self._take():
            return
        try:
            self._undo()
            log.info("removed the routing of a connector that was killed")
        except OSError as error:
            log.warning("the routing of a connector that was killed stays (%s): only marked packets meet it", error)
        self._give_back()

    def keep(self, config: ConnectorConfig) -> None:
        """See that transparent services work. LocalError, and then nothing has changed."""
        names = [service.name for service in config.services if service.transparent]
        if not names or self._one is not None:
            return
        if not self._take():
            raise LocalError(
                "transparent: another connector of this machine uses it; let one connector serve all of it"
            )
        try:
            self._set_up()
        except OSError as error:
            with contextlib.suppress(OSError):
                self._undo()
            self._give_back()
            denied = error.errno in (errno.EPERM, errno.EACCES, errno.EROFS)
            why = _ADVICE if denied else "this kernel cannot do it; use proxy_protocol"
            raise LocalError(f"services.{names[0]}.transparent: {error.strerror or error}; {why}") from error

    def close(self) -> None:
        """Leave the machine as it was found. Idempotent."""
        if self._one is None:
            return
        try:
            self._undo()
        except OSError as error:
            log.error("transparent: the routing could not be removed: %s", error)
        self._give_back()

    def _take(self) -> bool:
        one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            one.bind(_ONE)
        except OSError:
            one.close()
            return False
        self._one = one
        return True

    def _give_back(self) -> None:
        if self._one is not None:
            self._one.close()
            self._one = None

    def _set_up(self) -> None:
        self._probe()
        before = marked.ACCEPT.read_text(encoding="ascii").strip()
        self._note.write_text(before, encoding="ascii")
        marked.keep_here()
        if before != "1":
            marked.ACCEPT.write_text("1", encoding="ascii")
        log.info("transparent: packets with mark %#x stay on this machine (table %d)", marked.MARK, marked.TABLE)

    def _probe(self) -> None:
        """Whether sockets may do it, too: a documentation address (RFC 5737), which nobody is asked for."""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            marked.bind_as(sock, "192.0.2.1", 0)

    def _undo(self) -> None:
        marked.let_go()
        try:
            before = self._note.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return
        if before == "0" and marked.accepts_marks():
            marked.ACCEPT.write_text(before, encoding="ascii")
        self._note.unlink(missing_ok=True)


def address_to_show(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The visitor's address as a target may see it; `ValueError` for one that no visitor can come from.

    Programs trust connections from their own machine: an edge must not be able to say that a visitor is one of those.
    """
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or ipaddress.IPv6Address(address.packed)
    if (
        address.is_loopback
        or address.is_unspecified
        or address.is_multicast
        or address.is_link_local
        or address in _THIS_NETWORK
        or address in _RESERVED
        or is_own(address)  # of its network cards, too: `samehost` of PostgreSQL, `mynetworks` of Postfix
    ):
        raise ValueError(f"{address} is no visitor's address")
    return address
