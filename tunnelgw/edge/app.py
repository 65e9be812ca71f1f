"""The edge: composition root of one worker, which is the whole edge where `workers = 1`.

Strategy: `start` and `stop` are two lists, in order, with the reason for each place. What an operator changes while it
runs arrives in two ways: the configuration file (`reload`) and the store (`look`, which follows it by revision, so that
a command, another worker and this one all agree).

An upgrade is a stop in slow motion: another process accepts on the same listeners while this one serves what it has
(`pause`, `leave`, `drained`), and can be taken back until `leave`.

Invariants: visitors are accepted only once every part they could reach is there; at a stop they go first. Who leaves
changes nothing that is shared: claims, certificates and orders are the other process's business.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any
from zlib import crc32

from tunnelgw.access.addresses import Networks, allowed_from
from tunnelgw.edge.claims import ClaimDesk
from tunnelgw.edge.connectors import Connectors
from tunnelgw.edge.flows import Flows
from tunnelgw.edge.follower import Follower
from tunnelgw.edge.health import StateHealth
from tunnelgw.edge.intake import Intake
from tunnelgw.edge.names import edge_names, ended_hosts, ends_here
from tunnelgw.edge.office import Office
from tunnelgw.edge.passthrough import Live
from tunnelgw.edge.ports import Ports
from tunnelgw.edge.public import DoorRules, FrontDoor
from tunnelgw.edge.renewals import Renewals
from tunnelgw.edge.settings import door_rules, gateway_settings, own_ports
from tunnelgw.edge.tunnelport import TunnelPort
from tunnelgw.edge.visitors import issuer_of
from tunnelgw.edge.within import EdgeServices
from tunnelgw.errors import TunnelgwError
from tunnelgw.gateway.service import Gateway
from tunnelgw.identity.records import CONNECTOR
from tunnelgw.identity.registry import Registry
from tunnelgw.net.certificates import Certificates
from tunnelgw.net.forwarding import take_back
from tunnelgw.net.timers import Wheel
from tunnelgw.obs.counters import ProcessCounters
from tunnelgw.obs.reasons import Reason
from tunnelgw.routing.table import RouteTable
from tunnelgw.wire.control import Notice

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from tunnelgw.config.model import EdgeConfig
    from tunnelgw.edge.connector import Connector
    from tunnelgw.edge.workers import Peers
    from tunnelgw.store.sqlite import SqliteStore
    from tunnelgw.wire.control import Services

log = logging.getLogger(__name__)

LAST_WORDS_SECONDS = 0.02  # a few turns of the loop: what was just said goes to the kernel
GRACE_SECONDS = 10.0  # what is in progress may end within this at a stop
# After an upgrade, streams go on in the old process for so long: most downloads and sessions end by themselves within
# an hour, and no process with a hole that the upgrade closes serves for days.
DRAIN_SECONDS = 3600.0
# Until visitors are asked to come back in the new process: by then its connectors have, and few requests wait there.
MOVE_SECONDS = 5.0
DRAIN_TURN = 0.25  # between two looks at whether they have


class Edge:
    """One worker. `peers` are the others, or nobody; `log_request` takes finished exchanges (None: no access log)."""

    _https: tuple[socket.socket, ...] = ()  # ours from `start` on
    _http: tuple[socket.socket, ...] = ()
    _accepted = False  # some time
    left = False  # another process accepts, or none: nothing is decided here any more

    def __init__(
        self,
        config: EdgeConfig,
        *,
        store: SqliteStore,
        peers: Peers,
        log_request: Callable[[Any], object] | None = None,
    ) -> None:
        loop = self.loop = asyncio.get_running_loop()
        self.config = config
        self.store, self.peers = store, peers
        self.counters = ProcessCounters()
        self.wheel = Wheel(loop)
        self.registry = Registry(store)
        self.health = StateHealth(store)
        self.connectors = Connectors(
            loop=loop,
            wheel=self.wheel,
            counters=self.counters,
            resume_seconds=config.resume_seconds,
            park_seconds=config.park_seconds,
            worker=peers.index,
            workers=peers.count,
            domain=config.domain,
        )
        self.table = RouteTable(reserved=edge_names(config), roster=self.connectors.groups)
        self.office = Office(
            store=store,
            registry=self.registry,
            state_dir=config.state_dir,
            domain=config.domain,
            address=str(config.address),
            teach=self.connectors.teach,
        )
        self.tunnels = TunnelPort(
            loop=loop, wheel=self.wheel, counters=self.counters, connectors=self.connectors, office=self.office
        )
        self._make_gateway(log_request)
        self.certificates = Certificates(loop, self.wheel, issuer_of(config))
        self.live = Live(self.counters.refuse)
        self._make_door(door_rules(config))
        self.claims = self._make_claims()
        self._listen_to_connectors()
        self.follower = Follower(self)
        self._wind_down: asyncio.TimerHandle | None = None
        self._deciding: dict[str, asyncio.Lock] = {}

    def _listen_to_connectors(self) -> None:
        connectors = self.connectors
        self.within = connectors.visits.within = EdgeServices(
            context=lambda: self.office.private_context,
            metrics=lambda: self.config.metrics.listen,
            refused=connectors.counters.refuse,
            alone=self.peers.count == 1,
        )
        connectors.on_services = Intake(self._decide).offer
        connectors.on_datagram = self.flows.received
        connectors.on_renew = Renewals(self.office, connectors).ask
        connectors.gone = self._gone
        connectors.leaving = self.gateway.let_go
        connectors.unlinked = self.gateway.fail_over
        connectors.serving = self.gateway.take_over
        connectors.moved = self.gateway.send_on

    def _share_memory(self) -> None:
        self.connectors.budget.resize(self.config.limits.buffered_bytes // self.peers.count)

    def _make_gateway(self, log_request: Callable[[Any], object] | None) -> None:
        config = self.config
        self._share_memory()
        self.gateway = Gateway(
            table=self.table,
            opener=self.connectors,
            wheel=self.wheel,
            loop=self.loop,
            counters=self.counters,
            memory=self.connectors.budget,
            settings=gateway_settings(config),
            trusted=Networks(config.trusted_proxies).__contains__,
            allowed=allowed_from,
            proof=lambda token: self.certificates.proof(token),
            log_request=log_request,
        )

    def _make_door(self, rules: DoorRules) -> None:
        """What accepts visitors: they share the address limits and the descriptor kept in reserve."""
        self.door = FrontDoor(
            self.loop,
            wheel=self.wheel,
            table=self.table,
            certificates=self.certificates,
            gateway=self.gateway,
            opener=self.connectors,
            tunnel=lambda sock, _hello: self.tunnels.take(sock, sock.peer[0]),
            peers=self.peers,
            counters=self.counters,
            rules=rules,
            live=self.live,
        )
        self.flows = Flows(
            wheel=self.wheel, table=self.table, connectors=self.connectors, counters=self.counters, rules=rules
        )
        self.ports = Ports(
            self.loop,
            flows=self.flows,
            mine=lambda port: port % self.peers.count == self.peers.index,
            opener=self.peers,
            table=self.table,
            streams=self.connectors,
            live=self.live,
            ledger=self.door.ledger,
            reserve=self.door.reserve,
            counters=self.counters,
            rules=rules,
            wheel=self.wheel,
            certificates=self.certificates,
        )

    def _make_claims(self) -> ClaimDesk:
        config = self.config
        return ClaimDesk(
            domain=config.domain,
            edge_names=edge_names(config),
            address=config.address.host,
            https_port=config.address.port,
            registry=self.registry,
            table=self.table,
            ports=self.ports,
            live=self.live,
            connectors=self.connectors,
            counters=self.counters,
            changed=lambda hosts: self.certificates.change({host: ends_here(self.table, host) for host in hosts}),
            own=own_ports(config),
            # Every worker decides every connector's claims; one of them says so.
            logs=lambda name: crc32(name.encode()) % self.peers.count == self.peers.index,
        )

    async def start(self, https: Sequence[socket.socket], http: Sequence[socket.socket]) -> None:
        """Make everything ready on these listeners, which are ours from here on; `accept` lets visitors in.

        LocalError where a part cannot begin.
        """
        self._https, self._http = tuple(https), tuple(http)
        self.ports.pause()
        await self.office.open()  # first: without its own certificate there is no tunnel
        await take_back()
        self.follower.begin()  # before reading: what changes meanwhile is seen by the first look
        for record in self.registry.connectors():
            if not record.revoked and record.role == CONNECTOR:
                await self.claims.restore(self.connectors.known(record.name))  # routes, before visitors ask for them
        self.certificates.start()
        await self.certificates.ensure(ended_hosts(self.table))
        self.store.serve()

    def accept(self) -> None:
        """Let visitors in, for the first time or again after `pause`."""
        self.ports.resume()
        if self._accepted:
            self.door.resume()
            return
        self._accepted = True
        self.door.serve(self._https)
        self.door.serve_plain(self._http)
        self.certificates.open()  # issuers that look at us from outside find an open door
        self.follower.start()

    def pause(self) -> None:
        """Accept nobody for a moment: who comes waits in the kernel. What was accepted goes on."""
        self.ports.pause()
        self.door.pause()

    def leave(self) -> None:
        """Another process accepts from now on: bring what is here to its end, and begin nothing new."""
        self.left = True
        self._close_listeners()
        self.certificates.retire()
        self.within.drain()
        self.connectors.send_away(Reason.EDGE_STOPPING)  # they come back at once, to the other process
        self._wind_down = self.loop.call_later(MOVE_SECONDS, self.gateway.wind_down)

    async def drained(self) -> None:
        """Return when nothing is in progress any more, after `DRAIN_SECONDS` at the latest."""
        end = self.loop.time() + DRAIN_SECONDS
        while self._busy() and self.loop.time() < end:  # noqa: ASYNC110
            await asyncio.sleep(DRAIN_TURN)  # polled only here: nobody else wants to know

    def _busy(self) -> bool:
        """Visitors, streams, or an order that somebody would have to begin anew."""
        return bool(self.door.ledger.open or self.certificates.asked() or self._in_progress())

    def _in_progress(self) -> bool:
        """What visitors have begun, and what they left behind for a slower reader."""
        connectors = self.connectors
        return bool(self.gateway.connections or self.live or connectors.visits.streams or connectors.ending)

    def _close_listeners(self) -> None:
        self.door.stop_accepting()
        for listener in (*self._https, *self._http):
            listener.close()  # a visitor is refused, not left in a queue that nobody empties (systemd keeps its own)
        self.ports.close_all()

    async def stop(self, *, grace: float = GRACE_SECONDS) -> None:
        """Accept nothing new, let what is in progress end for `grace` seconds, close."""
        self.follower.stop()
        self.left = True
        if self._wind_down is not None:
            self._wind_down.cancel()
        self._close_listeners()  # first: nobody new
        self.gateway.drain()
        for connector in self.connectors:
            connector.announce(Reason.EDGE_STOPPING)
        for visit in self.connectors.visits:
            visit.announce(Reason.EDGE_STOPPING)
        self.within.drain()
        end = self.loop.time() + grace
        await asyncio.sleep(LAST_WORDS_SECONDS)
        while self._in_progress() and self.loop.time() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # polled only here: nobody else wants to know
        self.ports.drop()
        self.door.close()
        self.tunnels.close()
        self.connectors.cut_all(Reason.EDGE_STOPPING)  # after visitors: their streams ended in order if they could
        await self.within.close()
        await self.certificates.stop()
        self.wheel.close()

    def reload(self, config: EdgeConfig) -> None:
        """Use another configuration from now on, as far as it can change without a restart; streams go on."""
        self.config = config
        rules = door_rules(config)
        self.door.reload(rules)
        self.ports.reload(rules)
        self.gateway.reload(gateway_settings(config), Networks(config.trusted_proxies).__contains__)
        self.connectors.resume_seconds = config.resume_seconds
        self.connectors.park_seconds = config.park_seconds
        self._share_memory()
        self.certificates.replace(issuer_of(config))

    async def look(self) -> None:
        """Put in force what changed in the store, now."""
        await self.follower.look()

    # What connectors say.

    async def _decide(self, connector: Connector, services: Services) -> None:
        async with self.lock(connector.name):
            if self.left:
                return  # what it says to the other process counts
            try:
                await self.claims.decide(connector, services)
            except TunnelgwError as error:
                self.follower.postpone(connector.name)
                log.error("claims of connector %s not decided: %s", connector.name, error.text)
                connector.tell(Notice(reason=error.reason.label, message="services not decided: see the edge's log"))

    def lock(self, name: str) -> asyncio.Lock:
        """One decision at a time for each connector: the later one must be the last one."""
        return self._deciding.setdefault(name, asyncio.Lock())

    def _gone(self, connector: Connector) -> None:
        """A connector is away: its names stay (a page says since when), its ports until nobody would wait for it."""
        self.loop.call_at(connector.away_until, self._close_ports, connector)

    def _close_ports(self, connector: Connector) -> None:
        """Unless it, or another member of a port's group, is here or still waited for: perhaps it came back."""
        for route in self.table.routes_of(connector.name):
            port = route.port_unit
            if not port or self.claims.shut.opening(port) or any(map(self._waited_for, self.table.holders(port))):
                continue
            self.ports.close(port)

    def _waited_for(self, name: str) -> bool:
        connector = self.connectors.by_name.get(name)
        return connector is not None and (connector.session is not None or self.loop.time() < connector.away_until)
