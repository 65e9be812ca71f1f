"""Each kind of target, and each way in which a dial fails."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from typing import TYPE_CHECKING, Any

import pytest

from tests.connector.athome import LOOPS, LocalService, LooseStream, closed_port, request, run, service, until
from tests.connector.authority import TestAuthority
from tunnelgw.config.model import PortRange, ServiceConfig, Target
from tunnelgw.connector import origins
from tunnelgw.connector.origins import Origin
from tunnelgw.errors import OriginError
from tunnelgw.net import eyeballs
from tunnelgw.net.splice import Splice
from tunnelgw.obs.reasons import Reason

if TYPE_CHECKING:
    from pathlib import Path


async def through(
    declared: ServiceConfig, data: bytes, *, kind: str = "tcp", answer: bytes = b"", **keys: Any
) -> LooseStream:
    """Send `data` and FIN (after `answer` came) to a service's target; the stream once it ended."""
    origin = Origin(declared)
    stream = LooseStream()
    asked = request(kind, **keys)
    splice = Splice(stream, first=origin.header(asked), lost=Reason.TARGET_RESET)  # type: ignore[arg-type]
    stream.sink = splice
    splice.stream_data(data)
    if not answer:
        splice.stream_finished()
    await origin.connect(lambda: splice, asked)
    if answer:  # TLS has no half-close: whoever ends its half ends both
        await until(lambda: stream.received == answer)
        splice.stream_finished()
    await stream.ended.wait()
    return stream


def refusal(declared: ServiceConfig, *, kind: str = "tcp") -> Reason:
    async def main() -> Reason:
        with pytest.raises(OriginError) as caught:
            await through(declared, b"x", kind=kind)
        return caught.value.reason

    return run(main)  # type: ignore[no-any-return]


@pytest.mark.parametrize("loop", sorted(LOOPS))
@pytest.mark.parametrize("scheme", ["http", "h2c", "tcp", "tls"])
def test_bytes_to_a_tcp_target_and_its_half_close(scheme: str, loop: str) -> None:
    async def main() -> None:
        target = await LocalService(echo=True).listen()
        declared = service(Target(scheme, "127.0.0.1", target.port))
        stream = await through(declared, b"hello", kind=declared.target.kind)
        assert stream.received == b"hello"
        assert stream.finished.is_set()
        assert stream.credited == 5
        target.close()

    run(main, loop=loop)


@pytest.mark.parametrize("loop", sorted(LOOPS))
@pytest.mark.parametrize("scheme", ["unix", "http+unix"])
def test_unix_targets(tmp_path: Path, scheme: str, loop: str) -> None:
    async def main() -> None:
        target = await LocalService(echo=True).listen_unix(tmp_path / "s")
        stream = await through(service(Target(scheme, path=str(tmp_path / "s"))), b"hello")
        assert stream.received == b"hello"
        target.close()

    run(main, loop=loop)


@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_https_verified_or_not(tmp_path: Path, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = TestAuthority()
    certificate, key = authority.write(tmp_path, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    (tmp_path / "ca.pem").write_text(authority.pem)

    async def main() -> None:
        target = await LocalService(answer=b"over TLS").listen(ssl=context)
        trusting = service(Target("https", "127.0.0.1", target.port), verify=False)
        stream = await through(trusting, b"hello", kind="http", answer=b"over TLS")
        await target.ended.wait()
        assert target.received == b"hello"
        assert stream.received == b"over TLS"
        strict = service(Target("https", "127.0.0.1", target.port))
        with pytest.raises(OriginError, match="verify = false accepts it") as caught:
            await through(strict, b"hello", kind="http")
        assert caught.value.reason is Reason.TARGET_TLS
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        named = service(Target("https", "localhost", target.port))
        stream = await through(named, b"hello", kind="http", answer=b"over TLS")
        assert stream.received == b"over TLS"
        target.close()

    run(main, loop=loop)


def test_https_to_a_plain_target_says_tls() -> None:
    async def main() -> None:
        target = await LocalService(answer=b"HTTP/1.1 400 Bad Request\r\n\r\n").listen()
        with pytest.raises(OriginError) as caught:
            await through(service(Target("https", "127.0.0.1", target.port)), b"x", kind="http")
        assert caught.value.reason is Reason.TARGET_TLS
        target.close()

    run(main)


@pytest.mark.parametrize(
    ("version", "header"),
    [
        ("v1", b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 2222\r\n"),
        (
            "v2",
            b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x12\xc0\x00\x02\x07\xc6\x33\x64\x01\xc3\x50\x08\xae\x02\x00\x03ssh",
        ),
    ],
)
def test_the_proxy_header_comes_first(version: str, header: bytes) -> None:
    async def main() -> None:
        target = await LocalService(echo=True).listen()
        declared = service(Target("tcp", "127.0.0.1", target.port), proxy_protocol=version)
        stream = await through(
            declared,
            b"SSH-2.0",
            visitor="192.0.2.7",
            visitor_port=50000,
            edge="198.51.100.1",
            edge_port=2222,
            host="ssh",
        )
        assert stream.received == header + b"SSH-2.0"
        assert stream.credited == len(b"SSH-2.0")
        target.close()

    run(main)


def test_a_range_of_ports_maps_one_to_one() -> None:
    async def main() -> None:
        target = await LocalService(echo=True).listen()
        declared = service(Target("tcp", "127.0.0.1", target.port - 7), port=(PortRange(30000, 30010),))
        stream = await through(declared, b"seventh", edge_port=30007)
        assert stream.received == b"seventh"
        target.close()

    run(main)


def test_refused() -> None:
    async def main() -> None:
        with pytest.raises(OriginError) as caught:
            await through(service(Target("tcp", "127.0.0.1", await closed_port())), b"x")
        assert caught.value.reason is Reason.TARGET_REFUSED

    run(main)


def test_a_missing_unix_socket_is_refused(tmp_path: Path) -> None:
    assert refusal(service(Target("unix", path=str(tmp_path / "gone")))) is Reason.TARGET_REFUSED


def test_unresolved(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(host: str, port: int) -> list[eyeballs.Place]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(eyeballs, "resolve", resolve)
    assert refusal(service(Target("tcp", "nowhere.invalid", 80))) is Reason.TARGET_UNRESOLVED


def test_a_target_that_never_accepts_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origins, "DIAL_SECONDS", 0.2)

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
            for _ in range(3):  # fill the accept queue, so that the next connection waits in vain
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
            with pytest.raises(OriginError) as caught:
                await through(service(Target("tcp", *full.getsockname())), b"x")
            assert caught.value.reason is Reason.TARGET_TIMEOUT

    run(main)


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254", "fd00:ec2::254%lo", "169.254.170.2",
        "64:ff9b::a9fe:a9fe",
    ],
)  # fmt: skip
def test_metadata_addresses_are_refused_after_resolution(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(host: str, port: int) -> list[eyeballs.Place]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(family, (address, port))]

    monkeypatch.setattr(eyeballs, "resolve", resolve)
    assert refusal(service(Target("http", "innocent.example.com", 80)), kind="http") is Reason.TARGET_UNREACHABLE


def test_a_target_that_resets_resets_the_stream() -> None:
    async def main() -> None:
        async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            linger = struct.pack("ii", 1, 0)  # closing sends RST
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()

        server = await asyncio.start_server(rude, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        origin = Origin(service(Target("tcp", "127.0.0.1", port)))
        stream = LooseStream()
        splice = Splice(stream, lost=Reason.TARGET_RESET)  # type: ignore[arg-type]
        splice.stream_data(b"xyz")
        await origin.connect(lambda: splice, request())
        await stream.ended.wait()
        splice.stream_reset(Reason.CANCELLED)
        assert stream.reason is Reason.TARGET_RESET
        server.close()

    run(main)


@pytest.mark.parametrize("version", ["", "v1"])
@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_a_database_is_asked_for_tls_before_the_visitors_bytes(loop: str, version: str) -> None:
    async def main() -> None:
        heard: list[bytes] = []

        async def database(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if version:
                heard.append(await reader.readline())
            heard.append(await reader.readexactly(8))
            writer.write(b"S")
            heard.append(await reader.readexactly(5))
            writer.write(b"world")
            writer.close()

        server = await asyncio.start_server(database, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        declared = ServiceConfig(
            "db", Target("tls", "127.0.0.1", port), host=("db.x",), port=(PortRange(5432, 5432),),
            protocol="postgres", proxy_protocol=version,
        )  # fmt: skip
        places = {"visitor": "203.0.113.9", "visitor_port": 1, "edge": "192.0.2.1", "edge_port": 5432}
        stream = await through(declared, b"hello", kind="tls", answer=b"world", **places)
        server.close()
        assert stream.received == b"world"
        assert heard[-2:] == [bytes.fromhex("0000000804d2162f"), b"hello"]
        assert not version or heard[0] == b"PROXY TCP4 203.0.113.9 192.0.2.1 1 5432\r\n"

    run(main, loop=loop)


@pytest.mark.parametrize("answer", [b"N", b"E", b"", b"SSH-2.0"])
def test_a_database_that_offers_no_tls(answer: bytes) -> None:
    """What only begins with S is a database to us; TLS finds out. Everything else gets nothing of the visitor's."""

    async def main() -> None:
        heard: list[bytes] = []

        async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.append(await reader.readexactly(8))
            writer.write(answer)
            if not answer:
                writer.close()
            heard.append(await reader.read(100))
            writer.close()

        server = await asyncio.start_server(other, "127.0.0.1", 0)
        target = Target("tls", "127.0.0.1", server.sockets[0].getsockname()[1])
        declared = ServiceConfig("db", target, host=("db.x",), port=(PortRange(1, 1),), protocol="postgres")
        if answer.startswith(b"S"):
            await through(declared, b"hello", kind="tls")
            assert heard[1] == b"hello"
        else:
            with pytest.raises(OriginError, match="offers no TLS") as caught:
                await through(declared, b"hello", kind="tls")
            assert caught.value.reason is Reason.TARGET_TLS
            await until(lambda: len(heard) == 2)
            assert heard[1] == b""
        server.close()

    run(main)
