"""Services that live as long as a command does: what `tunnelgw http` and `tunnelgw tcp` ask for.

Strategy: a lease is a coroutine on the command's control connection, which cancels it when the command is gone, however
it ended. While it runs, its service stands beside those of the file and is told to the edges like them; the command
hears what they say, and of the streams that come and end.

Invariants: a temporary service is declared exactly while its lease runs, and written to no file; the file's services
keep their names; lines to a command are bounded in rate.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import time
from typing import TYPE_CHECKING, Any

from tunnelgw.config.model import PortRange
from tunnelgw.config.share import read_shared
from tunnelgw.connector.lookout import reach
from tunnelgw.connector.origins import Origin
from tunnelgw.errors import LocalError
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire.flow import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.config.model import ConnectorConfig, ServiceConfig
    from tunnelgw.connector.app import Connector
    from tunnelgw.wire.control import Open

    Event = dict[str, Any]
    Say = Callable[[Event], bool]

LEASES_MAX = 64  # at once: each is a command that somebody started here
SECONDS_MAX = 30 * 86400.0  # what is meant to stay longer belongs into the file
ANSWER_SECONDS = 20.0  # a connector that has just started also has to dial
LOOK_SECONDS = 60.0  # between two looks at the clock, which goes on while the machine sleeps
# Nobody guesses it (50 bits), and it can be read out to somebody.
_ALPHABET, _LETTERS = "abcdefghjkmnpqrstuvwxyz23456789", 10
CLOSE_SECONDS = 0.5
PORT_TRIES = 8
_OTHER_PORT = (Reason.CLAIM_HELD.label, Reason.PORT_UNAVAILABLE.label)
LINES_BURST, LINES_PER_SECOND = 100, 20.0  # of streams: more scroll by unread


class Lease:
    """One temporary service, as its command sees it. Is the `Watcher` of its streams."""

    def __init__(self, service: ServiceConfig, *, until: float, say: Say) -> None:
        """`until`: by `clock`; 0.0 for no end."""
        self.service = service
        self.until = until
        self.over = ""  # why it ends, for the command
        self.said: Event = {}  # of the edges, as the command knows it
        self.task = asyncio.current_task()
        self._say = say
        self._lines = TokenBucket(rate=LINES_PER_SECOND, burst=LINES_BURST, now=0.0)
        self._left_out = 0

    @property
    def left(self) -> float | None:
        """Seconds; None without an end."""
        return max(0.0, self.until - clock()) if self.until else None

    def began(self, request: Open) -> None:
        """A stream is there."""
        self._tell({"event": "began", "visitor": request.visitor})

    def ended(self, request: Open, sent: int, received: int, seconds: float) -> None:
        """A stream is over; `in` and `out` as the visitor's bytes go."""
        self._tell(
            {"event": "ended", "visitor": request.visitor, "in": sent, "out": received, "seconds": round(seconds, 3)}
        )

    def failed(self, text: str) -> None:
        """The target does not answer."""
        self._tell({"event": "failed", "message": text})

    def tell(self, event: Event) -> None:
        """What is rare."""
        self._say(event)

    def _tell(self, event: Event) -> None:
        if not self._lines.take(clock()) or not self._say({**event, "left_out": self._left_out}):
            self._left_out += 1
        else:
            self._left_out = 0


class Temporary:
    """All leases of one connector. Inputs: `share` (a command), `beside` (the file), `close`."""

    def __init__(self, connector: Connector, *, alone: bool) -> None:
        """`alone`: only these are served, and none of the file's services."""
        self.alone = alone
        self._connector = connector
        self._leases: dict[str, Lease] = {}
        self._closed = False
        self.asked = False  # some command came
        self.running = 0  # commands that share something, or are about to

    def beside(self, config: ConnectorConfig) -> ConnectorConfig:
        """What is in force: the file, and after it what is shared. A lease whose name the file has now ends."""
        for service in config.services:
            if (lease := self._leases.pop(service.name, None)) is not None:
                lease.over = f"{config.path} has a service {service.name} of its own now"
        temporary = tuple(lease.service for lease in self._leases.values())
        return dataclasses.replace(config, services=temporary if self.alone else (*config.services, *temporary))

    def status(self, name: str) -> Event:
        """What `status` says more of a temporary service; empty for one of the file."""
        lease = self._leases.get(name)
        return {} if lease is None else {"temporary": True, "seconds_left": lease.left}

    async def close(self) -> None:
        """The connector stops: commands hear of it, and the edges that their services are gone."""
        self._closed = True
        tasks = [lease.task for lease in self._leases.values() if lease.task is not None]
        for lease in self._leases.values():
            lease.over = "the connector stops"
        if tasks:
            self._connector.notice()
            _, late = await asyncio.wait(tasks, timeout=CLOSE_SECONDS)
            for task in late:  # it waits for an edge
                task.cancel()
            if late:
                await asyncio.wait(late)

    async def share(self, request: Event, say: Say) -> Event:
        """Serve what a command asks for until its time is over; the last word. LocalError if it cannot be.

        request: `name` ("": one is made up), `service` (keys as in the file), `users` (lines of a password file),
        `seconds` (0: no end).
        """
        self.asked = True
        self.running += 1
        try:
            return await self._share(self._lease(request, say), made_up=not request.get("name"))
        finally:
            self.running -= 1
            self._connector.notice()

    async def _share(self, lease: Lease, *, made_up: bool) -> Event:
        name, served = lease.service.name, self._connector.served
        try:
            trouble = await _reach(lease.service)
            lease.said = await self._begin(lease, made_up=made_up)
            lease.tell(
                {
                    "event": "shared",
                    "name": name,
                    "target": str(lease.service.target),
                    "addresses": lease.said["addresses"],
                    "trouble": trouble,
                    "seconds_left": lease.left,
                    "alone": self.alone,
                }
            )
            await self._watch(lease)
        finally:
            if self._leases.get(name) is lease:
                del self._leases[name]
            if served.watchers.get(name) is lease:
                del served.watchers[name]
            self._connector.apply()
        return {"ended": lease.over or "time"}

    def _lease(self, request: Event, say: Say) -> Lease:
        """A lease that is not in force yet."""
        name, keys, seconds = request.get("name", ""), request.get("service"), request.get("seconds", 0)
        if self._closed:
            raise LocalError("the connector stops at this moment")
        if not isinstance(name, str) or not isinstance(keys, dict) or not isinstance(seconds, int | float):
            raise LocalError("share needs a name, a service and seconds", exit_code=2)
        if not 0 <= seconds <= SECONDS_MAX:
            raise LocalError(f"--for: at most {SECONDS_MAX / 86400:g}d; what stays longer is for expose", exit_code=2)
        service = read_shared(name or made_up_name(), keys, request.get("users", ()))
        name, config = service.name, self._connector.config
        if config.service(name) is not None:
            raise LocalError(f"{config.path} has a service {name} already; choose another --name", exit_code=2)
        if name in self._leases:
            raise LocalError(f"{name} is shared by another command already; choose another --name", exit_code=2)
        if len(self._leases) >= LEASES_MAX:
            raise LocalError(f"{LEASES_MAX} commands share something here already")
        lease = Lease(service, until=clock() + seconds if seconds else 0.0, say=say)
        self._leases[name] = lease
        return lease

    async def _begin(self, lease: Lease, *, made_up: bool) -> Event:
        """The edge's yes. LocalError with its no."""
        service = lease.service
        if service.target.kind == "tcp" and not (service.port or service.host):
            answer = await self._at_some_port(lease)
        else:
            answer = await self._declare(lease)
        if answer["state"] == "accepted":
            return answer
        text = f"{service.name}: {answer.get('message') or 'no answer from the edge'}"
        if answer["state"] in ("refused", "partly"):
            text = f"refused by the edge: {text}"
            if answer.get("hint"):
                again = f" and share it again with --name {service.name}" if made_up and not service.port else ""
                text += f"; on the edge, run: {answer['hint']}{again}"
        raise LocalError(text)

    async def _declare(self, lease: Lease) -> Event:
        self._leases[lease.service.name] = lease
        self._connector.served.watchers[lease.service.name] = lease
        self._connector.apply()
        return await self._connector.claim(lease.service.name, ANSWER_SECONDS)

    async def _at_some_port(self, lease: Lease) -> Event:
        """A port of the grant that nobody has: the edge is asked about some of them, in no order."""
        connector = self._connector
        await connector.until(connector.answered, ANSWER_SECONDS)
        ranges = [ports for edge in connector.edges if edge.up for ports in edge.granted_ports]
        taken = {
            port
            for service in connector.served.services()
            for ports in service.port
            for port in range(ports.first, ports.last + 1)
        }
        if connector.answered() and not some_port(ranges, taken):
            which = (
                "every port of the grant is used by a service here"
                if ranges
                else ("the grant of this connector names no port to choose from (or its edge cannot say)")
            )
            raise LocalError(f"{which}: name one with --port N, and the edge says how to allow it")
        answer: Event = {"state": "waiting", "message": connector.trouble()}
        for _ in range(PORT_TRIES):
            port = some_port(ranges, taken)
            if not port:
                break
            taken.add(port)
            lease.service = dataclasses.replace(lease.service, port=(PortRange(port, port),))
            answer = await self._declare(lease)
            if answer["state"] != "refused" or answer.get("reason") not in _OTHER_PORT:
                break
        return answer

    async def _watch(self, lease: Lease) -> None:
        """Until its time is over or the connector ends it; what the edges say meanwhile is passed on."""
        connector, name = self._connector, lease.service.name

        def news() -> bool:
            return bool(lease.over) or connector.said(name) != lease.said

        while not lease.over and lease.left != 0.0:
            if (said := connector.said(name)) != lease.said:
                lease.said = said
                lease.tell({"event": "claim", **said})
            pause = LOOK_SECONDS if lease.left is None else min(lease.left, LOOK_SECONDS)
            await connector.until(news, pause)


async def _reach(service: ServiceConfig) -> str:
    """Why the target takes no connection now; "" if it does."""
    origin = Origin(service)
    try:
        return await reach(origin)
    finally:
        await origin.close()


def made_up_name() -> str:
    """A name that nobody guesses."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(_LETTERS))


def some_port(ranges: list[tuple[int, int]], taken: set[int]) -> int:
    """One of these ports that is not taken, each as likely; 0 if there is none."""
    free: set[int] = set()
    seen = 0  # an edge may say everything many times over
    for low, high in sorted(ranges):
        free.update(range(max(low, seen + 1), high + 1))
        seen = max(seen, high)
    free -= taken
    return secrets.choice(sorted(free)) if free else 0


def clock() -> float:
    """Seconds that also pass while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
