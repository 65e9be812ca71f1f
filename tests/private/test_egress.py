"""Dialling out for a visitor: what is checked is what is dialled, and nothing else ever is."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.connector.athome import LOOPS, LocalService, closed_port, run, until
from tunnelgw.access.reach import Policy
from tunnelgw.errors import OriginError, Refused
from tunnelgw.net import eyeballs
from tunnelgw.net.tasks import spawn
from tunnelgw.obs.reasons import Reason
from tunnelgw.private import egress as egress_module
from tunnelgw.private import udp
from tunnelgw.private.egress import Egress
from tunnelgw.private.lookups import MOST, LookUps
from tunnelgw.private.udp import EgressFlow

if TYPE_CHECKING:
    from tunnelgw.net.eyeballs import Place

LOOPBACK = ("127.0.0.1/32", "::1/128")
EVERYTHING = ("0.0.0.0/0", "::/0")


def to(*networks: str) -> Policy:
    return Policy(networks, EVERYTHING)


class Collected(asyncio.Protocol):
    def __init__(self) -> None:
        self.data = bytearray()
        self.lost = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


def names(monkeypatch: pytest.MonkeyPatch, **meanings: list[str]) -> list[str]:
    """What names resolve to, and which were asked for; a further look-up finds loopback (a rebinding server)."""
    asked: list[str] = []

    async def resolve(host: str, port: int, **_: object) -> list[Place]:
        asked.append(host)
        found = meanings[host.partition(".")[0]] if asked.count(host) == 1 else ["127.0.0.1"]
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6, (text, port, 0, 0)) if ":" in text else (socket.AF_INET, (text, port)) for text in found
        ]

    monkeypatch.setattr(eyeballs, "resolve", resolve)
    return asked


@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_a_listed_address_is_reached(loop: str) -> None:
    async def main() -> None:
        target = await LocalService(echo=True).listen()
        protocol = Collected()
        transport = await Egress(to(*LOOPBACK)).connect(lambda: protocol, "127.0.0.1", target.port)
        transport.write(b"hello")
        await until(lambda: protocol.data == b"hello")
        transport.close()
        target.close()

    run(main, loop=loop)


def test_what_is_not_listed_is_never_dialled() -> None:
    async def main() -> None:
        target = await LocalService().listen()
        told: list[Refused] = []
        way = Egress(to("192.168.0.0/16", *EVERYTHING), refused=told.append)
        hosts = (
            "127.0.0.1", "::1", "[::1]", "::ffff:127.0.0.1", "0.0.0.0", "::", "localhost", "169.254.169.254",
            "0x7f.1", "127.1", "2130706433", "0177.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1",
        )  # fmt: skip
        for host in hosts:
            with pytest.raises(Refused) as caught:
                await way.connect(Collected, host, target.port)
            assert caught.value.reason is Reason.ADDRESS_REFUSED
        assert len(told) == len(hosts)
        assert target.connections == 0
        target.close()

    run(main)


def test_a_name_is_resolved_once_and_what_was_checked_is_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        target = await LocalService().listen()
        asked = names(monkeypatch, rebinding=["127.0.0.2"])
        dialled: list[Any] = []
        connect = eyeballs.connect

        async def recorded(places: list[Place], **options: Any) -> socket.socket:
            dialled.append(places)
            return await connect(places, **options)

        monkeypatch.setattr(eyeballs, "connect", recorded)
        with pytest.raises(OriginError):
            await Egress(to("127.0.0.2/32")).connect(Collected, "rebinding.example", target.port)
        assert asked == ["rebinding.example"]
        assert dialled == [[(socket.AF_INET, ("127.0.0.2", target.port))]]
        assert target.connections == 0
        target.close()

    run(main)


def test_of_a_names_addresses_only_those_that_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        names(monkeypatch, mixed=["169.254.169.254", "::1", "127.0.0.1"], bad=["169.254.169.254", "10.0.0.1"])
        way = Egress(to("127.0.0.1/32"))
        assert await way.resolve("mixed.example", 80) == [(socket.AF_INET, ("127.0.0.1", 80))]
        with pytest.raises(Refused, match=r"169\.254"):
            await way.resolve("bad.example", 80)

    run(main)


def test_names_are_looked_up_by_threads_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many names hang, the loop's own threads are free for whoever else looks something up."""
    free = threading.Event()
    began: list[str] = []

    def hang(host: str, *_what: object, **_more: object) -> list[object]:
        began.append(threading.current_thread().name)
        free.wait(10)
        raise socket.gaierror(socket.EAI_NONAME, f"{host}: no")

    async def main() -> None:
        monkeypatch.setattr(eyeballs, "_look_up", hang)
        way = Egress(to("10.0.0.0/8"), executor=LookUps().of("laptop"))
        asking = [spawn(way.connect(Collected, f"slow{number}.lan", 80), name="ask") for number in range(20)]
        await until(lambda: len(began) >= MOST // 8)
        assert await asyncio.get_running_loop().run_in_executor(None, lambda: "free") == "free"
        assert len(began) < 20
        free.set()
        errors = await asyncio.gather(*asking, return_exceptions=True)
        assert {type(error) for error in errors} == {OriginError}

    run(main)


def test_failures_say_what_a_proxy_has_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        way = Egress(to("127.0.0.0/8"))
        with pytest.raises(OriginError) as caught:
            await way.connect(Collected, "127.0.0.1", await closed_port())
        assert caught.value.reason is Reason.TARGET_REFUSED
        names(monkeypatch, nobody=[])
        with pytest.raises(OriginError) as caught:
            await way.connect(Collected, "nobody.example", 80)
        assert caught.value.reason is Reason.TARGET_UNRESOLVED

        async def never(*_places: object, **_options: object) -> socket.socket:
            await asyncio.Event().wait()
            raise AssertionError

        monkeypatch.setattr(egress_module, "DIAL_SECONDS", 0.01)
        monkeypatch.setattr(eyeballs, "connect", never)
        with pytest.raises(OriginError, match="no answer in time") as caught:
            await way.connect(Collected, "127.0.0.1", 80)
        assert caught.value.reason is Reason.TARGET_TIMEOUT

    run(main)


class Echo(asyncio.DatagramProtocol):
    """A UDP service; `other` answers from another port, as a stranger would."""

    def __init__(self) -> None:
        self.received: list[tuple[bytes, tuple[str, int]]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport) or hasattr(transport, "sendto")
        self.transport: Any = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.received.append((data, address))
        self.transport.sendto(data.upper(), address)


async def udp_service(host: str = "127.0.0.1") -> tuple[Echo, int]:
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(Echo, local_addr=(host, 0))
    return protocol, transport.get_extra_info("sockname")[1]


@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_datagrams_from_one_port_to_many(loop: str) -> None:
    async def main() -> None:
        one, first = await udp_service()
        other, second = await udp_service()
        got: list[tuple[bytes, str, int]] = []
        flow = EgressFlow(Egress(to("127.0.0.1/32")), lambda *what: got.append(what))
        flow.send(b"a", "127.0.0.1", first)
        flow.send(b"b", "127.0.0.1", second)
        flow.send(b"c", "127.0.0.1", first)
        await until(lambda: len(got) == 3)
        assert sorted(got) == [(b"A", "127.0.0.1", first), (b"B", "127.0.0.1", second), (b"C", "127.0.0.1", first)]
        assert {address for _, address in one.received} == {address for _, address in other.received}
        stranger, _ = await udp_service()
        stranger.transport.sendto(b"who are you", one.received[0][1])
        flow.send(b"d", "127.0.0.1", second)
        await until(lambda: len(got) == 4)
        assert got[3] == (b"D", "127.0.0.1", second)  # the stranger's came first and was not passed on
        flow.close()
        flow.close()
        flow.send(b"e", "127.0.0.1", first)
        for protocol in (one, other, stranger):
            protocol.transport.close()

    run(main, loop=loop)


def test_refused_datagrams_are_dropped_and_counted() -> None:
    async def main() -> None:
        service, port = await udp_service()
        told: list[Refused] = []
        flow = EgressFlow(Egress(to("192.168.0.0/16"), refused=told.append), lambda *_: None)
        for host in ("127.0.0.1", "::ffff:127.0.0.1", "169.254.169.254", "localhost", "0x7f.1"):
            flow.send(b"x", host, port)
            flow.send(b"y", host, port)
        await until(lambda: flow.dropped == 10)
        assert len(told) == 5  # what is known to be refused is not asked again
        assert not service.received
        flow.close()
        service.transport.close()

    run(main)


def test_names_of_datagrams_are_looked_up_once_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        service, port = await udp_service()
        asked = names(monkeypatch, dns=["127.0.0.1"])
        got: list[bytes] = []
        flow = EgressFlow(Egress(to("127.0.0.1/32")), lambda data, *_: got.append(data))
        for number in range(udp.WAITING + 3):
            flow.send(b"%d" % number, "dns.lan", port)
        await until(lambda: len(got) == udp.WAITING)
        assert flow.dropped == 3
        flow.send(b"late", "dns.lan", port)
        await until(lambda: b"LATE" in got)
        assert asked == ["dns.lan"]
        flow.close()
        service.transport.close()

    run(main)


def test_look_ups_and_destinations_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async def never(_host: str, _port: int, **_: object) -> list[Place]:
            await asyncio.Event().wait()
            return []

        monkeypatch.setattr(eyeballs, "resolve", never)
        flow = EgressFlow(Egress(to("127.0.0.0/8")), lambda *_: None)
        for number in range(udp.LOOKUPS + 5):
            flow.send(b"x", f"host{number}.lan", 53)
        assert flow.dropped == 5
        for number in range(udp.DESTINATIONS + 100):
            flow.send(b"x", f"127.0.{1 + number // 250}.{1 + number % 250}", 9)
        assert len(flow._known) == len(flow._peers) == udp.DESTINATIONS
        flow.close()
        assert not flow._lookups

    run(main)


def test_an_idle_flow_frees_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(udp, "IDLE_SECONDS", 0.05)
        ended = asyncio.Event()
        flow = EgressFlow(Egress(to("127.0.0.1/32")), lambda *_: None, ended.set)
        service, port = await udp_service()
        flow.send(b"x", "127.0.0.1", port)
        await ended.wait()
        assert not flow._sockets
        service.transport.close()

    run(main)


def test_a_changed_policy_reaches_old_flows(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(udp, "KNOWN_SECONDS", 0.0)
        service, port = await udp_service()
        got: list[bytes] = []
        way = Egress(to("127.0.0.1/32"))
        flow = EgressFlow(way, lambda data, *_: got.append(data))
        flow.send(b"x", "127.0.0.1", port)
        await until(lambda: got == [b"X"])
        way.policy = to("10.0.0.0/8")
        flow.send(b"y", "127.0.0.1", port)
        assert flow.dropped == 1
        way.policy = to("127.0.0.1/32")
        flow.send(b"z", "127.0.0.1", port)
        await until(lambda: b"Z" in got)
        assert got == [b"X", b"Z"]
        flow.close()
        service.transport.close()

    run(main)
