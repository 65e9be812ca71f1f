"""Ports that hosts share: by what visitors say first, with nothing eaten, within the same bounds as on 443."""

from __future__ import annotations

import asyncio
import json
import ssl
from typing import TYPE_CHECKING

import pytest

from tests.edge.front import ADDRESS, Front, ended, hello, route, run, until
from tests.ports import free_port
from tests.routing.minecraft_packets import STATUS_REQUEST, handshake, legacy_ping, string
from tests.routing.test_postgres import CANCEL, GSS, SSL, STARTUP, fields
from tunnelgw.edge import named
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from pathlib import Path

HOST = "a.example.com"


async def share(front: Front, protocol: str, kind: str = "tcp", *more: str, **rules: object) -> int:
    """A port for this host (and more), open."""
    port = free_port()
    front.table.protocols[port] = protocol
    for host in (HOST, *more):
        front.table.named[(port, host)] = route(kind, host, port=port, protocol=protocol, **rules)
    await front.ports.open(port)
    return port


async def knock(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(ADDRESS, port)


async def said(port: int, data: bytes) -> bytes:
    """All that is answered to whoever says this."""
    reader, writer = await knock(port)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()


def test_minecraft_untouched(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            port = await share(front, "minecraft")
            for first in (
                handshake(HOST + "\0FML2\0", state=2),
                handshake(HOST.upper() + ".", state=1),
                legacy_ping(HOST),
            ):
                reader, writer = await knock(port)
                for byte in first[:40]:  # in as many segments
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0)
                writer.write(first[40:] + STATUS_REQUEST)
                whole = first + STATUS_REQUEST
                assert await asyncio.wait_for(reader.readexactly(len(whole)), 5) == whole.upper()
                assert front.opener.streams[-1].received == whole, "nothing is eaten"
                visitor = front.opener.opened[-1][1]
                assert (visitor.server_name, visitor.edge_port, visitor.secure) == (HOST, port, False)
                writer.close()
            await until(lambda: front.counters.connections["tcp"] == 0)
            assert front.door.ledger.pending == 0

    run(main)


def test_minecraft_is_told_in_its_own_words(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            port = await share(front, "minecraft")
            text, rest = string(await said(port, handshake("b.example.com") + STATUS_REQUEST))
            assert json.loads(text)["description"]["text"] == Reason.NO_ROUTE.text
            assert not rest
            text, _ = string(await said(port, handshake("b.example.com", state=2)))
            assert json.loads(text)["text"] == Reason.NO_ROUTE.text
            assert (await said(port, legacy_ping("b.example.com")))[0] == 0xFF
            assert front.counters.refused(Reason.NO_ROUTE) == 3
            front.opener.refuse = Reason.CONNECTOR_AWAY
            text, _ = string(await said(port, handshake(HOST, state=2)))
            assert json.loads(text)["text"] == Reason.CONNECTOR_AWAY.text
            assert not front.opener.streams

    run(main)


@pytest.mark.parametrize("first", [b"", GSS])
def test_postgres_passes_through(tmp_path: Path, first: bytes) -> None:
    """Our answers are ours; the service sees the ClientHello and what follows, and nothing before it."""

    async def main() -> None:
        async with Front(tmp_path) as front:
            port = await share(front, "postgres", "tls")
            reader, writer = await knock(port)
            if first:
                writer.write(first)
                assert await reader.readexactly(1) == b"N"
            writer.write(SSL)
            assert await reader.readexactly(1) == b"S"
            whole = hello(HOST, "postgresql")
            writer.write(whole[:70])
            await asyncio.sleep(0.01)
            writer.write(whole[70:] + b"tail")
            assert await asyncio.wait_for(reader.readexactly(len(whole) + 4), 5) == (whole + b"tail").upper()
            assert front.opener.streams[-1].received == whole + b"tail"
            writer.close()

    run(main)


def test_postgres_ends_at_the_edge(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            port = await share(front, "postgres")
            for direct in (False, True):
                reader, writer = await knock(port)
                if not direct:
                    writer.write(SSL)
                    assert await reader.readexactly(1) == b"S"
                await writer.start_tls(front.visitor_context("postgresql"), server_hostname=HOST)
                assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "postgresql"
                writer.write(b"inside")
                assert await asyncio.wait_for(reader.readexactly(6), 5) == b"INSIDE"
                assert front.opener.opened[-1][1].secure
                writer.close()
            front.opener.refuse = Reason.CONNECTOR_AWAY
            reader, writer = await knock(port)
            await writer.start_tls(front.visitor_context(), server_hostname=HOST)
            told = fields(await asyncio.wait_for(reader.read(), 5))
            assert told["M"] == Reason.CONNECTOR_AWAY.text
            writer.close()

    run(main)


def test_postgres_without_a_name_that_is_known(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            port = await share(front, "postgres")
            assert "sslmode=require" in fields(await said(port, STARTUP))["H"]
            assert fields(await said(port, SSL + hello(HOST)))["C"] == "08P01"
            for name in ("b.example.com", ""):
                assert (await said(port, hello(name)))[-1] == 112
            for data in (b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x00\x00"):
                reader, writer = await knock(port)
                writer.write(data)
                await ended(reader)
                writer.close()
            assert front.counters.refused(Reason.HELLO_INVALID) == 4
            assert not front.opener.opened

    run(main)


def test_a_cancel_request_reaches_whoever_has_the_port_alone(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            port = await share(front, "postgres")
            reader, writer = await knock(port)
            writer.write(CANCEL)
            assert await asyncio.wait_for(reader.readexactly(len(CANCEL)), 5) == CANCEL.upper()
            writer.close()
            for other in (
                await share(front, "postgres", "tcp", "b.example.com"),
                await share(front, "postgres", "tls"),
            ):
                reader, writer = await knock(other)
                writer.write(CANCEL)
                await ended(reader)
                writer.close()
            assert len(front.opener.opened) == 1

    run(main)


def test_allow_from(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            for protocol, kind in (("minecraft", "tcp"), ("postgres", "tcp"), ("postgres", "tls")):
                port = await share(front, protocol, kind, allow_from=("192.0.2.1",))
                reader, writer = await knock(port)
                writer.write(handshake(HOST) if protocol == "minecraft" else hello(HOST))
                await ended(reader)
                writer.close()
            assert front.counters.refused(Reason.ADDRESS_REFUSED) == 3
            assert not front.opener.opened

    run(main)


def test_one_deadline_for_all_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers on the way to a name give nobody more time."""
    monkeypatch.setattr(named, "SAY_SECONDS", 0.5)

    async def main() -> None:
        async with Front(tmp_path) as front:
            port = await share(front, "postgres")
            silent, asking = await knock(port), await knock(port)
            begun = asyncio.get_running_loop().time()
            for data in (GSS, SSL):
                asking[1].write(data)
                await asking[0].readexactly(1)
            for reader, writer in (silent, asking):
                await ended(reader)
                writer.close()
            assert asyncio.get_running_loop().time() - begun < 2
            assert front.counters.refused(Reason.HELLO_TIMEOUT) == 2
            await until(lambda: front.door.ledger.pending == 0)

    run(main)


def test_places_are_those_of_the_door(tmp_path: Path) -> None:
    """Half-done connections of one address make room for each other, whichever port they came to."""

    async def main() -> None:
        async with Front(tmp_path) as front:
            port = await share(front, "minecraft")
            looking = front.door.ledger.looking
            looking.most = 2
            first = await knock(port)
            await until(lambda: len(looking) == 1)
            others = []
            for count in (2, 3):
                others.append(await front.knock())
                others[-1][1].write(b"\x16")
                await until(lambda: front.door.ledger.open == min(count, 2))  # noqa: B023 - awaited here
            await ended(first[0])
            assert not front.ports._named._peeks, "whoever accepted it has forgotten it"
            last = await knock(port)
            await ended(others[0][0])
            assert front.counters.refused(Reason.HANDSHAKE_LIMIT) == 2
            front.ports.drop()
            await ended(last[0])
            assert len(looking) == 1, "the door's own"
            for _, writer in (first, last, *others):
                writer.close()

    run(main)


def test_a_certificate_that_is_not_there(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            port = await share(front, "postgres", "tcp", "bare.example.com")
            _, writer = await knock(port)
            with pytest.raises(ssl.SSLError):
                await writer.start_tls(front.visitor_context(), server_hostname="bare.example.com")
            writer.close()
            await until(lambda: front.counters.refused(Reason.NAME_UNKNOWN) == 1)

    run(main)
