"""The HTTP proxy with a far side on this machine."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING

import pytest

from tests.connector.athome import LOOPS, run, until
from tests.visitor.fakes import FakeReach
from tunnelgw.config.model import Endpoint
from tunnelgw.errors import OriginError, Refused
from tunnelgw.obs.reasons import Reason
from tunnelgw.visitor import httpproxy
from tunnelgw.visitor.httpproxy import http_server
from tunnelgw.visitor.local import SAID_MOST

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tunnelgw.errors import TunnelgwError
    from tunnelgw.visitor.local import LocalServer

Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Web:
    """A web server that says what it is told to, whatever it is asked; what it was sent is kept."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.received: list[bytearray] = []
        self.wait: asyncio.Event | None = None
        self.port = 0

    async def listen(self) -> Web:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got = bytearray()
        self.received.append(got)
        while b"\r\n\r\n" not in got:
            data = await reader.read(65536)
            if not data:
                writer.close()
                return
            got += data
        if self.wait is not None:
            writer.write(self.answers[0])
            while (data := await reader.read(65536)) and not self.wait.is_set():
                got += data
        else:
            writer.write(self.answers.pop(0) if self.answers else OK)
        writer.close()


class Place:
    """A proxy, its far side and a web server there."""

    def __init__(self) -> None:
        self.web = Web()
        self.port = 0
        self.pac: Callable[[str], bytes] = lambda proxy: f"for {proxy}".encode()

    async def start(self, most: int, users: dict[bytes, bytes] | None) -> Place:
        await self.web.listen()
        self.reach = FakeReach(nas=("127.0.0.1", self.web.port))
        self.server: LocalServer = http_server(self.reach, lambda proxy: self.pac(proxy), users=users, most=most)
        self.port = await self.server.listen(Endpoint("127.0.0.1", 0), "--http")
        return self

    async def dial(self) -> Peer:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, sent: bytes, *, step: int = 100_000) -> bytes:
        """Everything that is answered on one connection."""
        reader, writer = await self.dial()
        for start in range(0, len(sent), step):
            writer.write(sent[start : start + step])
            await writer.drain()
            await asyncio.sleep(0)
        try:
            return await reader.read()
        finally:
            writer.close()


def with_place(
    test: Callable[[Place], Awaitable[None]],
    *,
    loop: str = "uvloop",
    most: int = 0,
    users: dict[bytes, bytes] | None = None,
) -> None:
    async def main() -> None:
        place = await Place().start(most, users)
        try:
            await test(place)
        finally:
            place.server.close()
            place.web.server.close()
            await until(lambda: not place.server.clients)

    run(main, loop=loop)


def get(path: bytes = b"/", *, host: bytes = b"nas.lan", more: bytes = b"", method: bytes = b"GET") -> bytes:
    return method + b" http://" + host + path + b" HTTP/1.1\r\nHost: " + host + b"\r\n" + more + b"\r\n"


@pytest.mark.parametrize("loop", sorted(LOOPS))
@pytest.mark.parametrize("step", [1, 100_000])
def test_requests_are_written_anew_in_origin_form(loop: str, step: int) -> None:
    async def test(place: Place) -> None:
        fields = (
            b"User-Agent: me\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic c2VjcmV0\r\n"
            b"X-Private: 1\r\nConnection: close, X-Private\r\nTE: trailers\r\nX-Forwarded-For: 10.0.0.1\r\n"
        )
        answer = await place.ask(get(b"/a?b=c", host=b"nas.lan:8080", more=fields), step=step)
        assert place.reach.asked == [("nas.lan", 8080)]
        assert bytes(place.web.received[0]) == (
            b"GET /a?b=c HTTP/1.1\r\nhost: nas.lan:8080\r\nuser-agent: me\r\nx-forwarded-for: 10.0.0.1\r\n"
            b"connection: close\r\n\r\n"
        )
        assert answer == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"

    with_place(test, loop=loop)


@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_a_connection_serves_one_request_after_another(loop: str) -> None:
    async def test(place: Place) -> None:
        place.web.answers = [
            OK,
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: keep-alive\r\n\r\n2\r\nab\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
            b"HTTP/1.1 204 No Content\r\n\r\n",
        ]
        reader, writer = await place.dial()
        for answer in (
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nd\r\nuntil the end\r\n0\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\n\r\n",
        ):
            writer.write(get())
            assert await reader.readexactly(len(answer)) == answer
        writer.close()
        pipelined = get() + get(b"/2") + get(more=b"Connection: close\r\n")
        assert (await place.ask(pipelined)).count(b"200 OK") == 3
        assert len(place.reach.asked) == 7

    with_place(test, loop=loop)


def test_bodies_go_up_as_they_are_framed() -> None:
    async def test(place: Place) -> None:
        for body, more in (
            (b"hello", b"Content-Length: 5\r\n"),
            (b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", b"Transfer-Encoding: chunked\r\n"),
        ):
            place.web.received.clear()
            place.web.wait = asyncio.Event()
            place.web.answers = [b""]
            reader, writer = await place.dial()
            writer.write(get(more=more, method=b"POST"))
            await until(lambda: place.web.received)
            for byte in body:
                writer.write(bytes([byte]))
                await writer.drain()
            await until(lambda: place.web.received[0].endswith((b"hello", b"0\r\n\r\n")))
            head, _, sent = bytes(place.web.received[0]).partition(b"\r\n\r\n")
            assert more.strip().lower() in head
            assert sent == b"hello" or sent.replace(b"\r\n", b"").translate(None, b"0123456789") == b"hello"
            writer.close()
            del reader

    with_place(test)


def test_continue_is_asked_for_and_passed_on() -> None:
    async def test(place: Place) -> None:
        place.web.wait = asyncio.Event()
        place.web.answers = [b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n"]
        reader, writer = await place.dial()
        writer.write(get(more=b"Content-Length: 5\r\nExpect: 100-continue\r\n", method=b"PUT"))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert b"expect: 100-continue" in place.web.received[0]
        writer.write(b"hello")
        await until(lambda: place.web.received[0].endswith(b"hello"))
        writer.close()

    with_place(test)


@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_connect_hands_the_connection_over(loop: str) -> None:
    async def test(place: Place) -> None:
        for request in (
            b"CONNECT nas.lan:443 HTTP/1.1\r\nHost: nas.lan:443\r\nUser-Agent: me\r\n\r\n",
            b"CONNECT nas.lan:443 HTTP/1.0\r\n\r\n",
            b"CONNECT nas.lan:443 HTTP/1.1\r\nHost: nas.lan\r\nContent-Length: 0\r\n\r\n",
        ):
            answer = await place.ask(request + b"not HTTP\x00\xff\r\n\r\n")
            assert answer == b"HTTP/1.1 200 Connection established\r\n\r\n" + OK
            assert bytes(place.web.received.pop()) == b"not HTTP\x00\xff\r\n\r\n"
        assert set(place.reach.asked) == {("nas.lan", 443)}

    with_place(test, loop=loop)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Refused("no", reason=Reason.ADDRESS_REFUSED), b"403 Forbidden"),
        (Refused("no", reason=Reason.CLAIM_NOT_GRANTED), b"403 Forbidden"),
        (OriginError("no", reason=Reason.TARGET_REFUSED), b"502 Bad Gateway"),
        (OriginError("no", reason=Reason.TARGET_UNRESOLVED), b"502 Bad Gateway"),
        (OriginError("no", reason=Reason.TARGET_TIMEOUT), b"504 Gateway Timeout"),
        (OriginError("no", reason=Reason.CONNECTOR_AWAY), b"503 Service Unavailable"),
    ],
)
def test_failures_are_pages(error: TunnelgwError, status: bytes) -> None:
    async def test(place: Place) -> None:
        place.reach.error = error
        for request in (get(more=b"Accept: text/html\r\n"), b"CONNECT nas.lan:443 HTTP/1.1\r\nHost: nas.lan\r\n\r\n"):
            answer = await place.ask(request)
            assert answer.startswith(b"HTTP/1.1 " + status + b"\r\n")
            assert b"\r\nconnection: close\r\n" in answer
            assert (b"<!doctype html>" in answer) == (b"text/html" in request)

    with_place(test)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"421"),
        (b"GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", b"400"),
        (b"GET https://nas.lan/ HTTP/1.1\r\nHost: nas.lan\r\n\r\n", b"400"),
        (b"GET ftp://nas.lan/ HTTP/1.1\r\nHost: nas.lan\r\n\r\n", b"400"),
        (b"GET http://nas.lan/../etc HTTP/1.1\r\nHost: nas.lan\r\n\r\n", b"400"),
        (b"GET http://me@nas.lan/ HTTP/1.1\r\nHost: nas.lan\r\n\r\n", b"400"),
        (b"GET http://0x7f.1/ HTTP/1.1\r\nHost: 0x7f.1\r\n\r\n", b"400"),
        (b"GET http://2130706433/ HTTP/1.1\r\nHost: 2130706433\r\n\r\n", b"400"),
        (b"TRACE http://nas.lan/ HTTP/1.1\r\nHost: nas.lan\r\n\r\n", b"405"),
        (b"CONNECT nas.lan HTTP/1.1\r\nHost: nas.lan\r\n\r\n", b"400"),
        (b"CONNECT nas.lan:0 HTTP/1.1\r\nHost: nas.lan\r\n\r\n", b"400"),
        (b"CONNECT http://nas.lan:80 HTTP/1.1\r\nHost: nas.lan\r\n\r\n", b"400"),
        (b"CONNECT 127.1:80 HTTP/1.1\r\nHost: 127.1\r\n\r\n", b"400"),
        (b"CONNECT nas.lan:80 HTTP/1.1\r\nHost: nas.lan\r\nContent-Length: 5\r\n\r\nhello", b"400"),
        (b"CONNECT nas.lan:80 HTTP/1.1\r\nHost: nas.lan\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
        (get(more=b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", method=b"POST"), b"400"),
        (get(more=b"Content-Length: 5\r\nContent-Length: 6\r\n", method=b"POST"), b"400"),
        (get(more=b"X : y\r\n"), b"400"),
        (get(more=b"X: y\r\n folded\r\n"), b"400"),
        (b"GET http://nas.lan/ HTTP/1.1\nHost: nas.lan\n\n", b"400"),
        (b"GET http://nas.lan/ HTTP/2.0\r\nHost: nas.lan\r\n\r\n", b"505"),
        (b"\x05\x01\x00", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
        (get(more=b"X: " + b"y" * 40_000 + b"\r\n"), b"431"),
    ],
)
def test_what_is_ambiguous_or_not_served_is_refused_and_nothing_dialled(sent: bytes, status: bytes) -> None:
    async def test(place: Place) -> None:
        answer = await place.ask(sent + get())  # what follows a refusal is not served either
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert answer.count(b"HTTP/1.1") == 1
        assert not place.reach.asked

    with_place(test)


def test_the_pac_file_of_port_80_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients leave that port out."""
    monkeypatch.setattr(httpproxy.ProxyClient, "_is_here", lambda *_: True)

    async def test(place: Place) -> None:
        for host, named in (("127.0.0.1", b"127.0.0.1:80"), ("[::1]", b"[::1]:80")):
            answer = await place.ask(f"GET /proxy.pac HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert answer.endswith(b"for " + named)

    with_place(test)


def test_the_pac_file_is_for_who_names_this_address() -> None:
    async def test(place: Place) -> None:
        port = place.port
        for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
            request = f"GET /proxy.pac HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
            answer = await place.ask(request)
            head, _, body = answer.partition(b"\r\n\r\n")
            assert body == f"for {host}".encode()
            assert b"content-type: application/x-ns-proxy-autoconfig" in head
            assert (await place.ask(request.replace(b"GET", b"HEAD"))).endswith(b"\r\n\r\n")
        # A name of a hostile page that means 127.0.0.1, another address, another port, none.
        for host in (f"evil.example:{port}", f"127.0.0.2:{port}", "127.0.0.1:1", "127.0.0.1", f"0x7f.1:{port}", ""):
            answer = await place.ask(f"GET /proxy.pac HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 421")
            assert b"for " not in answer.partition(b"\r\n\r\n")[2][:4]
        here = f"Host: 127.0.0.1:{port}\r\n\r\n".encode()
        assert (await place.ask(b"GET / HTTP/1.1\r\n" + here)).startswith(b"HTTP/1.1 404")
        assert (await place.ask(b"POST /proxy.pac HTTP/1.1\r\n" + here)).startswith(b"HTTP/1.1 405")
        assert (await place.ask(b"OPTIONS * HTTP/1.1\r\n" + here)).startswith(b"HTTP/1.1 405")
        assert not place.reach.asked

    with_place(test)


def test_no_pac_file_before_it_is_known_what_it_says() -> None:
    """A browser keeps the one that it has; one without networks would send home's names out."""

    async def test(place: Place) -> None:
        def unknown(proxy: str) -> bytes:
            raise Refused("not yet", reason=Reason.CONNECTOR_AWAY)

        place.pac = unknown
        answer = await place.ask(f"GET /proxy.pac HTTP/1.1\r\nHost: 127.0.0.1:{place.port}\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"proxy-autoconfig" not in answer

    with_place(test)


def basic(login: bytes) -> bytes:
    return b"Proxy-Authorization: Basic " + base64.b64encode(login) + b"\r\n"


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"", b"407"), (basic(b"anna:wrong"), b"407"), (basic(b"bert:secret"), b"407"), (basic(b"anna"), b"407"),
        (b"Proxy-Authorization: Basic !\r\n", b"407"), (b"Proxy-Authorization: Bearer x\r\n", b"407"),
        (b"Authorization: Basic YW5uYTpzOmVjcmV0\r\n", b"407"), (basic(b"anna:s:ecret") * 2, b"407"),
        (basic(b"anna:s:ecret"), b"200"), (basic(b"anna:s:ecret").replace(b"Basic", b"bAsIc "), b"200"),
    ],
)  # fmt: skip
def test_a_login(said: bytes, status: bytes) -> None:
    async def test(place: Place) -> None:
        for sent in (get(more=said), b"CONNECT nas.lan:80 HTTP/1.1\r\nHost: nas.lan:80\r\n" + said + b"\r\n"):
            reader, writer = await place.dial()
            writer.write(sent)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 " + status), head
            assert (b"proxy-authenticate: Basic" in head) is (status == b"407")
            writer.close()
        assert bool(place.reach.asked) is (status == b"200")
        assert all(b"roxy-auth" not in got.lower() for got in place.web.received), "it is for the proxy alone"
        pac = await place.ask(f"GET /proxy.pac HTTP/1.1\r\nHost: 127.0.0.1:{place.port}\r\n\r\n".encode())
        assert pac.startswith(b"HTTP/1.1 200")

    with_place(test, users={b"anna": b"s:ecret"})


def test_why_something_is_not_reached_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    why = "home shows another key than before (...): run here: tunnelgw forget home"

    async def test(place: Place) -> None:
        place.reach.error = Refused(why, reason=Reason.KEY_CHANGED)
        for host in (b"nas.lan", b"nas.lan", b"printer.lan", b"nas.lan"):
            answer = await place.ask(get(host=host, more=b"Accept: text/html\r\n"))
            assert answer.startswith(b"HTTP/1.1 403")
            assert b"Another key than before" in answer
        place.reach.error = OriginError("it has no address", reason=Reason.TARGET_UNRESOLVED)
        await place.ask(get())
        for number in range(2 * SAID_MOST):
            await place.ask(get(host=b"h%d.lan" % number))
        lines = [record.getMessage() for record in caplog.records]
        assert lines[:3] == [
            f"nas.lan port 80 was not reached: {why}",
            f"printer.lan port 80 was not reached: {why}",
            "nas.lan port 80 was not reached: it has no address",
        ]
        assert len(lines) == SAID_MOST

    with_place(test)


def test_the_proxy_does_not_lead_to_itself() -> None:
    async def test(place: Place) -> None:
        for host in (b"127.0.0.1:%d" % place.port, b"localhost:%d" % place.port):
            assert (await place.ask(get(b"/proxy.pac", host=host))).startswith(b"HTTP/1.1 403")
            connect = b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (host, host)
            assert (await place.ask(connect)).startswith(b"HTTP/1.1 403")
        assert not place.reach.asked

    with_place(test)


def test_a_response_that_is_cut_never_looks_whole() -> None:
    async def test(place: Place) -> None:
        for answer in (
            b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        ):
            place.web.answers = [answer]
            reader, writer = await place.dial()
            writer.write(get())
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await reader.readuntil(b"0\r\n\r\n" if b"chunked" in answer else b"never")
            writer.close()

    with_place(test)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"", b"502"), (b"HTTP/1.1 200", b"502"), (b"nonsense\r\n\r\n", b"502"),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", b"502"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", b"502"),
        (b"HTTP/1.1 102 Processing\r\n\r\n" * 40, b"502"),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_a_page(answer: bytes, status: bytes) -> None:
    async def test(place: Place) -> None:
        place.web.answers = [answer]
        assert (await place.ask(get())).startswith(b"HTTP/1.1 " + status)

    with_place(test)


def test_heads_and_pauses_have_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnelgw.visitor.local.HEAD_SECONDS", 0.1)
    monkeypatch.setattr("tunnelgw.visitor.httpproxy.IDLE_SECONDS", 0.1)
    monkeypatch.setattr("tunnelgw.visitor.httpproxy.LINGER_SECONDS", 0.1)

    async def test(place: Place) -> None:
        assert (await place.ask(b"GET http://nas.lan/ HT")).startswith(b"HTTP/1.1 408")
        assert await place.ask(b"") == b""
        assert (await place.ask(get())).endswith(b"ok")
        await until(lambda: not place.server.clients)

    with_place(test)


@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_who_does_not_read_holds_the_far_side_up(loop: str) -> None:
    async def test(place: Place) -> None:
        written = 0

        async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal written
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            try:
                while written < 256 << 20:
                    writer.write(bytes(65536))
                    written += 65536
                    await writer.drain()
            except ConnectionError:
                pass
            writer.close()

        source = await asyncio.start_server(pour, "127.0.0.1", 0)
        place.reach.names["source"] = ("127.0.0.1", source.sockets[0].getsockname()[1])
        reader, writer = await place.dial()
        writer.write(get(host=b"source"))
        await reader.readuntil(b"\r\n\r\n")
        before = -1
        while before != written:  # the kernel's buffers are full, and ours
            before = written
            await asyncio.sleep(0.3)
        assert written < 64 << 20
        writer.transport.abort()
        await until(lambda: not place.server.clients)
        source.close()

    with_place(test, loop=loop)


def test_who_leaves_takes_the_request_along() -> None:
    async def test(place: Place) -> None:
        place.web.wait = asyncio.Event()
        place.web.answers = [b""]
        _, writer = await place.dial()
        writer.write(get())
        await until(lambda: place.web.received)
        writer.transport.abort()
        await until(lambda: place.reach.transports[0].is_closing() and not place.server.clients)

    with_place(test)


def test_there_is_room_for_so_many() -> None:
    async def test(place: Place) -> None:
        _, kept = await place.dial()
        await until(lambda: len(place.server.clients) == 1)
        reader, writer = await place.dial()
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        for each in (kept, writer):
            each.close()

    with_place(test, most=1)
