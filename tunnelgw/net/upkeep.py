"""Look after what is ours in this machine's network: others change networks too, and may remove it.

The kernel tells when interfaces, addresses, routes, rules (rtnetlink(7)) or tables of nftables change. What changed is
not read from that: `look` compares what is there with what should be, and mends it. What it mends is a change as well,
so it is looked at once more.

Invariants: looks never overlap; a burst of changes makes one look, and looking takes a small part of a processor
whatever the network does; a look that fails comes again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import TYPE_CHECKING

from tunnelgw.errors import LocalError
from tunnelgw.net.tasks import cancel, spawn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

SETTLE = 0.2  # seconds from a change to the look at it: what belongs to it comes by then
AGAIN = 5.0  # and to another look: DHCP writes name servers after it set addresses
SHARE = 10  # a look that took a second is the last one for so many seconds
READS = 64  # in one turn of the loop
# linux/rtnetlink.h: LINK, and of both families IFADDR, ROUTE and RULE
_ROUTING = sum(1 << number - 1 for number in (1, 5, 9, 7, 11, 8, 19))
_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
_TABLES = 1 << 7 - 1  # linux/netfilter/nfnetlink.h: NFNLGRP_NFTABLES


class Upkeep:
    """Calls `look` after changes, from `start` to `close`. Its `LocalError` is logged."""

    __slots__ = ("_due", "_later", "_look", "_loop", "_missed", "_next", "_sockets", "_task")

    def __init__(self, look: Callable[[], Awaitable[None]]) -> None:
        self._look = look
        self._loop = asyncio.get_running_loop()
        self._sockets: list[socket.socket] = []
        self._next = 0.0  # no look before
        self._due: asyncio.TimerHandle | None = None
        self._later: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._missed = False

    def start(self) -> None:
        """Listen. Idempotent. Without netlink nothing is noticed."""
        if self._sockets:
            return
        for protocol, groups in ((_NETLINK_ROUTE, _ROUTING), (_NETLINK_NETFILTER, _TABLES)):
            try:
                sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
            except OSError as error:
                log.debug("changes of the network are not told: %s", error)
                continue
            self._sockets.append(sock)
            try:
                sock.bind((0, groups))
            except OSError as error:
                log.debug("changes of the network are not told: %s", error)
            else:
                self._loop.add_reader(sock.fileno(), self._heard, sock)

    async def close(self) -> None:
        """No look is under way, and none comes. Idempotent."""
        for sock in self._sockets:
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._sockets.clear()
        for handle in (self._due, self._later):
            if handle is not None:
                handle.cancel()
        self._due = self._later = None
        task, self._task = self._task, None
        if task is not None:
            await cancel(task)

    def _heard(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):  # nothing more; or more than the kernel kept for us, which is a change too
            for _ in range(READS):
                sock.recv(65536)
        self._soon()
        self._once_more()

    def _soon(self) -> None:
        if self._due is None:
            self._due = self._loop.call_at(max(self._loop.time() + SETTLE, self._next), self._begin)

    def _once_more(self) -> None:
        if self._later is not None:
            self._later.cancel()
        self._later = self._loop.call_later(AGAIN, self._soon)

    def _begin(self) -> None:
        self._due = None
        if self._task is None:
            self._task = spawn(self._run(), name="look after the network")
        else:
            self._missed = True

    async def _run(self) -> None:
        begun = self._loop.time()
        try:
            await self._look()
        except (LocalError, OSError) as error:
            log.error("what another program changed in this machine's network could not be mended: %s", error)
            self._once_more()
        finally:
            self._task = None
            self._next = self._loop.time() + SHARE * (self._loop.time() - begun)
        if self._missed:
            self._missed = False
            self._soon()
