"""A SOCKS server for this machine's programs: what they connect to is connected from the far side.

Strategy: one protocol object per connection, with one deadline for the whole greeting; the only task is the one that
waits for the far side. Then two halves of a relay take over the connection. Names are never resolved here.
CONNECT of versions 4, 4a and 5, and UDP ASSOCIATE of version 5 without fragments; BIND is refused.

Invariant: a head is bounded, and what comes after it is left to the kernel until the far side has connected; when
either side ends, nothing of the other is left.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tunnelgw.errors import RemoteError, TunnelgwError
from tunnelgw.net.relay import Half
from tunnelgw.net.tasks import spawn
from tunnelgw.visitor import sockswire as wire
from tunnelgw.visitor.association import Association
from tunnelgw.visitor.local import LocalClient, LocalServer, knows
from tunnelgw.visitor.sockswire import SocksError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tunnelgw.obs.reasons import Reason
    from tunnelgw.visitor.reach import Reach
    from tunnelgw.visitor.sockswire import Request


def socks_server(reach: Reach, *, users: Mapping[bytes, bytes] | None = None, most: int = 0) -> LocalServer:
    """A server for `reach`. users: passwords by name; None: nobody is asked."""
    options = {"most": most} if most else {}
    return LocalServer(lambda server: SocksClient(server, reach, users), **options)


class SocksClient(LocalClient):
    """One connection until it is handed over, or for as long as its association lives."""

    __slots__ = ("_association", "_head", "_request", "_step", "_users")

    def __init__(self, server: LocalServer, reach: Reach, users: Mapping[bytes, bytes] | None) -> None:
        super().__init__(server, reach)
        self._users = users
        self._head = b""
        self._step: Callable[[bytes], int] | None = self._begin
        self._request: Request | None = None
        self._association: Association | None = None

    # What the transport calls.

    def data_received(self, data: bytes) -> None:
        if self._step is None:
            return  # an association's connection says nothing more, it only ends; a CONNECT's is not read
        self._head += data
        try:
            while self._step is not None and self._head:
                used = self._step(self._head)
                if not used:
                    if len(self._head) > wire.HEAD_MAX:
                        raise RemoteError("a SOCKS message is too long")
                    return
                self._head = self._head[used:]
        except SocksError as error:
            self._answer(error.code)
        except RemoteError:
            self.stop()

    def on_deadline(self, now: float) -> None:
        """The head did not come in time."""
        del now
        self.stop()

    # The greeting.

    def _begin(self, head: bytes) -> int:
        """Which version it is; uses nothing."""
        self._step = self._request4 if head[:1] == b"\x04" else self._greeting
        return self._step(head)

    def _greeting(self, head: bytes) -> int:
        found = wire.read_greeting(head)
        if found is None:
            return 0
        methods, end = found
        wanted = wire.NO_LOGIN if self._users is None else wire.LOGIN
        if wanted not in methods:
            self._write(b"\x05%c" % wire.NO_METHOD)
            self._close()
            return end
        self._write(b"\x05%c" % wanted)
        self._step = self._request5 if self._users is None else self._login
        return end

    def _login(self, head: bytes) -> int:
        found = wire.read_login(head)
        if found is None:
            return 0
        name, password, end = found
        assert self._users is not None
        good = knows(self._users, name, password)
        self._write(b"\x01\x00" if good else b"\x01\x01")
        if good:
            self._step = self._request5
        else:
            self._close()
        return end

    def _request5(self, head: bytes) -> int:
        found = wire.read_request(head)
        return self._asked(*found) if found is not None else 0

    def _request4(self, head: bytes) -> int:
        if self._users is not None:
            raise RemoteError("SOCKS 4 has no password")
        found = wire.read_request4(head)
        return self._asked(*found) if found is not None else 0

    def _asked(self, request: Request, end: int) -> int:
        self._request = request
        self._step = None
        self._server.wheel.arm(self, math.inf)
        transport = self._transport
        assert transport is not None
        if request.command == wire.ASSOCIATE and request.version == 5:
            self._task = spawn(self._associate(request), name="socks associate")
        elif request.command != wire.CONNECT:
            raise SocksError(f"command {request.command}", wire.NO_COMMAND)
        elif not request.port:
            raise SocksError("port 0", wire.NOT_ALLOWED)
        else:
            transport.pause_reading()
            self._far = far = Half(made=self._connected)
            self._dial(far, request.host, request.port)
        return end

    # What was asked for.

    def _failed(self, reason: Reason) -> None:
        self._answer(wire.code_for(reason))

    def _connected(self, far: Half) -> None:
        head, self._head = self._head, b""
        self._hand_over(far, wire.reply(self._request, wire.GRANTED), head)

    async def _associate(self, request: Request) -> None:
        transport = self._transport
        if transport is None:
            return
        here, client = transport.get_extra_info("sockname")[0], transport.get_extra_info("peername")[0]
        self._association = association = Association(client, request.port, self.stop)
        try:
            port = await association.open(self._reach, here)
        except TunnelgwError as error:
            self._server.note("UDP", error)
            self._answer(wire.code_for(error.reason))
        except OSError as error:
            self._server.note("UDP", error)
            self._answer(wire.FAILED)
        else:
            self._write(wire.reply(request, wire.GRANTED, here, port))
        finally:
            self._task = None

    # The end.

    def _answer(self, code: int) -> None:
        self._write(wire.reply(self._request, code))
        self._close()

    def _close(self) -> None:
        self._step = None
        if self._transport is not None:
            self._transport.close()

    def _end(self) -> None:
        self._step = None
        self._head = b""
        association, self._association = self._association, None
        if association is not None:
            association.close()
        super()._end()
