"""UDP flows at home: one connected socket to the target for each visitor's address and port.

A flow is opened by the edge's OPEN, in front of its first datagrams (`wire/datagrams.py`), and known from then on by
its visitor: if the edge opens it anew, because the session or the edge's process is another one, it keeps its socket.
So the target goes on seeing one address and port for one visitor, as QUIC and WireGuard expect, over links that break
and edges that are upgraded. Which flows there may be, and for how long, `access/flows.py` says.

Invariants: only the declared target is ever sent to, and answers go out only while the service is declared; an answer
goes to the visitor of its socket, or nowhere; the order of a flow is kept; nothing per datagram makes a task.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import TYPE_CHECKING

from tunnelgw.access.addresses import address_key
from tunnelgw.access.flows import NEW_MOST, PROVEN_MOST, FlowBounds, patience
from tunnelgw.connector.proxyheader import datagram_header
from tunnelgw.connector.udptarget import UdpTargets, connected, elsewhere
from tunnelgw.net.timers import INF, Wheel
from tunnelgw.obs.reasons import Reason
from tunnelgw.obs.sparing import Sparing
from tunnelgw.wire import datagrams

if TYPE_CHECKING:
    import socket

    from tunnelgw.connector.origins import Origin
    from tunnelgw.connector.serve import Served
    from tunnelgw.connector.tunnel import Tunnel
    from tunnelgw.net.eyeballs import Place
    from tunnelgw.wire.control import Open

log = logging.getLogger(__name__)

PER_TURN = 32  # datagrams of one flow in one turn: others wait a millisecond at most
WAITING_MOST = 16  # datagrams of one flow while its target's name is looked up
PART = 4  # new flows and proven ones may have so much of the places that streams may have: those stay reachable
# Seconds of sending without any answer, after which it is asked again where the target is: most programs give up later.
DOUBT_SECONDS = 10.0
# What one datagram meets, and the next one may not: too large for the path, no room, forbidden by a rule.
PASSING = frozenset((errno.EMSGSIZE, errno.ENOBUFS, errno.ENOMEM, errno.EPERM))
NAME_SHOWN = 80  # characters of a service name that the edge sent
_BUFFER = memoryview(bytearray(1 + 65536))  # DATA's byte, then what a target says
_BEHIND = _BUFFER[1:]

Visitor = tuple[str, str, str, int, int]  # edge, service, address, port, public port
NOBODY: Visitor = ("", "", "", 0, 0)


class HomeFlow:
    """One flow; an item of the wheel. `tunnel` is None while no session knows it.

    doubt_at: when what was sent since the last answer is long ago; 0.0 if nothing was.
    """

    __slots__ = (
        "_first", "_header", "_waiting", "answered", "armed_until", "deadline", "doubt_at", "flows", "key", "number",
        "origin", "proven", "sock", "tunnel", "visitor",
    )  # fmt: skip

    def __init__(self, flows: HomeFlows, origin: Origin, request: Open, visitor: Visitor) -> None:
        self.flows = flows
        self.origin = origin
        self.visitor = visitor
        self.key = None if request.many else address_key(request.visitor)
        self.tunnel: Tunnel | None = None
        self.number = 0
        self.sock: socket.socket | None = None
        self.proven = False
        self.answered = False
        self.doubt_at = 0.0
        self.deadline = INF
        self.armed_until = INF
        version = origin.service.proxy_protocol
        source, destination = (request.visitor, request.visitor_port), (request.edge, request.edge_port)
        self._header = datagram_header(version, source, destination) if version else b""
        self._first = version == "v2-first"
        self._waiting: list[bytes] = []

    def on_deadline(self, now: float) -> None:  # noqa: ARG002 - the wheel's interface
        """The visitor was silent for too long."""
        self.flows.end(self, Reason.IDLE)

    def send(self, data: bytes | memoryview) -> None:
        """A datagram of the visitor's."""
        sock = self.sock
        if sock is None:
            if len(self._waiting) < WAITING_MOST:
                self._waiting.append(bytes(data))
            return
        try:
            sock.send(b"".join((self._header, data)) if self._header else data)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:  # ICMP's answer to an earlier one, among others
            self._failed(error)
            return
        if self._first:
            self._header = b""

    def joined(self, sock: socket.socket) -> None:
        """The target's address is known: what waited goes first."""
        self.sock = sock
        asyncio.get_running_loop().add_reader(sock.fileno(), self._readable)
        waiting, self._waiting = self._waiting, []
        for data in waiting:
            if self.sock is not None:  # not refused meanwhile
                self.send(data)

    def close(self) -> None:
        """No more of it. Idempotent."""
        sock, self.sock = self.sock, None
        self._waiting, self._header = [], b""
        if sock is not None:
            asyncio.get_running_loop().remove_reader(sock.fileno())
            sock.close()

    def _readable(self) -> None:
        now = asyncio.get_running_loop().time()
        for _ in range(PER_TURN):
            if self.sock is None:
                return
            try:
                size = self.sock.recv_into(_BEHIND)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._failed(error)
                return
            self.answered = True
            self.doubt_at = 0.0
            tunnel = self.tunnel
            if tunnel is not None and tunnel.session is not None:
                tunnel.session.send_datagram(self.number, self._message(size), now)

    def _failed(self, error: OSError) -> None:
        if error.errno in PASSING:
            log.debug("service %s: a datagram was lost: %s", self.origin.service.name, error)
        else:  # the target, or our own address, is gone: the visitor's next datagram begins anew
            self.flows.lost(self, error)

    def _message(self, size: int) -> bytes:
        """What the target said, behind DATA's byte; a Simple Proxy Protocol header that comes back is taken off."""
        end = len(self._header) + 1
        if self.origin.service.proxy_protocol == "spp" and _BUFFER[1:end] == self._header and size >= end - 1:
            return datagrams.DATA_BYTE + bytes(_BUFFER[end : size + 1])
        return bytes(_BUFFER[: size + 1])


class HomeFlows:
    """All flows of this connector. Inputs: `received` (a tunnel's datagram), `detached`, `review`, `close`."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._by_visitor: dict[Visitor, HomeFlow] = {}
        self._targets = UdpTargets()
        self._sparing = Sparing(log)
        self._wheel: Wheel | None = None  # made with the first flow
        most = served.places // PART
        self._bounds: FlowBounds[HomeFlow] = FlowBounds(new=min(NEW_MOST, most), proven=min(PROVEN_MOST, most))

    def __len__(self) -> int:
        return len(self._by_visitor)

    def received(self, tunnel: Tunnel, number: int, message: bytes) -> None:
        """The edge's datagram. `RemoteError` for what is none of ours."""
        kind = message[0] if message else -1
        flow = tunnel.flows.get(number)
        if kind == datagrams.DATA:
            if flow is None:
                _tell(tunnel, number, datagrams.closed(Reason.SESSION_UNKNOWN))
                return
            if flow.answered and not flow.proven:
                self._bounds.prove(flow)
            now = asyncio.get_running_loop().time()
            flow.deadline = now + patience(flow)
            flow.send(memoryview(message)[1:])
            if now >= flow.doubt_at:
                if flow.doubt_at:
                    self._doubt(flow)
                flow.doubt_at = now + DOUBT_SECONDS
        elif kind == datagrams.OPEN:
            self._open(tunnel, number, datagrams.read_open(message))
        elif kind == datagrams.CLOSED and flow is not None:
            datagrams.read_closed(message)
            self.end(flow, None)

    def detached(self, tunnel: Tunnel) -> None:
        """The tunnel's session is over: its flows wait for the edge to open them anew."""
        for flow in tunnel.flows.values():
            flow.tunnel = None
        tunnel.flows.clear()

    def review(self) -> None:
        """Other services are declared: flows of those that are gone, or are not the same any more, end."""
        for flow in tuple(self._by_visitor.values()):
            if self._served.origin(flow.origin.service.name) is not flow.origin:
                self.end(flow, Reason.WITHDRAWN)

    def close(self) -> None:
        """The connector stops."""
        for flow in tuple(self._by_visitor.values()):
            self.end(flow, None)
        if self._wheel is not None:
            self._wheel.close()

    def lost(self, flow: HomeFlow, error: OSError) -> None:
        """Nobody listens at the target, or nothing leads there; another address of its name is tried next."""
        target, port = flow.origin.service.target, flow.origin.service.target_port(flow.visitor[4])
        refused = isinstance(error, ConnectionRefusedError)
        self._targets.turn(target.host, port)
        self._warn(flow, f"{target.host} port {port}: {'refused' if refused else error.strerror or error}")
        self.end(flow, Reason.TARGET_REFUSED if refused else Reason.TARGET_UNREACHABLE)

    def end(self, flow: HomeFlow, reason: Reason | None) -> None:
        """The flow is over; `reason`: what the edge hears (None: nothing). Idempotent."""
        if self._by_visitor.get(flow.visitor) is not flow:
            return
        del self._by_visitor[flow.visitor]
        flow.deadline = INF
        self._bounds.remove(flow)
        self._served.give_place(flow.key)
        flow.close()
        tunnel = flow.tunnel
        if tunnel is not None:
            flow.tunnel = None
            del tunnel.flows[flow.number]
            if reason is not None:
                _tell(tunnel, flow.number, datagrams.closed(reason))
        flow.visitor = NOBODY  # the wheel keeps it until its slot comes up, without what is large

    # Inside.

    def _open(self, tunnel: Tunnel, number: int, request: Open) -> None:
        visitor = (str(tunnel.edge), request.service, request.visitor, request.visitor_port, request.edge_port)
        flow = self._by_visitor.get(visitor)
        there = tunnel.flows.get(number)
        if there is not None and there is not flow:  # the edge gave its number to another one
            self.end(there, None)
        if flow is not None:
            if flow.tunnel is not None:
                del flow.tunnel.flows[flow.number]
            self._attach(flow, tunnel, number)
            _tell(tunnel, number, datagrams.READY_MESSAGE)  # not the first time: an answer says it as well
            return
        origin = self._served.origin(request.service)
        port = 0 if origin is None else origin.service.target_port(request.edge_port)
        if origin is None or origin.service.target.kind != "udp" or request.kind != "udp" or not port:
            text = "the edge asked for udp service %r at port %d, which is not declared here"
            self._say(f"unknown {request.service}", text, request.service[:NAME_SHOWN], request.edge_port)
            _tell(tunnel, number, datagrams.closed(Reason.SERVICE_UNKNOWN))
            return
        flow = HomeFlow(self, origin, request, visitor)
        if not self._served.take_place(flow.key):
            self._say("many", "more flows and streams are open than a visitor, or this machine, may have")
            _tell(tunnel, number, datagrams.closed(Reason.STREAM_LIMIT))
            return
        self._enter(flow, tunnel, number)
        self._targets.find(origin.service.target.host, port, lambda places: self._dial(flow, places))

    def _enter(self, flow: HomeFlow, tunnel: Tunnel, number: int) -> None:
        gone = self._bounds.add(flow)
        if gone is not None:
            self.end(gone, Reason.FLOW_LIMIT)
        self._by_visitor[flow.visitor] = flow
        self._attach(flow, tunnel, number)
        loop = asyncio.get_running_loop()
        if self._wheel is None:
            self._wheel = Wheel(loop)
        self._wheel.arm(flow, loop.time() + patience(flow))

    def _attach(self, flow: HomeFlow, tunnel: Tunnel, number: int) -> None:
        flow.tunnel, flow.number = tunnel, number
        tunnel.flows[number] = flow

    def _dial(self, flow: HomeFlow, places: list[Place] | OSError) -> None:
        """At once for an address, or once its name was looked up."""
        if self._by_visitor.get(flow.visitor) is not flow:
            return
        try:
            if isinstance(places, OSError):
                raise places
            flow.joined(connected(places))
        except OSError as error:
            self._warn(flow, f"{flow.origin.service.target}: {error.strerror or error}")
            unresolved = isinstance(places, OSError)
            self.end(flow, Reason.TARGET_UNRESOLVED if unresolved else Reason.TARGET_UNREACHABLE)

    def _doubt(self, flow: HomeFlow) -> None:
        """Nothing comes back: perhaps the target moved, or we did, and nobody says so."""
        if flow.sock is None:  # it is being looked up, or the flow is over
            return
        target, port = flow.origin.service.target, flow.origin.service.target_port(flow.visitor[4])
        self._targets.find(target.host, port, lambda places: self._compare(flow, places))

    def _compare(self, flow: HomeFlow, places: list[Place] | OSError) -> None:
        if flow.sock is None or isinstance(places, OSError) or not elsewhere(flow.sock, places):
            return
        self._warn(flow, "no answer, and it is elsewhere by now: its flows begin anew")
        self.end(flow, Reason.SESSION_UNKNOWN)  # the edge opens it again, with the visitor's next datagram

    def _warn(self, flow: HomeFlow, text: str) -> None:
        self._say(f"target {flow.origin.service.name}", "service %s: %s", flow.origin.service.name, text)

    def _say(self, key: str, text: str, *values: object) -> None:
        self._sparing.warning(key, asyncio.get_running_loop().time(), text, *values)


def _tell(tunnel: Tunnel, number: int, message: bytes) -> None:
    if tunnel.session is not None:
        tunnel.session.send_datagram(number, message, asyncio.get_running_loop().time())
