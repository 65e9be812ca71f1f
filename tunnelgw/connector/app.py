"""The connector: composition root of everything at home.

Strategy: `start` and `stop` are two lists, in order, with the reason for each place. Everything that changes while it
runs comes in through `reload`: a whole new configuration is read and checked, then its differences are applied; streams
in progress keep what they have.

Invariant: a configuration that cannot be used changes nothing; a service is served only while the file declares it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
from typing import TYPE_CHECKING, Any

from tunnelgw import __version__
from tunnelgw.config.diff import diff_connector, restart_warning
from tunnelgw.config.load import load_connector
from tunnelgw.config.problems import ConfigError
from tunnelgw.connector.homes import Place, edges_to_serve
from tunnelgw.connector.joined import JoinedEdge, claim_answer
from tunnelgw.connector.serve import Served
from tunnelgw.connector.temporary import Temporary, clock
from tunnelgw.connector.transparent import Transparency
from tunnelgw.connector.tunnel import Instance
from tunnelgw.errors import LocalError
from tunnelgw.net import systemd
from tunnelgw.net.forwarding import take_back
from tunnelgw.net.tasks import spawn
from tunnelgw.net.watch import FileWatch
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire.flow import Budget

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelgw.config.model import ConnectorConfig, ServiceConfig
    from tunnelgw.connector.checks import Checks
    from tunnelgw.connector.household import Household

log = logging.getLogger(__name__)

TURN = 1.0  # seconds between two looks at the clock
SLEPT = 8.0  # a turn that comes so late means: stopped or suspended, and links are dead or about to be
CLAIM_SECONDS = 15.0  # `ready` waits so long for the edge's answer once a tunnel is up: its disk may be slow
IMPATIENT = 20.0  # systemd is told READY by then even without an edge: dialling on is what we are for
# What streams hold here, received or to be sent: a machine at home has more memory than the smallest VPS.
BUFFERED_BYTES = 256 << 20
GRACE = 10.0  # streams in progress may end within this at a stop
TURN_OF_STOP = 0.05  # between two looks at whether they have
# After an edge knew that we leave: what it had opened by then may wait behind other bytes of its uplink for so long.
UNDER_WAY = 0.25


class Connector:
    """One process at home. `run` is what `tunnelgw connect` calls; tests use `start`, `reload` and `stop`."""

    def __init__(
        self, config: ConnectorConfig, *, on_ready: Callable[[str], None] | None = None, alone: bool = False
    ) -> None:
        """`on_ready` is given one line, `ready` and the public addresses, once the first tunnel serves.

        `alone`: for what commands share; the file's services are not served, and another process goes first.
        """
        self.config = config
        self.served = Served()
        self.edges: list[JoinedEdge] = []
        self.household: Household | None = None  # made when a service first needs it
        self.checks: Checks | None = None  # made when a service first has `health`
        self._transparency = Transparency(config.state_dir)
        self.is_ready = False
        self._on_ready = on_ready
        self.temporary = Temporary(self, alone=alone)
        self._instance = Instance(secrets.token_hex(16), Budget(BUFFERED_BYTES, later=_soon), self.served, alone)
        self._changed = asyncio.Event()  # replaced each time it is set: a broadcast
        self.stopping = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._watch: FileWatch | None = None
        self._turn_handle: asyncio.TimerHandle | None = None
        self._last_turn = 0.0
        self._announcing: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; SIGHUP reloads. Raises LocalError where it cannot begin."""
        loop = asyncio.get_running_loop()
        starting = asyncio.timeout(None)

        def terminate() -> None:
            self.stopping.set()
            if starting.when() is None:
                starting.reschedule(loop.time())

        loop.add_signal_handler(signal.SIGHUP, self._hangup)
        try:
            async with starting:  # a first join waits for its edge as long as it takes, but not for a stop
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.add_signal_handler(number, terminate)
                await self.start()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.stopping.set)
            await self.stopping.wait()
        except TimeoutError:
            if not self.stopping.is_set():
                raise
        finally:
            await self.stop()

    async def start(self) -> None:
        """Begin to serve; returns while the first dial is under way."""
        self.served.replace(self.temporary.beside(self.config))  # before the first dial: its Welcome is answered
        self.edges = [self._edge(place) for place in await edges_to_serve(self.config)]
        self._transparency.begin(self.temporary.beside(self.config))
        await take_back()
        self.apply()  # before any visitor
        for edge in self.edges:
            edge.start()
        loop = asyncio.get_running_loop()
        # After the edges: a change of the file is applied to them.
        self._watch = FileWatch(self.config.files, self._file_changed, loop=loop)
        self._last_turn = clock()
        self._turn_handle = loop.call_later(TURN, self._turn)
        self._announcing = spawn(self._announce(), name="announce readiness")
        self.notice()

    async def stop(self, *, grace: float = GRACE) -> None:
        """Ask for no new streams, let those in progress end for `grace` seconds, hang up.

        What an edge opened before it read that is in progress too: no request fails for the moment it was sent at.
        """
        systemd.stopping()
        await self.temporary.close()  # first: the edges are to hear of it
        if self._watch is not None:  # first: nothing may start anything from here on
            self._watch.close()
        if self._turn_handle is not None:
            self._turn_handle.cancel()
        if self._announcing is not None:
            self._announcing.cancel()
        for edge in self.edges:
            await edge.stop_dialling()
            for tunnel in edge.tunnels():
                tunnel.say_goodbye(Reason.CONNECTOR_STOPPING)
        if self.household is not None:
            self.household.drain()  # after that, so that no new visitor comes in
        self.served.drain()
        if any(edge.up for edge in self.edges):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._drained()
        for edge in self.edges:
            await edge.stop(Reason.CONNECTOR_STOPPING)
        if self.household is not None:
            await self.household.close()
        if self.checks is not None:
            await self.checks.close()
        await self.served.close()  # folders serve streams until their tunnels are gone
        self._transparency.close()  # last: answers of targets need it
        self.edges = []

    async def _drained(self) -> None:
        """No edge that we can reach opens a stream any more, and none is open that can end."""
        while not all(tunnel.said_goodbye for edge in self.edges for tunnel in edge.tunnels()):  # noqa: ASYNC110
            await asyncio.sleep(TURN_OF_STOP)
        await asyncio.sleep(UNDER_WAY)
        # Without a link no stream ends in order. With one, an answer may wait for its visitor when its target left.
        while any(edge.up for edge in self.edges) and (self.served.active or not self._settled()):  # noqa: ASYNC110
            await asyncio.sleep(TURN_OF_STOP)

    def _settled(self) -> bool:
        links = [tunnel for edge in self.edges for tunnel in edge.tunnels() if tunnel.link is not None]
        return all(tunnel.session is None or tunnel.session.settled for tunnel in links)

    # Changes

    async def reload(self, config: ConnectorConfig) -> list[str]:
        """Apply another configuration; one line for each thing that changed. LocalError, and then nothing has."""
        places = await edges_to_serve(config, may_join=False)
        self._transparency.keep(self.temporary.beside(config))
        diff = diff_connector(self.config, config)
        self.config = config
        messages = [
            f"service {service.name} {verb}"
            for verb, services in (("added", diff.added), ("removed", diff.removed), ("changed", diff.changed))
            for service in services
        ]
        self.apply()
        messages += await self._match_edges(places)
        if diff.restart:
            messages.append(restart_warning(diff.restart))
        for message in messages:
            log.info("reload: %s", message)
        self.notice()
        return messages

    def apply(self) -> None:
        """Serve what is to be served now, and tell the edges if that is something else than before."""
        config = self.temporary.beside(self.config)
        self._keep_house(config)
        self._keep_checks(config)
        if self.served.replace(config):
            for edge in self.edges:
                edge.declare()

    async def reload_file(self) -> list[str]:
        """Read the file again and apply it. Raises ConfigError, and then nothing has changed."""
        async with self._reloading:  # the file that was read last must be the one in force
            if self._watch is not None:
                self._watch.seen()
            config = load_connector(self.config.path)
            if self._watch is not None and config.files != self.config.files:
                self._watch.follow(config.files)
            return await self.reload(config)

    async def _match_edges(self, places: list[Place]) -> list[str]:
        """Serve these edges, with these identities (one may have been joined anew); others keep their tunnels."""
        wanted = {(place.endpoint, place.identity.key): place for place in places}
        serving = {(edge.endpoint, edge.identity.key): edge for edge in self.edges}
        gone = [edge for key, edge in serving.items() if key not in wanted]
        new = [self._edge(place) for key, place in wanted.items() if key not in serving]
        self.edges = [edge for key, edge in serving.items() if key in wanted] + new
        for edge in gone:
            await edge.stop(Reason.WITHDRAWN)
        for edge in new:
            edge.start()
        return [f"edge {edge.endpoint} removed" for edge in gone] + [f"edge {edge.endpoint} added" for edge in new]

    def _keep_house(self, config: ConnectorConfig) -> None:
        """See that services whose TLS ends here are served as this configuration says."""
        if self.household is not None:
            self.household.replace(config, self.edges)
        elif config.ends_tls:
            from tunnelgw.connector.household import Household  # 8 MB, for who needs it

            self.household = Household(config, join=self.served.join, memory=self._instance.budget)
            self.served.ending = self.household.ending
            self.household.look(self.edges)

    def _keep_checks(self, config: ConnectorConfig) -> None:
        """See that targets are checked as this configuration says."""
        if self.checks is None and any(service.health is not None for service in config.services):
            from tunnelgw.connector.checks import Checks

            self.checks = Checks(self._tell_health)
        if self.checks is not None:
            self.checks.replace(config)

    def _tell_health(self, unhealthy: list[str]) -> None:
        self.served.note_health(unhealthy)
        for edge in self.edges:
            edge.declare()

    def _edge(self, place: Place) -> JoinedEdge:
        return JoinedEdge(place.identity, place.endpoint, self._instance, changed=self.notice)

    def _file_changed(self) -> None:
        spawn(self._reload_logged(), name="reload")

    def _hangup(self) -> None:
        for edge in self.edges:
            for supervisor in edge.supervisors():
                supervisor.dial_now()
        self._file_changed()

    async def _reload_logged(self) -> None:
        try:
            await self.reload_file()
        except ConfigError as error:
            for problem in error.problems:
                log.error("not reloaded: %s", problem)
        except LocalError as error:
            log.error("not reloaded: %s", error.text)

    def _turn(self) -> None:
        """Once a second: notice that we slept, and whether a certificate is to be renewed."""
        self._turn_handle = asyncio.get_running_loop().call_later(TURN, self._turn)
        now = clock()
        if now - self._last_turn > SLEPT:
            log.warning("stood still for %.0f s: dialling anew", now - self._last_turn)
            for edge in self.edges:
                for supervisor in edge.supervisors():
                    supervisor.woke()
        self._last_turn = now
        for edge in self.edges:
            edge.renew_if_due()

    # Readiness and answers

    def notice(self) -> None:
        """Something changed that others may wait for."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if self.household is not None:
            self.household.look(self.edges)

    async def until(self, condition: Callable[[], bool], seconds: float | None) -> bool:
        """Wait for something that edges tell; False if it did not come in time."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def _announce(self) -> None:
        if not await self.until(self._any_up, IMPATIENT):
            systemd.ready("dialling; no edge was reached yet")
            while not self._any_up():
                await self._changed.wait()
        await self.until(lambda: any(edge.answered(self.served.revision) for edge in self.edges), CLAIM_SECONDS)
        self.is_ready = True
        addresses = [
            address for edge in self.edges for result in edge.claims.values() for address in result.addresses
        ] or [str(edge.endpoint) for edge in self.edges if edge.up]
        line = " ".join(["ready", *dict.fromkeys(addresses)])
        systemd.ready(line)
        if self._on_ready is not None:
            self._on_ready(line)

    def _any_up(self) -> bool:
        return any(edge.up for edge in self.edges)

    def answered(self) -> bool:
        """Whether all edges that are connected have answered the present declaration."""
        connected = [edge for edge in self.edges if edge.up]
        return bool(connected) and all(edge.answered(self.served.revision) for edge in connected)

    def trouble(self) -> str:
        """Why edges are not connected."""
        return "; ".join(edge.main.trouble for edge in self.edges if edge.main.trouble)

    def _hopeless(self) -> bool:
        return bool(self.edges) and all(edge.main.hopeless for edge in self.edges)

    async def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """A request of the control socket: status, reload, claim. Raises LocalError."""
        command = request.get("command")
        if command == "status":
            return {"status": self.status()}
        if command == "reload":
            return {"messages": await self.reload_file()}
        if command == "claim":
            name, seconds = request.get("name"), request.get("timeout", CLAIM_SECONDS)
            if not isinstance(name, str) or not isinstance(seconds, int | float):
                raise LocalError("claim needs a name and a timeout", exit_code=2)
            await self.reload_file()
            return await self.claim(name, seconds)
        raise LocalError(f"the connector does not know the command {command!r}", exit_code=2)

    async def claim(self, name: str, seconds: float) -> dict[str, Any]:
        """What the edges say about one service, once all that are connected have answered the present declaration."""
        if all(service.name != name for service in self.served.services()):
            return {"state": "gone"}
        await self.until(lambda: self.answered() or self._hopeless(), seconds)
        if not self.answered():
            return {"state": "waiting", "message": self.trouble() or "the edge has not answered yet"}
        return self.said(name)

    def said(self, name: str) -> dict[str, Any]:
        """What edges say of a service, as far as they serve us: one that is away, or revoked us, has taken it back."""
        results = [edge.claims[name] for edge in self.edges if edge.up and name in edge.claims]
        answer = claim_answer(results)
        troubles = [edge.main.trouble for edge in self.edges if not edge.up and edge.main.trouble]
        if not results and troubles:
            answer["message"] = "; ".join(troubles)
        return answer

    def status(self) -> dict[str, Any]:
        """What `tunnelgw status` shows."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "ready": self.is_ready,
            "config": str(self.config.path),
            "state_dir": str(self.config.state_dir),
            "streams": self.served.active,
            "streams_total": self.served.total,
            "edges": [edge.status() for edge in self.edges],
            "services": [self._service_status(service) for service in self.served.services()],
            "acme_account": self.household.account() if self.household is not None else "",
        }

    def _service_status(self, service: ServiceConfig) -> dict[str, Any]:
        answer = self.said(service.name) | self.temporary.status(service.name)
        if self.checks is not None and (health := self.checks.state(service)):
            answer["health"] = health
        if service.tls == "home" and self.household is not None:
            answer |= self.household.status(service)
        return {"name": service.name, "target": str(service.target), "private": service.private, **answer}


def _soon(work: Callable[[], None]) -> object:
    return asyncio.get_running_loop().call_soon(work)
