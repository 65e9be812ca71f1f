"""Resolve a name and connect to the first of its addresses that answers (RFC 8305, "happy eyeballs").

Strategy: the families alternate, a new attempt starts 250 ms after the last one or as soon as it failed, the first
connected socket wins and every other one is closed. One address (the common case for a local target) is connected
without a task. Invariant: on return or error, no socket and no task of this call is left behind.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
import ssl
from typing import TYPE_CHECKING, Any

from tunnelgw.net.sockets import IPPROTO_MPTCP
from tunnelgw.net.tasks import spawn
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from concurrent.futures import Executor

STAGGER = 0.25  # RFC 8305 section 5: "Connection Attempt Delay", recommended value
ADDRESS_LIMIT = 8  # of one name: more would outlast any dial deadline

Place = tuple[int, tuple[Any, ...]]  # family, address as connect() takes it


_otherwise: Callable[[str], Awaitable[list[str]]] | None = None


def ask_otherwise(lookup: Callable[[str], Awaitable[list[str]]]) -> None:
    """Who is asked for the addresses of a name that the system does not find: in a process that may have led the
    system's questions into its own tunnel."""
    global _otherwise
    _otherwise = lookup


def literal(host: str, port: int) -> Place | None:
    """The place of a literal IP address; None if `host` is a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if address.version == 4:
        return socket.AF_INET, (host, port)
    if "%" in host:
        return None  # a zone needs getaddrinfo for its index
    return socket.AF_INET6, (host, port, 0, 0)


async def resolve(host: str, port: int, *, executor: Executor | None = None) -> list[Place]:
    """Every address of `host`, families alternating, IPv6 first as the system's order says. Raises socket.gaierror.

    executor: whose threads wait for the resolver; None: the loop's own.
    """
    place = literal(host, port)
    if place is not None:
        return [place]
    loop = asyncio.get_running_loop()
    try:
        if executor is None:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        else:
            found = await loop.run_in_executor(executor, _look_up, host, port)
    except socket.gaierror:
        known = await _otherwise(host) if _otherwise is not None else []
        places = [place for address in known if (place := literal(address, port)) is not None]
        if not places:
            raise
        return _interleaved(places)[:ADDRESS_LIMIT]
    return _interleaved([(family, address) for family, _, _, _, address in found])[:ADDRESS_LIMIT]


def _look_up(host: str, port: int) -> list[Any]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)


def _interleaved(places: list[Place]) -> list[Place]:
    if not places:
        return []
    first = [place for place in places if place[0] == places[0][0]]
    second = [place for place in places if place[0] != places[0][0]]
    mixed: list[Place] = []
    for index in range(max(len(first), len(second))):
        mixed.extend(first[index : index + 1])
        mixed.extend(second[index : index + 1])
    return mixed


def reason_of(error: OSError) -> Reason:
    """Why a dial failed: resolving, connecting or TLS."""
    if isinstance(error, ssl.SSLError):
        return Reason.TARGET_TLS
    if isinstance(error, TimeoutError):
        return Reason.TARGET_TIMEOUT
    if isinstance(error, socket.gaierror):
        return Reason.TARGET_UNRESOLVED
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        return Reason.TARGET_REFUSED
    return Reason.TARGET_UNREACHABLE


async def connect(places: Sequence[Place], *, make_socket: Callable[[int], socket.socket]) -> socket.socket:
    """A connected, non-blocking socket to the first place that answers; raises the first attempt's OSError if none."""
    if len(places) == 1:
        return await _attempt(places[0], make_socket)
    return await _Race(make_socket).run(places)


async def _attempt(place: Place, make_socket: Callable[[int], socket.socket]) -> socket.socket:
    sock, done = begin(place, make_socket)
    if not done:
        await connected(sock)
    return sock


def begin(place: Place, make_socket: Callable[[int], socket.socket]) -> tuple[socket.socket, bool]:
    """A non-blocking socket that connects, and whether it is connected already. Raises OSError.

    On this machine the whole handshake of TCP takes place within the call. A second one says so: without it every local
    target costs a turn of the loop, and a quarter of what a connector spends on a stream (measured).
    """
    family, address = place
    sock = make_socket(family)
    try:
        if sock.gettimeout() != 0.0:
            sock.setblocking(False)
        error = sock.connect_ex(address)
        if error == errno.EINPROGRESS and sock.proto != IPPROTO_MPTCP:  # kernels differ in what that says then
            error = sock.connect_ex(address)
        if error not in (0, errno.EALREADY, errno.EINPROGRESS):
            raise OSError(error, os.strerror(error))
    except BaseException:
        sock.close()
        raise
    return sock, error == 0


async def connected(sock: socket.socket) -> None:
    """Return when a socket that `begin` made is connected; closed where this raises.

    As `loop.sock_connect`, which asyncio refuses for MPTCP: it wants to resolve for the socket's protocol.
    """
    loop = asyncio.get_running_loop()
    writable: asyncio.Future[None] = loop.create_future()
    descriptor = sock.fileno()
    try:
        loop.add_writer(descriptor, _settle, writable)
        try:
            await writable
        finally:
            loop.remove_writer(descriptor)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
    except BaseException:
        sock.close()
        raise


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _Race:
    """One call's attempts. Whoever connects first stays in `winner`; later ones close their own socket."""

    __slots__ = ("_changed", "_errors", "_make_socket", "_running", "_winner")

    def __init__(self, make_socket: Callable[[int], socket.socket]) -> None:
        self._make_socket = make_socket
        self._changed = asyncio.Event()
        self._errors: list[OSError] = []
        self._running: set[asyncio.Task[None]] = set()
        self._winner: socket.socket | None = None

    async def run(self, places: Sequence[Place]) -> socket.socket:
        try:
            for place in places:
                self._changed.clear()
                self._running.add(spawn(self._try(place), name="eyeballs"))
                try:
                    async with asyncio.timeout(STAGGER):
                        await self._changed.wait()
                except TimeoutError:
                    continue
                if self._winner is not None:
                    break
            while self._winner is None and self._running:
                self._changed.clear()
                await self._changed.wait()
            if self._winner is None:
                raise self._errors[0] if self._errors else OSError("no address to connect to")
            winner, self._winner = self._winner, None
            return winner
        finally:
            for task in tuple(self._running):
                task.cancel()
            if self._winner is not None:
                self._winner.close()

    async def _try(self, place: Place) -> None:
        try:
            sock = await _attempt(place, self._make_socket)
        except OSError as error:
            self._errors.append(error)
        else:
            if self._winner is None:
                self._winner = sock
            else:
                sock.close()
        finally:
            task = asyncio.current_task()
            if task is not None:
                self._running.discard(task)
            self._changed.set()
