"""The front door with real sockets: what is decided, what is said when it is no, and that nothing is eaten."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from tests.edge.front import ADDRESS, Front, ended, hello, in_records, padded, run, until
from tunnelgw.connector.proxyheader import proxy_header
from tunnelgw.edge import public
from tunnelgw.edge.addressing import plain_address, worker_of
from tunnelgw.net import tls
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("alpn", "answer"), [((), "http1"), (("http/1.1",), "http1"), (("h2", "http/1.1"), "http2")])
def test_terminated_visitors_reach_the_right_protocol(alpn: tuple[str, ...], answer: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            reader, writer = await front.visit("a.example.com", *alpn)
            port = writer.get_extra_info("sockname")[1]
            writer.write(b"hello")
            assert await reader.readexactly(len(answer) + 1) == answer.encode() + b" "
            assert await reader.readuntil(b"hello") == f"{ADDRESS}:{port} a.example.com True hello".encode()
            assert front.counters.connections == {"https": 1}
            assert (front.door.ledger.open, front.door.ledger.pending) == (1, 0)
            writer.close()
            await until(lambda: front.door.ledger.open == 0)
            assert front.counters.connections == {"https": 0}

    run(main)


@pytest.mark.parametrize(
    ("name", "alpn", "code", "reason"),
    [
        ("unknown.example.com", (), 112, Reason.NAME_UNKNOWN),
        ("", (), 112, Reason.NAME_UNKNOWN),
        ("a.example.com", ("imap",), 120, Reason.ALPN_UNKNOWN),
        ("a.example.com", ("acme-tls/1",), 120, Reason.ALPN_UNKNOWN),
        ("unknown.example.com", ("acme-tls/1",), 120, Reason.ALPN_UNKNOWN),
        ("bare.example.com", (), 80, Reason.NAME_UNKNOWN),
    ],
)
def test_refusals_are_alerts_without_a_certificate(
    name: str, alpn: tuple[str, ...], code: int, reason: Reason, tmp_path: Path
) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            reader, writer = await front.knock()
            writer.write(hello(name, *alpn))
            assert await reader.read() == b"\x15\x03\x03\x00\x02\x02" + bytes([code])
            assert front.counters.refused(reason) == 1
            writer.close()
            await until(lambda: front.door.ledger.open == 0)

    run(main)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_shows_the_alert(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            for name, alpn, words in (
                ("unknown.example.com", "http/1.1", b"unrecognized name"),
                ("a.example.com", "smtp", b"no application protocol"),
            ):
                child = await asyncio.create_subprocess_exec(
                    "openssl", "s_client", "-connect", f"{ADDRESS}:{front.port}", "-servername", name, "-alpn", alpn,
                    stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
                )  # fmt: skip
                output, _ = await child.communicate()
                assert words in output
                assert b"BEGIN CERTIFICATE" not in output

    run(main)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_renegotiation_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            child = await asyncio.create_subprocess_exec(
                "openssl", "s_client", "-connect", f"{ADDRESS}:{front.port}", "-servername", "a.example.com", "-tls1_2",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            output, _ = await child.communicate(b"R\n")
            assert b"RENEGOTIATING" in output
            assert b"no renegotiation" in output
            assert b"Compression: NONE" in output

    run(main)


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("segment", [0, 1, 700])
def test_a_hello_in_pieces_finds_its_name(size: int, segment: int, tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            reader, writer = await front.knock()
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            data = in_records(hello("pass.example.com"), size)
            step = segment or len(data)
            for at in range(0, len(data), step):
                writer.write(data[at : at + step])
                await asyncio.sleep(0)
            assert await reader.readexactly(len(data)) == data.upper()  # all of it, untouched
            assert front.opener.streams[0].received == data
            assert front.opener.opened[0][1].server_name == "pass.example.com"
            writer.write_eof()
            assert await reader.read() == b""
            assert front.opener.streams[0].finished
            writer.close()
            await until(lambda: front.door.ledger.open == 0 and front.live.count("home", "s") == 0)

    run(main)


def test_terminated_tls_survives_fragments_too(tmp_path: Path) -> None:
    """The socket is handed to OpenSSL with SO_RCVLOWAT back at 1, or this would hang."""

    async def main() -> None:
        async with Front(tmp_path) as front:
            there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
            near = front.visitor_context().wrap_bio(back, there, server_hostname="a.example.com")
            reader, writer = await front.knock()
            done = False
            while not done:
                try:
                    near.do_handshake()
                    done = True
                except ssl.SSLWantReadError:
                    pass
                data = there.read()
                for at in range(0, len(data), 50):
                    writer.write(data[at : at + 50])
                    await asyncio.sleep(0.001)
                if not done:
                    back.write(await reader.read(65536))
            near.write(b"ping")
            writer.write(there.read())
            answer = b""
            while not answer.endswith(b"ping"):
                back.write(await reader.read(65536))
                try:
                    answer += near.read(100)
                except ssl.SSLWantReadError:
                    continue
            writer.close()

    run(main)


@pytest.fixture
def peeks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    made: list[Any] = []

    class Watched(public.Peek):  # type: ignore[type-arg]
        def __init__(self, *args: object, **more: object) -> None:
            super().__init__(*args, **more)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr(public, "Peek", Watched)
    return made


@pytest.mark.parametrize("pieces", [2, 5, 40])
def test_a_slow_hello_wakes_us_a_few_times_only(pieces: int, tmp_path: Path, peeks: list[Any]) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            reader, writer = await front.knock()
            data = hello("pass.example.com")
            step = len(data) // pieces
            for at in range(0, len(data), step):
                writer.write(data[at : at + step])
                await asyncio.sleep(0.01)
            await reader.readexactly(len(data))
            assert peeks[0].wakeups < 20
            writer.close()

    run(main)


def test_the_worst_dribble_is_looked_at_by_timer(tmp_path: Path, peeks: list[Any]) -> None:  # type: ignore[type-arg]
    """One byte per record and per segment: every record would be a wake-up."""

    async def main() -> None:
        async with Front(tmp_path) as front:
            reader, writer = await front.knock()
            data = in_records(hello("pass.example.com"), 1)
            for at in range(0, len(data), 6):
                writer.write(data[at : at + 6])
                await asyncio.sleep(0.0005)
            await reader.readexactly(len(data))
            assert peeks[0].wakeups < 20
            writer.close()

    run(main)


@pytest.mark.parametrize("ending", ["fin", "rst"])
def test_half_a_hello_then_the_end_is_dropped_at_once(ending: str, tmp_path: Path, peeks: list[Any]) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            reader, writer = await front.knock()
            writer.write(hello("a.example.com")[:100])
            await until(lambda: peeks and peeks[0].seen == 100)
            if ending == "fin":
                writer.write_eof()
                await ended(reader)
            else:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                writer.transport.abort()
            await until(lambda: front.door.ledger.open == 0)
            assert peeks[0].wakeups < 5
            writer.close()

    run(main)


@pytest.mark.parametrize("first", [b"", b"\x16\x03\x01\x02\x00\x01"])
def test_silence_is_cut_at_an_absolute_deadline(first: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public, "HELLO_SECONDS", 0.3)

    async def main() -> None:
        async with Front(tmp_path) as front:
            front.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 0)
            reader, writer = await front.knock()
            writer.write(first)
            await ended(reader)
            assert front.counters.refused(Reason.HELLO_TIMEOUT) == 1
            writer.close()

    run(main)


@pytest.mark.parametrize(
    "junk",
    [b"\x80\x2e\x01\x03\x01", b"\x18\x03\x02\x00\x03\x01\x40\x00", b"\0" * 64, b"SSH-2.0-x\r\n",
     b"\x16\x03\x01\xff\xff" + b"x" * 9, b"\x16\x03\x01\x00\x00", b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",
     b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1\r\n"],
)  # fmt: skip
def test_junk_is_closed_quickly(junk: bytes, tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            reader, writer = await front.knock()
            writer.write(junk)
            await ended(reader)
            assert front.counters.refused(Reason.HELLO_INVALID) == 1
            writer.close()
            await until(lambda: front.door.ledger.open == 0)

    run(main)


def test_plain_http_on_the_tls_port_is_told_so(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            reader, writer = await front.knock()
            writer.write(b"GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n")
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert answer.endswith(b"use https://\n")
            writer.close()

    run(main)


def test_tcp_inside_tls_is_spliced(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            front.opener.greeting = b"SSH-2.0-first\r\n"
            reader, writer = await front.visit("shell.example.com")
            assert await reader.readline() == b"SSH-2.0-first\r\n"
            writer.write(b"abc")
            assert await reader.readexactly(3) == b"ABC"
            assert front.opener.opened[0][1].secure
            writer.close()
            await until(lambda: front.door.ledger.open == 0)
            await until(lambda: front.opener.opened[0][0].counters.bytes_in == 3)

    run(main)


@pytest.mark.parametrize("name", ["shell.example.com", "pass.example.com"])
def test_parked_then_ready_then_cut(name: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            front.opener.park = True
            if name.startswith("shell"):
                reader, writer = await front.visit(name)
                data = b"early"
            else:
                reader, writer = await front.knock()
                data = hello(name)
            writer.write(data)
            await until(lambda: front.opener.parked)
            waiter = front.opener.parked.pop()
            waiter.stream_ready(front.opener.make(waiter))
            assert await reader.readexactly(len(data)) == data.upper()
            assert front.live.cut("home", "s") == 1
            await ended(reader)
            assert front.opener.streams[0].reason is Reason.WITHDRAWN
            writer.close()
            await until(lambda: front.door.ledger.open == 0)

    run(main)


def test_a_visitor_that_leaves_while_parked_is_forgotten(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            front.opener.park = True
            _, writer = await front.visit("shell.example.com")
            await until(lambda: front.opener.parked)
            writer.transport.abort()
            # The transport rests while parked, so the end shows when the stream is there.
            waiter = front.opener.parked[0]
            waiter.stream_ready(front.opener.make(waiter))
            await until(lambda: front.door.ledger.open == 0 and front.opener.streams[0].closed)

    run(main)


def test_no_stream_for_a_passed_through_name_is_an_alert(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            front.opener.refuse = Reason.CONNECTOR_AWAY
            reader, writer = await front.knock()
            writer.write(hello("pass.example.com"))
            assert await reader.read() == b"\x15\x03\x03\x00\x02\x02\x50"
            assert front.counters.refused(Reason.CONNECTOR_AWAY) == 1
            writer.close()

    run(main)


def test_no_stream_inside_tls_is_an_orderly_close(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            front.opener.refuse = Reason.CONNECTOR_AWAY
            reader, writer = await front.visit("shell.example.com")
            assert await reader.read() == b""
            assert front.counters.refused(Reason.CONNECTOR_AWAY) == 1
            writer.close()
            await until(lambda: front.door.ledger.open == 0)

    run(main)


def test_a_visitor_that_stops_within_the_handshake_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_SECONDS", 0.3)

    async def main() -> None:
        async with Front(tmp_path) as front:
            reader, writer = await front.knock()
            writer.write(hello("a.example.com"))
            await reader.read()  # our flight, then the end
            assert front.counters.refused(Reason.HANDSHAKE_FAILED) == 1
            writer.close()
            await until(lambda: front.door.ledger.open == 0 and front.door.ledger.pending == 0)

    run(main)


def test_allow_from_holds_for_passed_through_names(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            reader, writer = await front.knock()
            writer.write(hello("closed.example.com"))
            await ended(reader)
            assert front.counters.refused(Reason.ADDRESS_REFUSED) == 1
            assert not front.opener.opened
            writer.close()

    run(main)


@pytest.mark.parametrize("alpn", [(), ("h2",), ("acme-tls/1",)])
def test_what_ends_at_home_passes_untouched(alpn: tuple[str, ...], tmp_path: Path) -> None:
    """ACME's validation as well; and whom `allow_from` keeps out is decided at home, where the path is known."""

    async def main() -> None:
        async with Front(tmp_path) as front:
            reader, writer = await front.knock()
            data = hello("home.example.com", *alpn)
            writer.write(data)
            assert await reader.readexactly(len(data)) == data.upper()
            assert front.opener.opened[0][0].kind == "home"
            writer.transport.abort()

    run(main)


def test_failed_handshakes_are_counted_and_leave_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            with pytest.raises(ssl.SSLError):  # a visitor who does not know our authority
                await asyncio.open_connection(
                    ADDRESS, front.port, ssl=ssl.create_default_context(), server_hostname="a.example.com"
                )
            _, writer = await front.knock()
            writer.write(hello("a.example.com"))
            await until(lambda: front.door.ledger.pending == 1)
            writer.transport.abort()
            _, second = await front.knock()
            second.write(hello("a.example.com") + b"\x16\x03\x03\x00\x04junk")
            await until(lambda: front.counters.refused(Reason.HANDSHAKE_FAILED) == 3)
            await until(lambda: front.door.ledger.open == 0 and front.door.ledger.pending == 0)
            second.close()

    run(main)


@pytest.mark.parametrize("name", ["shell.example.com", "pass.example.com"])
def test_a_passage_that_is_reset_is_counted(tmp_path: Path, name: str) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            if name.startswith("shell"):
                reader, writer = await front.visit(name)
            else:
                reader, writer = await front.knock()
                writer.write(hello(name))
            await until(lambda: front.opener.streams and len(front.live) == 1)
            front.opener.streams[0].die(Reason.BUFFER_LIMIT)
            await ended(reader)
            await until(lambda: not front.live)
            assert front.counters.refused(Reason.BUFFER_LIMIT) == 1
            writer.transport.abort()

    run(main)


def test_tunnels_are_handed_on_whole_and_not_counted_once_they_are_known(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path, connections_per_address=1) as front:
            data = hello("w7.tgw.invalid", "tgw/1")
            _, writer = await front.knock()
            writer.write(data)
            await until(lambda: front.tunnels)
            sock, found = front.tunnels[0]
            assert sock.recv(65536) == data
            assert tuple(found.alpn) == (b"tgw/1",)
            assert sock.peer[0] == ADDRESS
            assert front.door.ledger.open == 1  # anybody can say tgw/1: a stranger until the hello is accepted
            sock.release()
            assert front.door.ledger.open == front.door.ledger.pending == 0
            reader, visitor = await front.visit("a.example.com")
            visitor.write(b"x")
            await reader.readuntil(b"x")
            writer.close()
            visitor.close()

    run(main)


def test_the_limit_of_an_address_refuses_the_new_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path, connections_per_address=1) as front:
            reader, writer = await front.visit("a.example.com")
            other, extra = await front.knock()
            extra.write(hello("a.example.com"))
            await ended(other)
            assert front.counters.refused(Reason.CONNECTION_LIMIT) == 1
            writer.write(b"x")
            await reader.readuntil(b"x")
            writer.close()
            extra.close()

    run(main)


def test_when_descriptors_run_short_tunnels_still_get_in(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path, descriptors=0) as front:  # 64 visitors
            kept = [await front.knock(f"127.0.0.{2 + number // 2}") for number in range(64)]
            for _, writer in kept:
                writer.write(hello("pass.example.com"))
            await until(lambda: len(front.opener.streams) == 64)
            reader, refused = await front.knock()
            refused.write(hello("pass.example.com"))
            await ended(reader)
            assert front.counters.refused(Reason.DESCRIPTORS) == 1
            _, tunnel = await front.knock()
            tunnel.write(hello("w0.tgw.invalid", "tgw/1"))
            await until(lambda: front.tunnels)
            for _, writer in (*kept, (reader, refused), (reader, tunnel)):
                writer.transport.abort()

    run(main)


def test_when_all_places_are_taken_by_idle_visitors_newcomers_get_in(tmp_path: Path) -> None:
    """TLS and plain: whoever rests makes room; a passage, which is raw bytes, is never asked to."""

    async def main() -> None:
        async with Front(tmp_path, descriptors=0) as front:  # 64 visitors
            passage = await front.knock("127.0.1.99")
            passage[1].write(hello("pass.example.com"))
            await passage[0].readexactly(100)
            silent = [await open_plain(front, f"127.0.1.{1 + number // 2}") for number in range(63)]
            await until(lambda: len(front.door.ledger.resting) == 63)
            for _ in range(3):
                reader, writer = await front.visit("a.example.com")
                writer.write(b"x")
                await reader.readuntil(b"x")
                silent.append((reader, writer))
            silent += [await open_plain(front, "127.0.1.98") for _ in range(60)]
            await until(lambda: front.door.ledger.open == 64 and not front.door.ledger.leaving)
            assert front.counters.refused(Reason.DESCRIPTORS) == 0
            passage[1].write(b"still here")
            assert (await passage[0].readuntil(b"HERE"))[-10:] == b"STILL HERE"
            for _, writer in (passage, *silent):
                writer.transport.abort()

    run(main)


async def open_plain(front: Front, source: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(*front.plain.getsockname(), local_addr=(source, 0))


def test_a_flood_of_half_done_handshakes_locks_nobody_out(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            front.door.ledger.looking.most = 20
            flood = [await front.knock(f"127.0.1.{number % 10}") for number in range(60)]
            for _, writer in flood:
                writer.write(hello("a.example.com")[:200])
            await until(lambda: front.counters.refused(Reason.HANDSHAKE_LIMIT) == 40)
            reader, writer = await front.visit("a.example.com")
            writer.write(b"x")
            await reader.readuntil(b"x")
            assert front.counters.refused(Reason.HANDSHAKE_LIMIT) == 41
            await ended(flood[0][0])  # of those with most the one that waited longest
            for _, each in (*flood, (reader, writer)):
                each.transport.abort()

    run(main)


def test_who_is_crowded_out_before_its_handshake_is_not_kept(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            front.door.ledger.looking.most = 20
            handshakes = front.door._handshakes
            handshakes._left, handshakes._scheduled = 0, True  # no turn begins
            flood = [await front.knock(f"127.0.1.{number % 10}") for number in range(60)]
            for _, writer in flood:
                writer.write(hello("a.example.com"))
            await until(lambda: front.counters.refused(Reason.HANDSHAKE_LIMIT) == 40)
            await until(lambda: len(handshakes._turns) == 20)
            assert len(handshakes._starts) == 20
            handshakes._turn()
            await until(lambda: not handshakes._starts)
            assert not len(handshakes._turns)
            for _, writer in flood:
                writer.transport.abort()

    run(main)


def test_handshakes_that_stop_half_way_make_room_for_others(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            front.door.ledger.shaking.most = 4
            flood = [await front.knock("127.0.1.1") for _ in range(4)]
            for _, writer in flood:
                writer.write(hello("a.example.com"))
            for reader, _ in flood:
                assert await reader.read(1) == b"\x16"  # a ServerHello, and we say nothing
            reader, writer = await front.visit("a.example.com")
            writer.write(b"x")
            await reader.readuntil(b"x")
            await flood[0][0].read()  # cut
            assert front.counters.refused(Reason.HANDSHAKE_FAILED) == 1
            await until(lambda: front.door.ledger.pending == 3)
            for _, each in (*flood, (reader, writer)):
                each.transport.abort()

    run(main)


def test_behind_a_proxy_the_visitors_address_is_counted(tmp_path: Path) -> None:
    async def main() -> None:
        rules = {"proxy_protocol": True, "trusted": lambda address: address == ADDRESS, "connections_per_address": 2}
        async with Front(tmp_path, **rules) as front:
            made = []
            for host in ("192.0.2.7", "192.0.2.7", "192.0.2.8", "192.0.2.7"):
                reader, writer = await front.knock()
                data = hello("pass.example.com")
                writer.write(proxy_header("v2", (host, 5000), ("198.51.100.1", 443), host="x") + data)
                made.append(writer)
                if len(made) < 4:
                    assert await reader.readexactly(len(data)) == data.upper()
                else:
                    await ended(reader)
            assert front.counters.refused(Reason.CONNECTION_LIMIT) == 1
            for writer in made:
                writer.transport.abort()
            await until(lambda: not front.door.ledger.open)
            assert front.door.ledger._peers == {}

    run(main)


def test_a_tunnel_from_another_worker_is_counted_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path, connections_per_address=1) as front:
            ends = []
            for _ in range(2):
                sock, far = socket.socketpair()
                far.send(hello("w0.tgw.invalid", "tgw/1"))
                ends.append(far)
                front.door.adopt(sock.detach(), ("192.0.2.7", 5000))
            await until(lambda: front.tunnels)
            assert (front.door.ledger.open, len(front.tunnels)) == (1, 1)
            assert front.counters.refused(Reason.CONNECTION_LIMIT) == 1
            for far in ends:
                far.close()

    run(main)


@pytest.mark.parametrize("size", [2000, 15_000])
@pytest.mark.parametrize("name", ["pass.example.com", "a.example.com"])
def test_large_hellos_are_normal(size: int, name: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            reader, writer = await front.knock()
            data = padded(hello(name), size)
            writer.write(data)
            first = await reader.readexactly(1)
            assert first == (data[:1].upper() if name.startswith("pass") else b"\x16")  # echoed, or a ServerHello
            writer.transport.abort()

    run(main)


@pytest.mark.parametrize("size", [17_000, 60_000])
def test_larger_ones_are_refused(size: int, tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            reader, writer = await front.knock()
            writer.write(in_records(padded(hello("pass.example.com"), size), 16_000))
            await ended(reader)
            assert front.counters.refused(Reason.HELLO_INVALID) == 1
            writer.close()

    run(main)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("split", [False, True])
def test_a_trusted_proxy_says_who_the_visitor_is(version: str, split: bool, tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path, proxy_protocol=True, trusted=lambda address: address == ADDRESS) as front:
            header = proxy_header(version, ("192.0.2.7", 51000), ("198.51.100.1", 443), host="x")
            data = hello("pass.example.com")
            reader, writer = await front.knock()
            for part in (header[:5], header[5:9], header[9:] + data[:1], data[1:]) if split else (header + data,):
                writer.write(part)
                await asyncio.sleep(0.01)
            assert await reader.readexactly(len(data)) == data.upper()
            visitor = front.opener.opened[0][1]
            assert (visitor.address, visitor.port) == ("192.0.2.7", 51000)
            assert (visitor.edge_address, visitor.edge_port) == ("198.51.100.1", 443)
            writer.close()

    run(main)


@pytest.mark.parametrize("trusted", [True, False])
def test_where_proxy_headers_are_expected_nothing_else_will_do(trusted: bool, tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path, proxy_protocol=True, trusted=lambda address: trusted) as front:
            reader, writer = await front.knock()
            header = b"" if trusted else proxy_header("v2", ("192.0.2.7", 51000), ("198.51.100.1", 443))
            writer.write(header + hello("a.example.com"))
            await ended(reader)
            assert front.counters.refused(Reason.PROXY_HEADER) == 1
            writer.close()

    run(main)


def test_plain_port_serves_the_gateway(tmp_path: Path) -> None:
    async def main() -> None:
        async with Front(tmp_path) as front:
            reader, writer = await asyncio.open_connection(*front.plain.getsockname())
            writer.write(b"GET")
            assert await reader.readuntil(b"GET") == (
                f"http1 {ADDRESS}:{writer.get_extra_info('sockname')[1]}  False GET".encode()
            )
            writer.close()
            await until(lambda: front.counters.connections["http"] == 0)

    run(main)


def test_stalled_handshakes_do_not_delay_a_visitor(tmp_path: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with Front(tmp_path) as front:
            stalled = await asyncio.gather(*(front.knock(f"127.0.1.{number % 4}") for number in range(200)))
            for _, writer in stalled:
                writer.write(hello("a.example.com")[:200])
            await until(lambda: front.door.ledger.pending == 200)
            started = loop.time()
            reader, writer = await front.visit("a.example.com")
            writer.write(b"x")
            await reader.readuntil(b"x")
            assert loop.time() - started < 8
            for _, each in (*stalled, (None, writer)):
                each.transport.abort()

    run(main)


@pytest.mark.parametrize(
    ("name", "worker"),
    [("w0.tgw.invalid", 0), ("w12.tgw.invalid", 12), ("tgw.invalid", None), ("wx.tgw.invalid", None),
     ("w.tgw.invalid", None), ("w1.tgw.invalid.", None), ("w123456.tgw.invalid", None),
     ("w\u0663.tgw.invalid", None), ("w1.example.com", None)],
)  # fmt: skip
def test_worker_names(name: str, worker: int | None) -> None:
    assert worker_of(name) == worker


def test_addresses_as_text() -> None:
    assert plain_address("::ffff:192.0.2.1") == "192.0.2.1"
    assert plain_address("fe80::1%eth0") == "fe80::1"
    assert plain_address("2001:db8::1") == "2001:db8::1"
