"""TLS that ends at home: what a visitor gets for each kind of first bytes, and what a lying edge gets."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.connector.athome import LOOPS, run, until
from tests.net.certs import Authority
from tunnelgw.config.model import ConnectorConfig, ServiceConfig, Target
from tunnelgw.connector import ending as module
from tunnelgw.connector.ending import Ending, hosts_of
from tunnelgw.connector.serve import Served
from tunnelgw.net import tls
from tunnelgw.net.pair import stream_pair
from tunnelgw.net.timers import Wheel
from tunnelgw.obs.reasons import Reason
from tunnelgw.wire.control import Open
from tunnelgw.wire.flow import Budget

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

HOST = "photos.example.com"


class Target1:
    """A local HTTP service that answers with what it was asked, as JSON."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.port = 0

    async def listen(self) -> Target1:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.heads.append(head)
                body = json.dumps(head.lower().splitlines()).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def close(self) -> None:
        self._server.close()


def half_an_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A response that only the end of the connection ends, and a target that breaks in its middle."""
    del reader
    writer.write(b"HTTP/1.1 200 OK\r\n\r\nhalf of it")
    linger = struct.pack("ii", 1, 0)
    asyncio.get_running_loop().call_later(0.2, lambda: (
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger),
        writer.transport.abort(),
    ))  # fmt: skip


class Browser:
    """A visitor at the other end of a stream: TLS in memory."""

    def __init__(self, end: Any, context: ssl.SSLContext, name: str) -> None:
        self.end = end
        end.sink = self
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name or None)
        self.raw = b""
        self.body = b""
        self.over: object = None
        self.error: Exception | None = None
        self.ready = False

    def start(self) -> None:
        self.pump()

    def pump(self) -> None:
        try:
            if not self.ready:
                self.tls.do_handshake()
                self.ready = True
            while data := self.tls.read(65536):
                self.body += data
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.error = error
        if self.outgoing.pending and not self.end.closed:
            self.end.write(self.outgoing.read())

    def say(self, data: bytes) -> None:
        self.tls.write(data)
        self.pump()

    def stream_data(self, data: bytes) -> None:
        self.raw += data
        self.end.consumed(len(data))
        self.incoming.write(data)
        self.pump()

    def stream_finished(self) -> None:
        self.over = "finished"
        self.incoming.write_eof()
        self.pump()

    def stream_reset(self, reason: Reason) -> None:
        self.over = reason

    def pause_sending(self) -> None:
        pass

    def resume_sending(self) -> None:
        pass


class Certificates:
    """Contexts by name, and one challenge."""

    def __init__(self, contexts: dict[str, ssl.SSLContext]) -> None:
        self.contexts = contexts
        self.challenges: dict[str, ssl.SSLContext] = {}
        self.asked: list[tuple[str, str]] = []
        self.gate: asyncio.Event | None = None

    async def context(self, host: str, name: str, *, http: bool) -> ssl.SSLContext | None:
        assert http
        self.asked.append((host, name))
        if self.gate is not None:
            await self.gate.wait()
        return self.contexts.get(name)

    def challenge(self, name: str) -> ssl.SSLContext | None:
        return self.challenges.get(name)


class Home:
    """`Served` and `Ending` as the connector joins them, with a local service behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority()
        names = (HOST, "other.example.com", "albums.example.net")
        pairs = {name: self.authority.write(folder, name) for name in names}
        self.certificates = Certificates({name: tls.visitor_context(*pair) for name, pair in pairs.items()})
        self.served = Served()

    async def start(self, *services: ServiceConfig) -> None:
        self.target = await Target1().listen()
        self.wheel = Wheel(asyncio.get_running_loop(), granularity=0.02)
        self.ending = Ending(join=self.served.join, contexts=self.certificates, wheel=self.wheel, memory=Budget())
        self.served.ending = self.ending
        self.declare(*(services or (self.service("photos"), self.service("other"))))

    def declare(self, *services: ServiceConfig) -> None:
        self.served.replace(ConnectorConfig(path=self.folder / "c.toml", state_dir=self.folder, services=services))
        self.ending.replace(services, ["example.com"])

    def service(self, name: str, **keys: Any) -> ServiceConfig:
        return ServiceConfig(name=name, target=Target("http", "127.0.0.1", self.target.port), tls="home", **keys)

    def context(self, *alpn: str) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=self.authority.pem)
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # set by default before Python 3.11.4
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context

    def open(self, *, service: str = "photos", kind: str = "tls", visitor: str = "203.0.113.9") -> Any:
        """A stream as a tunnel would open it; the near end."""
        near, far = stream_pair()
        request = Open(
            service=service, kind=kind, visitor=visitor, visitor_port=5, edge="192.0.2.1", edge_port=443,
            host="what-the-edge-says.example.org",
        )  # fmt: skip
        self.served.open(far, request)  # type: ignore[arg-type]
        return near

    def visit(self, name: str = HOST, *alpn: str, **keys: Any) -> Browser:
        browser = Browser(self.open(**keys), self.context(*alpn), name)
        browser.start()
        return browser

    async def get(self, browser: Browser, path: str = "/", host: str = HOST) -> str:
        before = len(browser.body)
        browser.say(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n".encode())

        def answered() -> bool:
            said = browser.body[before:]
            return said.endswith(b"]") or said.startswith(b"HTTP/1.1 4") or bool(browser.over)

        await until(answered)
        return browser.body[before:].decode()


@asynccontextmanager
async def home(folder: Path, make: Callable[[Home], tuple[ServiceConfig, ...]] | None = None) -> AsyncIterator[Home]:
    it = Home(folder)
    await it.start()
    if make is not None:
        it.declare(*make(it))
    yield it
    it.target.close()
    it.wheel.close()


@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_a_request_reaches_the_target_as_it_would_through_the_edge(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        async with home(tmp_path) as it:
            browser = it.visit()
            await until(lambda: browser.ready)
            assert browser.tls.getpeercert()["subjectAltName"] == (("DNS", HOST),)  # type: ignore[index]
            answer = await it.get(browser)
            assert "200 OK" in answer
            head = it.target.heads[0].lower()
            for line in (
                "x-forwarded-for: 203.0.113.9", "x-forwarded-proto: https", "x-forwarded-port: 443",
                f"x-forwarded-host: {HOST}", f"host: {HOST}", "x-real-ip: 203.0.113.9",
            ):  # fmt: skip
                assert f"\r\n{line}\r\n" in head, head
            assert "10.0.0.1" not in head
            await it.get(browser)
            assert it.served.total == 2, "the connection, and one stream to the target for both requests"
            assert it.certificates.asked == [(HOST, HOST)], "the visitor's word, not the edge's"
            browser.end.reset(Reason.CANCELLED)
            await until(lambda: it.served.active == 0)
            await until(lambda: it.ending.ledger.open == 0)
            assert it.ending.ledger.pending == 0

    run(main, loop=loop)


def test_another_host_than_the_names_is_misdirected(tmp_path: Path) -> None:
    async def main() -> None:
        async with home(tmp_path) as it:
            browser = it.visit()
            await until(lambda: browser.ready)
            assert "421 " in await it.get(browser, host="other.example.com")
            assert not it.target.heads
            browser.end.reset(Reason.CANCELLED)

    run(main)


@pytest.mark.parametrize(
    ("name", "alpn", "alert", "reason"),
    [
        ("unknown.example.com", (), b"\x02\x70", Reason.NAME_UNKNOWN),
        ("what-the-edge-says.example.org", (), b"\x02\x70", Reason.NAME_UNKNOWN),
        (HOST, ("smtp",), b"\x02\x78", Reason.ALPN_UNKNOWN),
        (HOST, ("acme-tls/1",), b"\x02\x78", Reason.ALPN_UNKNOWN),
    ],
)
def test_alerts(tmp_path: Path, name: str, alpn: tuple[str, ...], alert: bytes, reason: Reason) -> None:
    async def main() -> None:
        async with home(tmp_path) as it:
            browser = it.visit(name, *alpn)
            assert browser.raw == b"\x15\x03\x03\x00\x02" + alert
            assert browser.over == "finished"
            assert it.ending.counters.refused(reason) == 1
            assert not it.certificates.asked
            assert it.served.active == 0
            assert browser.end.queued == 0, "all was credited, or the stream would outlive its session"

    run(main)


def test_a_name_without_a_certificate_is_told_so(tmp_path: Path) -> None:
    async def main() -> None:
        async with home(tmp_path, lambda it: (it.service("bare"),)) as it:
            browser = it.visit("bare.example.com", service="bare")
            await until(lambda: browser.over)
            assert browser.raw == b"\x15\x03\x03\x00\x02\x02\x50"
            assert it.served.active == 0

    run(main)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x00", b"\x80\x2e\x01"])
def test_what_is_not_tls_never_reaches_a_target(tmp_path: Path, data: bytes) -> None:
    async def main() -> None:
        async with home(tmp_path) as it:
            browser = Browser(it.open(), it.context(), HOST)
            browser.end.write(data)
            assert browser.raw == b"\x15\x03\x03\x00\x02\x02\x2f"
            assert it.served.active == 0
            assert not it.target.heads

    run(main)


def test_a_lying_edge(tmp_path: Path) -> None:
    async def main() -> None:
        async with home(tmp_path) as it:
            for keys in (
                {"kind": "http"}, {"kind": "tcp"}, {"visitor": "203.0.113.9\r\nX-Admin: yes"}, {"visitor": ""},
                {"service": "none"},
            ):  # fmt: skip
                browser = Browser(it.open(**keys), it.context(), HOST)
                assert browser.end.closed, keys
            assert it.served.active == 0
            assert it.served.join(stream_pair()[0], Open(service="none")) is Reason.WITHDRAWN

    run(main)


def test_services_of_one_host_are_told_apart_by_path_at_home(tmp_path: Path) -> None:
    def services(it: Home) -> tuple[ServiceConfig, ...]:
        albums = it.service("albums", host=(HOST,), path="/albums", strip_path=True)
        closed = it.service("closed", host=(HOST,), path="/closed", allow_from=("198.51.100.0/24",))
        return it.service("photos"), albums, closed

    async def main() -> None:
        async with home(tmp_path, services) as it:
            browser = it.visit(service="photos")
            await until(lambda: browser.ready)
            await it.get(browser, "/one")
            await it.get(browser, "/albums/two")
            assert "403 " in await it.get(browser, "/closed")
            assert [head.split(" ")[1] for head in it.target.heads] == ["/one", "/two"]
            insider = it.visit(service="albums", visitor="198.51.100.7")
            await until(lambda: insider.ready)
            assert "200 " in await it.get(insider, "/closed")
            it.declare(it.service("photos"))
            assert "200 " in await it.get(browser, "/albums/three"), "now a path of the other service"
            assert it.target.heads[-1].split(" ")[1] == "/albums/three"
            for one in (browser, insider):
                one.end.reset(Reason.CANCELLED)
            await until(lambda: it.served.active == 0)

    run(main)


def test_the_answer_to_a_challenge(tmp_path: Path) -> None:
    async def main() -> None:
        async with home(tmp_path) as it:
            pair = it.authority.write(tmp_path, HOST, stem="challenge")
            it.certificates.challenges[HOST] = tls.visitor_context(*pair, alpn=("acme-tls/1",))
            validator = it.visit(HOST, "acme-tls/1")
            await until(lambda: validator.ready)
            assert validator.tls.selected_alpn_protocol() == "acme-tls/1"
            await until(lambda: validator.over)
            validator.end.finish()
            await until(lambda: it.served.active == 0 and it.ending.ledger.open == 0)

    run(main)


def test_a_visitor_who_leaves_while_its_certificate_is_made(tmp_path: Path) -> None:
    async def main() -> None:
        async with home(tmp_path) as it:
            it.certificates.gate = asyncio.Event()
            browser = it.visit()
            await until(lambda: it.certificates.asked)
            browser.end.reset(Reason.CANCELLED)
            assert it.served.active == 0
            patient = it.visit()
            it.certificates.gate.set()
            await until(lambda: patient.ready)
            assert it.ending.ledger.open == 1
            patient.end.reset(Reason.CANCELLED)
            await until(lambda: it.ending.ledger.open == 0)

    run(main)


def test_half_a_hello_is_cut_at_its_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELLO_SECONDS", 0.05)

    async def main() -> None:
        async with home(tmp_path) as it:
            browser = Browser(it.open(), it.context(), HOST)
            browser.end.write(b"\x16\x03\x01\x02")
            await until(lambda: browser.over)
            assert browser.over is Reason.HELLO_TIMEOUT
            assert it.served.active == 0

    run(main)


def test_limits_hold_here_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with home(tmp_path) as it:
            it.ending.ledger.limit = 1
            first = it.visit()
            await until(lambda: first.ready)
            second = it.visit()
            await until(lambda: second.over)
            assert second.over is Reason.CONNECTION_LIMIT
            other = it.visit(visitor="203.0.113.10")
            await until(lambda: other.ready)
            it.ending.ledger.open_limit = 2
            third = it.visit(visitor="203.0.113.11")
            await until(lambda: third.ready)
            await until(lambda: first.over)
            assert it.ending.counters.refused(Reason.MADE_ROOM) == 1, "who was idle longest"
            await until(lambda: it.ending.ledger.open == 2)
            await until(lambda: len(it.ending.ledger.resting) == 2)  # who is ready here may not be there yet
            for sock in tuple(it.ending.ledger.resting):
                sock.work()
            fourth = it.visit(visitor="203.0.113.12")
            await until(lambda: fourth.over)
            assert fourth.over is Reason.DESCRIPTORS
            other.end.reset(Reason.CANCELLED)
            third.end.reset(Reason.CANCELLED)
            await until(lambda: it.ending.ledger.open == 0)
            await until(lambda: it.served.active == 0)  # a moment for goodbyes

    run(main)


def test_a_broken_response_does_not_end_like_a_complete_one(tmp_path: Path) -> None:
    """To an HTTP/1.0 visitor only TLS can say so: by the goodbye that is missing."""

    async def main() -> None:
        async with home(tmp_path) as it:
            server = await asyncio.start_server(half_an_answer, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            it.declare(ServiceConfig(name="photos", target=Target("http", "127.0.0.1", port), tls="home"))
            browser = it.visit()
            await until(lambda: browser.ready)
            browser.say(f"GET / HTTP/1.0\r\nHost: {HOST}\r\n\r\n".encode())
            await until(lambda: browser.over)
            assert browser.body.endswith(b"half of it")
            assert isinstance(browser.error, ssl.SSLError)  # SSLEOFError from Python 3.11.4 on
            assert browser.error.reason == "UNEXPECTED_EOF_WHILE_READING"
            server.close()
            it.declare(it.service("photos"))
            whole = it.visit()
            await until(lambda: whole.ready)
            whole.say(f"GET / HTTP/1.0\r\nHost: {HOST}\r\n\r\n".encode())
            await until(lambda: whole.over)
            assert isinstance(whole.error, ssl.SSLZeroReturnError | None), whole.error
            await until(lambda: it.served.active == 0)

    run(main)


def test_idle_connections_end_when_the_connector_stops(tmp_path: Path) -> None:
    async def main() -> None:
        async with home(tmp_path) as it:
            browser = it.visit()
            await until(lambda: browser.ready)
            await it.get(browser)
            it.ending.gateway.drain()
            await until(lambda: browser.over)
            browser.end.finish()
            await until(lambda: it.served.active == 0)

    run(main)


def test_hosts() -> None:
    target = Target("http", "127.0.0.1", 80)
    service = ServiceConfig(name="photos", target=target, tls="home")
    assert hosts_of(service, ["example.com", "Example.NET", "bad\r\n", ""]) == [HOST, "photos.example.net"]
    assert hosts_of(ServiceConfig(name="x", target=target, host=("h.example.com",)), ["example.com"]) == [
        "h.example.com"
    ]
