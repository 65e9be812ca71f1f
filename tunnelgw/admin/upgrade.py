"""An upgrade in place: a new process takes the listening sockets over from the one that runs, and no visitor notices.

    new process (takeover.py)                     process that runs (`Handover`)
    control command "upgrade"                  →  makes `upgrade.sock` for one connection
    connects                                   →  listeners {kinds} + sockets, as many as it takes; begin
    reads its files, gets ready; prepared      →  waits until nothing waits for a link, then accepts nobody
                                               ←  go (after listeners that are new)
    serving; accepts                           →  gives up listeners, control socket and metrics; asks its connectors
                                                  to go on elsewhere
    READY; is the edge                         ←  yours
    stop, when it is to stop itself            →  ends at once what it still had in progress

Until `serving` the old process can go on as if nothing had happened, and does when the new one fails, leaves or takes
too long. `serving` decides: the new process accepts only if it could be said, whatever becomes of the old one then, and
the old one takes back only what it made impossible to say. Newcomers wait in the kernel from `go` on, for milliseconds.
After that the old process serves the connections that it has, over the tunnels that it has, until they end, or
`edge.app.DRAIN_SECONDS` have passed.

Invariant: at any moment at most one process accepts, and one of them holds every listening socket.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any

from tunnelgw import __version__
from tunnelgw.admin.call import bind_private
from tunnelgw.admin.listeners import Listeners
from tunnelgw.edge.app import DRAIN_SECONDS
from tunnelgw.errors import LocalError
from tunnelgw.net import systemd
from tunnelgw.net.handover import MAX_DESCRIPTORS, Channel
from tunnelgw.net.tasks import cancel, spawn

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tunnelgw.admin.control import ControlServer
    from tunnelgw.admin.crew import Single, Supervised
    from tunnelgw.admin.metrics import MetricsServer
    from tunnelgw.admin.takeover import Takeover

log = logging.getLogger(__name__)

SOCKET_NAME = "upgrade.sock"
SPEAKS = 1  # the messages above; a process that speaks others is not taken over from
OFFER_SECONDS = 10.0  # for the new process to connect after it asked
START_SECONDS = 120.0  # for it to get ready: a slow machine that makes certificates takes a minute
METRICS_SECONDS = 1.0  # for a scraper that had just connected to the old process to send its request
GO_SECONDS = 10.0  # to begin to accept, for which everything is ready
LINKS_TURN = 0.05  # between two looks at what waits for a link
CHILD_TURN = 0.1


class Talk:
    """A conversation of the two. `hear` returns messages in order; LocalError once the other side is gone."""

    def __init__(self, sock: socket.socket) -> None:
        self.pid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))[0]
        self._inbox: asyncio.Queue[tuple[dict[str, Any], list[int]] | None] = asyncio.Queue()
        self._channel = Channel(
            asyncio.get_running_loop(),
            sock,
            received=lambda message, descriptors: self._inbox.put_nowait((message, descriptors)),
            closed=lambda: self._inbox.put_nowait(None),
        )

    @property
    def open(self) -> bool:
        """False once the other side is gone; what it said before can still be heard."""
        return self._channel.open

    def say(self, op: str, **keys: Any) -> None:
        """Send one message."""
        self._channel.send({"op": op, **keys})

    def say_listeners(self, listeners: Listeners) -> None:
        """Send copies of these."""
        copies = listeners.copies()
        for start in range(0, len(copies), MAX_DESCRIPTORS):
            some = copies[start : start + MAX_DESCRIPTORS]
            message = {"op": "listeners", "kinds": [kind for kind, _ in some]}
            self._channel.send(message, [descriptor for _, descriptor in some])

    async def hear(self, op: str, *, seconds: float | None, into: Listeners | None = None) -> None:
        """Wait for that message; listeners that come before it go `into`. LocalError for anything else."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    found = await self._inbox.get()
                    if found is None:
                        self._inbox.put_nowait(None)
                        raise LocalError("it ended, or closed the connection")
                    message, descriptors = found
                    kinds = message.get("kinds", [])
                    if into is not None and message["op"] == "listeners" and len(kinds) == len(descriptors):
                        for kind, descriptor in zip(kinds, descriptors, strict=True):
                            into.add(kind, descriptor)
                        continue
                    for descriptor in descriptors:
                        os.close(descriptor)
                    if message["op"] == op:
                        return
                    raise LocalError(str(message.get("why", f"it said {message['op']!r} where {op!r} was due")))
        except TimeoutError:
            raise LocalError(f"it did not say {op!r} within {seconds:g} seconds") from None

    def said(self, op: str) -> bool:
        """Nothing more can be said to us: whether that is what the other side, which knows by now, said in time."""
        self._channel.hear_out()
        found = None if self._inbox.empty() else self._inbox.get_nowait()
        return found is not None and found[0]["op"] == op

    def close(self) -> None:
        """The other side hears that it is over; what it sent and nobody heard is closed."""
        self._channel.close()
        while not self._inbox.empty():
            for descriptor in (self._inbox.get_nowait() or ({}, []))[1]:
                os.close(descriptor)


class Handover:
    """The side of the process that runs. Inputs: `offer` (a new process asks), `upgrade` (start one), `stop`."""

    def __init__(
        self,
        crew: Single | Supervised,
        *,
        state_dir: Path,
        listeners: Listeners,
        control: ControlServer,
        metrics: MetricsServer | None,
        before: Takeover | None,
        left: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        """`left` is called when another process has taken over, `ended` when there is nothing left to do after that."""
        self.left = False
        self._crew = crew
        self._path = state_dir / SOCKET_NAME
        self._listeners = listeners
        self._control = control
        self._metrics = metrics
        self._before = before  # we go last: who stops the newest process reaches every older one through us
        self._on_left = left
        self._on_ended = ended
        self._attempt: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[None] | None = None

    @property
    def under_way(self) -> bool:
        """An upgrade is being tried."""
        return self._attempt is not None and not self._attempt.done()

    async def offer(self, notify: str) -> dict[str, Any]:
        """A process with that NOTIFY_SOCKET asks to take over: let it connect. LocalError where that cannot be."""
        if self.left:
            raise LocalError("this edge was replaced by a newer process, which does not answer yet; try again")
        if self.under_way:
            raise LocalError("another upgrade is under way; try again when it has ended")
        if os.environ.get("NOTIFY_SOCKET", "") not in ("", notify):
            raise LocalError(
                f"the running edge (process {os.getpid()}) is a service of systemd, which would not know this one: "
                "systemctl kill --kill-whom=main --signal=SIGUSR2 tunnelgw-edge"
            )
        self._path.unlink(missing_ok=True)
        listener = bind_private(self._path, socket.SOCK_SEQPACKET)
        listener.listen(1)
        listener.setblocking(False)
        self._attempt = spawn(self._try(listener), name="upgrade")
        return {"pid": os.getpid(), "version": __version__, "speaks": SPEAKS}

    def upgrade(self) -> None:
        """SIGUSR2: start the program that this process was started from, in whatever version it is there now."""
        if self.left:
            log.error("upgrade: this process was replaced already and only ends what it has in progress")
        elif self.under_way or (self._starting is not None and not self._starting.done()):
            log.error("upgrade: another one is under way")
        elif os.getpid() == 1:
            log.error("upgrade: the first process of a container takes all others with it when it ends: see the guide")
        else:
            self._starting = spawn(self._start(), name="start the new version")

    async def stop(self) -> None:
        """This process stops: whoever wanted to take over is told, by the end of the conversation."""
        for task in (self._starting, self._attempt):
            if task is not None:
                await cancel(task)

    # One attempt.

    async def _try(self, listener: socket.socket) -> None:
        try:
            async with asyncio.timeout(OFFER_SECONDS):
                sock, _ = await asyncio.get_running_loop().sock_accept(listener)
        except TimeoutError:
            log.error("upgrade: who asked to take over did not come; this process goes on")
            return
        finally:
            listener.close()
            self._path.unlink(missing_ok=True)
        if not self._control.trusts(sock):
            log.warning("upgrade: a foreign user was refused")
            sock.close()
            return
        talk = Talk(sock)
        log.info("upgrade: process %d gets ready to take over", talk.pid)
        try:
            await self._give(talk)
        except BaseException as error:
            talk.close()
            if not isinstance(error, LocalError):
                raise
            log.error("upgrade: process %d does not take over: %s; this one goes on", talk.pid, error.text)
        else:
            await self._finish(talk)  # the conversation ends with this process: the other one waits for that

    async def _give(self, talk: Talk) -> None:
        """Everything up to the moment after which this process is the old one. LocalError, and it is not."""
        given = self._present()
        talk.say_listeners(given)
        talk.say("begin")
        await talk.hear("prepared", seconds=START_SECONDS)
        await self._wait_for_links(talk)
        await self._crew.pause()
        try:
            new = {port: sock for port, sock in self._crew.ports().items() if given.ports.get(port) is not sock}
            talk.say_listeners(Listeners(ports=new))
            talk.say("go")
            await self._hear_serving(talk)
        except Exception:  # who is told to stop meanwhile accepts nobody
            self._crew.accept()
            raise
        self.left = True
        systemd.replaced_by(talk.pid)
        self._control.release()
        if self._metrics is not None:
            spawn(self._metrics.close(grace=METRICS_SECONDS), name="metrics move")
        self._on_left()
        talk.say("yours")
        self._crew.leave()
        log.warning(
            "upgrade: process %d has taken over; what is in progress here may take %d minutes",
            talk.pid, DRAIN_SECONDS // 60,
        )  # fmt: skip

    async def _hear_serving(self, talk: Talk) -> None:
        """LocalError if the new process does not serve, and never will: from here on it cannot say so any more."""
        try:
            await talk.hear("serving", seconds=GO_SECONDS)
        except LocalError:
            if not talk.said("serving"):  # while this process, or the machine, stood still
                raise

    def _present(self) -> Listeners:
        """What accepts now."""
        found = self._listeners
        return Listeners(found.https, found.http, found.metrics, self._control.listener, self._crew.ports())

    async def _wait_for_links(self, talk: Talk) -> None:
        """What waits for a connector here goes on here: the connector would come back to the other process.

        Parked requests, and streams of a link that was lost. As long as the slowest request may wait, and those that
        come meanwhile; for a connector that stays away longer nobody waits.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + 2 * self._crew.config.park_seconds
        # Polled only here: nobody else wants to know.
        while talk.open and await self._crew.waiting() and loop.time() < end:  # noqa: ASYNC110
            await asyncio.sleep(LINKS_TURN)

    async def _finish(self, talk: Talk) -> None:
        """Until nothing is in progress here, or the new process is told to stop."""
        drained = spawn(self._drained(), name="drain")
        told = spawn(self._told(talk), name="told to stop")
        await asyncio.wait((drained, told), return_when=asyncio.FIRST_COMPLETED)
        for task in (drained, told):
            await cancel(task)
        self._on_ended()

    async def _drained(self) -> None:
        await self._crew.drained()
        if self._before is not None:
            await self._before.ended()

    async def _told(self, talk: Talk) -> None:
        try:
            await talk.hear("stop", seconds=None)
        except LocalError:
            log.warning("upgrade: the process that took over has ended; what is in progress here goes on")
            await asyncio.Event().wait()  # nobody can tell us any more

    async def _start(self) -> None:
        """Run the new version; it asks us as if somebody had started it by hand."""
        try:
            pid = await _start_again()
            watched = os.pidfd_open(pid)
        except (OSError, ValueError) as error:
            log.error("upgrade: %s cannot be started: %s; this process goes on", sys.executable, error)
            return
        log.info("upgrade: started process %d", pid)
        poll = select.poll()
        poll.register(watched, select.POLLIN)
        try:
            while not self.left:
                if poll.poll(0):
                    log.error("upgrade: process %d has ended before it served, and said why; this one goes on", pid)
                    return
                await asyncio.sleep(CHILD_TURN)
        finally:
            os.close(watched)


async def _start_again() -> int:
    """Run our interpreter with our arguments and environment once more; the number of the process. OSError, ValueError.

    By way of a child that ends at once, so that the new process is init's: systemd notices the end of a main process
    that it can wait for, and of no other.
    """
    command = [sys.executable, *sys.orig_argv[1:]]
    if "--upgrade" not in command:
        command.append("--upgrade")
    ours, theirs = os.pipe()
    try:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", "-c", _BETWEEN, str(theirs), *command, pass_fds=(theirs,)
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    with os.fdopen(ours) as said:
        await child.wait()
        return int(said.read())


# Keeps standard output and error for the new process; the number comes back by a pipe that nobody inherits.
_BETWEEN = """
import os, sys
pipe, command = int(sys.argv[1]), sys.argv[2:]
os.set_inheritable(pipe, False)
os.write(pipe, str(os.posix_spawn(command[0], command, os.environ)).encode())
"""
