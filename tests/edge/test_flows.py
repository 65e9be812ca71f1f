"""UDP flows at the edge: real sockets on loopback, a connector that writes down what it is sent."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.edge.front import ADDRESS, Front, route, run, until
from tests.ports import free_udp_port
from tunnelgw.access.flows import NEW_SECONDS, PROVEN_SECONDS, FlowBounds
from tunnelgw.edge import udpport
from tunnelgw.edge.ports import LocalPorts, bind_port
from tunnelgw.errors import Refused
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire import datagrams
from tunnelgw.wire.flow import TokenBucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tunnelgw.routing.table import Route


class Session:
    def __init__(self) -> None:
        self.sent: list[tuple[int, bytes]] = []

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def send_datagram(self, flow: int, data: bytes, now: float) -> None:
        assert abs(now - self.now) < 1
        self.sent.append((flow, data))


class Home:
    """A connector with a session, or none."""

    def __init__(self, name: str = "home") -> None:
        self.name = name
        self.session: Session | None = Session()
        self.link: object | None = object()
        self.waits = True

    def awaited(self, now: float) -> bool:
        return self.waits

    @property
    def said(self) -> list[tuple[int, bytes]]:
        assert self.session is not None
        return self.session.sent


class World:
    """A front with one UDP port, one connector, and visitors."""

    def __init__(self, front: Front) -> None:
        self.front = front
        self.home = Home()
        self.port = free_udp_port()
        self.flows = front.ports._flows
        self.front.connectors.by_name["home"] = self.home
        self.stack = contextlib.ExitStack()

    def route(self, **more: Any) -> Route:
        found = self.front.table.udp[self.port] = route("udp", port=self.port, **more)
        return found

    def visitor(self) -> socket.socket:
        sock = self.stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.connect((ADDRESS, self.port))
        sock.setblocking(False)
        return sock

    async def told(self, count: int) -> list[tuple[int, bytes]]:
        """The next so many datagrams that home was sent."""
        await until(lambda: len(self.home.said) >= count)
        told = self.home.said[:count]
        del self.home.said[:count]
        return told

    def answer(self, number: int, data: bytes) -> None:
        self.flows.received(self.home, number, datagrams.DATA_BYTE + data)  # type: ignore[arg-type]

    def say(self, number: int, message: bytes) -> None:
        self.flows.received(self.home, number, message)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def world(folder: Path, **more: Any) -> AsyncIterator[World]:
    async with Front(folder, allowed=lambda networks, address: not networks or address in networks) as front:
        made = World(front)
        made.route(**more)
        await front.ports.open(("udp", made.port))
        with made.stack:
            yield made


async def heard(visitor: socket.socket) -> bytes:
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(visitor, 65535), 5)


def test_a_flow_is_announced_until_it_was_answered_and_then_goes_both_ways(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            visitor = it.visitor()
            visitor.send(b"one")
            (number, opening), (same, data) = await it.told(2)
            assert number == same >= datagrams.FLOWS_FROM
            request = datagrams.read_open(opening)
            assert (request.service, request.kind, request.edge, request.edge_port) == ("s", "udp", ADDRESS, it.port)
            assert (request.visitor, request.visitor_port) == visitor.getsockname()
            assert data == b"\x00one"
            visitor.send(b"")
            assert await it.told(2) == [(number, opening), (number, b"\x00")], "not answered: said again"
            it.say(number, datagrams.READY_MESSAGE)
            visitor.send(b"three")
            assert await it.told(1) == [(number, b"\x00three")]
            it.answer(number, b"four")
            assert await heard(visitor) == b"four"
            it.answer(number, b"")
            assert await heard(visitor) == b""
            counters = it.front.table.udp[it.port].counters
            assert (counters.bytes_in, counters.bytes_out) == (8, 4)
            assert it.front.counters.connections["udp"] == 1
            it.front.ports.close(("udp", it.port))
            assert it.front.counters.connections["udp"] == 0
            assert await it.told(1) == [(number, datagrams.closed(Reason.WITHDRAWN))]
            assert not len(it.flows)

    run(main)


def test_order_is_kept_and_a_large_datagram_passes(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            visitor = it.visitor()
            visitor.send(bytes(65507))
            (number, _), (_, data) = await it.told(2)
            assert data == bytes(65508)
            it.say(number, datagrams.READY_MESSAGE)
            for value in range(100):
                visitor.send(bytes((value,)))
            assert [data[1] for _, data in await it.told(100)] == list(range(100))

    run(main)


def test_a_lost_opening_is_said_again_and_a_new_session_hears_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            visitor = it.visitor()
            visitor.send(b"a")
            (number, opening), _ = await it.told(2)
            it.answer(number, b"x")
            visitor.send(b"b")
            assert await it.told(1) == [(number, b"\x00b")]
            it.say(number, datagrams.closed(Reason.SESSION_UNKNOWN))
            visitor.send(b"c")
            assert await it.told(2) == [(number, opening), (number, b"\x00c")]
            it.answer(number, b"x")
            it.home.session = Session()
            visitor.send(b"d")
            assert await it.told(2) == [(number, opening), (number, b"\x00d")]

    run(main)


def test_allow_from_and_no_route(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, allow_from=("192.0.2.1",)) as it:
            visitor = it.visitor()
            visitor.send(b"a")
            await until(lambda: it.front.counters.refused(Reason.ADDRESS_REFUSED) == 1)
            it.route(allow_from=(ADDRESS,))
            visitor.send(b"b")
            (number, _), _ = await it.told(2)
            it.route(allow_from=("192.0.2.1",))  # while the flow lives
            it.answer(number, b"x")
            assert await it.told(1) == [(number, datagrams.closed(Reason.WITHDRAWN))]
            del it.front.table.udp[it.port]
            visitor.send(b"c")
            await until(lambda: it.front.counters.refused(Reason.NO_ROUTE) == 1)
            assert not it.home.said

    run(main)


def test_a_flow_stays_with_its_service_and_no_other_connector_can_use_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            visitor = it.visitor()
            visitor.send(b"a")
            (number, _), _ = await it.told(2)
            other = Home("other")
            it.flows.received(other, number, b"\x00stolen")  # type: ignore[arg-type]
            assert other.said == [(number, datagrams.closed(Reason.CANCELLED))]
            it.flows.received(other, number, datagrams.closed(Reason.INTERNAL))  # type: ignore[arg-type]
            assert len(it.flows) == 1
            for nonsense in (b"", b"\x09", b"\x01{}"):
                it.say(number, nonsense)
            it.answer(number, b"mine")
            assert await heard(visitor) == b"mine"
            it.front.table.udp[it.port] = route("udp", port=it.port)  # decided again: the same
            visitor.send(b"b")
            assert await it.told(1) == [(number, b"\x00b")]

    run(main)


def test_silence_ends_a_flow_later_once_it_is_proven(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            loop = asyncio.get_running_loop()
            visitor = it.visitor()
            visitor.send(b"a")
            (number, _), _ = await it.told(2)
            flow = it.flows._by_number[number]
            assert 0 < flow.deadline - loop.time() <= NEW_SECONDS
            it.answer(number, b"x")
            before = flow.deadline
            it.answer(number, b"y")
            assert (flow.deadline, flow.proven) == (before, False), "answers alone prove nothing, and prolong nothing"
            visitor.send(b"b")
            await it.told(1)
            assert flow.proven
            assert NEW_SECONDS < flow.deadline - loop.time() <= PROVEN_SECONDS
            flow.on_deadline(loop.time())
            assert await it.told(1) == [(number, datagrams.closed(Reason.IDLE))]
            assert not len(it.flows)

    run(main)


def test_a_flood_of_new_addresses_ends_no_proven_flow(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            it.flows._bounds = FlowBounds(new=8, proven=8)
            visitor = it.visitor()
            visitor.send(b"a")
            (number, _), _ = await it.told(2)
            it.answer(number, b"x")
            visitor.send(b"b")
            await it.told(1)
            for _ in range(30):
                it.visitor().send(b"flood")
            await until(lambda: it.front.counters.refused(Reason.FLOW_LIMIT) == 22)
            assert len(it.flows) == 9
            it.answer(number, b"still here")
            assert await heard(visitor) == b"x"
            assert await heard(visitor) == b"still here"
            it.flows._begun = TokenBucket(rate=0.0, burst=0, now=0.0)  # more than begin in a second
            it.visitor().send(b"flood")
            await until(lambda: it.front.counters.refused(Reason.FLOW_LIMIT) == 23)
            visitor.send(b"on")
            assert (number, b"\x00on") in await it.told(len(it.home.said) + 1)

    run(main)


def test_datagrams_wait_in_the_kernel_while_the_connector_is_away_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            it.home.link = None
            visitor = it.visitor()
            visitor.send(b"a")
            visitor.send(b"b")
            await asyncio.sleep(2 * udpport.HELD_TURN)
            assert not it.home.said
            it.home.link = object()
            assert [data for _, data in await it.told(4)][1::2] == [b"\x00a", b"\x00b"]
            monkeypatch.setattr(udpport, "HELD_SECONDS", 0.0)
            it.home.link = None
            it.visitor().send(b"c")
            await until(lambda: it.front.counters.refused(Reason.CONNECTOR_AWAY) == 1)
            it.home.waits = False  # and nobody waits for one that is gone for good
            monkeypatch.setattr(udpport, "HELD_SECONDS", 60.0)
            it.visitor().send(b"d")
            await until(lambda: it.front.counters.refused(Reason.CONNECTOR_AWAY) == 2)

    run(main)


def test_a_refused_target_ends_the_flow_and_a_group_moves_on(tmp_path: Path) -> None:
    class Members:
        def __init__(self) -> None:
            self.routes = (route("udp", port=1), route("udp", port=1))
            self.turn = 0
            self.bad: list[Reason] = []

        def choose(self, now: float, *, address: str = "") -> Route:
            return self.routes[0]

        def of(self, connector: str) -> Route:
            return self.routes[0]

        def failed(self, failed: Route, reason: Reason, now: float) -> None:
            self.bad.append(reason)

        def served(self, connector: str) -> None:
            self.turn += 1

    async def main() -> None:
        async with world(tmp_path) as it:
            members: Any = Members()
            it.route(group="g", members=members)
            visitor = it.visitor()
            visitor.send(b"a")
            (number, _), _ = await it.told(2)
            it.say(number, datagrams.closed(Reason.TARGET_REFUSED))
            assert members.bad == [Reason.TARGET_REFUSED]
            assert it.front.counters.refused(Reason.TARGET_REFUSED) == 1
            visitor.send(b"b")
            (second, _), _ = await it.told(2)
            assert second != number
            it.answer(second, b"x")
            it.answer(second, b"y")
            assert members.turn == 1
            it.home.link = None  # this member is away: another one takes over, if there is one
            other = Home("attic")
            it.front.connectors.by_name["attic"] = other
            attic = SimpleNamespace(**{name: getattr(members.routes[0], name) for name in ("service", "counters")})
            attic.connector = "attic"
            members.routes = (members.routes[0], attic)
            members.choose = lambda now, address="": attic
            visitor.send(b"c")
            await until(lambda: len(other.said) == 2)
            assert other.said[1][1] == b"\x00c"

    run(main)


def test_an_answer_leaves_from_the_address_that_was_asked(tmp_path: Path) -> None:
    """Of a socket that is bound to all: 127.0.0.2 is another address of ours."""

    async def main() -> None:
        async with world(tmp_path) as it:
            for bind, asked in (("0.0.0.0", "127.0.0.2"), ("::", "127.0.0.3"), ("::", "::1")):
                port = it.front.ports
                port._opener = LocalPorts(bind)
                number = free_udp_port()
                it.front.table.udp[number] = route("udp", port=number)
                await port.open(("udp", number))
                family = socket.AF_INET6 if ":" in asked else socket.AF_INET
                with socket.socket(family, socket.SOCK_DGRAM) as visitor:
                    visitor.setblocking(False)
                    visitor.connect((asked, number))  # takes answers from nowhere else
                    visitor.send(b"a")
                    (flow, opening), _ = await it.told(2)
                    assert datagrams.read_open(opening).edge == asked
                    it.answer(flow, b"x")
                    assert await heard(visitor) == b"x"

    run(main)


def test_a_worker_that_does_not_read_a_port_leaves_it_to_the_other(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            it.front.ports._mine = lambda port: False
            port = free_udp_port()
            await it.front.ports.open(("udp", port))
            it.front.ports.pause()
            it.front.ports.resume()
            with it.front.ports.listeners()["udp", port].dup() as other:
                other.setblocking(False)
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as visitor:
                    visitor.sendto(b"a", (ADDRESS, port))
                assert (await asyncio.wait_for(asyncio.get_running_loop().sock_recv(other, 9), 5)) == b"a"

    run(main)


def test_tcp_and_udp_of_one_number_are_two_ports_and_a_taken_one_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            await it.front.ports.open(it.port)
            assert it.port in it.front.ports
            assert ("udp", it.port) in it.front.ports
            it.front.ports.keep([("udp", it.port)])
            assert it.port not in it.front.ports
            with pytest.raises(Refused, match=f"udp port {it.port}: another program") as caught:
                bind_port(ADDRESS, ("udp", it.port))
            assert caught.value.reason is Reason.PORT_UNAVAILABLE

    run(main)


def test_ports_take_a_quarter_of_the_places_at_most(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            front.ports._ledger.open_limit = 64
            for _ in range(16):
                port = free_udp_port()
                await front.ports.open(("udp", port))
            with pytest.raises(Refused, match="16 ports are open, a quarter"):
                await front.ports.open(("udp", free_udp_port()))
            await front.ports.open(("udp", port))  # is there already
            front.ports.close(("udp", port))
            await front.ports.open(("udp", free_udp_port()))

    run(main)
