"""UDP flows at home: real sockets on loopback, a tunnel that writes down what the edge is sent."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from tests.connector.athome import run, until
from tests.connector.fakeedge import FakeEdge, config, make_identity
from tunnelgw.access.flows import NEW_SECONDS, FlowBounds
from tunnelgw.config.model import ConnectorConfig, PortRange, ServiceConfig, Target
from tunnelgw.connector import udptarget
from tunnelgw.connector.app import Connector
from tunnelgw.connector.proxyheader import SIGNATURE, datagram_header
from tunnelgw.connector.serve import Served
from tunnelgw.net import eyeballs
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire import datagrams
from tunnelgw.wire.control import Open

HOST = "127.0.0.1"
VISITOR = ("192.0.2.7", 40000)
FIRST = datagrams.FLOWS_FROM


class Session:
    def __init__(self) -> None:
        self.sent: list[tuple[int, bytes]] = []

    def send_datagram(self, flow: int, data: bytes, now: float) -> None:
        assert abs(now - asyncio.get_running_loop().time()) < 1
        self.sent.append((flow, data))


class Tunnel:
    def __init__(self) -> None:
        self.edge = "edge:443"
        self.session: Session | None = Session()
        self.flows: dict[int, Any] = {}

    @property
    def said(self) -> list[tuple[int, bytes]]:
        assert self.session is not None
        return self.session.sent


def service(port: int, **keys: Any) -> ServiceConfig:
    public = keys.pop("public", (PortRange(53, 53),))
    host = keys.pop("host_at_home", HOST)
    return ServiceConfig(name="dns", target=Target("udp", host, port), port=public, **keys)


def files(*services: ServiceConfig) -> ConnectorConfig:
    return ConnectorConfig(Path("connector.toml"), Path("state"), services=services)


async def arrived(sock: socket.socket) -> tuple[bytes, tuple[str, int]]:
    """The next datagram; uvloop has no `sock_recvfrom`."""
    found: list[tuple[bytes, tuple[str, int]]] = []

    def came() -> bool:
        with contextlib.suppress(BlockingIOError):
            found.append(sock.recvfrom(65535))
        return bool(found)

    await until(came, seconds=5)
    return found[0]


class World:
    """A target's socket, the service in front of it, one tunnel."""

    def __init__(self, **keys: Any) -> None:
        self.target = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.target.bind((HOST, 0))
        self.target.setblocking(False)
        self.service = service(self.target.getsockname()[1], **keys)
        self.served = Served()
        self.served.replace(files(self.service))
        self.flows = self.served.flows
        self.tunnel: Any = Tunnel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flows.close()
        self.target.close()

    def open(self, number: int = FIRST, *, tunnel: Any = None, visitor: tuple[str, int] = VISITOR, **keys: Any) -> None:
        keys = {"service": "dns", "kind": "udp", "edge": "198.51.100.1", "edge_port": 53, **keys}
        message = datagrams.opening(Open(visitor=visitor[0], visitor_port=visitor[1], **keys))
        self.flows.received(tunnel or self.tunnel, number, message)

    def send(self, data: bytes, number: int = FIRST, *, tunnel: Any = None) -> None:
        self.flows.received(tunnel or self.tunnel, number, datagrams.DATA_BYTE + data)

    async def asked(self) -> tuple[bytes, tuple[str, int]]:
        """What the target gets, and from where."""
        return await arrived(self.target)

    async def told(self, count: int = 1, *, tunnel: Any = None) -> list[tuple[int, bytes]]:
        said = (tunnel or self.tunnel).said
        await until(lambda: len(said) >= count)
        found = said[:count]
        del said[:count]
        return found


def test_one_socket_for_each_visitor_and_answers_find_back() -> None:
    async def main() -> None:
        with World() as it:
            it.open()
            it.send(b"one")
            data, source = await it.asked()
            assert data == b"one"
            it.target.sendto(b"answer", source)
            assert await it.told() == [(FIRST, b"\x00answer")]
            it.open()
            it.send(b"")
            assert await it.told() == [(FIRST, datagrams.READY_MESSAGE)], "said at each further OPEN"
            assert await it.asked() == (b"", source), "the same socket"
            it.open(FIRST + 1, visitor=("192.0.2.7", 40001))
            it.send(bytes(60000), FIRST + 1)
            data, other = await it.asked()
            assert (len(data), other != source) == (60000, True)
            it.target.sendto(b"", other)
            assert await it.told() == [(FIRST + 1, b"\x00")]
            assert len(it.flows) == 2

    run(main)


def test_data_of_an_unknown_flow_is_answered_and_the_edge_may_end_one() -> None:
    async def main() -> None:
        with World() as it:
            it.send(b"x")
            assert await it.told() == [(FIRST, datagrams.closed(Reason.SESSION_UNKNOWN))]
            it.open()
            for nonsense in (b"", b"\x02", b"\x09more"):
                it.flows.received(it.tunnel, FIRST, nonsense)
            assert len(it.flows) == 1
            it.flows.received(it.tunnel, FIRST, datagrams.closed(Reason.IDLE))
            it.flows.received(it.tunnel, FIRST, datagrams.closed(Reason.IDLE))
            assert not len(it.flows)
            assert not it.tunnel.said
            assert it.served._places.taken == 0

    run(main)


@pytest.mark.parametrize("asked", [{"service": "other"}, {"kind": "tcp"}, {"edge_port": 54}, {"edge_port": 0}], ids=str)
def test_only_what_is_declared_is_sent_to(asked: dict[str, Any]) -> None:
    async def main() -> None:
        with World() as it:
            it.open(**asked)
            assert await it.told() == [(FIRST, datagrams.closed(Reason.SERVICE_UNKNOWN))]
            assert not len(it.flows)

    run(main)


def test_a_range_maps_one_to_one() -> None:
    async def main() -> None:
        with World() as it:
            port = it.target.getsockname()[1]
            it.served.replace(files(service(port - 2, public=(PortRange(30000, 30004),))))
            it.open(edge_port=30002)
            it.send(b"two")
            assert (await it.asked())[0] == b"two"

    run(main)


def test_a_flow_survives_its_session_and_never_answers_another_visitor() -> None:
    async def main() -> None:
        with World() as it:
            it.open()
            it.send(b"a")
            _, source = await it.asked()
            it.flows.detached(it.tunnel)  # the edge restarted
            it.tunnel.session = Session()
            it.open(FIRST, visitor=("203.0.113.9", 1))  # who has the old number now
            it.target.sendto(b"late", source)
            it.send(b"b")
            await it.asked()
            assert not it.tunnel.said
            later: Any = Tunnel()  # and another process of the edge asks for the first visitor again
            it.open(FIRST + 7, tunnel=later)
            assert await it.told(tunnel=later) == [(FIRST + 7, datagrams.READY_MESSAGE)]
            it.send(b"c", FIRST + 7, tunnel=later)
            assert await it.asked() == (b"c", source), "the target sees the same address and port"
            it.target.sendto(b"d", source)
            await until(lambda: (FIRST + 7, b"\x00d") in later.said)  # perhaps behind the one that came late
            assert {number for number, _ in later.said} == {FIRST + 7}
            assert not it.tunnel.said
            it.open(FIRST + 8, tunnel=later)
            assert later.said[-1] == (FIRST + 8, datagrams.READY_MESSAGE)
            assert list(later.flows) == [FIRST + 8]

    run(main)


def test_a_service_that_leaves_the_file_ends_its_flows() -> None:
    async def main() -> None:
        with World() as it:
            it.open()
            it.send(b"a")
            _, source = await it.asked()
            it.served.replace(files(it.service, service(1, public=()).__class__(name="web", target=Target("http"))))
            assert len(it.flows) == 1, "others may change"
            it.served.replace(files())
            assert await it.told() == [(FIRST, datagrams.closed(Reason.WITHDRAWN))]
            it.target.sendto(b"late", source)
            it.send(b"b")
            assert await it.told() == [(FIRST, datagrams.closed(Reason.SESSION_UNKNOWN))]

    run(main)


def test_a_target_that_refuses_ends_the_flow() -> None:
    async def main() -> None:
        with World() as it:
            it.target.close()
            it.open()
            it.send(b"a")
            assert await it.told() == [(FIRST, datagrams.closed(Reason.TARGET_REFUSED))]
            assert not len(it.flows)

    run(main)


def test_a_target_that_went_away_ends_the_flow() -> None:
    """So that the visitor's next datagram looks where it is now; one that was only too large ends nothing."""

    async def main() -> None:
        with World() as it:
            it.open()
            it.send(b"a")
            await it.asked()
            (flow,) = it.flows._by_visitor.values()
            flow._failed(OSError(errno.EMSGSIZE, "Message too long"))
            assert len(it.flows) == 1
            flow._failed(OSError(errno.EHOSTUNREACH, "No route to host"))
            assert await it.told() == [(FIRST, datagrams.closed(Reason.TARGET_UNREACHABLE))]
            assert not len(it.flows)

    run(main)


def test_what_waits_for_a_name_goes_in_order_and_the_next_address_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with World(host_at_home="dns.lan") as it:
            port = it.target.getsockname()[1]
            looked: list[str] = []
            gate = asyncio.Event()

            async def resolve(host: str, number: int) -> list[eyeballs.Place]:
                looked.append(host)
                await gate.wait()
                return [(socket.AF_INET, ("127.0.0.9", number)), (socket.AF_INET, (HOST, number))]

            monkeypatch.setattr(eyeballs, "resolve", resolve)
            it.open()
            it.open(FIRST + 1, visitor=("192.0.2.8", 1))
            for number in range(3):
                it.send(b"%d" % number)
            gate.set()
            assert await it.told() == [(FIRST, datagrams.closed(Reason.TARGET_REFUSED))]
            it.flows.received(it.tunnel, FIRST + 1, datagrams.closed(Reason.IDLE))
            it.open()
            for number in range(3):
                it.send(b"%d" % number)
            assert [(await it.asked())[0] for _ in range(3)] == [b"0", b"1", b"2"]
            assert looked == ["dns.lan"], "once for all"
            assert it.flows._targets._found["dns.lan", port][1][0][1][0] == HOST

    run(main)


@pytest.mark.parametrize("name", ["nowhere.invalid", "169.254.169.254"])
def test_a_target_that_cannot_be_reached(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async def resolve(host: str, number: int) -> list[eyeballs.Place]:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")

        monkeypatch.setattr(eyeballs, "resolve", resolve)
        with World(host_at_home=name) as it:
            it.open()
            [(number, message)] = await it.told()
            reason = Reason.TARGET_UNREACHABLE if name[0] == "1" else Reason.TARGET_UNRESOLVED
            assert (number, datagrams.read_closed(message)) == (FIRST, reason)

    run(main)


def test_bounds_and_places() -> None:
    async def main() -> None:
        with World() as it:
            it.flows._bounds = FlowBounds(new=2, proven=2)
            for number in range(3):
                it.open(FIRST + number, visitor=("192.0.2.7", 1 + number))
            assert await it.told() == [(FIRST, datagrams.closed(Reason.FLOW_LIMIT))]
            assert len(it.flows) == it.served._places.taken == 2
            it.served._places.most = 2
            it.open(FIRST + 9, visitor=("192.0.2.9", 1))
            assert await it.told() == [(FIRST + 9, datagrams.closed(Reason.STREAM_LIMIT))]

    run(main)


def test_silence_ends_a_flow() -> None:
    async def main() -> None:
        with World() as it:
            it.open()
            it.send(b"a")
            _, source = await it.asked()
            flow = it.tunnel.flows[FIRST]
            now = asyncio.get_running_loop().time()
            assert now < flow.deadline <= now + NEW_SECONDS
            it.target.sendto(b"x", source)
            await it.told()
            it.send(b"b")
            assert flow.proven
            assert flow.deadline > now + NEW_SECONDS
            flow.on_deadline(now)
            assert await it.told() == [(FIRST, datagrams.closed(Reason.IDLE))]

    run(main)


@pytest.mark.parametrize("version", ["v2", "v2-first", "spp"])
def test_the_target_is_told_the_visitors_address(version: str) -> None:
    async def main() -> None:
        with World(proxy_protocol=version) as it:
            header = datagram_header(version, VISITOR, ("198.51.100.1", 53))
            it.open()
            it.send(b"one")
            it.send(b"two")
            data, source = await it.asked()
            assert data == header + b"one"
            assert (await it.asked())[0] == (b"two" if version == "v2-first" else header + b"two")
            it.target.sendto(header + b"answer", source)
            it.target.sendto(b"bare", source)
            answers = [message for _, message in await it.told(2)]
            assert answers == [b"\x00answer" if version == "spp" else b"\x00" + header + b"answer", b"\x00bare"]

    run(main)


def test_headers_byte_for_byte() -> None:
    four = bytes.fromhex("c0000207 c6336401 9c40 0035")
    assert datagram_header("v2", VISITOR, ("198.51.100.1", 53)) == SIGNATURE + b"\x21\x12\x00\x0c" + four
    six = bytes.fromhex("20010db8000000000000000000000007 20010db8000000000000000000000001 0001 0002")
    assert datagram_header("v2", ("2001:db8::7", 1), ("2001:db8::1", 2)) == SIGNATURE + b"\x21\x22\x00\x24" + six
    mapped = b"\x56\xec" + bytes(10) + b"\xff\xff\xc0\x00\x02\x07" + bytes(10) + b"\xff\xff\xc6\x33\x64\x01"
    assert datagram_header("spp", VISITOR, ("198.51.100.1", 53)) == mapped + struct.pack("!HH", 40000, 53)
    assert len(datagram_header("spp", ("", 0), ("nonsense", 0))) == 38
    assert datagram_header("v2", ("", 0), ("", 0)) == SIGNATURE + b"\x21\x00\x00\x00"


def test_a_name_is_looked_up_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        looked = SimpleNamespace(count=0)

        async def resolve(host: str, number: int) -> list[eyeballs.Place]:
            looked.count += 1
            return [(socket.AF_INET, (HOST, number))]

        monkeypatch.setattr(eyeballs, "resolve", resolve)
        targets = udptarget.UdpTargets()
        found: list[Any] = []
        for count in (1, 1, 2):
            if count == 2:
                monkeypatch.setitem(targets._found, ("a.lan", 1), (0.0, targets._found["a.lan", 1][1]))
            before = len(found)
            targets.find("a.lan", 1, found.append)
            await until(lambda before=before: len(found) > before)  # type: ignore[misc]
            assert looked.count == count

    run(main)


def test_over_a_real_tunnel(tmp_path: Path) -> None:
    async def main() -> None:
        edge = await FakeEdge(tmp_path).listen()
        make_identity(tmp_path / "state", edge)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as target:
            target.bind((HOST, 0))
            target.setblocking(False)
            connector = Connector(config(tmp_path, service(target.getsockname()[1])))
            await connector.start()
            await until(lambda: edge.services and connector.is_ready)
            assert edge.services[0].offers[0].kind == "udp"
            assert edge.session is not None
            request = Open(service="dns", kind="udp", visitor="192.0.2.7", visitor_port=1, edge_port=53)
            edge.session.send_datagram(FIRST, datagrams.opening(request), edge.session.now)
            edge.session.send_datagram(FIRST, b"\x00question", edge.session.now)
            data, source = await arrived(target)
            assert data == b"question"
            target.sendto(b"answer", source)
            await until(lambda: edge.datagrams == [(FIRST, b"\x00answer")])
            for link in list(edge.links):  # the link dies: the session, and the flow, stay
                link.abort()
            await until(lambda: edge.resumed == 1)
            edge.session.send_datagram(FIRST, b"\x00again", edge.session.now)
            assert await arrived(target) == (b"again", source)
            edge.forget()
            await until(lambda: len(edge.services) == 2)
            assert edge.session is not None
            edge.session.send_datagram(FIRST + 1, datagrams.opening(request), edge.session.now)
            edge.session.send_datagram(FIRST + 1, b"\x00anew", edge.session.now)
            assert await arrived(target) == (b"anew", source)
            await connector.stop(grace=0.2)
            await edge.close()

    run(main)
