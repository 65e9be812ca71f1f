"""The new process of an upgrade in place: it takes over from the one that runs (`upgrade.py`, which has the messages).

Invariant: until this process said `serving`, whatever goes wrong here harms nobody but this process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import TYPE_CHECKING, Any, NoReturn, Self

from tunnelgw.admin.call import NotRunningError, call, short_name
from tunnelgw.admin.listeners import Listeners
from tunnelgw.admin.upgrade import OFFER_SECONDS, SOCKET_NAME, SPEAKS, Talk
from tunnelgw.edge.app import DRAIN_SECONDS, GRACE_SECONDS
from tunnelgw.errors import LocalError
from tunnelgw.net.tasks import cancel, spawn

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from tunnelgw.admin.crew import Single, Supervised

log = logging.getLogger(__name__)

STOP_SECONDS = GRACE_SECONDS + 5.0  # for the old process to stop beside this one; systemd allows 60 in all


class Takeover:
    """The side of the new process: an asynchronous context in which the edge is made, and lives.

    `listeners` are those of the process before; `take_over`, when everything is ready on them. What goes wrong within
    the context is told to the process before, which goes on.
    """

    def __init__(self, state_dir: Path, *, stopping: asyncio.Event) -> None:
        self.listeners = Listeners()
        self.done = False
        self._state_dir = state_dir
        self._stopping = stopping
        self._talk: Talk | None = None
        self._told = False

    async def __aenter__(self) -> Self:
        """Ask for the listeners. LocalError."""
        before = self._ask()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with short_name(self._state_dir / SOCKET_NAME) as name:
                sock.connect(name)
        except OSError as error:
            sock.close()
            raise LocalError(f"{self._state_dir / SOCKET_NAME}: {error.strerror}") from error
        self._talk = Talk(sock)
        await self._hear("begin", seconds=OFFER_SECONDS, into=self.listeners)
        log.info("upgrade: taking over from process %d, version %s", before["pid"], before["version"])
        return self

    async def take_over(self, crew: Single | Supervised) -> None:
        """Everything is ready but accepting: begin when the process before lets go; then this one is the edge."""
        assert self._talk is not None
        self._talk.say("prepared")
        log.info("upgrade: ready; accepting as soon as nothing waits for a link in the process before")
        new = Listeners()
        await self._hear("go", seconds=None, into=new)
        crew.inherit(new.ports)
        self._talk.say("serving")
        if not self._talk.open:  # it took too long for the other one, which accepts again
            raise LocalError("upgrade: the process that runs did not wait until this one was ready; it goes on")
        self.done = True
        crew.accept()
        await self._wait_for_yours()
        log.info("upgrade: done; the process before ends what is in progress, within %d minutes", DRAIN_SECONDS // 60)

    async def ended(self) -> None:
        """Return when the process before has ended."""
        assert self._talk is not None
        try:
            await self._talk.hear("nothing", seconds=None)
        except LocalError:
            return

    def stop_before(self) -> None:
        """This process stops, and what is still in progress in the one before with it."""
        if self._talk is not None and self.done:
            self._told = True
            self._talk.say("stop")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        talk, self._talk = self._talk, None
        if talk is None:
            return
        if self._told:
            try:
                await talk.hear("nothing", seconds=STOP_SECONDS)
            except LocalError as what:
                log.debug("upgrade: the process before: %s", what.text)
        elif not self.done and error is not None:
            talk.say("failed", why=getattr(error, "text", "") or f"{kind.__name__ if kind else ''}: {error}")
        talk.close()

    def _ask(self) -> dict[str, Any]:
        try:
            request = {"command": "upgrade", "notify": os.environ.get("NOTIFY_SOCKET", "")}
            before = call(self._state_dir, request)
        except NotRunningError:
            raise LocalError(f"no edge runs on {self._state_dir}: start this one without --upgrade") from None
        except LocalError as error:
            if "does not know the command" in error.text:
                _too_old()
            raise
        if before["speaks"] != SPEAKS:
            _too_old()
        return before

    async def _wait_for_yours(self) -> None:
        """Until the process before holds nothing that is ours: it gave it away, or died. One that stands still will."""
        assert self._talk is not None
        try:
            await self._hear("yours", seconds=None)
        except LocalError:
            if self._stopping.is_set():
                raise

    async def _hear(self, op: str, *, seconds: float | None, into: Listeners | None = None) -> None:
        """As `Talk.hear`, or until this process is told to stop."""
        assert self._talk is not None
        hearing = spawn(_quietly(self._talk.hear(op, seconds=seconds, into=into)), name="upgrade")
        stopping = spawn(self._stopping.wait(), name="stop while upgrading")
        await asyncio.wait((hearing, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not hearing.done():
            await cancel(hearing)
            raise LocalError("told to stop before it had taken over")
        why = hearing.result()
        if why is not None:
            raise LocalError(f"upgrade: the process that runs was to say {op!r}: {why.text}; it goes on")


async def _quietly(hearing: Any) -> LocalError | None:
    """What went wrong as a result: the task is looked at by somebody else."""
    try:
        await hearing
    except LocalError as error:
        return error
    return None


def _too_old() -> NoReturn:
    raise LocalError(
        "the running edge is of a version that cannot hand over; restart it this once: systemctl restart tunnelgw-edge,"
        " or stop it and start this one without --upgrade (connectors come back within seconds)"
    )
