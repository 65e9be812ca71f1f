"""Dialling out for a visitor: at a connector into its networks, and at an exit into the internet.

Strategy: a name is resolved here and once; every address that it has is checked, and exactly one of those that passed
is dialled, by number. So a name that means something else a moment later (DNS rebinding) leads nowhere new. Errors say
what a proxy has to answer: `Refused` is policy, `OriginError` the target's.

Invariant: no packet leaves for an address that the policy has not passed; no socket of a dial that failed is left.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import TYPE_CHECKING

from tunnelgw.access.reach import parse_host
from tunnelgw.errors import OriginError, Refused
from tunnelgw.net import eyeballs, sockets
from tunnelgw.net.loop import adopt
from tunnelgw.net.route import is_near, is_own
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from tunnelgw.access.reach import Address, Policy
    from tunnelgw.net.eyeballs import Place

DIAL_SECONDS = 10.0  # resolving and connecting; a browser's own patience is longer


class Egress:
    """The way out for one visitor. `policy` may be replaced: what is dialled from then on obeys the new one.

    `refused` is told of each refusal: who counts and logs it is the owner's business. `executor`: whose threads wait
    for the resolver (see `lookups.py`).
    """

    __slots__ = ("_executor", "_refused", "policy")

    def __init__(
        self,
        policy: Policy,
        *,
        refused: Callable[[Refused], None] | None = None,
        executor: Executor | None = None,
    ) -> None:
        self.policy = policy
        self._refused = refused
        self._executor = executor

    async def connect(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> asyncio.Transport:
        """A TCP connection, given to the protocol that `factory` makes. Raises `Refused`, `OriginError`."""
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                places = await self.resolve(host, port)
                sock = await eyeballs.connect(places, make_socket=_stream_socket)
        except OSError as error:
            raise failed(host, port, error) from error
        return await adopt(sock, factory())

    async def resolve(self, host: str, port: int) -> list[Place]:
        """The places of `host` that may be reached, at least one. Raises `Refused`, and OSError of the resolver."""
        found = self._parsed(host)
        if not isinstance(found, str):
            return [self.place(found, port)]
        passed: list[Place] = []
        why: Refused | None = None
        for family, address in await eyeballs.resolve(found, port, executor=self._executor):
            try:
                self._check(_address(address[0]), port)
            except Refused as error:
                why = why or error
            else:
                passed.append((family, address))
        if not passed:
            if why is None:
                raise OSError("it has no address")
            raise self._told(why)
        return passed

    def place(self, address: Address, port: int) -> Place:
        """An address that may be reached, as connect() and sendto() take it. Raises `Refused`."""
        try:
            self._check(address, port)
        except Refused as error:
            raise self._told(error) from None
        if isinstance(address, ipaddress.IPv6Address):
            return socket.AF_INET6, (str(address), port, 0, 0)
        return socket.AF_INET, (str(address), port)

    def _parsed(self, host: str) -> Address | str:
        try:
            return parse_host(host)
        except ValueError as error:
            raise self._told(Refused(str(error), reason=Reason.ADDRESS_REFUSED)) from None

    def _check(self, address: Address, port: int) -> None:
        self.policy.check(address, port, is_own=is_own, is_near=is_near)

    def _told(self, error: Refused) -> Refused:
        if self._refused is not None:
            self._refused(error)
        return error


def failed(host: str, port: int, error: OSError) -> OriginError:
    """A dial's error with what a proxy has to answer."""
    words = "no answer in time" if isinstance(error, TimeoutError) else error.strerror or str(error)
    return OriginError(f"{host} port {port}: {words}", reason=eyeballs.reason_of(error))


def _address(text: str) -> Address:
    return ipaddress.ip_address(text)


def _stream_socket(family: int) -> socket.socket:
    sock = sockets.stream_socket(family)
    sockets.no_delay(sock)
    # An idle ssh whose target lost power ends after some hours instead of never.
    sockets.option(sock, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return sock
