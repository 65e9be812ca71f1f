"""UDP flows at the edge: from a visitor's address and port at a public port to one connector, and back.

A flow begins with a visitor's first datagram: the route is found, `allow_from` applied, a member of a group chosen, and
the flow gets a number, under which its connector hears of it in front of its datagrams until it answers
(`wire/datagrams.py`). Which flows there may be, and for how long, `access/flows.py` says.

Who owns what: `UdpPort` has the socket and its flows by visitor, this file all flows by number. A flow stays with its
connector over links, resumes and sessions; the connector keeps its own side by the visitor's address likewise.

Invariants: answers reach the visitor only while its port leads to the service that gives them; a flow that is over is
in no table; a flood of new addresses ends no proven flow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunnelgw.access.addresses import address_key
from tunnelgw.access.flows import BEGUN_BURST, BEGUN_PER_SECOND, FlowBounds, patience
from tunnelgw.edge.addressing import plain_address
from tunnelgw.net.timers import INF
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire import datagrams
from tunnelgw.wire.control import Open
from tunnelgw.wire.flow import TokenBucket

if TYPE_CHECKING:
    from tunnelgw.edge.connector import Connector
    from tunnelgw.edge.connectors import Connectors
    from tunnelgw.edge.public import DoorRules
    from tunnelgw.edge.udpport import Local, UdpPort
    from tunnelgw.net.timers import Wheel
    from tunnelgw.obs.counters import ProcessCounters
    from tunnelgw.routing.table import Route, RouteTable
    from tunnelgw.wire.session import Session

LISTENER = "udp"  # under which flows are counted as connections
_ENDED_IN_ORDER = frozenset((Reason.IDLE, Reason.CANCELLED))


class EdgeFlow:
    """One flow; an item of the wheel.

    found: the route as the table's look-up gave it. route: the member's own. session: that has heard of it, if `known`.
    """

    __slots__ = (
        "address", "answered", "armed_until", "connector", "deadline", "flows", "found", "key", "known", "local",
        "number", "opening", "port", "proven", "route", "session",
    )  # fmt: skip

    def __init__(
        self, flows: Flows, number: int, port: UdpPort, address: tuple[Any, ...], local: Local, key: str | None
    ) -> None:
        self.flows = flows
        self.number = number
        self.port = port
        self.address = address
        self.local = local
        self.key = key
        self.proven = False
        self.answered = False
        self.known = False
        self.session: Session | None = None
        self.opening = b""
        self.found: Route
        self.route: Route
        self.connector: Connector
        self.deadline = INF
        self.armed_until = INF

    def on_deadline(self, now: float) -> None:  # noqa: ARG002 - the wheel's interface
        """The visitor was silent for too long."""
        self.flows.end(self, Reason.IDLE)


class Flows:
    """All UDP flows of this process. Inputs: what ports read (`arrived`) and connectors send (`received`)."""

    def __init__(
        self, *, wheel: Wheel, table: RouteTable, connectors: Connectors, counters: ProcessCounters, rules: DoorRules
    ) -> None:
        self._wheel = wheel
        self._table = table
        self._connectors = connectors
        self._counters = counters
        self.rules = rules  # for flows from now on
        self._by_number: dict[int, EdgeFlow] = {}
        self._bounds: FlowBounds[EdgeFlow] = FlowBounds()
        self._last = datagrams.FLOWS_BEFORE
        self._begun = TokenBucket(rate=BEGUN_PER_SECOND, burst=BEGUN_BURST, now=connectors.loop.time())

    def __len__(self) -> int:
        return len(self._by_number)

    # From visitors.

    def arrived(self, port: UdpPort, message: bytes, address: tuple[Any, ...], local: Local, now: float) -> None:
        """As `Reader.arrived`."""
        flow = port.flows.get(address)
        found = self._table.find_udp(port.number)
        if flow is None or (found is not flow.found and not self._agrees(flow, found)):
            flow = self._begin(port, found, address, local, now)
            if flow is None:
                return
        elif flow.answered and not flow.proven:
            self._bounds.prove(flow)
        connector = flow.connector
        session = connector.session
        if session is None or connector.link is None:
            if flow.found.members is None or (flow := self._begin(port, found, address, local, now)) is None:
                return  # a proven flow waits for its connector; the datagram does not
            connector, session = flow.connector, flow.connector.session
            if session is None:
                return
        flow.deadline = now + patience(flow)
        if session is not flow.session:
            flow.session, flow.known = session, False
        if not flow.known:
            session.send_datagram(flow.number, flow.opening, now)
        session.send_datagram(flow.number, message, now)
        flow.route.counters.bytes_in += len(message) - 1

    def away(self, port: UdpPort, now: float) -> bool:
        """As `Reader.away`."""
        found = self._table.find_udp(port.number)
        if found is None:
            return False
        by_name = self._connectors.by_name
        routes = (found,) if found.members is None else found.members.routes
        serving = [by_name[route.connector] for route in routes if route.connector in by_name]
        return all(one.link is None for one in serving) and any(one.awaited(now) for one in serving)

    def end_all(self, port: UdpPort, reason: Reason | None) -> None:
        """The port is closed; `reason` as in `end`."""
        for flow in tuple(port.flows.values()):
            self.end(flow, reason)

    # From home.

    def received(self, connector: Connector, number: int, message: bytes) -> None:
        """A connector's datagram. `RemoteError` for what is none of ours."""
        flow = self._by_number.get(number)
        kind = message[0] if message else -1
        if flow is None or flow.connector is not connector:
            session = connector.session
            if kind in (datagrams.DATA, datagrams.READY) and session is not None:
                session.send_datagram(number, datagrams.closed(Reason.CANCELLED), session.now)
            return
        if kind == datagrams.CLOSED:
            self._closed(flow, datagrams.read_closed(message))
            return
        flow.known = flow.session is connector.session
        if kind != datagrams.DATA:
            return
        found = self._table.find_udp(flow.port.number)
        if found is not flow.found and not self._agrees(flow, found):
            return
        if not flow.answered:
            flow.answered = True
            if flow.found.members is not None:
                flow.found.members.served(flow.route.connector)
        flow.port.send(memoryview(message)[1:], flow.address, flow.local)
        flow.route.counters.bytes_out += len(message) - 1

    def _closed(self, flow: EdgeFlow, reason: Reason) -> None:
        """Home has no such flow."""
        if reason is Reason.SESSION_UNKNOWN:  # its OPEN was lost, or fell to another flow: say it again
            flow.known = False
            return
        if reason not in _ENDED_IN_ORDER:
            self._counters.refuse(reason)
            if flow.found.members is not None and not flow.answered:
                flow.found.members.failed(flow.route, reason, self._connectors.loop.time())
        self.end(flow, None)

    # Inside.

    def end(self, flow: EdgeFlow, reason: Reason | None) -> None:
        """The flow is over; `reason`: what its connector hears (None: nothing)."""
        if self._by_number.pop(flow.number, None) is None:
            return
        del flow.port.flows[flow.address]
        flow.deadline = INF
        self._bounds.remove(flow)
        self._counters.connection_closed(LISTENER)
        session = flow.connector.session
        if reason is not None and session is not None and session is flow.session:
            session.send_datagram(flow.number, datagrams.closed(reason), self._connectors.loop.time())
        # The wheel keeps it until its slot comes up: of a flood that is 60,000 at a time, so without what is large.
        flow.opening, flow.address = b"", ()

    def _begin(
        self, port: UdpPort, found: Route | None, address: tuple[Any, ...], local: Local, now: float
    ) -> EdgeFlow | None:
        """A new flow for this visitor, instead of the one that it may have; None, and counted, if there is none."""
        if (old := port.flows.get(address)) is not None:
            self.end(old, Reason.WITHDRAWN)
        host = plain_address(address[0])
        if found is None or not address[1]:  # nobody can be answered at port 0
            self._counters.refuse(Reason.NO_ROUTE)
            return None
        if found.allow_from and not self.rules.allowed(found.allow_from, host):
            self._counters.refuse(Reason.ADDRESS_REFUSED)
            return None
        if not self._begun.take(now):
            self._counters.refuse(Reason.FLOW_LIMIT)
            return None
        route = found if found.members is None else found.members.choose(now, address=host)
        connector = None if route is None else self._connectors.by_name.get(route.connector)
        if route is None or connector is None or connector.session is None or connector.link is None:
            self._counters.refuse(Reason.CONNECTOR_AWAY)
            return None
        key = None if self.rules.trusted(host) else address_key(host)
        flow = EdgeFlow(self, self._number(), port, address, local, key)
        flow.found, flow.route, flow.connector = found, route, connector
        flow.opening = datagrams.opening(
            Open(
                service=route.service,
                kind="udp",
                visitor=host,
                visitor_port=address[1],
                edge=local.text,
                edge_port=port.number,
                many=key is None,
            )
        )
        self._enter(flow, now)
        return flow

    def _enter(self, flow: EdgeFlow, now: float) -> None:
        gone = self._bounds.add(flow)
        if gone is not None:
            self._counters.refuse(Reason.FLOW_LIMIT)
            self.end(gone, Reason.CANCELLED)
        self._by_number[flow.number] = flow
        flow.port.flows[flow.address] = flow
        self._counters.connection_opened(LISTENER)
        self._wheel.arm(flow, now + patience(flow))

    def _number(self) -> int:
        """The next number that no flow has."""
        number = self._last
        while True:
            number = number + 1 if number + 1 < datagrams.FLOWS_BEFORE else datagrams.FLOWS_FROM
            if number not in self._by_number:
                self._last = number
                return number

    def _agrees(self, flow: EdgeFlow, found: Route | None) -> bool:
        """The table changed: whether the flow may go on as it is. If not, it is over."""
        own = found if found is None or found.members is None else found.members.of(flow.route.connector)
        host = plain_address(flow.address[0])
        if (
            found is None
            or own is None
            or (own.connector, own.service) != (flow.route.connector, flow.route.service)
            or not self.rules.allowed(own.allow_from, host)
        ):
            self.end(flow, Reason.WITHDRAWN)
            return False
        flow.found, flow.route = found, own
        return True
