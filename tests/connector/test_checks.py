"""Health checks at home: one look at real targets of each kind, thresholds, and what edges are told."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from tests.connector import fakeedge
from tests.connector.athome import LocalService, closed_port, run, service, until
from tests.connector.fakeedge import FakeEdge, make_identity
from tests.net import certs
from tunnelgw.config.model import HealthConfig, Target
from tunnelgw.connector import lookout
from tunnelgw.connector.app import Connector
from tunnelgw.connector.checks import Check, Checks
from tunnelgw.connector.lookout import look
from tunnelgw.connector.origins import Origin
from tunnelgw.http.h2 import Http2, RequestReceived
from tunnelgw.wire.control import Health, Services

if TYPE_CHECKING:
    from pathlib import Path

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


async def looked(target: Target, health: HealthConfig | None = None, **keys: Any) -> str:
    origin = Origin(service(target, **keys))
    try:
        return await look(origin, health or HealthConfig())
    finally:
        await origin.close()


@pytest.mark.parametrize(
    ("answer", "expect", "trouble"),
    [
        (OK, 0, ""),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", 0, ""),
        (b"HTTP/1.0 302 Found\r\n\r\n", 0, ""),
        (b"HTTP/1.1 500 Oh\r\n\r\n", 0, "answered 500"),
        (b"HTTP/1.1 503 \r\n", 0, "answered 503"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, ""),
        (OK, 204, "answered 200 instead of 204"),
        (b"HTTP/1.1 503 Busy\r\n\r\n", 503, ""),
        (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK, 0, ""),
        (b"SSH-2.0-OpenSSH\r\n", 0, "answered something that is not HTTP"),
        (b"HTTP/1.1 103 Early Hints\r\nlink: " + b"x" * 70000, 0, "answered without end"),
    ],
)
def test_http_answers(answer: bytes, expect: int, trouble: str) -> None:
    async def main() -> None:
        target = await LocalService(answer=answer).listen()
        try:
            assert await looked(Target("http", "127.0.0.1", target.port), HealthConfig(expect=expect)) == trouble
        finally:
            target.close()

    run(main)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_what_is_asked(loop: str) -> None:
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK)
        await reader.read()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        there = Target("http", "127.0.0.1", server.sockets[0].getsockname()[1])
        health = HealthConfig(path="/healthz?x=1")
        trouble = await looked(there, health, host=("*.example.com", "web.example.com"), proxy_protocol="v1")
        server.close()
        assert not trouble
        assert asked[0].startswith(b"PROXY UNKNOWN\r\nGET /healthz?x=1 HTTP/1.1\r\nhost: web.example.com\r\n")
        assert b"connection: close\r\n" in asked[0]

    run(main, loop=loop)


def test_a_target_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "LOOK_SECONDS", 0.2)

    async def main() -> None:
        target = await LocalService().listen()
        assert await looked(Target("http", "127.0.0.1", target.port)) == "no answer within 0.2 s"
        target.cut()
        target.close()

    run(main)


def test_connections_are_enough_of_other_targets(tmp_path: Path) -> None:
    async def main() -> None:
        target = await LocalService().listen()
        for scheme in ("tcp", "tls"):
            assert not await looked(Target(scheme, "127.0.0.1", target.port))
        target.close()
        nobody = await closed_port()
        for scheme in ("http", "h2c", "tcp", "tls"):
            assert "refused" in await looked(Target(scheme, "127.0.0.1", nobody))
        local = await LocalService(answer=OK).listen_unix(tmp_path / "sock")
        assert not await looked(Target("unix", path=str(tmp_path / "sock")))
        assert not await looked(Target("http+unix", path=str(tmp_path / "sock")))
        assert await looked(Target("unix", path=str(tmp_path / "nothing")))
        local.close()

    run(main)


def test_https_with_and_without_a_certificate_that_is_believed(tmp_path: Path) -> None:
    async def main() -> None:
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(*certs.Authority().write(tmp_path, "localhost"))
        target = await LocalService(answer=OK).listen(ssl=server)
        there = Target("https", "127.0.0.1", target.port)
        assert not await looked(there, verify=False)
        assert "certificate is not valid" in await looked(there)
        target.close()

    run(main)


class H2cService(asyncio.Protocol):
    """Answers every request with one status."""

    def __init__(self, status: bytes) -> None:
        self.engine, self.status = Http2(serving=True), status

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        for event in self.engine.receive(data):
            if isinstance(event, RequestReceived):
                self.engine.respond(event.stream_id, [(b":status", self.status)], end=True)
        self.transport.write(self.engine.pull(65536))


@pytest.mark.parametrize(("status", "trouble"), [(b"200", ""), (b"502", "answered 502")])
def test_h2c(status: bytes, trouble: str) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: H2cService(status), "127.0.0.1", 0)
        found = await looked(Target("h2c", "127.0.0.1", server.sockets[0].getsockname()[1]))
        server.close()
        plain = await LocalService(answer=OK).listen()
        confused = await looked(Target("h2c", "127.0.0.1", plain.port))
        plain.close()
        assert found == trouble
        assert "not HTTP/2" in confused

    run(main)


def test_an_opinion_changes_after_so_many_looks_in_a_row() -> None:
    check = Check(threshold=3)
    assert check.works is None
    assert check.note("")
    assert check.works
    assert [check.note(trouble) for trouble in ("x", "x", "", "x", "x", "x", "x")] == [False] * 5 + [True, False]
    assert check.works is False
    assert [check.note(trouble) for trouble in ("", "", "x", "", "", "")] == [False] * 5 + [True]
    assert check.works
    first = Check(threshold=3)
    assert first.note("x")
    assert first.works is False


def test_edges_are_told_of_changes_and_reloads_keep_what_is_known(tmp_path: Path) -> None:
    async def main() -> None:
        told: list[list[str]] = []
        checks = Checks(told.append)
        target = await LocalService(answer=OK).listen()
        good = service(Target("http", "127.0.0.1", target.port), name="good", health=HealthConfig(interval=0.02))
        bad = service(Target("tcp", "127.0.0.1", await closed_port()), name="bad", health=HealthConfig(interval=0.02))
        free = service(Target("tcp", "127.0.0.1", 1), name="free")
        assert checks.state(free) == ""
        checks.replace(fakeedge.config(tmp_path, good, bad, free))
        assert told == [["good", "bad"]], "nothing was looked at yet"
        assert checks.state(good) == "not known yet"
        await until(lambda: told[-1] == ["bad"])
        assert checks.state(good) == "healthy"
        assert checks.state(bad).startswith("unhealthy: ")
        checks.replace(fakeedge.config(tmp_path, good, free))
        await until(lambda: told[-1] == [])
        assert checks.state(good) == "healthy"
        target.close()
        target.cut()
        await until(lambda: told[-1] == ["good"])
        assert len(told) == 4
        await checks.close()

    run(main)


def test_every_session_hears_of_health_from_an_edge_that_understands(tmp_path: Path) -> None:
    def said(edge: FakeEdge) -> list[Any]:
        return [message for message in edge.controls if isinstance(message, Services | Health)]

    async def main(understands: bool) -> None:
        folder = tmp_path / str(understands)
        folder.mkdir()
        edge = await FakeEdge(folder).listen()
        edge.health = understands
        make_identity(folder / "state", edge)
        bad = service(Target("tcp", "127.0.0.1", await closed_port()), name="bad", health=HealthConfig(interval=1))
        connector = Connector(fakeedge.config(folder, bad))
        await connector.start()
        await until(lambda: said(edge))
        if understands:
            await until(lambda: len(said(edge)) >= 2)
            assert said(edge)[0] == Health(unhealthy=["bad"]), "before anybody asks for its services"
        before = len(said(edge))
        edge.forget()
        await until(lambda: len(said(edge)) >= before + (2 if understands else 1))
        assert isinstance(said(edge)[before], Health if understands else Services)
        assert any(isinstance(message, Health) for message in said(edge)) is understands
        assert connector.status()["services"][0]["health"].startswith("unhealthy")
        await connector.stop(grace=0)
        await edge.close()

    run(lambda: main(True))
    run(lambda: main(False))
