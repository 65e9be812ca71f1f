"""A command's end of a temporary service: the control connection on which it asked for one, and hears of it.

Blocking, as `tunnelgw.admin.call`. Where no connector runs, one is started that serves what commands share and nothing
else, and ends with the last of them; the command itself is the same in both cases.

Invariant: the connector withdraws the service when this connection ends, however this process did.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Self

from tunnelgw.admin.call import (
    REQUEST_LIMIT,
    SOCKET_NAME,
    Message,
    NotRunningError,
    call,
    checked,
    explained,
    short_name,
)
from tunnelgw.errors import LocalError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FIRST_SECONDS = 60.0  # until the edge has said yes or no; the connector gives up before
STOP_SECONDS = 15.0
SIGNAL_SECONDS = 1.0  # a signal that comes just before a blocking read does not end it: seen after this time at most


class Lease:
    """`lines` is what the connector says; the service ends with `close`."""

    def __init__(self, state_dir: Path, request: Message) -> None:
        """Ask. NotRunningError if no connector listens; LocalError."""
        line = json.dumps(request).encode() + b"\n"
        if len(line) > REQUEST_LIMIT:
            raise LocalError("this is too long for the control socket", exit_code=2)
        self._state_dir = state_dir
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with explained(state_dir, timeout=FIRST_SECONDS):
                self._sock.settimeout(FIRST_SECONDS)
                with short_name(state_dir / SOCKET_NAME) as name:
                    self._sock.connect(name)
                self._sock.sendall(line)
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def lines(self) -> Iterator[Message]:
        """Events, and last the response (which has no "event"). LocalError with the connector's own text."""
        buffer, shared = bytearray(), False
        while True:
            with explained(self._state_dir, timeout=FIRST_SECONDS):
                try:
                    data = self._sock.recv(65536)
                except TimeoutError:
                    if not shared:
                        raise
                    continue  # from now on it says something when there is something
            if not data:
                raise LocalError("the connector ended, and what was shared with it")
            buffer += data
            *lines, rest = bytes(buffer).split(b"\n")
            buffer = bytearray(rest)
            for line in lines:
                message = json.loads(line)
                if "event" in message:
                    self._sock.settimeout(SIGNAL_SECONDS)
                    shared = True
                    yield message
                else:
                    yield checked(message)
                    return

    def close(self) -> None:
        """Share it no longer; returns when the connector has taken note."""
        with suppress(OSError):
            self._sock.settimeout(STOP_SECONDS)
            self._sock.shutdown(socket.SHUT_WR)
            while self._sock.recv(65536):
                pass
        self._sock.close()


class OwnConnector:
    """A connector for what commands share alone, in a process of its own: it outlives its command for a moment."""

    def __init__(self, config: Path, state_dir: Path) -> None:
        """Start it; returns when it can be asked. LocalError with what it said instead."""
        self._state_dir = state_dir
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - for as long as the process
        # A session of its own: Ctrl-C is for the command, and it withdraws in order.
        self._process = subprocess.Popen(
            [sys.executable, "-Pm", "tunnelgw.admin.lone", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        try:
            with self._process.stdout as said:
                ready = said.readline().strip() == b"ready"
        except BaseException:
            self._process.terminate()
            raise
        if not ready:
            status = self._process.wait()
            raise LocalError(self.last_words() or "the connector did not start", exit_code=2 if status == 2 else 1)

    def last_words(self) -> str:
        """The last line of what it wrote."""
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1].removeprefix("tunnelgw: ") if lines else ""

    def wait(self) -> None:
        """Until it has ended, which it does after the last command: not waited for while others share something."""
        if not self._in_use():
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        self._errors.close()

    def _in_use(self) -> bool:
        try:
            status = call(self._state_dir, {"command": "status"}, timeout=STOP_SECONDS)["status"]
        except LocalError:
            return False  # it is about to end
        return any(service.get("temporary") for service in status["services"])


def share(config: Path, state_dir: Path, request: Message) -> tuple[Lease, OwnConnector | None]:
    """Ask the connector that runs; start one where none does. LocalError."""
    with suppress(NotRunningError):
        return Lease(state_dir, request), None
    try:
        own = OwnConnector(config, state_dir)
    except LocalError:
        with suppress(NotRunningError):
            return Lease(state_dir, request), None  # somebody else started one at the same moment
        raise
    return Lease(state_dir, request), own
