"""The control socket: how commands talk to the running edge or connector on the same machine.

`state_dir/control.sock`, mode 0600, one JSON object a line: a request `{"command": …}` is answered by
`{"ok": true, …}` or `{"ok": false, "error": one line, "exit": 1 or 2}`.

Commands of the edge (see `tunnelgw.admin.api` for the exact keys):
    status   {}                                    -> {"status": {…}}
    invite   {"name", "role", "allow": {…}, "ttl"} -> {"invitation": "tgw1_…", "messages": […]}
    grant    {"name", "allow": {…}}                -> {"messages": […]}
    revoke   {"name"}                              -> {"messages": […]}
    reload   {}                                    -> {"messages": […]}
    restore  {"staged": folder in state_dir}       -> {}                (see `tunnelgw.admin.restore`)
    certificate {"action", "host", "reason"}       -> {"certificates": […]} or {"messages": […]}
    upgrade  {"notify": the asker's NOTIFY_SOCKET} -> {"pid", …}        (see `tunnelgw.admin.upgrade`)
Commands of the connector:
    status   {}                                    -> {"status": {…}}
    reload   {}                                    -> {"messages": […]}
    claim    {"name", "timeout"}                   -> {"state": "accepted", "addresses": […]}
             waits for the edge's answer to what the file now says about a service
                                                   |  {"state": "refused", "reason", "message", "hint"}
                                                   |  {"state": "partly"}    (with what the two above have)
                                                   |  {"state": "gone"}      (the service is no longer offered)
                                                   |  {"state": "waiting", "message"}   (no answer in time)
    share    {"name", "service": {…}, "users", "seconds"}  (see `tunnelgw.connector.temporary`)
             serves one more service for as long as this connection; lines with "event" come before the response

Invariant: only root, the process's own user and the owner of the folder are listened to; a request line is at most
64 KiB; a peer that sends junk or leaves costs nothing but its own connection.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any, cast

from tunnelgw.admin.call import REQUEST_LIMIT, SOCKET_NAME, Message, NotRunningError, bind_private, call, short_name
from tunnelgw.errors import LocalError, TunnelgwError
from tunnelgw.net.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    Say = Callable[[Message], bool]

__all__ = ["ControlServer", "Message", "NotRunningError", "call"]

log = logging.getLogger(__name__)

UNREAD_BYTES = 64 * 1024  # of events that wait for a command which was stopped (Ctrl-Z)
# From Python 3.13 on a server that is closed removes its file, unless it is told not to: it may be another process's.
_KEEP_FILE: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}


class ControlServer:
    """Listens on the control socket and hands each request to `handler`, one at a time per connection.

    What `handler` returns is sent with `"ok": true`; a TunnelgwError becomes `"ok": false` with its text. `leases`, by
    command, may say more before they return, and are cancelled when the peer leaves.
    """

    def __init__(
        self,
        state_dir: Path,
        handler: Callable[[Message], Awaitable[Message]],
        *,
        leases: Mapping[str, Callable[[Message, Say], Awaitable[Message]]] | None = None,
    ) -> None:
        self._state_dir = state_dir
        self._handler = handler
        self._leases = leases or {}
        self._server: asyncio.Server | None = None
        self.listener: socket.socket | None = None
        self._uids = {0, os.geteuid()}
        self.connections: set[_Connection] = set()

    async def start(self, listener: socket.socket | None = None) -> None:
        """Listen: on the socket that the process before this one had, or on a new one.

        LocalError if another process answers there.
        """
        self._uids.add(self._state_dir.stat().st_uid)
        sock = self._bind() if listener is None else listener
        sock.setblocking(False)
        self.listener = sock
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Connection(self), sock=sock, backlog=64, **_KEEP_FILE)

    def _bind(self) -> socket.socket:
        path = self._state_dir / SOCKET_NAME
        with short_name(path) as name:
            _remove_stale(path, name)
        return bind_private(path, socket.SOCK_STREAM)

    def release(self) -> None:
        """Another process listens on this socket now: commands under way are answered, the file stays."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    async def close(self) -> None:
        """Stop listening, cut what is open, remove the socket if it is ours."""
        ours = self._server is not None
        self.release()
        for connection in list(self.connections):
            connection.close()
        if ours:
            (self._state_dir / SOCKET_NAME).unlink(missing_ok=True)

    def trusts(self, sock: socket.socket) -> bool:
        """True if the kernel says that the peer is somebody who could replace this process anyway."""
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return struct.unpack("3i", credentials)[1] in self._uids

    async def answer(self, line: bytes, say: Say) -> Message:
        """The response to one request line; never raises but for cancellation."""
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return {"ok": False, "error": "the request is not JSON", "exit": 1}
        if not isinstance(request, dict) or not isinstance(request.get("command"), str):
            return {"ok": False, "error": "the request names no command", "exit": 1}
        try:
            lease = self._leases.get(request["command"])
            return {"ok": True, **await (self._handler(request) if lease is None else lease(request, say))}
        except TunnelgwError as error:
            return {"ok": False, "error": error.text, "exit": getattr(error, "exit_code", 1)}
        except Exception:
            log.exception("control command %s failed", request["command"])
            return {"ok": False, "error": "an internal error; the log of the running process says more", "exit": 1}


class _Connection(asyncio.Protocol):
    """One peer: requests are answered in order; a line above the limit or a foreign user ends it."""

    __slots__ = ("_buffer", "_server", "_task", "_transport")

    def __init__(self, server: ControlServer) -> None:
        self._server = server
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        if not self._server.trusts(transport.get_extra_info("socket")):
            log.warning("control socket: a foreign user was refused")
            stream.abort()
            return
        self._transport = stream
        self._server.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._transport is None:
            return
        self._buffer += data
        if len(self._buffer) > REQUEST_LIMIT:
            self._transport.abort()
        elif self._task is None:
            self._next()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._transport = None
        self._server.connections.discard(self)
        if self._task is not None:
            self._task.cancel()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _next(self) -> None:
        line, newline, rest = self._buffer.partition(b"\n")
        if newline:
            self._buffer = rest
            self._task = spawn(self._serve(bytes(line)), name="control request")

    async def _serve(self, line: bytes) -> None:
        response = await self._server.answer(line, self._say)
        self._task = None
        if self._transport is not None:
            self._transport.write(json.dumps(response).encode() + b"\n")
            self._next()

    def _say(self, event: Message) -> bool:
        """A line before the response; False if the peer does not read, and it was left out."""
        transport = self._transport
        if transport is None or transport.get_write_buffer_size() > UNREAD_BYTES:
            return False
        transport.write(json.dumps(event).encode() + b"\n")
        return True


def _remove_stale(path: Path, name: str) -> None:
    """Remove a socket that a dead process left; LocalError if a living one answers on it."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.settimeout(1.0)
    try:
        probe.connect(name)
    except FileNotFoundError:
        return
    except OSError:
        path.unlink(missing_ok=True)
        return
    finally:
        probe.close()
    raise LocalError(f"another process already runs on {path.parent}; stop it first")
