"""A way out over two real sessions and real TLS: what a proxy asks for, judged and dialled at the far side."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.connector.athome import LocalService, closed_port, run, until
from tests.connector.authority import TestAuthority
from tests.wire.wirepair import Pair
from tunnelgw.config.model import ConnectorConfig
from tunnelgw.connector.outside import Beyond
from tunnelgw.errors import OriginError, Refused, TunnelgwError
from tunnelgw.net.tls import private_client_context, private_server_context
from tunnelgw.obs.reasons import Reason
from tunnelgw.private import udp
from tunnelgw.private.opening import Inside
from tunnelgw.visitor import tunnelreach
from tunnelgw.visitor.tunnelreach import TunnelReach
from tunnelgw.wire.control import Reachable
from tunnelgw.wire.stream import PRIVATE_FLOW

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from tunnelgw.wire.control import Open
    from tunnelgw.wire.session import Session
    from tunnelgw.wire.stream import Stream


class Place:
    """A visitor's machine and a connector, with an edge in between that only passes on."""

    def __init__(self, folder: Path, granted: tuple[str, ...], *, exit: bool) -> None:  # noqa: A002 - the file's word
        authority = TestAuthority()
        home = authority.write(folder, "home", client=True)
        laptop = authority.write(folder, "laptop", client=True)
        self.server = private_server_context(*home, authority=authority.pem)
        self.client = private_client_context(*laptop, authority=authority.pem, edge=False)
        self.beyond = Beyond()
        self.beyond.replace(ConnectorConfig(path=Path("c"), state_dir=Path("s"), networks=("127.0.0.1",), exit=exit))
        self.granted = granted
        self.reachable: Reachable | None = Reachable(networks=list(granted))
        self.error: TunnelgwError | None = None
        self.ended = 0
        self.mute = False  # the connector never answers
        self.pair = Pair()
        self.pair.edge.handler.stream_opened = self.opened  # type: ignore[method-assign]
        self.seen = bytearray()
        for end in (self.pair.edge, self.pair.home):
            end.session.wake = self.woken
        self._moving = False
        self.pair.run()  # what an attachment has to say

    # As `Machine`.

    async def session(self) -> Session:
        if self.error is not None:
            raise self.error
        return self.pair.home.session

    def context(self, _connector: str) -> ssl.SSLContext:
        return self.client

    def meet(self, connector: str, certificate: bytes) -> None:
        assert connector == "home"
        assert certificate

    # The connector.

    def opened(self, stream: Stream, request: Open) -> None:
        told = type(request)(service=request.service, kind=request.kind, by="laptop", networks=list(self.granted))

        def over() -> None:
            self.ended += 1

        Inside(
            stream,
            self.server,
            met=lambda _shown: None,
            serve=lambda sealed, want: None if self.mute else self.beyond.take(sealed, told, want, over),
            over=lambda _error: over(),
        )

    def woken(self) -> None:
        if not self._moving:
            self._moving = True
            asyncio.get_running_loop().call_soon(self._move)

    def _move(self) -> None:
        self._moving = False
        for near, far in ((self.pair.home, self.pair.edge), (self.pair.edge, self.pair.home)):
            data = near.pull_all()
            self.seen += data
            if data:
                far.session.feed(data, 0.0)


def with_place(
    tmp_path: Path,
    test: Callable[[Place, TunnelReach], Awaitable[None]],
    *,
    granted: tuple[str, ...] = ("127.0.0.0/8",),
    kind: str = "via",
    exit: bool = False,  # noqa: A002 - the file's word
) -> None:
    async def main() -> None:
        place = Place(tmp_path, granted, exit=exit)
        await test(place, TunnelReach(place, kind, "home"))  # type: ignore[arg-type]
        await until(lambda: not place.pair.home.session.streams and not place.pair.edge.session.streams)

    run(main)


class Collected(asyncio.Protocol):
    def __init__(self) -> None:
        self.data = bytearray()
        self.lost = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


def test_a_connection_and_nothing_of_it_in_between(tmp_path: Path) -> None:
    async def test(place: Place, way: TunnelReach) -> None:
        target = await LocalService(echo=True).listen()
        protocol = Collected()
        transport = await way.connect(lambda: protocol, "127.0.0.1", target.port)
        transport.write(b"what nobody in between may read" * 1000)
        await until(lambda: len(protocol.data) == 31_000)
        assert b"nobody" not in place.seen
        assert b"127.0.0.1" not in place.seen.replace(b'"127.0.0.0/8"', b"")
        transport.close()
        await target.ended.wait()
        await protocol.lost.wait()
        await until(lambda: place.ended == 1)
        target.close()

    with_place(tmp_path, test)


def test_who_does_not_read_holds_the_target_up_and_loses_nothing(tmp_path: Path) -> None:
    async def test(_place: Place, way: TunnelReach) -> None:
        size, written = 24 << 20, 0

        async def pour(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal written
            while written < size:
                writer.write((written >> 16).to_bytes(4, "big") * 16384)
                written += 65536
                await writer.drain()
            writer.close()

        source = await asyncio.start_server(pour, "127.0.0.1", 0)
        protocol = Collected()
        transport = await way.connect(lambda: protocol, "127.0.0.1", source.sockets[0].getsockname()[1])
        transport.pause_reading()
        before = -1
        while before != written:  # windows are used up, and the kernel's buffers
            before = written
            await asyncio.sleep(0.3)
        assert written < 16 << 20
        assert len(protocol.data) < 4 << 20
        transport.resume_reading()
        await protocol.lost.wait()
        assert bytes(protocol.data) == b"".join(number.to_bytes(4, "big") * 16384 for number in range(size >> 16))
        source.close()

    with_place(tmp_path, test)


def test_refusals_and_failures_have_their_reasons(tmp_path: Path) -> None:
    async def test(place: Place, way: TunnelReach) -> None:
        for host, port, reason in (
            ("10.0.0.1", 80, Reason.ADDRESS_REFUSED),
            ("127.0.0.2", 80, Reason.ADDRESS_REFUSED),
            ("127.0.0.1", await closed_port(), Reason.TARGET_REFUSED),
            ("0x7f.1", 80, Reason.ADDRESS_REFUSED),  # not even asked for
            ("user@host", 80, Reason.ADDRESS_REFUSED),
        ):
            with pytest.raises((Refused, OriginError)) as caught:
                await way.connect(Collected, host, port)
            assert caught.value.reason is reason
        place.error = Refused("away", reason=Reason.CONNECTOR_AWAY)
        with pytest.raises(Refused, match="away"):
            await way.connect(Collected, "127.0.0.1", 80)
        assert place.ended == 3

    with_place(tmp_path, test)


def test_who_gives_up_leaves_no_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(place: Place, way: TunnelReach) -> None:
        place.mute = True
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await way.connect(Collected, "127.0.0.1", 80)
        monkeypatch.setattr(tunnelreach, "CONNECT_SECONDS", 0.1)
        with pytest.raises(OriginError) as caught:
            await way.connect(Collected, "127.0.0.1", 80)
        assert caught.value.reason is Reason.TARGET_TIMEOUT

    with_place(tmp_path, test)


def test_a_port_scan_is_held_up_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnelreach, "OPENS_BURST", 3)
    monkeypatch.setattr(tunnelreach, "OPENS_PER_SECOND", 0.001)

    async def test(place: Place, way: TunnelReach) -> None:
        reasons = []
        for port in range(1, 6):
            with pytest.raises(Refused) as caught:
                await way.connect(Collected, "127.0.0.2", port)
            reasons.append(caught.value.reason)
        assert reasons == [Reason.ADDRESS_REFUSED] * 3 + [Reason.RATE_LIMIT] * 2
        assert place.ended == 3

    with_place(tmp_path, test)


class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.transport.sendto(data.upper(), address)


async def echo() -> tuple[Any, int]:
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    return transport, transport.get_extra_info("sockname")[1]


def test_datagrams_both_ways_and_nothing_of_them_in_between(tmp_path: Path) -> None:
    async def test(place: Place, way: TunnelReach) -> None:
        service, port = await echo()
        got: list[tuple[bytes, str, int]] = []
        flow = await way.datagrams(lambda *what: got.append(what))
        flow.send(b"secret datagram", "127.0.0.1", port)
        await until(lambda: got)
        assert got == [(b"SECRET DATAGRAM", "127.0.0.1", port)]
        assert b"datagram" not in place.seen.lower().replace(b"datagrams", b"")
        flow.send(b"no", "127.0.0.2", port)
        flow.send(b"no", "10.0.0.1", port)
        flow.send(b"x" * 70_000, "127.0.0.1", port)
        flow.send(b"again", "127.0.0.1", port)
        await until(lambda: len(got) == 2)
        assert got[1][0] == b"AGAIN"
        # What somebody in between repeats or makes up is nothing.
        (stream,) = place.pair.edge.session.streams.values()
        place.pair.home.session.send_datagram(PRIVATE_FLOW | stream.id, b"made up" * 10, place.pair.home.session.now)
        flow.close()
        flow.close()
        flow.send(b"late", "127.0.0.1", port)
        await until(lambda: place.ended == 1)
        service.close()

    with_place(tmp_path, test)


def test_a_flow_that_the_far_side_ends_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp, "IDLE_SECONDS", 0.1)

    async def test(place: Place, way: TunnelReach) -> None:
        ended = asyncio.Event()
        await way.datagrams(lambda *_: None, ended.set)
        await ended.wait()
        ended.clear()
        monkeypatch.setattr(udp, "IDLE_SECONDS", 100.0)
        await way.datagrams(lambda *_: None, ended.set)
        place.beyond.replace(ConnectorConfig(path=Path("c"), state_dir=Path("s")))
        await ended.wait()
        assert place.ended == 2

    with_place(tmp_path, test)


def test_an_exit_is_one_only_if_the_file_says_so(tmp_path: Path) -> None:
    async def test(_place: Place, way: TunnelReach) -> None:
        with pytest.raises(Refused) as caught:
            await way.connect(Collected, "93.184.216.34", 80)
        assert caught.value.reason is Reason.ADDRESS_REFUSED
        assert way.networks == []

    with_place(tmp_path, test, kind="exit")


def test_networks_are_what_the_edge_said_last(tmp_path: Path) -> None:
    async def test(place: Place, way: TunnelReach) -> None:
        assert way.networks == ["127.0.0.0/8"]
        place.reachable = None
        assert way.networks == []

    with_place(tmp_path, test)
