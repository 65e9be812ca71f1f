"""Asking the process that runs on a state folder, over its control socket (`tunnelgw.admin.control` is the other end).

Blocking and without asyncio, so that a command answers at once. Invariant: every wait ends at an absolute deadline.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tunnelgw.errors import LocalError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SOCKET_NAME = "control.sock"
# The largest request is a grant with a few hundred patterns.
REQUEST_LIMIT = 65536
# A status of 4,096 services on every connector stays below this.
RESPONSE_LIMIT = 64 * 1024 * 1024
# An address family limit (sun_path), less the final NUL.
_PATH_LIMIT = 107

Message = dict[str, Any]


class NotRunningError(LocalError):
    """Nothing answers on the control socket; commands that can, work on the state itself."""


def call(state_dir: Path, request: Message, *, timeout: float = 30.0) -> Message:
    """Ask the process that runs on `state_dir` and return its response.

    NotRunningError if nobody listens; LocalError with the process's own text if it refuses, or if it does not answer
    within `timeout` seconds.
    """
    path = state_dir / SOCKET_NAME
    deadline = time.monotonic() + timeout
    line = json.dumps(request).encode() + b"\n"
    if len(line) > REQUEST_LIMIT:
        raise LocalError("the request is too long for the control socket", exit_code=2)
    with explained(state_dir, timeout=timeout), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        with short_name(path) as name:
            sock.connect(name)
        sock.sendall(line)
        response = _read_line(sock, deadline)
    return checked(response)


def checked(response: Message) -> Message:
    """The response if it is one of success; LocalError with what it says otherwise."""
    if response.pop("ok", False):
        return response
    raise LocalError(str(response.get("error", "refused without a reason")), exit_code=int(response.get("exit", 1)))


@contextmanager
def explained(state_dir: Path, *, timeout: float) -> Iterator[None]:
    """What goes wrong with the control socket, as `call` says it."""
    path = state_dir / SOCKET_NAME
    try:
        yield
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
        raise NotRunningError(f"nothing runs on {state_dir}") from error
    except PermissionError as error:
        raise LocalError(f"{path}: no permission; run this as root or as the owner of {state_dir}") from error
    except TimeoutError as error:
        raise LocalError(f"the process on {state_dir} did not answer within {timeout:g} seconds") from error
    except OSError as error:
        raise LocalError(f"{path}: {error.strerror or error}") from error


def _read_line(sock: socket.socket, deadline: float) -> Message:
    """One response; its deadline is absolute."""
    buffer = bytearray()
    while not buffer.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        sock.settimeout(left)
        data = sock.recv(65536)
        if not data or len(buffer) > RESPONSE_LIMIT:
            raise LocalError("the running process closed the connection without an answer; its log says more")
        buffer += data
    response = json.loads(buffer)
    if not isinstance(response, dict):
        raise LocalError("the running process gave an answer that is not understood")
    return response


@contextmanager
def short_name(path: Path) -> Iterator[str]:
    """A name of `path` that fits into a socket address, however deep the folder lies."""
    if len(os.fsencode(path)) <= _PATH_LIMIT:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def bind_private(path: Path, kind: int) -> socket.socket:
    """A Unix socket of that kind, bound to `path` for nobody but the folder's owner. LocalError."""
    sock = socket.socket(socket.AF_UNIX, kind)
    mask = os.umask(0o177)
    try:
        with short_name(path) as name:
            sock.bind(name)
        if os.geteuid() == 0:
            owner = path.parent.stat()
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
    except OSError as error:
        sock.close()
        raise LocalError(f"{path}: cannot make this socket: {error.strerror}") from error
    finally:
        os.umask(mask)
    return sock
