"""Where UDP targets are: names looked up, and a connected socket made.

A visitor of a DNS service makes a flow for each question, so a name is looked up once for all that come within
`REMEMBERED_SECONDS` (containers move, but not so fast); an address costs no look-up at all.

Invariant: a cloud metadata address is never sent to, whatever a name resolves to.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING

from tunnelgw.access.reach import is_metadata
from tunnelgw.connector.origins import DIAL_SECONDS
from tunnelgw.net import eyeballs
from tunnelgw.net.sockets import option
from tunnelgw.net.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.net.eyeballs import Place

    Then = Callable[[list[Place] | OSError], None]

REMEMBERED_SECONDS = 5.0
REMEMBERED_MOST = 2048  # names and ports: more than services can have at once; all are forgotten together
# What a target may say while the loop is busy, and the kernel's limit: a whole burst of a video or a download.
BUFFER_BYTES = 1 << 20


class UdpTargets:
    """Input: `find` and `turn`."""

    __slots__ = ("_asking", "_found")

    def __init__(self) -> None:
        self._found: dict[tuple[str, int], tuple[float, list[Place]]] = {}  # until when, and where
        self._asking: dict[tuple[str, int], list[Then]] = {}

    def find(self, host: str, port: int, then: Then) -> None:
        """Call `then` with the places of a target, at once where they are known, or with what went wrong."""
        literal = eyeballs.literal(host, port)
        if literal is not None:
            then([literal])
            return
        until, places = self._found.get((host, port), (0.0, []))
        if asyncio.get_running_loop().time() < until:
            then(places)
            return
        waiting = self._asking.get((host, port))
        if waiting is not None:
            waiting.append(then)
            return
        self._asking[host, port] = [then]
        spawn(self._look_up(host, port), name="look up a udp target")

    def turn(self, host: str, port: int) -> None:
        """The first place refused: begin with the next one from now on (`localhost` may mean either family)."""
        _, places = self._found.get((host, port), (0.0, []))
        if places:
            places.append(places.pop(0))

    async def _look_up(self, host: str, port: int) -> None:
        found: list[Place] | OSError
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                found = await eyeballs.resolve(host, port)
        except OSError as error:  # TimeoutError is one
            found = error
        else:
            if len(self._found) >= REMEMBERED_MOST:
                self._found.clear()
            _, before = self._found.get((host, port), (0.0, []))
            if sorted(before) == sorted(found):
                found = before  # in the order in which they were found to answer
            self._found[host, port] = (asyncio.get_running_loop().time() + REMEMBERED_SECONDS, found)
        for then in self._asking.pop((host, port)):
            then(found)


def elsewhere(sock: socket.socket, places: list[Place]) -> bool:
    """Whether a new socket to one of these places would lead elsewhere, or come from another address of ours."""
    try:
        peer = sock.getpeername()
        here = [place for place in places if place[1][:2] == peer[:2]]
        with connected(here or places) as new:
            return (new.getpeername()[:2], new.getsockname()[0]) != (peer[:2], sock.getsockname()[0])
    except OSError:  # nothing better is known
        return False


def connected(places: list[Place]) -> socket.socket:
    """A socket to the first of these places that has a route. Raises OSError."""
    trouble = OSError(errno.EADDRNOTAVAIL, "no address")
    for family, address in places:
        if is_metadata(address[0]):
            trouble = OSError(errno.EACCES, "a cloud metadata address is never a target")
            continue
        sock: socket.socket | None = None
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            option(sock, socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            sock.connect(address)
        except OSError as error:
            trouble = error
            if sock is not None:
                sock.close()
        else:
            return sock
    raise trouble
