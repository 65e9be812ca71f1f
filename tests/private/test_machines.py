"""Visitors that come with all their packets: whose they are, what they may reach, what ends them."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from tunnelgw.access.packets import FRAGMENT, ICMP, NO_PORT, TCP, UDP
from tunnelgw.access.pools import Pool
from tunnelgw.access.reach import Policy
from tunnelgw.errors import LocalError
from tunnelgw.obs.reasons import Reason
from tunnelgw.private import machines, messages
from tunnelgw.private.machines import Machines, _plain
from tunnelgw.private.messages import Ready, RefusedInside, WantPackets

WANT = WantPackets(outwards="a" * 64, inwards="b" * 64)
POLICY = Policy(["192.168.1.0/24"], ["192.168.1.0/24"])


class Stream:
    """A private stream's near end."""

    def __init__(self) -> None:
        self.sink: Any = None
        self.said: list[object] = []
        self.reason: Reason | None = None
        self.closed = False
        self.outer = SimpleNamespace(on_datagram=None, send_datagram=lambda *_: None, session=None)

    def write(self, data: bytes) -> None:
        self.said.append(messages.decode_answer(data[2:]))

    def finish(self) -> None:
        self.closed = True

    def reset(self, reason: Reason) -> None:
        self.closed, self.reason = True, reason

    def consumed(self, count: int) -> None:
        """All of it."""


class Host:
    """The kernel's part, without a kernel."""

    def __init__(self) -> None:
        self.pool = Pool("home", [])
        self.udp_segments = False
        self.visitors: list[str] = []
        self.left = 0
        self.missing = ""

    async def open(self, visitor: str, _allowed: object, _send: object) -> SimpleNamespace:
        if self.missing:
            raise LocalError(self.missing)
        self.visitors.append(visitor)
        four, _ = self.pool.take(visitor)
        return SimpleNamespace(addresses=[str(four)], receive=lambda _: None, close=self._leave)

    def _leave(self) -> None:
        self.left += 1

    def routes(self, granted: list[str], *, exit: bool) -> list[str]:  # noqa: A002 - PacketHost's
        return granted

    def resume(self) -> None:
        """Nothing was held."""


def home(patch: pytest.MonkeyPatch) -> tuple[Machines, Host]:
    host = Host()
    patch.setattr(machines, "PacketHost", lambda *_, **__: host)
    return Machines(("192.168.1.0/24",), exit=False), host


async def come(home: Machines, name: str, key: str, ended: list[str]) -> Stream:
    stream = Stream()
    request: Any = SimpleNamespace(by=name, key=key)
    home.take(stream, request, WANT, POLICY, lambda: ended.append(name))  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        while not stream.said and not stream.closed:  # noqa: ASYNC110 - a fake tells nobody
            await asyncio.sleep(0.001)
    return stream


def test_the_same_visitor_again_takes_the_place_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        place, host = home(monkeypatch)
        ended: list[str] = []
        first = await come(place, "laptop", "1" * 64, ended)
        assert isinstance(first.said[0], Ready)
        assert first.said[0].routes == ["192.168.1.0/24"]
        second = await come(place, "laptop", "1" * 64, ended)
        assert first.reason is Reason.SUPERSEDED
        assert (ended, host.left) == (["laptop"], 1)
        assert second.said[0].addresses == first.said[0].addresses
        stranger = await come(place, "laptop", "2" * 64, ended)
        assert second.reason is None, "another edge's laptop is somebody else"
        assert stranger.said[0].addresses != second.said[0].addresses
        second.sink.stream_finished()
        assert ended == ["laptop"] * 2
        place.cut(Reason.CONNECTOR_STOPPING)
        assert stranger.reason is Reason.CONNECTOR_STOPPING
        assert ended == ["laptop"] * 3
        assert host.left == 3
        assert stranger.outer.on_datagram is None

    asyncio.run(main())


def test_without_the_right_the_visitor_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        place, host = home(monkeypatch)
        host.missing = "a TUN interface needs root or the capability CAP_NET_ADMIN"
        ended: list[str] = []
        stream = await come(place, "laptop", "1" * 64, ended)
        assert stream.said == [RefusedInside(reason="not_implemented", message=host.missing)]
        stream.sink.stream_finished()
        assert ended == ["laptop"]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("address", "protocol", "port", "allowed"),
    [
        ("192.168.1.5", TCP, 22, True), ("192.168.1.5", UDP, 0, False), ("192.168.2.5", TCP, 22, False),
        ("192.168.1.5", ICMP, NO_PORT, True), ("192.168.2.5", ICMP, NO_PORT, False),
        ("192.168.1.5", TCP, FRAGMENT, True), ("192.168.2.5", UDP, FRAGMENT, False),
        ("gateway", UDP, 53, True), ("gateway", TCP, 22, False), ("gateway", ICMP, NO_PORT, True),
        ("127.0.0.1", TCP, 22, False), ("169.254.169.254", TCP, 80, False),
    ],
)  # fmt: skip
def test_what_a_packet_may_reach(
    monkeypatch: pytest.MonkeyPatch, address: str, protocol: int, port: int, allowed: bool
) -> None:
    async def main() -> bool:
        place, host = home(monkeypatch)
        where = str(host.pool.gateway4) if address == "gateway" else address
        return place._allowed(POLICY, socket.inet_aton(where), protocol, port)

    assert asyncio.run(main()) is allowed


def test_networks_of_rules_with_ports() -> None:
    assert _plain(("192.168.1.0/24", "192.168.1.5:22", "[fd00::/64]:443", ":5000")) == [
        "192.168.1.0/24", "192.168.1.5/32", "fd00::/64"
    ]  # fmt: skip
